//! The pool's health as data, for a status page or a log line.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::time::Instant;

use crate::describe::describe_leader;
use crate::history::LostWrites;
use crate::patroni::{Lsn, ServerAddress, SystemId, Timeline};
use crate::pool::Shared;
use crate::topology::{BreakerState, Cadence, Epoch, LeaderState, MemberHealth, SourceKind};

/// How the pool and its cluster were at one moment.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The cluster's name.
    pub scope: String,
    /// The member that is written to; `None` while writes wait.
    pub leader: Option<String>,
    /// What is known of the leader, in a sentence.
    pub leader_state: String,
    /// How long that has been so, in milliseconds.
    pub leader_state_ms: u64,
    /// The epoch of the last admitted leader.
    pub epoch: Option<Epoch>,
    /// The cluster's system identifier.
    pub system_id: Option<SystemId>,
    /// Where the view comes from.
    pub source: SourceKind,
    /// Why the view may be old; `None` when all is well.
    pub degraded: Option<String>,
    /// How long ago the source last answered, in milliseconds; `None` before its first answer.
    pub watch_age_ms: Option<u64>,
    /// Whether commits wait for a standby.
    pub synchronous: bool,
    /// The lease's length, in milliseconds.
    pub lease_ms: u64,
    /// Callers that want a connection now.
    pub waiting: usize,
    /// Writers that wait for a leader.
    pub held: usize,
    /// The most that ever waited for a leader at once.
    pub held_peak: usize,
    /// Connections that are out.
    pub lent: usize,
    /// A switchover or failover that was asked for, as `from -> to`.
    pub switchover: Option<String>,
    /// The members.
    pub nodes: Vec<NodeReport>,
    /// The last changes of leader, newest first.
    pub failovers: Vec<FailoverReport>,
    /// Acknowledged commits that failovers dropped, oldest first.
    pub lost_writes: Vec<LostWrites>,
    /// Keys that were left out of the view, with the reason.
    pub rejected_keys: Vec<(String, String)>,
}

/// One member.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct NodeReport {
    /// Its name.
    pub name: String,
    /// Where its PostgreSQL listens.
    pub address: ServerAddress,
    /// What it does: `leader` for the admitted one, otherwise what it says itself.
    pub role: NodeRole,
    /// Its state in the source.
    pub state: String,
    /// Its timeline.
    pub timeline: Option<Timeline>,
    /// The position it has written or replayed.
    pub position: Option<Lsn>,
    /// How far it is behind in bytes, as of the last probes; replicas only.
    pub lag_bytes: Option<u64>,
    /// How stale it is at most, in milliseconds; replicas only.
    pub staleness_ms: Option<u64>,
    /// Smoothed round trip of its probes, in microseconds.
    pub latency_us: u64,
    /// Why it is not used, where it is not.
    pub problem: Option<String>,
    /// Whether reads are kept off it.
    pub noloadbalance: bool,
    /// How often it is probed.
    pub cadence: Cadence,
    /// Statements on it that have been running for longer than `pool.hung_after`.
    pub hung: usize,
    /// Connections to it that were out for longer than `pool.leak_after`, so far.
    pub leaks: u64,
    /// Its circuit breaker.
    pub breaker: BreakerReport,
    /// Its connections.
    pub pool: PoolReport,
}

/// A member's circuit breaker.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct BreakerReport {
    /// Whether reads pass.
    pub state: BreakerState,
    /// How long that has been so, in milliseconds.
    pub since_ms: u64,
    /// Why it is open, where it is.
    pub reason: Option<String>,
    /// Changes of state so far.
    pub transitions: u64,
}

/// A member's part in the cluster, as far as this pool can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NodeRole {
    /// Written to.
    Leader,
    /// In recovery.
    Replica,
    /// Out of recovery without being admitted.
    Unadmitted,
    /// It does not answer, or must not be used.
    Unavailable,
}

/// A member's connections.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct PoolReport {
    /// Open ones.
    pub size: usize,
    /// Idle ones.
    pub idle: usize,
    /// Out with callers.
    pub in_use: usize,
    /// At most.
    pub max_size: usize,
}

