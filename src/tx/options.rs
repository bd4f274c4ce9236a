//! How a transaction is to be run.

use std::time::Duration;

use crate::routing::ReadPolicy;
use crate::token::CausalToken;

/// How far transactions are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
#[non_exhaustive]
pub enum Isolation {
    /// The server's setting, `read committed` where nobody changed it.
    #[default]
    ServerDefault,
    /// Each statement sees what was committed before it.
    ReadCommitted,
    /// All statements see the same snapshot; conflicting writes fail with `40001`, and are run again.
    RepeatableRead,
    /// As if one after the other; what cannot be ordered fails with `40001`, and is run again.
    Serializable,
}

/// How a transaction, or a single write, is to be run.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct TxOptions {
    pub(crate) isolation: Isolation,
    pub(crate) read: Option<ReadPolicy>,
    pub(crate) within: Option<Duration>,
    pub(crate) idempotent: bool,
    pub(crate) attempts: Option<u32>,
    pub(crate) unsettled: bool,
}

impl TxOptions {
    /// A read-write transaction at the server's isolation level, within `pool.write_timeout`, at most
    /// `retry.max_attempts` times, not idempotent, its commit settled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The isolation level.
    #[must_use]
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = isolation;
        self
    }

    /// Reads only, where `policy` says; a commit in doubt does not matter then.
    #[must_use]
    pub fn read_only(mut self, policy: ReadPolicy) -> Self {
        self.read = Some(policy);
        self
    }

    /// One deadline over everything: waiting for a leader, all attempts, the pauses between them, and
    /// settling the commit.
    #[must_use]
    pub fn within(mut self, limit: Duration) -> Self {
        self.within = Some(limit);
        self
    }

    /// Doing it twice is the same as doing it once: then it is run again after a commit in doubt too.
    #[must_use]
    pub fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }

    /// How many times it may be run in all. At least 1.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = Some(attempts.max(1));
        self
    }

    /// Do not note what settling the commit would need. Saves the server two small queries beside each
    /// commit (no round trip); a commit in doubt then stays so, and there is no token.
    #[must_use]
    pub fn unsettled(mut self) -> Self {
        self.unsettled = true;
        self
    }

    pub(crate) fn begin(&self) -> &'static str {
        match (self.read.is_some(), self.isolation) {
            (false, Isolation::ServerDefault) => "BEGIN READ WRITE",
            (false, Isolation::ReadCommitted) => "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
            (false, Isolation::RepeatableRead) => {
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE"
            }
            (false, Isolation::Serializable) => "BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE",
            (true, Isolation::ServerDefault) => "BEGIN READ ONLY",
            (true, Isolation::ReadCommitted) => "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY",
            (true, Isolation::RepeatableRead) => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            (true, Isolation::Serializable) => "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY",
        }
    }
}

/// A transaction that is committed.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Committed<T> {
    /// What the closure gave.
    pub value: T,
    /// A read that is given this sees the transaction. `None` where it wrote nothing, or was
    /// [`unsettled`](TxOptions::unsettled).
    pub token: Option<CausalToken>,
    /// How many times it was run.
    pub attempts: u32,
    /// Whether its commit was in doubt, and proved afterwards.
    pub settled: bool,
}
