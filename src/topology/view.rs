//! What routing and the report see of the cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::epoch::Epoch;
use super::event::{Cadence, ProbeReport, SourceKind, WithdrawReason};
use super::refusal::Refusal;
use crate::patroni::{
    FailoverRequest, HistoryLine, Lsn, MemberRole, MemberState, ServerAddress, SystemId, Tags,
    Timeline,
};

/// Who may be written to.
#[derive(Debug, Clone, PartialEq)]
pub enum LeaderState {
    /// No leader key, or no source that could tell.
    Unknown {
        /// Since when.
        since: Instant,
    },
    /// The leader key names a member that has not proved itself, or lost its proof.
    Claimed {
        /// The member.
        member: String,
        /// Since when.
        since: Instant,
    },
    /// Both keys are there: writes go here.
    Admitted {
        /// The member.
        member: String,
        /// Since when.
        since: Instant,
    },
}

impl LeaderState {
    /// The admitted member.
    #[must_use]
    pub fn admitted(&self) -> Option<&str> {
        match self {
            LeaderState::Admitted { member, .. } => Some(member),
            LeaderState::Unknown { .. } | LeaderState::Claimed { .. } => None,
        }
    }

    /// The admitted or claimed member.
    #[must_use]
    pub fn named(&self) -> Option<&str> {
        match self {
            LeaderState::Admitted { member, .. } | LeaderState::Claimed { member, .. } => {
                Some(member)
            }
            LeaderState::Unknown { .. } => None,
        }
    }

    /// Since when the state holds.
    #[must_use]
    pub fn since(&self) -> Instant {
        match self {
            LeaderState::Unknown { since }
            | LeaderState::Claimed { since, .. }
            | LeaderState::Admitted { since, .. } => *since,
        }
    }
}

/// Whether a member answers.
#[derive(Debug, Clone, PartialEq)]
pub enum MemberHealth {
    /// It was not asked yet.
    Unknown,
    /// The last probe was answered.
    Up(ProbeReport),
    /// The last probes were not.
    Down {
        /// Since when.
        since: Instant,
        /// The last failure.
        error: String,
        /// How many probes in a row.
        failures: u32,
    },
    /// It must not be used.
    Refused(Refusal),
}

/// One member, as the source and the member itself describe it.
#[derive(Debug, Clone, PartialEq)]
pub struct MemberView {
    /// Its name.
    pub name: String,
    /// Where its PostgreSQL listens.
    pub address: ServerAddress,
    /// Its role in the source: as old as the agent's last write.
    pub role: MemberRole,
    /// Its state in the source.
    pub state: MemberState,
    /// The timeline in the source.
    pub listed_timeline: Option<Timeline>,
    /// Its tags.
    pub tags: Tags,
    /// Its REST API.
    pub api_url: Option<String>,
    /// What it says itself.
    pub health: MemberHealth,
    /// The last moment of which it is known to hold all commits; for replicas.
    pub fresh_at: Option<Instant>,
    /// How far it is behind the leader, in bytes, when both were last asked; for replicas.
    pub lag_bytes: Option<u64>,
    /// How often it is probed.
    pub cadence: Cadence,
}

impl MemberView {
    /// The last probe's answer, where the member is up.
    #[must_use]
    pub fn report(&self) -> Option<&ProbeReport> {
        match &self.health {
            MemberHealth::Up(report) => Some(report),
            MemberHealth::Unknown | MemberHealth::Down { .. } | MemberHealth::Refused(_) => None,
        }
    }

    /// An upper bound on how stale its data are at `now`; `None` where nothing is known.
    #[must_use]
    pub fn staleness(&self, now: Instant) -> Option<Duration> {
        self.fresh_at.map(|at| now.saturating_duration_since(at))
    }

    /// Its timeline: what it says itself, or the source where that is newer (SQL cannot always tell on a
    /// replica without the role `pg_monitor`).
    #[must_use]
    pub fn timeline(&self) -> Option<Timeline> {
        self.report().map(|report| report.timeline).max(self.listed_timeline)
    }

    /// The position it has replayed or written.
    #[must_use]
    pub fn position(&self) -> Option<Lsn> {
        self.report().and_then(|report| report.written.or(report.replayed))
    }
}

/// Writes are held because the leader is asked to give its key to another member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwitchoverHold {
    /// Who is asked to go.
    pub leader: String,
    /// Who shall lead; `None` where any member may.
    pub to: Option<String>,
    /// Since when the request has been due.
    pub since: Instant,
    /// Until when writes are held for it, if nothing comes of it.
    pub until: Instant,
}

/// One change of leader, from the moment the old one was lost; or an interruption of a reign that was long
/// enough to notice, and then `to` is `from`.
#[derive(Debug, Clone, PartialEq)]
pub struct FailoverRecord {
    /// Who led before.
    pub from: Option<String>,
    /// Who leads now.
    pub to: String,
    /// The new epoch.
    pub epoch: Epoch,
    /// Why the old leader was lost.
    pub reason: WithdrawReason,
    /// When the old leader was lost.
    pub lost_at: Instant,
    /// When the key named the new one.
    pub claimed_at: Instant,
    /// When the new one was admitted.
    pub admitted_at: Instant,
}

/// The cluster at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterView {
    /// Grows with each change.
    pub version: u64,
    /// The cluster's system identifier, once known.
    pub system_id: Option<SystemId>,
    /// The epoch of the last admitted leader.
    pub epoch: Option<Epoch>,
    /// The number of its reign: grows when the leader or its timeline changes.
    pub reign: u64,
    /// Who may be written to.
    pub leader: LeaderState,
    /// The members by name.
    pub members: BTreeMap<String, MemberView>,
    /// The source of the claim.
    pub source: SourceKind,
    /// Why the view may be old: the main source does not answer.
    pub degraded: Option<(Instant, String)>,
    /// When the main source last answered.
    pub contact_at: Option<Instant>,
    /// The lease's length, from the dynamic configuration.
    pub lease: Duration,
    /// Whether commits wait for a standby.
    pub synchronous: bool,
    /// The standbys that they wait for, by name, as far as the source tells.
    pub sync_standbys: Vec<String>,
    /// A switchover or failover that was asked for.
    pub switchover: Option<FailoverRequest>,
    /// Whose writes are held for it now.
    pub hold: Option<SwitchoverHold>,
    /// The switch points between timelines, oldest first.
    pub history: Vec<HistoryLine>,
    /// Keys that were left out, with the reason.
    pub rejected: Vec<(String, String)>,
    /// Why the whole cluster is refused.
    pub refused: Option<Refusal>,
    /// The last changes of leader, oldest first.
    pub failovers: Vec<FailoverRecord>,
}

impl ClusterView {
    /// The member that may be written to.
    #[must_use]
    pub fn write_target(&self) -> Option<&MemberView> {
        self.leader.admitted().and_then(|name| self.members.get(name))
    }
}