/// One change of leader.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct FailoverReport {
    /// Who led before.
    pub from: Option<String>,
    /// Who led then.
    pub to: String,
    /// The new epoch.
    pub epoch: Epoch,
    /// Why the old leader was lost.
    pub reason: String,
    /// When that was, in milliseconds since 1970.
    pub lost_at_unix_ms: u64,
    /// How long writes had no leader, in milliseconds.
    pub gap_ms: u64,
    /// How much of that passed after the key named the new leader, in milliseconds.
    pub after_claim_ms: u64,
    /// From the loss to the first write that the new leader acknowledged (see [`telemetry`](crate::telemetry)),
    /// in milliseconds; `None` while there is none.
    pub first_write_ms: Option<u64>,
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn make(shared: &Shared, now: Instant) -> Report {
    let view = shared.view.load_full();
    let nodes = shared.nodes.load_full();
    let since = |at: Instant| ms(now.saturating_duration_since(at));
    let unix_now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, ms);
    let members = view.members.values().map(|member| {
        let node = nodes.get(&member.name);
        let status = node.map(|node| node.status());
        let (role, problem) = match &member.health {
            MemberHealth::Up(report) if report.in_recovery => (NodeRole::Replica, None),
            MemberHealth::Up(_) if view.leader.admitted() == Some(&member.name) => {
                (NodeRole::Leader, None)
            }
            MemberHealth::Up(_) => (NodeRole::Unadmitted, None),
            MemberHealth::Unknown => (NodeRole::Unavailable, Some("not asked yet".to_owned())),
            MemberHealth::Down { error, .. } => (NodeRole::Unavailable, Some(error.clone())),
            MemberHealth::Refused(refusal) => (NodeRole::Unavailable, Some(refusal.to_string())),
        };
        NodeReport {
            name: member.name.clone(),
            address: member.address.clone(),
            role,
            state: member.state.to_string(),
            timeline: member.timeline(),
            position: member.position(),
            lag_bytes: member.lag_bytes,
            staleness_ms: member.staleness(now).map(ms),
            latency_us: node.map_or(0, |node| {
                u64::try_from(node.load.latency().as_micros()).unwrap_or(u64::MAX)
            }),
            problem,
            noloadbalance: member.tags.noloadbalance,
            cadence: member.cadence,
            hung: node.map_or(0, |node| node.hung()),
            leaks: node.and_then(|node| node.leaks.as_ref()).map_or(0, |leaks| leaks.found()),
            breaker: match node.map(|node| node.guard.view()) {
                Some(guard) => BreakerReport {
                    state: guard.state,
                    since_ms: since(guard.since),
                    reason: guard.reason,
                    transitions: guard.transitions,
                },
                None => BreakerReport {
                    state: BreakerState::Closed,
                    since_ms: 0,
                    reason: None,
                    transitions: 0,
                },
            },
            pool: PoolReport {
                size: status.as_ref().map_or(0, |status| status.size),
                idle: status.as_ref().map_or(0, |status| status.available),
                in_use: node.map_or(0, |node| node.load.in_flight()),
                max_size: shared.config.pool.max_size,
            },
        }
    });
    let failovers = view.failovers.iter().rev().map(|failover| FailoverReport {
        from: failover.from.clone(),
        to: failover.to.clone(),
        epoch: failover.epoch,
        reason: failover.reason.to_string(),
        lost_at_unix_ms: unix_now.saturating_sub(since(failover.lost_at)),
        gap_ms: ms(failover.admitted_at - failover.lost_at),
        after_claim_ms: ms(failover.admitted_at - failover.claimed_at.max(failover.lost_at)),
        first_write_ms: shared
            .first_writes
            .after(failover.admitted_at)
            .map(|at| ms(at.saturating_duration_since(failover.lost_at))),
    });
    Report {
        scope: shared.config.cluster.scope.clone(),
        leader: view.leader.admitted().map(str::to_owned),
        leader_state: describe_leader(&view),
        leader_state_ms: match &view.leader {
            LeaderState::Unknown { since: at }
            | LeaderState::Claimed { since: at, .. }
            | LeaderState::Admitted { since: at, .. } => since(*at),
        },
        epoch: view.epoch,
        system_id: view.system_id,
        source: view.source,
        degraded: view.degraded.as_ref().map(|(_, reason)| reason.clone()),
        watch_age_ms: view.contact_at.map(since),
        synchronous: view.synchronous,
        lease_ms: ms(view.lease),
        waiting: shared.waiting.load(Ordering::Relaxed),
        held: shared.gate.waiting(),
        held_peak: shared.gate.peak(),
        lent: shared.lent.now().saturating_sub(shared.waiting.load(Ordering::Relaxed)),
        switchover: view.switchover.as_ref().map(|request| {
            let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "any".into());
            format!("{} -> {}", name(&request.leader), name(&request.member))
        }),
        nodes: members.collect(),
        failovers: failovers.collect(),
        lost_writes: shared.past.lost(),
        rejected_keys: view.rejected.clone(),
    }
}
