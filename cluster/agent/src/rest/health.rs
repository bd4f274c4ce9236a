//! Whether a path is answered 200: what load balancers ask. Pure.
//!
//! The paths are matched as Patroni matches them: by what they contain, in a fixed order, since that is
//! what existing configurations of load balancers have been made for.

use leaderpool::patroni::{Lsn, MemberRole};
use serde_json::Value;

use super::query::{Query, parse_bytes};
use super::status::{Moment, NodeStatus, Synchronous};

/// When `/primary` and `/leader` are answered 200.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PrimaryRule {
    /// The lock is held, *and* the server runs out of recovery (in a standby cluster: runs).
    #[default]
    Proven,
    /// The lock is held, as Patroni has it: also while the server is still being promoted, and after it
    /// died.
    LockOnly,
}

/// What the node is good for at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Roles {
    leader: bool,
    primary: bool,
    standby_leader: bool,
    replica: bool,
}

/// The code for a health path (`/` for `/primary`), and for every path that is none: 200 or 503.
#[must_use]
pub fn health_code(
    status: &NodeStatus,
    rule: PrimaryRule,
    path: &str,
    query: &Query,
    moment: &Moment,
) -> u16 {
    let path = if path.trim_start_matches('/').is_empty() { "/primary" } else { path };
    let roles = roles(status, rule, query, moment);
    let has = |part: &str| path.contains(part);
    let synchronous = status.synchronous_as(moment.now);
    let (is_sync, is_quorum) =
        (synchronous == Synchronous::Standbys, synchronous == Synchronous::Quorum);
    let writes_or_leads = roles.primary || roles.standby_leader;
    // What names a leader is about the lock alone.
    let (good, tags_count) = if has("standby_leader") || has("standby-leader") {
        (roles.standby_leader, false)
    } else if has("leader") {
        (roles.leader, false)
    } else if has("master") || has("primary") || has("read-write") {
        (roles.primary, false)
    } else if has("replica") {
        (roles.replica && state_is_asked_for(status, query, moment), true)
    } else if has("read-only") && !has("sync") && !has("quorum") {
        (writes_or_leads || roles.replica, true)
    } else if has("health") {
        (status.told_state(moment.now) == "running", true)
    } else if status.cluster.is_some() {
        let good = match path {
            "/sync" | "/synchronous" => is_sync && roles.replica,
            "/quorum" => is_quorum && roles.replica,
            "/async" | "/asynchronous" => !is_sync && !is_quorum && roles.replica,
            "/read-only-sync" => writes_or_leads || (is_sync && roles.replica),
            "/read-only-quorum" => writes_or_leads || (is_quorum && roles.replica),
            _ => false,
        };
        (good, true)
    } else {
        (false, true)
    };
    code(good && (!tags_count || query.tags().all(|(name, value)| has_tag(status, name, value))))
}

/// `/liveness`: whether the agent's loop goes round. A replica's may take twice as long.
#[must_use]
pub fn liveness_code(status: &NodeStatus, moment: &Moment) -> u16 {
    let primary = status.told_role(moment.now) == MemberRole::Primary;
    let grace = if primary { status.ttl } else { status.ttl * 2 };
    code(status.mode.paused || moment.now < status.next_run.plus(grace))
}

/// `/readiness`: the leader, or a replica that streams and is not too far behind.
#[must_use]
pub fn readiness_code(
    status: &NodeStatus,
    rule: PrimaryRule,
    query: &Query,
    moment: &Moment,
) -> u16 {
    if roles(status, rule, query, moment).leader {
        return 200;
    }
    let Some(sample) = status.sample(moment.now) else { return 503 };
    let at = match query.get("mode") {
        Some("write") => sample.received.max(sample.replayed),
        _ => sample.replayed,
    };
    let allowed = query.get("lag").and_then(parse_bytes).unwrap_or(status.maximum_lag);
    let lags = leader_position(status, moment).bytes_since(at.unwrap_or_default()) > allowed;
    let streams = sample.replication_state.as_deref() == Some("streaming");
    code(status.told_state(moment.now) == "running" && sample.in_recovery && streams && !lags)
}

fn roles(status: &NodeStatus, rule: PrimaryRule, query: &Query, moment: &Moment) -> Roles {
    let now = moment.now;
    let (role, running) = (status.told_role(now), status.told_state(now) == "running");
    let is_primary = role == MemberRole::Primary;
    let replays = matches!(role, MemberRole::Replica | MemberRole::StandbyLeader);
    let mut roles = Roles {
        leader: false,
        primary: false,
        standby_leader: false,
        replica: role == MemberRole::Replica
            && running
            && !status.has_tag("noloadbalance")
            && !lags(status, query, moment),
    };
    if status.cluster.is_none() && status.mode.paused {
        // Nobody is asked in maintenance: the role is what it was.
        let standby_leader = role == MemberRole::StandbyLeader;
        return Roles {
            leader: is_primary || standby_leader,
            primary: is_primary,
            standby_leader,
            ..roles
        };
    }
    if moment.holds_lock() {
        let proven = |good: bool| rule == PrimaryRule::LockOnly || (good && running);
        if status.mode.standby_cluster {
            roles.replica = false;
            roles.standby_leader = replays && proven(true);
            roles.leader = proven(replays);
        } else {
            roles.primary = proven(is_primary);
            roles.leader = roles.primary;
        }
    }
    roles
}

/// How far the leader is, as far as this node knows: by `/status`, and by its own walreceiver.
fn leader_position(status: &NodeStatus, moment: &Moment) -> Lsn {
    let told = status.snapshot().and_then(|cluster| cluster.status.as_ref());
    let told = told.map(|status| status.optime).unwrap_or_default();
    let heard = status.sample(moment.now).and_then(|sample| sample.latest_end);
    told.max(heard.unwrap_or_default())
}

fn lags(status: &NodeStatus, query: &Query, moment: &Moment) -> bool {
    let Some(allowed) = query.get("lag").and_then(parse_bytes) else { return false };
    let replayed = status.sample(moment.now).and_then(|sample| sample.replayed);
    leader_position(status, moment).bytes_since(replayed.unwrap_or_default()) > allowed
}

fn state_is_asked_for(status: &NodeStatus, query: &Query, moment: &Moment) -> bool {
    query.get("replication_state").is_none_or(|wanted| {
        let sample = status.sample(moment.now);
        sample.and_then(|sample| sample.replication_state.as_deref()) == Some(wanted)
    })
}

fn has_tag(status: &NodeStatus, name: &str, wanted: &str) -> bool {
    match status.tags.get(name) {
        // A tag that is false is as good as absent.
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::String(text)) => text == wanted,
        Some(value) => serde_json::to_string(value).is_ok_and(|text| text == wanted),
    }
}

fn code(good: bool) -> u16 {
    if good { 200 } else { 503 }
}
