//! Connections to the leader.

use std::fmt;
use std::task::{Context, Poll};

use futures_util::future::poll_fn;
use tower::Service;

use super::{Readiness, ResponseFuture, WriteRequest};
use crate::client::Client;
use crate::error::CheckoutError;
use crate::pool::{Deadline, LeaderPool};

/// [`LeaderPool::write`] as a service; see the [module](super) for what it is ready by.
///
/// ```no_run
/// use std::time::Duration;
/// use leaderpool::LeaderPool;
/// use leaderpool::service::WriteRequest;
/// use tokio::time::timeout;
/// use tower::Service;
///
/// # async fn example(pool: LeaderPool) -> Result<(), Box<dyn std::error::Error>> {
/// let mut writes = pool.write_service();
/// let client = match timeout(Duration::from_secs(30), writes.ready()).await {
///     Ok(ready) => ready?.call(WriteRequest::new()).await?,
///     Err(_) => return Err("no leader for half a minute".into()),
/// };
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct WriteService {
    pool: LeaderPool,
    readiness: Readiness,
}

impl WriteService {
    pub(super) fn new(pool: &LeaderPool) -> Self {
        Self { pool: pool.clone(), readiness: Readiness::of_writes(pool) }
    }

    /// Waits until it is ready, without an end of its own. Cancel-safe: dropped, the service keeps its place in the
    /// queue, and can be asked again.
    ///
    /// # Errors
    /// [`CheckoutError::Closed`] where the pool is.
    pub async fn ready(&mut self) -> Result<&mut Self, CheckoutError> {
        poll_fn(|cx| self.readiness.poll(&self.pool, cx)).await?;
        Ok(self)
    }

    /// Whether a service that asked now would be ready at once. Takes no place in the queue.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.readiness.is_given(&self.pool)
    }
}

impl fmt::Debug for WriteService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteService").field("pool", &self.pool).finish_non_exhaustive()
    }
}

impl Service<WriteRequest> for WriteService {
    type Response = Client;
    type Error = CheckoutError;
    type Future = ResponseFuture<Client, CheckoutError>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CheckoutError>> {
        self.readiness.poll(&self.pool, cx)
    }

    fn call(&mut self, request: WriteRequest) -> Self::Future {
        let (pool, turn) = (self.pool.clone(), self.readiness.take());
        let limit = request.within.unwrap_or_else(|| pool.write_timeout());
        let deadline = Deadline::within(limit);
        ResponseFuture::new(async move { pool.write_let_go(&deadline, turn).await })
    }
}
