//! What a failed attempt did to the data.
//!
//! The reasoning, from what PostgreSQL does (checked against version 15):
//!
//! - Only a commit makes anything visible: that of `COMMIT`, or the one at the end of a statement outside a
//!   transaction. Whatever fails before it is rolled back, if only by the end of the session.
//! - An error answer of severity ERROR or FATAL is raised before the commit record, for the backend takes
//!   no interrupts from there to the end of the commit. So it proves the rollback, whatever its class:
//!   `25006`, `40001`, `23505` from a deferred constraint, `57014`, `53100` alike. The exceptions are
//!   listed below.
//! - A cancelled wait for a synchronous standby is *not* an error: after `pg_cancel_backend` or a
//!   statement timeout the client gets a WARNING and success; after SIGTERM a WARNING with `57P01` and
//!   then nothing but the end of the connection. Both times the commit stands, on this server.
//!
//! Exceptions, [`Outcome::Unknown`] wherever a commit may have been under way:
//!
//! - `57P01` at `COMMIT`, and in synchronous mode also for a statement on its own. A FATAL with it comes
//!   before the commit, the WARNING above after it; they must not be told apart by luck. Outside of
//!   synchronous mode it proves the rollback for a statement on its own, which is what lets such
//!   statements live through a planned switchover. (A session that has used `LISTEN` may be told
//!   `57P01` between its commit and the answer: use an explicit transaction there.)
//! - `57P02` and `57P03`: a crash, or a proxy that found a server starting; the moment is arbitrary.
//! - Class 08: a proxy speaks for a server it has lost.
//! - `40003` and `08007` say themselves that they do not know, and are believed even before `COMMIT`.
//! - PANIC of any code: the crash may come after the commit record was written, as when the disk is full.
//! - Class XX and `53200` (memory): the work after the commit record may fail with these, and the
//!   answer is out before the server notices that it is too late to roll back.
//! - Classes 00, 01 and 02 as errors contradict themselves; nothing follows from them.
//!
//! Limits: what a statement does outside of its transaction (sequences, `dblink`, `NOTIFY` to others) is
//! not undone by any rollback. `CALL` and `DO` with a `COMMIT` of their own, several statements in one
//! simple query with one, `VACUUM` and `CREATE INDEX CONCURRENTLY` commit in steps: for them
//! `NotApplied` means the last step. And `NotApplied` in a transaction holds only if nobody sends its
//! `COMMIT` afterwards: roll back, or discard the connection.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::sqlstate::{SqlClass, SqlState5};

/// What a failed attempt did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Nothing of it was sent to a server.
    NotSent,
    /// It reached a server and surely had no effect.
    NotApplied,
    /// It may or may not have taken effect.
    Unknown,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::NotSent => "nothing was sent to a server",
            Outcome::NotApplied => "it was rolled back, and nothing was changed",
            Outcome::Unknown => "it may or may not have taken effect",
        })
    }
}

/// What was being done when an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Phase {
    /// A connection was taken or made.
    Connect,
    /// The transaction was begun.
    Begin,
    /// A statement ran.
    Statement,
    /// `COMMIT` ran.
    Commit,
    /// `ROLLBACK` ran.
    Rollback,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Connect => "connecting",
            Phase::Begin => "beginning the transaction",
            Phase::Statement => "running a statement",
            Phase::Commit => "committing",
            Phase::Rollback => "rolling back",
        })
    }
}

/// An attempt, as far as it got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attempt {
    /// What was being done.
    pub phase: Phase,
    /// Whether bytes of this request were written to the socket.
    pub sent: bool,
    /// Whether an explicit transaction was open. In [`Phase::Commit`] and [`Phase::Rollback`] it is taken
    /// to be.
    pub in_transaction: bool,
    /// Whether commits wait for a standby.
    pub synchronous: bool,
}

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// The server answered with an error of severity ERROR or FATAL. Notices are no errors: their codes
    /// do not belong here.
    Sqlstate(SqlState5),
    /// The server answered with severity PANIC: it crashes.
    Panic(SqlState5),
    /// The connection was lost, or could not be made.
    ConnectionLost,
    /// No answer within the deadline.
    TimedOut,
    /// The pool cut it: the node was demoted, belongs to another cluster, or has been dead for long.
    Cut,
    /// The caller dropped the future. (A statement that the server cancelled is `57014`.)
    Cancelled,
    /// The driver refused to send it: wrong parameter types, a value that cannot be encoded.
    Client,
    /// An answer came that the driver could not take: an unexpected message, another number of rows than
    /// was asked for.
    Answer,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Sqlstate(code) => write!(f, "the server answered with SQLSTATE {code}"),
            Cause::Panic(code) => write!(f, "the server crashed (PANIC, SQLSTATE {code})"),
            Cause::ConnectionLost => f.write_str("the connection was lost"),
            Cause::TimedOut => f.write_str("there was no answer in time"),
            Cause::Cut => f.write_str("the pool cut the work on a node that was demoted or dead"),
            Cause::Cancelled => f.write_str("the caller did not wait for the answer"),
            Cause::Client => f.write_str("the driver refused to send it"),
            Cause::Answer => f.write_str("the driver could not take the answer"),
        }
    }
}

