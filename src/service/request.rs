//! What is asked of the services.

use std::fmt;
use std::time::Duration;

use crate::routing::ReadPolicy;
use crate::tx::Tx;

/// A connection to the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct WriteRequest {
    pub(super) within: Option<Duration>,
}

impl WriteRequest {
    /// Within `pool.write_timeout`, counted from the call.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Within `limit` instead, counted from the call.
    #[must_use]
    pub fn within(mut self, limit: Duration) -> Self {
        self.within = Some(limit);
        self
    }
}

/// A connection for reading.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ReadRequest {
    pub(super) policy: Option<ReadPolicy>,
    pub(super) within: Option<Duration>,
}

impl ReadRequest {
    /// Under the service's policy, within `pool.read_timeout`, counted from the call.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Under `policy` instead: with a token, say. What the service is ready by stays the same.
    #[must_use]
    pub fn policy(mut self, policy: ReadPolicy) -> Self {
        self.policy = Some(policy);
        self
    }

    /// Within `limit` instead, counted from the call.
    #[must_use]
    pub fn within(mut self, limit: Duration) -> Self {
        self.within = Some(limit);
        self
    }
}

/// A transaction: the closure that [`LeaderPool::transaction`](crate::LeaderPool::transaction) takes.
///
/// It can be cloned where the closure can, for tower's `Retry`.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct TxRequest<F> {
    pub(super) work: F,
    pub(super) within: Option<Duration>,
}

impl<F> TxRequest<F> {
    /// `work` under the service's options.
    #[must_use]
    pub fn new<Fut, T, E>(work: F) -> Self
    where
        F: FnMut(Tx) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        Self { work, within: None }
    }

    /// Within `limit` instead of the options' limit, counted from the call.
    #[must_use]
    pub fn within(mut self, limit: Duration) -> Self {
        self.within = Some(limit);
        self
    }
}

impl<F> fmt::Debug for TxRequest<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TxRequest").field("within", &self.within).finish_non_exhaustive()
    }
}
