//! The server does not run, or not yet.

use std::time::Duration;

use leaderpool::patroni::{MemberRole, Timeline};

use super::action::{Action, Choice, DemoteKind, HandOver};
use super::fence;
use super::follower::upstream;
use super::handover::{heir, last_written};
use super::moment::Moment;
use super::rows::Row;
use super::seen::{
    Control, ControlState, Etcd, HandoverWhy, Leader, MemberSeen, Rewind, Seen, StopMode, Upstream,
    Work,
};

/// How long a server that has failed to start is left alone.
const AFTER_FAILURE: Duration = Duration::from_secs(2);

/// How many crashes within `primary_start_timeout` make a crash loop.
const CRASH_LOOP: u32 = 3;

/// How long the next leader is waited for before a server is started without one.
const FOR_A_LEADER: Duration = Duration::from_secs(1);

/// The rows of a server that has no process.
pub(super) fn down(seen: &Seen, now: Moment, since: Moment, start_failed: bool) -> Choice {
    if seen.holds_key() {
        return down_with_key(seen, now, since, start_failed);
    }
    if start_failed && now < since + AFTER_FAILURE {
        return Row::StartFailedWaits
            .waits("the server did not start; it is tried again in a moment")
            .until(since + AFTER_FAILURE);
    }
    match (&seen.cluster.leader, seen.other_leader()) {
        (_, Some(leader)) => down_under(seen, now, leader),
        // Who has just given up the key lets the next one take it first.
        (Leader::Absent { since: gone, last: Some(last), .. }, _)
            if *last == seen.me.name && now < *gone + FOR_A_LEADER =>
        {
            Row::WaitsForHeir
                .waits("the next leader is waited for before the server is started again")
                .until(*gone + FOR_A_LEADER)
        }
        _ => Row::StartsWithoutLeader.says(
            Action::StartAsStandby(Upstream::Nobody),
            "nobody leads: the server is started as a standby, and may then become leader",
        ),
    }
}

/// While etcd is silent.
pub(super) fn down_in_silence(seen: &Seen, now: Moment, since: Moment, failed: bool) -> Choice {
    if failed && now < since + AFTER_FAILURE {
        return Row::StartFailedWaits
            .waits("the server did not start; it is tried again in a moment")
            .until(since + AFTER_FAILURE);
    }
    if seen.holds_key() && starts_as_primary(seen, now) {
        return Row::DeadPrimaryRestarts.says(
            Action::StartAsPrimary,
            "the primary has ended; its lease is still good, though etcd is silent",
        );
    }
    Row::SilentStarts.says(
        Action::StartAsStandby(Upstream::Nobody),
        "etcd is silent: the server is started as a standby",
    )
}

fn lease_allows_start(seen: &Seen, now: Moment) -> bool {
    let ttl = seen.reign.map_or(seen.rules.ttl, |reign| reign.ttl);
    seen.reign.is_some()
        && now + ttl / 10 < fence::FencePlan::new(fence::leads_until(seen), ttl).fast
}

/// Whether the data are those of the primary of the newest timeline. On any older one the server would go
/// on with a timeline that others have left.
fn may_start_as_primary(seen: &Seen) -> bool {
    let timeline = seen.postgres.control.map_or(Timeline(0), |control| control.timeline);
    seen.was_primary() && timeline >= seen.newest_timeline() && !seen.rules.standby_cluster
}

/// Whether a server that is down may be started as the primary that it was.
pub(super) fn starts_as_primary(seen: &Seen, now: Moment) -> bool {
    may_start_as_primary(seen) && lease_allows_start(seen, now)
}

