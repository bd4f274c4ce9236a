//! Paused: an operator has the cluster in hand. Nothing is started, stopped, promoted or demoted; a primary's
//! lease is still renewed.

use super::action::{Action, Choice, CloneSource};
use super::handover;
use super::leader::chores;
use super::moment::Moment;
use super::no_leader;
use super::promoting;
use super::rows::Row;
use super::seen::{Data, Etcd, Initialize, Leader, Seen, Server};

/// The rows.
pub(super) fn rows(seen: &Seen, now: Moment) -> Choice {
    if seen.etcd != Etcd::Answers {
        return Row::PausedIdle.waits("paused, and etcd is silent");
    }
    let foreign = match (seen.postgres.data, seen.cluster.initialize) {
        (Data::Present(system), Initialize::Done(cluster)) => system != cluster,
        _ => false,
    };
    let release = |reason: &'static str| {
        Row::PausedReleases.says(Action::ReleaseLeader { to: None, optime: None }, reason)
    };
    if seen.holds_key() {
        return match &seen.postgres.server {
            _ if foreign => release("paused; the data are another cluster's"),
            Server::Primary { .. }
                if matches!(seen.cluster.leader, Leader::Held { attached: false, .. }) =>
            {
                Row::KeyReattached.says(
                    Action::ReattachLeader,
                    "the leader key is ours, but hangs on the lease of an earlier process",
                )
            }
            Server::Primary { timeline, written } => match handover::asked(seen, now, *written) {
                Some(choice) => choice,
                None => Row::PausedLeads.says(
                    Action::KeepLeading(chores(seen, now, *timeline, *written)),
                    "paused; the leader key is ours",
                ),
            },
            Server::Standby { timeline, received, upstream, .. }
                if names_me(seen) || seen.rules.standby_cluster =>
            {
                promoting::rows(seen, now, *timeline, *received, upstream)
            }
            _ if seen.could_write() => Row::PausedIdle
                .waits("paused; the leader key is ours, and the server starts or stops"),
            _ => release("paused; the leader key is ours, but the server is no primary"),
        };
    }
    if foreign {
        return Row::PausedIdle.waits("paused; the data are another cluster's");
    }
    let absent = matches!(seen.cluster.leader, Leader::Absent { .. });
    match &seen.postgres.server {
        Server::Primary { .. } if absent => {
            let sync_revision = seen.cluster.sync.as_ref().map_or(0, |sync| sync.revision);
            Row::PausedTakesKey.says(
                Action::AcquireLeader { sync_revision },
                "paused; nobody leads, and the server is a primary",
            )
        }
        Server::Standby { .. } if absent && names_me(seen) => no_leader::race(seen, now),
        // A replica that is being made for the first time is no change to the cluster.
        Server::Down { .. } if seen.postgres.data == Data::Empty => match &seen.cluster.leader {
            Leader::Held { by, .. } => Row::Clones.says(
                Action::CloneFrom(CloneSource::Member(by.clone())),
                format!("there are no data: a copy is made from {by}, the leader"),
            ),
            Leader::Absent { .. } => {
                Row::PausedIdle.waits("paused; there are no data, and no leader")
            }
        },
        _ => Row::PausedIdle.waits("paused"),
    }
}

/// Whether an operator has named this member to take over.
fn names_me(seen: &Seen) -> bool {
    let failover = seen.cluster.failover.as_ref();
    failover.is_some_and(|failover| failover.request.member.as_ref() == Some(&seen.me.name))
}
