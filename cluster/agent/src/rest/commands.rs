//! What is asked of the run loop, and how it answers.

use std::collections::BTreeMap;
use std::time::Duration;

use leaderpool::patroni::Lsn;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use tokio::sync::oneshot;

/// Where the run loop sends its answer. Whoever asked may be gone: the command is carried out all the same.
pub type Reply<T> = oneshot::Sender<T>;

/// What is asked of the run loop. It answers each, in its own time.
#[derive(Debug)]
#[non_exhaustive]
pub enum Command {
    /// Change the leader, now or later; answered when it is done, has failed, or took too long.
    Switchover {
        /// What is asked for.
        request: Switchover,
        /// The answer.
        reply: Reply<SwitchoverOutcome>,
    },
    /// Forget the switchover that is scheduled.
    CancelSwitchover {
        /// The answer.
        reply: Reply<CancelOutcome>,
    },
    /// Restart PostgreSQL, now (answered when it is done) or later.
    Restart {
        /// What is asked for.
        request: Restart,
        /// The answer.
        reply: Reply<RestartOutcome>,
    },
    /// Forget the restart that is scheduled.
    CancelRestart {
        /// The answer.
        reply: Reply<CancelOutcome>,
    },
    /// Read the configuration file anew.
    Reload {
        /// Sent when that is under way.
        reply: Reply<()>,
    },
    /// Throw the data directory of this replica away and copy it anew; answered when that has begun.
    Reinitialize {
        /// Also where another action is under way.
        force: bool,
        /// Copy from the leader, not from a replica.
        from_leader: bool,
        /// The answer.
        reply: Reply<ReinitializeOutcome>,
    },
    /// Lay a patch upon the dynamic configuration ([`merge_patch`](super::merge_patch)), comparing and swapping.
    PatchConfig {
        /// The patch; null removes a key.
        patch: Map<String, Value>,
        /// The answer.
        reply: Reply<ConfigOutcome>,
    },
    /// Replace the dynamic configuration.
    PutConfig {
        /// The whole of it.
        config: Map<String, Value>,
        /// The answer.
        reply: Reply<ConfigOutcome>,
    },
    /// A primary that cannot reach etcd asks whether it may go on.
    Failsafe {
        /// Who, and what it holds.
        request: FailsafeRequest,
        /// The answer.
        reply: Reply<FailsafeOutcome>,
    },
}

/// Which of the two endpoints was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// From a leader that is named, in order.
    Switchover,
    /// To a candidate that is named, leader or no leader.
    Failover,
}

/// A change of the leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Switchover {
    /// Which.
    pub kind: ChangeKind,
    /// The leader that is to step down.
    pub leader: Option<String>,
    /// Who is to take over; the best one where nobody is named.
    pub candidate: Option<String>,
    /// When, with the offset as it was given; now where it is absent.
    pub at: Option<OffsetDateTime>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SwitchoverOutcome {
    /// This member leads now.
    Done {
        /// The new leader.
        leader: String,
    },
    /// It will be done at its time.
    Scheduled,
    /// No candidate is fit for it, or something else stands against it: in words, without the action.
    NotPossible(String),
    /// The request was taken back before anybody took over.
    Failed,
    /// Nothing is known yet after the time that is allowed for it.
    Unknown,
    /// The request could not be written to etcd.
    NotWritten,
}

/// A restart of PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Restart {
    /// When, with the offset as it was given; now where it is absent.
    pub at: Option<OffsetDateTime>,
    /// Only in this role: `primary`, `standby_leader` or `replica`.
    pub role: Option<String>,
    /// Only where the server is older than this version: as a number (150004), and as it was given.
    pub older_than: Option<(u32, String)>,
    /// How long it may take.
    pub timeout: Option<Duration>,
    /// Only where parameters wait for it.
    pub restart_pending: bool,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RestartOutcome {
    /// PostgreSQL runs again.
    Done,
    /// It will be done at its time.
    Scheduled,
    /// Another one is scheduled.
    AlreadyScheduled,
    /// The conditions are not met: the role, the version, or nothing is pending.
    NotSatisfied,
    /// Something stands against it, or it failed: in words.
    Failed(String),
}

/// What came of taking something back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelOutcome {
    /// It is taken back.
    Done,
    /// There was nothing.
    Nothing,
    /// It changed at the same moment.
    Conflict,
}

/// What came of a reinitialisation.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ReinitializeOutcome {
    /// It has begun.
    Started,
    /// Something stands against it: in words.
    Refused(String),
}

/// What came of changing the dynamic configuration.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum ConfigOutcome {
    /// This is the whole of it now.
    Done(Value),
    /// It changed at the same moment.
    Conflict,
    /// There is none yet.
    Absent,
    /// It is refused: in words.
    Invalid(String),
    /// It could not be written: in words.
    Failed(String),
}

/// The body of `POST /failsafe`.
#[derive(Debug, Clone, PartialEq, Default, serde::Deserialize)]
#[serde(default)]
pub struct FailsafeRequest {
    /// The primary that asks.
    pub name: String,
    /// Where its PostgreSQL is.
    pub conn_url: String,
    /// Where its REST API is.
    pub api_url: String,
    /// Positions of the slots.
    pub slots: Option<BTreeMap<String, Lsn>>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailsafeOutcome {
    /// It may go on, as far as this member is concerned, which has received so much.
    Accepted {
        /// The greater of received and replayed.
        lsn: Option<Lsn>,
    },
    /// This member leads itself, or something else stands against it: in words.
    Refused(String),
    /// The failsafe mode is off.
    Off,
}

impl ChangeKind {
    pub(super) fn action(self) -> &'static str {
        match self {
            ChangeKind::Switchover => "switchover",
            ChangeKind::Failover => "failover",
        }
    }

    pub(super) fn title(self) -> &'static str {
        match self {
            ChangeKind::Switchover => "Switchover",
            ChangeKind::Failover => "Failover",
        }
    }

    pub(super) fn done(self) -> &'static str {
        match self {
            ChangeKind::Switchover => "switched over",
            ChangeKind::Failover => "failed over",
        }
    }
}