/// How near to a commit an attempt got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reached {
    /// No commit was asked for yet.
    BeforeCommit,
    /// A statement on its own, whose end is a commit.
    Alone { synchronous: bool },
    /// `COMMIT` was sent.
    Commit,
}

/// What the attempt did, given what went wrong.
///
/// Within a transaction it speaks of the whole transaction: `NotSent` only where none of it was sent.
#[must_use]
#[deny(clippy::wildcard_enum_match_arm)]
pub fn outcome(cause: Cause, attempt: Attempt) -> Outcome {
    let reached = match attempt.phase {
        // A handshake carries none of the work.
        Phase::Connect => return Outcome::NotSent,
        Phase::Begin if attempt.sent => return Outcome::NotApplied,
        Phase::Begin => return Outcome::NotSent,
        // Whether the ROLLBACK arrives or the session ends, nothing will be committed.
        Phase::Rollback => return Outcome::NotApplied,
        // Earlier statements of the transaction were sent.
        Phase::Commit if !attempt.sent => return Outcome::NotApplied,
        Phase::Commit => Reached::Commit,
        Phase::Statement if attempt.in_transaction && !attempt.sent => return Outcome::NotApplied,
        Phase::Statement if !attempt.sent => return Outcome::NotSent,
        Phase::Statement if attempt.in_transaction => Reached::BeforeCommit,
        Phase::Statement => Reached::Alone { synchronous: attempt.synchronous },
    };
    match cause {
        Cause::Sqlstate(code) => answered(code, reached),
        // At most it was parsed.
        Cause::Client => match reached {
            Reached::Alone { .. } => Outcome::NotSent,
            Reached::BeforeCommit | Reached::Commit => Outcome::NotApplied,
        },
        Cause::Panic(_)
        | Cause::ConnectionLost
        | Cause::TimedOut
        | Cause::Cut
        | Cause::Cancelled
        | Cause::Answer => at_any_moment(reached),
    }
}

/// For failures that may strike before the commit, in it, or after it.
fn at_any_moment(reached: Reached) -> Outcome {
    match reached {
        Reached::BeforeCommit => Outcome::NotApplied,
        Reached::Alone { .. } | Reached::Commit => Outcome::Unknown,
    }
}

#[deny(clippy::wildcard_enum_match_arm)]
fn answered(code: SqlState5, reached: Reached) -> Outcome {
    match code.class() {
        SqlClass::Connection => match code.as_str() {
            "08007" => Outcome::Unknown,
            _ => at_any_moment(reached),
        },
        SqlClass::TransactionRollback => match code.as_str() {
            "40003" => Outcome::Unknown,
            _ => Outcome::NotApplied,
        },
        SqlClass::InsufficientResources => match code.as_str() {
            "53200" => at_any_moment(reached),
            _ => Outcome::NotApplied,
        },
        SqlClass::OperatorIntervention => match (code.as_str(), reached) {
            ("57P01", Reached::Alone { synchronous: false }) => Outcome::NotApplied,
            ("57P01" | "57P02" | "57P03", _) => at_any_moment(reached),
            // 57014: raised before the commit, or not at all. 57P04 and 57P05: to idle sessions and to
            // those on a standby.
            _ => Outcome::NotApplied,
        },
        SqlClass::Successful | SqlClass::Warning | SqlClass::NoData | SqlClass::Internal => {
            at_any_moment(reached)
        }
        SqlClass::NotYetComplete
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
        | SqlClass::InvalidTransactionState
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
        | SqlClass::ObjectState
        | SqlClass::System
        | SqlClass::Snapshot
        | SqlClass::ConfigurationFile
        | SqlClass::ForeignData
        | SqlClass::PlPgSql
        // A code of the user's own, raised like any other error.
        | SqlClass::Other => Outcome::NotApplied,
    }
}
