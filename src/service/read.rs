//! Connections for reading.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use futures_util::future::poll_fn;
use tokio::time::Instant;
use tower::Service;

use super::{ReadRequest, Readiness, ResponseFuture};
use crate::client::Client;
use crate::error::CheckoutError;
use crate::pool::{Deadline, LeaderPool, Shared};
use crate::routing::{ReadChoice, ReadPolicy, choose_read};

/// [`LeaderPool::read_with`] as a service; see the [module](super) for what it is ready by.
///
/// Whether a replica has what a token asks for is found out by the call: under a policy with a token the service is
/// ready as under [`ReadPolicy::any`].
#[derive(Clone)]
pub struct ReadService {
    pool: LeaderPool,
    policy: ReadPolicy,
    readiness: Readiness,
}

impl ReadService {
    pub(super) fn new(pool: &LeaderPool, policy: ReadPolicy) -> Self {
        let readiness = Readiness::of_reads(pool, &policy);
        Self { pool: pool.clone(), policy, readiness }
    }

    /// Waits until it is ready, without an end of its own. Cancel-safe.
    ///
    /// # Errors
    /// [`CheckoutError::Closed`] where the pool is.
    pub async fn ready(&mut self) -> Result<&mut Self, CheckoutError> {
        poll_fn(|cx| self.readiness.poll(&self.pool, cx)).await?;
        Ok(self)
    }

    /// Whether a service that asked now would be ready at once.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.readiness.is_given(&self.pool)
    }
}

impl fmt::Debug for ReadService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadService")
            .field("pool", &self.pool)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl Service<ReadRequest> for ReadService {
    type Response = Client;
    type Error = CheckoutError;
    type Future = ResponseFuture<Client, CheckoutError>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CheckoutError>> {
        self.readiness.poll(&self.pool, cx)
    }

    fn call(&mut self, request: ReadRequest) -> Self::Future {
        let (pool, turn) = (self.pool.clone(), self.readiness.take());
        let policy = request.policy.unwrap_or_else(|| self.policy.clone());
        let limit = request.within.unwrap_or(pool.shared.config.pool.read_timeout);
        let deadline = Deadline::within(limit);
        ResponseFuture::new(async move { pool.read_let_go(&policy, &deadline, turn).await })
    }
}

/// Waits for a member that qualifies under a policy; nothing is kept in the pool for it.
pub(super) struct Readers {
    shared: Arc<Shared>,
    policy: ReadPolicy,
    /// Ends when a member qualifies, or the pool is closed.
    change: Option<Pin<Box<dyn Future<Output = ()> + Send + Sync>>>,
}

impl Readers {
    pub(super) fn new(shared: &Arc<Shared>, policy: &ReadPolicy) -> Self {
        Self { shared: Arc::clone(shared), policy: policy.clone(), change: None }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CheckoutError>> {
        loop {
            if self.shared.closed.load(Ordering::SeqCst) {
                return Poll::Ready(Err(CheckoutError::Closed));
            }
            // Always by what is so now: a member that qualified when the task was woken may be gone.
            if self.is_given() {
                self.change = None;
                return Poll::Ready(Ok(()));
            }
            let change = self.change.get_or_insert_with(|| {
                Box::pin(until_given(Arc::clone(&self.shared), self.policy.clone()))
            });
            ready!(change.as_mut().poll(cx));
            self.change = None;
        }
    }

    pub(super) fn is_given(&self) -> bool {
        is_given(&self.shared, &self.policy)
    }

    pub(super) fn take(&mut self) {
        self.change = None;
    }
}

impl Clone for Readers {
    fn clone(&self) -> Self {
        Self::new(&self.shared, &self.policy)
    }
}

async fn until_given(shared: Arc<Shared>, policy: ReadPolicy) {
    // Before the first look, so that no change falls between the two.
    let mut changed = shared.changed.subscribe();
    while !shared.closed.load(Ordering::SeqCst) && !is_given(&shared, &policy) {
        if changed.changed().await.is_err() {
            return;
        }
    }
}

fn is_given(shared: &Shared, policy: &ReadPolicy) -> bool {
    let now = Instant::now();
    // A bound is met by frequent probes alone, and those are made where somebody asks for it.
    shared.want_fresh(policy, now);
    match choose_read(&shared.view.load(), policy, &[], |_| true, now) {
        // A breaker keeps reads off a member only as long as they have anywhere else to go.
        ReadChoice::Replicas { .. } => true,
        ReadChoice::Leader => shared.target.load().is_some(),
        ReadChoice::Wait(_) | ReadChoice::Refuse(_) => false,
    }
}
