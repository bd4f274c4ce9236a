//! Transactions.

use std::fmt;
use std::task::{Context, Poll};

use futures_util::future::poll_fn;
use tower::Service;

use super::{Readiness, ResponseFuture, TxRequest};
use crate::error::CheckoutError;
use crate::failure::{OperationError, TransactionError};
use crate::pool::LeaderPool;
use crate::tx::{Committed, Run, Tx, TxOptions};

/// [`LeaderPool::transaction_with`] as a service; see the [module](super) for what it is ready by.
///
/// It takes any closure that the method takes, so that one stack of layers serves them all. The price is that
/// `ready` of tower's `ServiceExt` cannot tell for which of them it is asked: use
/// [`ready`](Self::ready) here, and `oneshot` on a stack.
#[derive(Clone)]
pub struct TransactionService {
    pool: LeaderPool,
    options: TxOptions,
    readiness: Readiness,
}

impl TransactionService {
    pub(super) fn new(pool: &LeaderPool, options: TxOptions) -> Self {
        let readiness = match &options.read {
            Some(policy) => Readiness::of_reads(pool, policy),
            None => Readiness::of_writes(pool),
        };
        Self { pool: pool.clone(), options, readiness }
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

impl fmt::Debug for TransactionService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionService")
            .field("pool", &self.pool)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl<F, Fut, T, E> Service<TxRequest<F>> for TransactionService
where
    F: FnMut(Tx) -> Fut + Send + 'static,
    Fut: Future<Output = Result<T, E>> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    type Response = Committed<T>;
    type Error = TransactionError<E>;
    type Future = ResponseFuture<Committed<T>, TransactionError<E>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransactionError<E>>> {
        let ready = self.readiness.poll(&self.pool, cx);
        ready.map_err(|error| TransactionError::Failed(OperationError::checkout(error)))
    }

    fn call(&mut self, request: TxRequest<F>) -> Self::Future {
        let (pool, turn) = (self.pool.clone(), self.readiness.take());
        let mut options = self.options.clone();
        options.within = request.within.or(options.within);
        // Its deadline begins now, not when the future is first polled.
        let deadline = Run::deadline(&pool, &options);
        ResponseFuture::new(async move {
            let run = Run::until(&pool, &options, deadline).let_go(turn);
            run.transaction(request.work).await
        })
    }
}
