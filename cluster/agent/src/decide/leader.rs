//! The leader key is ours, and the own server is a primary.

use std::collections::BTreeMap;

use leaderpool::patroni::{Lsn, Timeline};

use super::action::{Action, Choice, Chore, DemoteKind, HandOver};
use super::handover;
use super::moment::Moment;
use super::rows::Row;
use super::seen::{Data, HandoverWhy, Initialize, Leader, Seen, StopMode};
use super::sync::{SyncStep, step};

/// The rows.
pub(super) fn rows(seen: &Seen, now: Moment, timeline: Timeline, written: Lsn) -> Choice {
    if matches!(seen.cluster.leader, Leader::Held { attached: false, .. }) {
        return Row::KeyReattached.says(
            Action::ReattachLeader,
            "the leader key is ours, but hangs on the lease of an earlier process",
        );
    }
    if timeline < seen.newest_timeline() {
        // The key was never lost, so nobody can have led since; but the history says so.
        let hand_over = Some(HandOver { to: None, why: HandoverWhy::GiveUp });
        let (kind, stop) = (DemoteKind::Immediate, StopMode::Immediate);
        return Row::OldTimeline.says(
            Action::Demote { kind, stop, hand_over },
            "another member has led on a newer timeline",
        );
    }
    if seen.rules.standby_cluster {
        let (kind, stop) = (DemoteKind::ToStandbyCluster, StopMode::Fast);
        return Row::BecomesStandbyCluster.says(
            Action::Demote { kind, stop, hand_over: None },
            "the cluster has become a standby of another one",
        );
    }
    if let Some(choice) = handover::asked(seen, now, written) {
        return choice;
    }
    let choice = Row::Leads
        .says(Action::KeepLeading(chores(seen, now, timeline, written)), "the leader key is ours");
    match seen.cluster.failover.as_ref().map(|failover| failover.due) {
        Some(super::seen::Due::At(at)) if at > now => choice.until(at),
        _ => choice,
    }
}

/// Whether the position is to be written again.
pub(super) fn status_is_due(seen: &Seen, now: Moment) -> bool {
    seen.status_written.is_none_or(|written| now >= written + seen.rules.loop_wait)
}

/// What a leader writes, in order.
pub(super) fn chores(seen: &Seen, now: Moment, timeline: Timeline, written: Lsn) -> Vec<Chore> {
    let mut chores = Vec::new();
    if let (Initialize::Absent | Initialize::InProgress { .. }, Data::Present(system)) =
        (seen.cluster.initialize, seen.postgres.data)
    {
        chores.push(Chore::WriteInitialize(system));
    }
    let sync = step(seen, written);
    if sync != SyncStep::Done {
        chores.push(Chore::Sync(sync));
    }
    if status_is_due(seen, now) && seen.cluster.optime != Some(written) {
        chores.push(Chore::WriteStatus(written));
    }
    if timeline > Timeline(1) && seen.cluster.history.is_none_or(|history| history < timeline) {
        chores.push(Chore::WriteHistory);
    }
    if seen.rules.failsafe_mode {
        let members: BTreeMap<String, String> = seen
            .cluster
            .members
            .iter()
            .filter_map(|(name, member)| Some((name.clone(), member.api_url.clone()?)))
            .collect();
        if seen.cluster.failsafe.as_ref() != Some(&members) {
            chores.push(Chore::WriteFailsafe(members));
        }
    }
    if seen.cluster.members.get(&seen.me.name).is_some_and(|me| !me.checkpointed) {
        chores.push(Chore::Checkpoint);
    }
    chores
}
