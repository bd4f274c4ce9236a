//! There are no data, or they are another cluster's.

use super::action::{Action, Choice, CloneSource};
use super::moment::Moment;
use super::rows::Row;
use super::seen::{Data, Initialize, Leader, Seen, Server};
use super::starting::leads_already;

/// The rows of a data directory that is not this cluster's; `None` where it is.
pub(super) fn rows(seen: &Seen, now: Moment) -> Option<Choice> {
    match (seen.postgres.data, seen.cluster.initialize) {
        (Data::Empty, _) => Some(empty(seen, now)),
        (Data::Present(system), Initialize::Done(cluster)) if system != cluster => {
            Some(Row::ForeignSystem.says(
                Action::Exit { code: 1 },
                format!(
                    "the data directory belongs to system {system}, the cluster is {cluster}: \
                     another cluster's data, or another scope's name"
                ),
            ))
        }
        (Data::Present(_), Initialize::InProgress { mine: true, .. }) => Some(made(seen)),
        (Data::Present(_), _) => None,
    }
}

/// This member makes the cluster, and initdb is done.
fn made(seen: &Seen) -> Choice {
    match seen.postgres.server {
        Server::Primary { .. } if seen.session.is_some() => Row::BootstrapEnds.says(
            Action::FinishBootstrap,
            "the cluster is made: its identifier and configuration are written, and this member leads",
        ),
        Server::Primary { .. } | Server::Starting { .. } => {
            Row::UnderWay.waits("the cluster is being made")
        }
        Server::Down { start_failed: false, .. } => {
            Row::BootstrapStarts.says(Action::StartAsPrimary, "the cluster is made: its server is started")
        }
        Server::Down { .. } | Server::Standby { .. } | Server::Stopping { .. } => Row::BootstrapFails
            .says(Action::AbandonBootstrap, "the new cluster's server does not run"),
    }
}

fn empty(seen: &Seen, now: Moment) -> Choice {
    if seen.holds_key() {
        let release = Action::ReleaseLeader { to: None, optime: None };
        return Row::EmptyReleases.says(release, "the key is ours, but there are no data");
    }
    match seen.cluster.initialize {
        Initialize::InProgress { mine: true, .. } => {
            Row::BootstrapFails.says(Action::AbandonBootstrap, "the cluster could not be made")
        }
        Initialize::InProgress { mine: false, since, revision } => {
            let maker = seen.others().any(|(_, member)| member.initializing);
            let end = since + seen.rules.ttl * 2;
            let leads = matches!(seen.cluster.leader, Leader::Held { .. });
            if !maker && !leads && now >= end && seen.me.may_bootstrap {
                return Row::BootstrapAbandoned.says(
                    Action::Bootstrap { replacing: Some(revision) },
                    "the member that was making the cluster is gone",
                );
            }
            Row::BootstrapAwaited.waits("another member is making the cluster").until(end.max(now))
        }
        Initialize::Absent => {
            if seen.me.may_bootstrap && !seen.me.tags.nofailover && seen.session.is_some() {
                return Row::BootstrapRaces.says(
                    Action::Bootstrap { replacing: None },
                    "there is no cluster yet, and no data",
                );
            }
            Row::BootstrapAwaited.waits("there is no cluster yet, and another member must make it")
        }
        Initialize::Done(_) => clone_from(seen),
    }
}

fn clone_from(seen: &Seen) -> Choice {
    match &seen.cluster.leader {
        Leader::Held { by, .. } => {
            let offers = seen
                .others()
                .find(|(name, member)| *name != by && member.running && member.tags.clonefrom);
            let leader = seen.cluster.members.get(by);
            match offers {
                Some((name, _)) => Row::Clones.says(
                    Action::CloneFrom(CloneSource::Member(name.to_owned())),
                    format!("there are no data: a copy is made from {name}, which offers itself"),
                ),
                None if leads_already(leader) => Row::Clones.says(
                    Action::CloneFrom(CloneSource::Member(by.clone())),
                    format!("there are no data: a copy is made from {by}, the leader"),
                ),
                None => Row::LeaderNotReady
                    .waits(format!("{by} does not lead yet, though the key is its")),
            }
        }
        Leader::Absent { .. } if seen.rules.standby_cluster => Row::Clones.says(
            Action::CloneFrom(CloneSource::Remote),
            "there are no data: a copy is made from the other cluster",
        ),
        Leader::Absent { .. } if seen.me.replica_without_leader => Row::Clones.says(
            Action::CloneFrom(CloneSource::Backup),
            "there are no data and no leader: a copy is made from a backup",
        ),
        Leader::Absent { .. } => {
            Row::LeaderAwaited.waits("there are no data, and no leader to copy them from")
        }
    }
}
