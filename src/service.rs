//! The pool as [`tower::Service`]s, for stacks of tower's layers.
//!
//! | service | request | response |
//! |---|---|---|
//! | [`WriteService`] | [`WriteRequest`] | a [`Client`](crate::Client) on the leader |
//! | [`ReadService`] | [`ReadRequest`] | a [`Client`](crate::Client) where the policy says |
//! | [`TransactionService`] | [`TxRequest`]: a closure, as [`LeaderPool::transaction`] takes it | [`Committed`](crate::Committed) |
//!
//! ```no_run
//! use leaderpool::service::TxRequest;
//! use leaderpool::{LeaderPool, OperationError, TxOptions};
//! use tower::{ServiceBuilder, ServiceExt};
//!
//! # async fn example(pool: LeaderPool) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
//! // Eight transactions at once; refused at once while there is no leader, or while eight are busy.
//! let imports = ServiceBuilder::new()
//!     .load_shed()
//!     .concurrency_limit(8)
//!     .service(pool.transaction_service(TxOptions::new()));
//!
//! let request = TxRequest::new(|tx| async move {
//!     tx.execute("INSERT INTO events (kind) VALUES ($1)", &[&"import"]).await?;
//!     Ok::<_, OperationError>(())
//! });
//! let committed = imports.clone().oneshot(request).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Readiness
//!
//! `poll_ready` says whether a call would be served without waiting for a member:
//!
//! - **Ready**: a leader is admitted and nobody queues for it; for reads, a member qualifies under the policy.
//!   It is not a promise of a free connection (bound the callers by a concurrency limit for that), and
//!   neither can it promise that the leader lives on: then the call waits as [`LeaderPool::write`] does.
//! - **Pending**: there is none. The service then stands in the queue of the held writes, like any writer
//!   (it counts in the report's `held`), and is woken in its turn: after a failover the ramp lets services and
//!   writers go in the order in which they came, and one that is ready by its turn keeps that turn for one
//!   call. Where `pool.max_waiting` writers wait already they are refused, but a service, which has no call in
//!   hand yet, stands behind them: one of at most as many again. Beyond even that `poll_ready` is ready, and
//!   the call is refused at once with [`CheckoutError::TooManyWaiting`]. Reads are woken when the view
//!   of the cluster changes.
//! - **Error**: the pool is closed. Nothing that passes is an error here, since a `Buffer` would give up for good.
//!
//! At most one waker is kept for each service, and none once it is dropped. A clone has a turn of its own, to
//! be asked for; a turn that is not used goes with the service, and holds up nobody meanwhile.
//!
//! # Layers
//!
//! - **Load shed** refuses what would wait for a leader. Without it such a wait has no end of its own, as tower's
//!   waits for readiness never have: bound it by `tokio::time::timeout` around [`ready`](WriteService::ready).
//! - **Timeout** counts from the call, so not while the service is pending. Outside of a `Buffer` it counts all.
//!   Around transactions prefer [`TxRequest::within`]: it ends in time too, and still tells what became of the
//!   commit, where a timeout drops the transaction in the middle of it.
//! - **Concurrency limit**: of a `WriteService` it bounds callers that are getting a connection, of a
//!   `TransactionService` whole transactions.
//! - **Retry**: a checkout that failed has sent nothing, so that it may always be made again. Transactions are
//!   run again by the pool itself, where that is safe.
//! - **Buffer**: its worker stands in the queue once, for all that is in the buffer.
//!
//! # Cancel-safety
//!
//! A response's future may be dropped at any moment, with the effect of dropping the method's of the same name.
//! A dropped service leaves the queue. Services are handles on the pool: its tasks run while any of them lives.

mod read;
mod request;
mod retry_after;
#[cfg(test)]
mod tests;
mod transaction;
mod write;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use crate::error::CheckoutError;
use crate::hold::{HoldError, Line, Permit};
use crate::pool::{LeaderPool, PoolGate};
use crate::routing::{Freshness, ReadPolicy};
use crate::tx::TxOptions;

use read::Readers;

pub use read::ReadService;
pub use request::{ReadRequest, TxRequest, WriteRequest};
pub use transaction::TransactionService;
pub use write::WriteService;

impl LeaderPool {
    /// [`write`](Self::write) as a service. Each service, and each clone of it, has a readiness of its own.
    #[must_use]
    pub fn write_service(&self) -> WriteService {
        WriteService::new(self)
    }

    /// [`read_with`](Self::read_with) as a service; `policy` says what it is ready by, and holds for requests
    /// that have none of their own.
    #[must_use]
    pub fn read_service(&self, policy: ReadPolicy) -> ReadService {
        ReadService::new(self, policy)
    }

    /// [`transaction_with`](Self::transaction_with) as a service. It is ready when there is a leader, or, for
    /// [`read_only`](TxOptions::read_only) options, a member to read from.
    #[must_use]
    pub fn transaction_service(&self, options: TxOptions) -> TransactionService {
        TransactionService::new(self, options)
    }
}

/// What a service waits for before a call.
#[derive(Clone)]
enum Readiness {
    /// The leader, in the queue.
    Leader(Line<PoolGate>),
    /// A member to read from.
    Member(Readers),
}

impl Readiness {
    fn of_writes(pool: &LeaderPool) -> Self {
        Self::Leader(Line::new(PoolGate(Arc::clone(&pool.shared))))
    }

    fn of_reads(pool: &LeaderPool, policy: &ReadPolicy) -> Self {
        if policy.freshness == Freshness::Leader {
            return Self::of_writes(pool);
        }
        Self::Member(Readers::new(&pool.shared, policy))
    }

    fn poll(&mut self, pool: &LeaderPool, cx: &mut Context<'_>) -> Poll<Result<(), CheckoutError>> {
        if is_closed(pool) {
            return Poll::Ready(Err(CheckoutError::Closed));
        }
        match self {
            Self::Leader(line) => line.poll(cx).map_err(|error| match error {
                HoldError::TooMany { limit } => CheckoutError::TooManyWaiting { limit },
                HoldError::Closed | HoldError::DeadlinePassed => CheckoutError::Closed,
            }),
            Self::Member(readers) => readers.poll(cx),
        }
    }

    /// Whether one that asked now, for the first time, would be ready.
    fn is_given(&self, pool: &LeaderPool) -> bool {
        !is_closed(pool)
            && match self {
                Self::Leader(_) => pool.shared.gate.is_open(),
                Self::Member(readers) => readers.is_given(),
            }
    }

    /// The turn that it waited for, used up by a call.
    fn take(&mut self) -> Option<Permit<PoolGate>> {
        match self {
            Self::Leader(line) => line.take(),
            Self::Member(readers) => {
                readers.take();
                None
            }
        }
    }
}

fn is_closed(pool: &LeaderPool) -> bool {
    pool.shared.closed.load(Ordering::SeqCst)
}

/// The call that a service makes. Cancel-safe as the method that it stands for.
#[must_use = "futures do nothing unless polled"]
pub struct ResponseFuture<T, E> {
    call: Pin<Box<dyn Future<Output = Result<T, E>> + Send>>,
}

impl<T, E> ResponseFuture<T, E> {
    fn new(call: impl Future<Output = Result<T, E>> + Send + 'static) -> Self {
        Self { call: Box::pin(call) }
    }
}

impl<T, E> fmt::Debug for ResponseFuture<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl<T, E> Future for ResponseFuture<T, E> {
    type Output = Result<T, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.call.as_mut().poll(cx)
    }
}
