//! Whether to make another attempt.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::outcome::{Cause, Outcome};
use super::sqlstate::{SqlClass, SqlState5};

/// What the caller said of the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Work {
    /// Whether doing it twice is the same as doing it once.
    pub idempotent: bool,
    /// Whether it changes nothing.
    pub read_only: bool,
}

/// How often it may be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Attempts in all, the first one included.
    pub max_attempts: u32,
}

/// How far a call has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Progress {
    /// Attempts made so far, the failed one included.
    pub attempts_made: u32,
    /// What is left of the call's deadline.
    pub time_left: Duration,
    /// Whether another epoch is admitted than the one that the failed attempt was made in.
    pub leader_changed: bool,
}

/// How long to wait before the next attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pause {
    /// Not at all: a new leader is there, and the fault lay with the old one.
    Immediately,
    /// As [`Backoff`](super::Backoff) says. A change of leader may end the pause early where the cause
    /// lies with the node.
    WithBackoff,
}

/// What to do after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// Try again.
    Retry {
        /// How long to wait first.
        after: Pause,
    },
    /// Tell the caller.
    GiveUp(GiveUp),
}

/// Why there is no other attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GiveUp {
    /// It may have taken effect, and the caller did not say that doing it twice does no harm.
    MightApplyTwice,
    /// Another attempt would meet the same error.
    SameErrorAgain,
    /// The caller went away.
    Cancelled,
    /// As many attempts were made as may.
    Attempts {
        /// The limit.
        limit: u32,
    },
    /// The deadline has passed.
    Deadline,
    /// Too large a share of the pool's calls are retries already. For the pool to say: see
    /// [`RetryBudget`](super::RetryBudget).
    Budget,
}

impl fmt::Display for GiveUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GiveUp::MightApplyTwice => f.write_str(
                "not tried again, as it could take effect twice (mark it idempotent if that does no harm)",
            ),
            GiveUp::SameErrorAgain => {
                f.write_str("not tried again, as it would fail in the same way")
            }
            GiveUp::Cancelled => f.write_str("not tried again, as the caller went away"),
            GiveUp::Attempts { limit } => write!(f, "given up after {limit} attempts"),
            GiveUp::Deadline => f.write_str("not tried again, as the deadline has passed"),
            GiveUp::Budget => {
                f.write_str("not tried again, as the pool's retry budget is spent")
            }
        }
    }
}

/// Whether to try again.
///
/// Never after [`Outcome::Unknown`], unless the work is idempotent or reads only. Ask the
/// [`RetryBudget`](super::RetryBudget) before acting on a [`Decision::Retry`].
#[must_use]
pub fn decide(
    outcome: Outcome,
    cause: Cause,
    work: Work,
    progress: Progress,
    limits: Limits,
) -> Decision {
    let safe = match outcome {
        Outcome::NotSent | Outcome::NotApplied => true,
        Outcome::Unknown => work.idempotent || work.read_only,
    };
    let give_up = if cause == Cause::Cancelled {
        Some(GiveUp::Cancelled)
    } else if !safe {
        Some(GiveUp::MightApplyTwice)
    } else if !can_help(cause) {
        Some(GiveUp::SameErrorAgain)
    } else if progress.attempts_made >= limits.max_attempts {
        Some(GiveUp::Attempts { limit: limits.max_attempts })
    } else if progress.time_left.is_zero() {
        Some(GiveUp::Deadline)
    } else {
        None
    };
    match give_up {
        Some(why) => Decision::GiveUp(why),
        None if progress.leader_changed && lies_with_the_node(cause) => {
            Decision::Retry { after: Pause::Immediately }
        }
        None => Decision::Retry { after: Pause::WithBackoff },
    }
}

/// Whether the fault is the node's, so that a new leader ends it. Conflicts between transactions are
/// not: they come back at once on any leader.
#[deny(clippy::wildcard_enum_match_arm)]
fn lies_with_the_node(cause: Cause) -> bool {
    match cause {
        Cause::Sqlstate(code) => code.class() != SqlClass::TransactionRollback,
        Cause::Panic(_) | Cause::ConnectionLost | Cause::TimedOut | Cause::Cut => true,
        Cause::Cancelled | Cause::Client | Cause::Answer => false,
    }
}

/// Whether another attempt may end better, on another connection or another leader, or later.
#[must_use]
#[deny(clippy::wildcard_enum_match_arm)]
pub fn can_help(cause: Cause) -> bool {
    match cause {
        Cause::Sqlstate(code) => answer_may_change(code),
        Cause::Panic(_) | Cause::ConnectionLost | Cause::TimedOut | Cause::Cut => true,
        Cause::Cancelled | Cause::Client | Cause::Answer => false,
    }
}

#[deny(clippy::wildcard_enum_match_arm)]
fn answer_may_change(code: SqlState5) -> bool {
    match code.class() {
        SqlClass::Connection | SqlClass::Snapshot => true,
        // Read-only: the leader has changed. Not the time limits (25P03, 25P04): the same work takes as
        // long again.
        SqlClass::InvalidTransactionState => code.as_str() == "25006",
        // 40002 is a constraint.
        SqlClass::TransactionRollback => code.as_str() != "40002",
        // Connections and memory come back within a call's deadline. Disks (53100) do not empty
        // themselves, and 53400 is a limit on the work itself.
        SqlClass::InsufficientResources => matches!(code.as_str(), "53000" | "53200" | "53300"),
        // Not 57014: somebody wanted it to end, be it by a time limit. Not 57P04: the database is gone.
        SqlClass::OperatorIntervention => {
            matches!(code.as_str(), "57P01" | "57P02" | "57P03" | "57P05")
        }
        // 55P03 too: whoever asks not to wait for a lock wants to know.
        SqlClass::ObjectState
        | SqlClass::Successful
        | SqlClass::Warning
        | SqlClass::NoData
        | SqlClass::NotYetComplete
        | SqlClass::TriggeredAction
        | SqlClass::FeatureNotSupported
        | SqlClass::InvalidTransactionInitiation
        | SqlClass::Locator
        | SqlClass::InvalidGrantor
        | SqlClass::InvalidRole
        | SqlClass::Diagnostics
        | SqlClass::XQuery
        | SqlClass::CaseNotFound
        | SqlClass::Cardinality
        | SqlClass::Data
        | SqlClass::IntegrityConstraint
        | SqlClass::InvalidCursorState
        | SqlClass::InvalidStatementName
        | SqlClass::TriggeredDataChange
        | SqlClass::InvalidAuthorization
        | SqlClass::DependentPrivileges
        | SqlClass::InvalidTransactionTermination
        | SqlClass::SqlRoutine
        | SqlClass::InvalidCursorName
        | SqlClass::ExternalRoutine
        | SqlClass::ExternalRoutineInvocation
        | SqlClass::Savepoint
        | SqlClass::InvalidCatalogName
        | SqlClass::InvalidSchemaName
        | SqlClass::SyntaxOrAccess
        | SqlClass::WithCheckOption
        | SqlClass::ProgramLimit
        | SqlClass::System
        | SqlClass::ConfigurationFile
        | SqlClass::ForeignData
        | SqlClass::PlPgSql
        | SqlClass::Internal
        | SqlClass::Other => false,
    }
}
