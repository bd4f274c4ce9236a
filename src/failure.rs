//! A failed operation: what it did to the data, where, and why.

use std::fmt;

use crate::error::{CheckoutError, with_causes};
use crate::retry::{Attempt, Cause, GiveUp, Outcome, Phase, SqlState5, outcome};
use crate::topology::Epoch;

/// A statement, a transaction or a read failed.
///
/// [`outcome`](Self::outcome) is the answer to the question that matters: was nothing sent, was nothing
/// applied, or does nobody know? The text says the same in words, with the node, the epoch, the first
/// informative cause, and why it was not tried again.
#[derive(Debug)]
#[non_exhaustive]
pub struct OperationError {
    /// Boxed, since results are moved around more often than errors are looked at.
    inner: Box<Inner>,
}

#[derive(Debug)]
struct Inner {
    outcome: Outcome,
    phase: Phase,
    cause: Option<Cause>,
    text: String,
    node: Option<String>,
    epoch: Option<Epoch>,
    attempts: u32,
    gave_up: Option<GiveUp>,
    /// The first failure, where a later one is reported.
    first: Option<String>,
    unsettled: Option<String>,
    source: Option<Source>,
}

#[derive(Debug)]
enum Source {
    Driver(tokio_postgres::Error),
    Checkout(CheckoutError),
}

/// Where a failure happened.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) node: String,
    pub(crate) epoch: Option<Epoch>,
}

impl OperationError {
    fn new(outcome: Outcome, phase: Phase, cause: Option<Cause>, text: String) -> Self {
        Self {
            inner: Box::new(Inner {
                outcome,
                phase,
                cause,
                text,
                node: None,
                epoch: None,
                attempts: 1,
                gave_up: None,
                first: None,
                unsettled: None,
                source: None,
            }),
        }
    }

    /// No connection was to be had.
    pub(crate) fn checkout(error: CheckoutError) -> Self {
        let text = error.to_string();
        let mut this = Self::new(Outcome::NotSent, Phase::Connect, None, text);
        this.inner.source = Some(Source::Checkout(error));
        this
    }

    /// The driver failed. `ended` is why the connection ended, where it did.
    pub(crate) fn driver(
        error: tokio_postgres::Error,
        cause: Cause,
        attempt: Attempt,
        ended: Option<String>,
        place: &Place,
    ) -> Self {
        let text = match (error.as_db_error(), ended) {
            (Some(db), _) => {
                let mut text = format!("{}: {}", db.severity(), db.message());
                if let Some(detail) = db.detail() {
                    text.push_str(&format!(" ({detail})"));
                }
                text
            }
            (None, Some(ended)) => ended,
            (None, None) => with_causes(&error),
        };
        let mut this = Self::new(outcome(cause, attempt), attempt.phase, Some(cause), text);
        this.inner.source = Some(Source::Driver(error));
        this.at(place)
    }

    /// Something went wrong that the driver did not report.
    pub(crate) fn other(
        cause: Cause,
        attempt: Attempt,
        text: impl Into<String>,
        place: &Place,
    ) -> Self {
        Self::new(outcome(cause, attempt), attempt.phase, Some(cause), text.into()).at(place)
    }

    fn at(mut self, place: &Place) -> Self {
        self.inner.node = Some(place.node.clone());
        self.inner.epoch = place.epoch;
        self
    }

    pub(crate) fn given_up(mut self, why: GiveUp, attempts: u32, first: Option<String>) -> Self {
        self.inner.gave_up = Some(why);
        self.inner.attempts = attempts;
        self.inner.first = first.filter(|first| *first != self.inner.text);
        self
    }

    /// The resolver could not tell what became of the commit.
    pub(crate) fn unsettled(mut self, why: impl Into<String>) -> Self {
        self.inner.unsettled = Some(why.into());
        self
    }