fn down_with_key(seen: &Seen, now: Moment, since: Moment, start_failed: bool) -> Choice {
    if matches!(seen.cluster.leader, Leader::Held { attached: false, .. }) {
        return Row::KeyReattached.says(
            Action::ReattachLeader,
            "the leader key is ours, but hangs on the lease of an earlier process",
        );
    }
    if seen.rules.standby_cluster {
        return Row::StandbyLeaderStarts.says(
            Action::StartAsStandby(Upstream::Remote),
            "this is the leader of a standby cluster",
        );
    }
    let heir = heir(seen, last_written(seen));
    let release = |row: Row, to: Option<String>, reason: &'static str| {
        row.says(Action::ReleaseLeader { to, optime: None }, reason)
    };
    if heir.is_some() {
        if start_failed {
            return release(
                Row::StartFailedReleases,
                heir,
                "the server does not start, and another can",
            );
        }
        if seen.postgres.crashes >= CRASH_LOOP {
            return release(Row::CrashLoopReleases, heir, "the server crashes again and again");
        }
        if seen.rules.primary_start_timeout.is_zero() && seen.was_primary() {
            let reason = "the primary has ended, and primary_start_timeout is zero";
            return release(Row::DeadPrimaryReleases, heir, reason);
        }
    }
    if start_failed && now < since + AFTER_FAILURE {
        return Row::StartFailedWaits
            .waits("the server did not start; it is tried again in a moment")
            .until(since + AFTER_FAILURE);
    }
    if !lease_allows_start(seen, now) {
        return Row::LeaseTooShort
            .waits("the lease must be renewed before the server is started")
            .in_(Duration::from_millis(100), now);
    }
    if may_start_as_primary(seen) {
        return Row::DeadPrimaryRestarts
            .says(Action::StartAsPrimary, "the primary has ended, and its key is ours");
    }
    Row::KeyHolderStarts.says(
        Action::StartAsStandby(Upstream::Nobody),
        "the key is ours: the server is started as a standby, then promoted",
    )
}

/// Whether data can be rewound from `leader` now, or compared with its history.
pub(super) fn leads_already(leader: Option<&MemberSeen>) -> bool {
    leader.is_some_and(|leader| {
        leader.running && matches!(leader.role, MemberRole::Primary | MemberRole::StandbyLeader)
    })
}

/// Another member leads.
fn down_under(seen: &Seen, now: Moment, leader: &str) -> Choice {
    let member = seen.cluster.members.get(leader);
    match &seen.postgres.rewind {
        Rewind::NotNeeded => starts_as_standby(seen, leader),
        Rewind::Unknown if !seen.was_primary() => starts_as_standby(seen, leader),
        Rewind::Unknown if leads_already(member) => {
            let why =
                format!("this was a primary: have its data a place in the history of {leader}?");
            checks_rewind(seen, now, leader, why)
        }
        Rewind::Unknown => {
            Row::LeaderNotReady.waits(format!("{leader} does not lead yet, though the key is its"))
        }
        Rewind::Needed => rewind(seen, leader, member),
        Rewind::Failed(why) => diverged(seen.rules.remove_data_on_rewind_failure, why),
    }
}

/// Has the data compared with the leader's history, once a second where that is in vain.
pub(super) fn checks_rewind(seen: &Seen, now: Moment, leader: &str, why: String) -> Choice {
    let again = seen.postgres.rewind_tried.map(|tried| tried + Duration::from_secs(1));
    match again.filter(|again| now < *again) {
        Some(again) => Row::RewindChecked.waits(why).until(again),
        None => Row::RewindChecked.says(Action::CheckRewind { from: leader.to_owned() }, why),
    }
}

fn starts_as_standby(seen: &Seen, leader: &str) -> Choice {
    let upstream = upstream(seen, leader);
    Row::StartsAsStandby.says(
        Action::StartAsStandby(upstream),
        format!("{leader} leads, and the server does not run"),
    )
}

fn rewind(seen: &Seen, leader: &str, member: Option<&MemberSeen>) -> Choice {
    if !seen.rules.use_pg_rewind {
        return diverged(seen.rules.remove_data_on_divergence, "use_pg_rewind is off");
    }
    if !leads_already(member) {
        return Row::LeaderNotReady
            .waits(format!("{leader} does not lead yet, though the key is its"));
    }
    if member.is_some_and(|member| !member.checkpointed) {
        return Row::LeaderNotCheckpointed
            .waits(format!("{leader} has yet to make its first checkpoint as the leader"));
    }
    let crashed = |control: Control| {
        matches!(control.state, ControlState::InProduction | ControlState::InRecovery)
            && !control.backup_label
    };
    if seen.postgres.control.is_some_and(crashed) {
        return Row::RecoversAlone.says(
            Action::CrashRecover,
            "the server crashed: it recovers alone before its data are rewound",
        );
    }
    Row::Rewinds.says(
        Action::Rewind { from: leader.to_owned() },
        format!("the data go beyond the point where the timeline of {leader} began"),
    )
}

