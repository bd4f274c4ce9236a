//! What goes into the state machine, and what comes out.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::epoch::Epoch;
use super::refusal::Refusal;
use crate::patroni::{ClusterSnapshot, Lsn, ServerAddress, SystemId, Timeline};

/// Where an observation comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceKind {
    /// The keys in etcd, by snapshot and watch.
    Etcd,
    /// The members' REST API, polled.
    Rest,
    /// A list of hosts from the configuration; the servers alone say who leads.
    Fixed,
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SourceKind::Etcd => "etcd",
            SourceKind::Rest => "REST",
            SourceKind::Fixed => "the host list",
        })
    }
}

/// What a member said of itself when it was asked by SQL.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeReport {
    /// When the question was sent: what it says was true at some moment after that.
    pub sent_at: Instant,
    /// How long the answer took.
    pub round_trip: Duration,
    /// The cluster that it belongs to.
    pub system_id: SystemId,
    /// `pg_is_in_recovery()`.
    pub in_recovery: bool,
    /// The timeline it writes or replays.
    pub timeline: Timeline,
    /// The position written; primaries only.
    pub written: Option<Lsn>,
    /// The position received; replicas only.
    pub received: Option<Lsn>,
    /// The position replayed; replicas only.
    pub replayed: Option<Lsn>,
    /// `now() - pg_last_xact_replay_timestamp()` on the replica.
    pub replay_age: Option<Duration>,
    /// When the postmaster started, in microseconds since 1970.
    pub started_at: i64,
    /// `server_version_num`.
    pub server_version: u32,
}

/// Why a probe brought no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProbeFailure {
    /// Nobody listens, or the server turned the connection down: it surely takes no work now.
    Refused(String),
    /// No answer in time: the server may be slow, frozen or cut off.
    TimedOut(Duration),
    /// The server answered, but not with what a probe needs (wrong password, missing database).
    Failed(String),
}

impl fmt::Display for ProbeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProbeFailure::Refused(why) | ProbeFailure::Failed(why) => f.write_str(why),
            ProbeFailure::TimedOut(limit) => write!(f, "no answer within {limit:?}"),
        }
    }
}

/// What a connection in use noticed about its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Suspicion {
    /// `57P01`, `57P02` or `57P03`: the server is stopping, crashed or starting.
    ShuttingDown,
    /// `25006`: a write was refused as read-only.
    ReadOnly,
    /// The connection was lost or could not be made.
    ConnectionLost,
}

/// How often a member is probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cadence {
    /// In the steady state.
    Normal,
    /// While the source is away, or the member has just failed.
    Watchful,
    /// While writers wait for this member's word.
    Urgent,
}

/// A member to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberSpec {
    /// Its name.
    pub name: String,
    /// Where its PostgreSQL listens.
    pub address: ServerAddress,
}

/// What the state machine is told.
#[derive(Debug, Clone)]
pub enum Event {
    /// The whole cluster as a source sees it now.
    Snapshot {
        /// The source.
        source: SourceKind,
        /// What it sees.
        snapshot: Arc<ClusterSnapshot>,
    },
    /// The source answered, and nothing has changed.
    Contact {
        /// The source.
        source: SourceKind,
    },
    /// The source does not answer.
    SourceLost {
        /// The source.
        source: SourceKind,
        /// Why, endpoint by endpoint.
        reason: String,
    },
    /// A member was asked by SQL.
    Probed {
        /// The member.
        member: String,
        /// Where it was asked: answers from a former address do not count.
        address: ServerAddress,
        /// What it said.
        result: Result<ProbeReport, ProbeFailure>,
    },
    /// A connection in use noticed something.
    Suspect {
        /// The member it leads to.
        member: String,
        /// What it noticed.
        cause: Suspicion,
    },
    /// The moment has come that [`Topology::wake_at`](super::Topology::wake_at) named.
    Tick,
}

/// Why a member may no longer be written to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "why")]
#[non_exhaustive]
pub enum WithdrawReason {
    /// The leader key is gone.
    KeyGone,
    /// The leader key names another member.
    KeyMoved {
        /// The other member.
        to: String,
    },
    /// The member says that it is in recovery.
    InRecovery,
    /// The member does not answer.
    Unreachable {
        /// The last failure.
        error: String,
    },
    /// A connection saw the server shutting down; a new probe decides.
    ShuttingDown,
    /// The member is asked to give the leader key to another: writes are held for some seconds. It may still
    /// lead afterwards.
    Switchover {
        /// Who shall lead; `None` where any member may.
        to: Option<String>,
    },
    /// The member may not be used at all.
    Refused(Refusal),
    /// The member left the cluster, or moved to another address.
    Removed,
}