    /// What it did to the data.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.inner.outcome
    }

    /// Whether doing it again cannot apply it twice: nothing was sent, or nothing was applied.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self.inner.outcome, Outcome::NotSent | Outcome::NotApplied)
    }

    /// What was being done.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.inner.phase
    }

    /// What went wrong; `None` where no connection was to be had.
    #[must_use]
    pub fn cause(&self) -> Option<Cause> {
        self.inner.cause
    }

    /// The SQLSTATE, where the server answered with one.
    #[must_use]
    pub fn sqlstate(&self) -> Option<SqlState5> {
        match self.inner.cause? {
            Cause::Sqlstate(code) | Cause::Panic(code) => Some(code),
            Cause::ConnectionLost
            | Cause::TimedOut
            | Cause::Cut
            | Cause::Cancelled
            | Cause::Client
            | Cause::Answer => None,
        }
    }

    /// The member it ran on, where it got that far.
    #[must_use]
    pub fn node(&self) -> Option<&str> {
        self.inner.node.as_deref()
    }

    /// The epoch it ran in.
    #[must_use]
    pub fn epoch(&self) -> Option<Epoch> {
        self.inner.epoch
    }

    /// How many attempts were made.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.inner.attempts
    }

    /// Why there was no other attempt.
    #[must_use]
    pub fn gave_up(&self) -> Option<GiveUp> {
        self.inner.gave_up
    }

    /// The refusal to hand out a connection, where that is what failed.
    #[must_use]
    pub fn checkout_error(&self) -> Option<&CheckoutError> {
        match &self.inner.source {
            Some(Source::Checkout(error)) => Some(error),
            Some(Source::Driver(_)) | None => None,
        }
    }

    /// The driver's own error, where it is what failed.
    #[must_use]
    pub fn driver_error(&self) -> Option<&tokio_postgres::Error> {
        match &self.inner.source {
            Some(Source::Driver(error)) => Some(error),
            Some(Source::Checkout(_)) | None => None,
        }
    }

    pub(crate) fn text(&self) -> &str {
        &self.inner.text
    }
}

impl fmt::Display for OperationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.inner;
        if inner.phase == Phase::Connect {
            return f.write_str(&inner.text);
        }
        write!(f, "{} failed", inner.phase)?;
        if let Some(node) = &inner.node {
            write!(f, " on {node}")?;
        }
        if let Some(epoch) = &inner.epoch {
            write!(f, " (epoch {epoch})")?;
        }
        write!(f, ": {}", inner.text)?;
        if let Some(code) = self.sqlstate() {
            write!(f, " [{code}]")?;
        }
        write!(f, "; {}", inner.outcome)?;
        if let Some(why) = &inner.unsettled {
            write!(f, " ({why})")?;
        }
        if let Some(why) = &inner.gave_up {
            write!(f, "; {why}")?;
        }
        if let Some(first) = &inner.first {
            write!(f, "; the first of {} failures was: {first}", inner.attempts)?;
        }
        Ok(())
    }
}

impl std::error::Error for OperationError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.inner.source {
            Some(Source::Driver(error)) => Some(error),
            Some(Source::Checkout(error)) => Some(error),
            None => None,
        }
    }
}

/// A transaction failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransactionError<E> {
    /// The closure gave an error of its own, or one of its statements failed and it passed that on; the
    /// transaction was rolled back, and nothing was applied.
    #[error("the transaction was rolled back: {0}")]
    RolledBack(E),
    /// The pool could not run it, or not commit it.
    #[error(transparent)]
    Failed(OperationError),
}

impl<E> TransactionError<E> {
    /// What the transaction did to the data.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            TransactionError::RolledBack(_) => Outcome::NotApplied,
            TransactionError::Failed(error) => error.outcome(),
        }
    }
}

impl TransactionError<OperationError> {
    /// The error itself, whoever gave it.
    #[must_use]
    pub fn into_operation_error(self) -> OperationError {
        match self {
            TransactionError::RolledBack(error) | TransactionError::Failed(error) => error,
        }
    }
}
