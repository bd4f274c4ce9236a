//! The leader key is ours, and the own server is a standby.

use std::time::Duration;

use leaderpool::patroni::{Lsn, Timeline};

use super::action::{Action, Choice, Chore};
use super::failsafe;
use super::fence::{FencePlan, leads_until};
use super::leader::status_is_due;
use super::moment::Moment;
use super::rank::failover_priority;
use super::rows::Row;
use super::seen::{Leader, Seen, SyncMode, Upstream, Watchdog};
use super::sync::{SyncKey, SyncNames};

/// The rows.
pub(super) fn rows(
    seen: &Seen,
    now: Moment,
    timeline: Timeline,
    received: Lsn,
    upstream: &Upstream,
) -> Choice {
    let release = |row: Row, reason: String| {
        row.says(Action::ReleaseLeader { to: None, optime: None }, reason)
    };
    if let Some((_, why)) = failsafe::holds_back(seen, now) {
        return release(Row::KeyGivenBack, format!("the key was won, but {why}"));
    }
    if failover_priority(&seen.me.tags) <= 0 {
        return release(Row::KeyGivenBack, "the tags of this member forbid it to lead".to_owned());
    }
    if seen.watchdog == Watchdog::Missing {
        return release(
            Row::KeyGivenBack,
            "the watchdog is required, and does not work".to_owned(),
        );
    }
    if seen.postgres.promote_failed.is_some_and(|failed| now < failed + seen.rules.ttl) {
        return release(Row::KeyGivenBack, "the promotion failed: another may try".to_owned());
    }
    if matches!(seen.cluster.leader, Leader::Held { attached: false, .. }) {
        return Row::KeyReattached.says(
            Action::ReattachLeader,
            "the leader key is ours, but hangs on the lease of an earlier process",
        );
    }
    if seen.rules.standby_cluster {
        return standby_leader(seen, now, received, upstream);
    }
    let ttl = seen.reign.map_or(seen.rules.ttl, |reign| reign.ttl);
    if seen.reign.is_none() || now >= FencePlan::new(leads_until(seen), ttl).fast {
        return Row::LeaseTooShort
            .waits("the lease must be renewed before the server is promoted")
            .in_(Duration::from_millis(100), now);
    }
    if let Some(choice) = synchronous_first(seen) {
        return choice;
    }
    let next = Timeline(seen.newest_timeline().max(timeline).0 + 1);
    match seen.claimed {
        // What we have claimed is the newest now, and is what the promotion makes.
        Some(claimed) if claimed > timeline && Timeline(next.0 - 1) <= claimed => {
            let above = Timeline(claimed.0 - 1);
            Row::Promotes.says(
                Action::Promote { above },
                format!("the key is ours: the server is promoted to timeline {claimed}"),
            )
        }
        _ => Row::ClaimsTimeline.says(
            Action::ClaimTimeline(next),
            format!("timeline {next} is claimed before it is made"),
        ),
    }
}

/// From here on nobody else may take over, until standbys are synchronous to this server.
fn synchronous_first(seen: &Seen) -> Option<Choice> {
    if seen.rules.synchronous_mode == SyncMode::Off {
        return None;
    }
    let only = SyncKey::only(&seen.me.name);
    let sync = seen.cluster.sync.as_ref();
    let revision = sync.map_or(0, |sync| sync.revision);
    if sync.is_none_or(|sync| sync.key != only || !sync.settled) {
        return Some(Row::SyncBeforePromotion.says(
            Action::WriteSync { key: only, revision },
            "the synchronous standbys of the last leader are not this one's",
        ));
    }
    let names =
        if seen.rules.synchronous_mode_strict { SyncNames::Anyone } else { SyncNames::Nobody };
    let now = &seen.postgres.names;
    (now.names != names || now.set.as_ref().is_some_and(|set| *set != names)).then(|| {
        Row::SyncBeforePromotion.says(
            Action::SetSyncNames(names),
            "the synchronous standbys of the last leader are not this one's",
        )
    })
}

fn standby_leader(seen: &Seen, now: Moment, received: Lsn, upstream: &Upstream) -> Choice {
    if *upstream != Upstream::Remote {
        return Row::StandbyLeaderFollows.says(
            Action::Follow(Upstream::Remote),
            "this is the leader of a standby cluster: it replicates from the other cluster",
        );
    }
    let due = status_is_due(seen, now);
    let chores = due.then_some(Chore::WriteStatus(received)).into_iter().collect();
    Row::StandbyLeads.says(
        Action::KeepLeading(chores),
        "this is the leader of a standby cluster, and has its key",
    )
}