impl WithdrawReason {
    /// Whether the node is known not to be this cluster's primary any more, so that work in flight on it
    /// must be cut rather than left to hang.
    #[must_use]
    pub fn is_demotion(&self) -> bool {
        match self {
            WithdrawReason::KeyMoved { .. }
            | WithdrawReason::InRecovery
            | WithdrawReason::Refused(_)
            | WithdrawReason::Removed => true,
            WithdrawReason::KeyGone
            | WithdrawReason::Unreachable { .. }
            | WithdrawReason::ShuttingDown
            | WithdrawReason::Switchover { .. } => false,
        }
    }
}

impl fmt::Display for WithdrawReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WithdrawReason::KeyGone => f.write_str("the leader key is gone"),
            WithdrawReason::KeyMoved { to } => write!(f, "the leader key names {to}"),
            WithdrawReason::InRecovery => f.write_str("it is in recovery"),
            WithdrawReason::Unreachable { error } => write!(f, "it does not answer: {error}"),
            WithdrawReason::ShuttingDown => {
                f.write_str("it ended a session as if it were going away")
            }
            WithdrawReason::Switchover { to: Some(to) } => {
                write!(f, "a switchover to {to} is under way")
            }
            WithdrawReason::Switchover { to: None } => f.write_str("a switchover is under way"),
            WithdrawReason::Refused(refusal) => refusal.fmt(f),
            WithdrawReason::Removed => f.write_str("it left the cluster or moved"),
        }
    }
}

/// What the shell around the state machine has to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Make a node for this member and start to probe it.
    AddMember(MemberSpec),
    /// Close this member's node.
    RemoveMember(String),
    /// Probe this member at this rate from now on, starting with a probe at once where it rose.
    SetCadence(String, Cadence),
    /// Probe this member at once.
    ProbeNow(String),
    /// Hand out write connections to this member. Follows another one of the same member directly where
    /// its timeline has grown.
    Admit {
        /// The member.
        member: String,
        /// The epoch of its reign.
        epoch: Epoch,
        /// The number of the reign: connections verified under another one are verified again.
        reign: u64,
    },
    /// Hand out no more write connections to this member.
    Withdraw {
        /// The member.
        member: String,
        /// Why.
        reason: WithdrawReason,
    },
    /// Cut the work in flight on this member.
    Fence {
        /// The member.
        member: String,
        /// Why.
        reason: WithdrawReason,
    },
    /// Ask the members' REST APIs, as the main source is away.
    StartFallback,
    /// The main source is back.
    StopFallback,
    /// Tell the user.
    Tell(TopologyEvent),
}

/// Whether a member's circuit breaker lets reads pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// All of them.
    Closed,
    /// None that have somewhere else to go.
    Open,
    /// One at a time, to see how it fares.
    HalfOpen,
}

impl fmt::Display for BreakerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BreakerState::Closed => "closed",
            BreakerState::Open => "open",
            BreakerState::HalfOpen => "half-open",
        })
    }
}

/// What happened, for traces, subscribers and the report.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "event")]
#[non_exhaustive]
pub enum TopologyEvent {
    /// Writes are held: the leader lost one of its keys, or is asked to give its key away.
    LeaderLost {
        /// The member that led.
        member: String,
        /// Why.
        reason: WithdrawReason,
    },
    /// The leader key names this member; it has not proved itself yet.
    Candidate {
        /// The member.
        member: String,
    },
    /// Writes go to this member.
    Admitted {
        /// The member.
        member: String,
        /// The epoch of its reign.
        epoch: Epoch,
    },
    /// The source does not answer; the last view is kept.
    Degraded {
        /// The source.
        source: SourceKind,
        /// Why.
        reason: String,
    },
    /// The source answers again.
    Restored {
        /// The source.
        source: SourceKind,
    },
    /// A member may not be used.
    MemberRefused {
        /// The member.
        member: String,
        /// Why.
        refusal: Refusal,
    },
    /// The cluster's own keys make no sense to this pool.
    ClusterRefused {
        /// Why.
        refusal: Refusal,
    },
    /// A member joined, or moved here.
    MemberAdded {
        /// The member.
        member: String,
        /// Its address.
        address: ServerAddress,
    },
    /// A member left, or moved away.
    MemberRemoved {
        /// The member.
        member: String,
    },
    /// A failover dropped acknowledged commits that this pool gave tokens for. (Told by the pool; the state
    /// machine knows no tokens.)
    WritesLost {
        /// The timeline that was left.
        timeline: Timeline,
        /// Where it was left.
        switch_lsn: Lsn,
        /// How many commits.
        count: usize,
    },
    /// A member's circuit breaker changed its state. (Told by the member's node; the state machine knows no
    /// breakers.)
    BreakerChanged {
        /// The member.
        member: String,
        /// The state it was in.
        from: BreakerState,
        /// The state it is in.
        to: BreakerState,
        /// Why, in words.
        reason: String,
    },
    /// A key was left out of the view.
    KeyRejected {
        /// The key below the prefix.
        key: String,
        /// Why.
        reason: String,
    },
}