/// The data cannot follow the leader, and cannot be made to.
fn diverged(allowed: bool, why: &str) -> Choice {
    if allowed {
        return Row::ClonesAgain.says(
            Action::Reclone,
            format!("the data have diverged ({why}); the configuration allows a fresh copy"),
        );
    }
    Row::Diverged.waits(format!(
        "the data have diverged ({why}): an operator must reinitialize this member, or allow \
         remove_data_directory_on_rewind_failure or remove_data_directory_on_diverged_timelines"
    ))
}

/// Whether the leader waits for an operator because of diverged data: shared with the running standby.
pub(super) fn running_diverged(seen: &Seen) -> Option<Choice> {
    match &seen.postgres.rewind {
        Rewind::Needed if !seen.rules.use_pg_rewind => {
            let allowed = seen.rules.remove_data_on_divergence;
            Some(diverged(allowed, "use_pg_rewind is off"))
        }
        Rewind::Failed(why) => Some(diverged(seen.rules.remove_data_on_rewind_failure, why)),
        Rewind::Unknown | Rewind::NotNeeded | Rewind::Needed => None,
    }
}

/// The rows of a server that does not take connections yet.
pub(super) fn starting(seen: &Seen, now: Moment, since: Moment) -> Choice {
    if seen.holds_key() && seen.etcd == Etcd::Answers {
        if matches!(seen.cluster.leader, Leader::Held { attached: false, .. }) {
            return Row::KeyReattached.says(
                Action::ReattachLeader,
                "the leader key is ours, but hangs on the lease of an earlier process",
            );
        }
        let late = since + seen.rules.primary_start_timeout;
        let Some(to) = heir(seen, last_written(seen)) else {
            return Row::StartsUp.waits("the server is starting, and nobody else is fit to lead");
        };
        if now >= late {
            let hand_over = Some(HandOver { to: Some(to), why: HandoverWhy::GiveUp });
            let kind = DemoteKind::Immediate;
            return Row::StartTooSlow.says(
                Action::Demote { kind, stop: StopMode::Immediate, hand_over },
                "the server takes longer than primary_start_timeout, and another can lead",
            );
        }
        return Row::StartsUp.waits("the server is starting, and the key is ours").until(late);
    }
    Row::StartsUp.waits("the server is starting")
}

/// The rows of a server that was told to stop.
pub(super) fn stopping(now: Moment, since: Moment, mode: StopMode, was_primary: bool) -> Choice {
    let (limit, harder) = match mode {
        StopMode::Fast if was_primary => {
            return Row::StoppingDown.waits("the server is shutting down");
        }
        StopMode::Fast => (Duration::from_secs(30), StopMode::Immediate),
        StopMode::Immediate => (Duration::from_secs(1), StopMode::Kill),
        StopMode::Kill => return Row::StoppingDown.waits("the server was killed"),
    };
    if now >= since + limit {
        return Row::StopStuck.says(Action::Stop(harder), "the server does not stop");
    }
    Row::StoppingDown.waits("the server is shutting down").until(since + limit)
}

/// The rows of work that was begun; `None` where it does not keep the others from being looked at.
pub(super) fn under_way(seen: &Seen) -> Option<Choice> {
    let doing = seen.doing?;
    let what = match doing.work {
        Work::Bootstrap => "the cluster is being made",
        Work::Clone => "the data are being copied",
        Work::Promote => "the server is being promoted",
        Work::Restart => "the server is being restarted",
        Work::CheckRewind => "the data are being compared with the leader's history",
        Work::Rewind => "the data are being rewound",
        Work::CrashRecover => "the server recovers alone",
    };
    Some(Row::UnderWay.waits(what))
}
