//! Another member holds the leader key, and the own server is a standby.

use std::time::Duration;

use super::action::{Action, Choice};
use super::moment::Moment;
use super::rank::replicate_from;
use super::rows::Row;
use super::seen::{Rewind, Seen, StopMode, Upstream};
use super::starting::{checks_rewind, leads_already, running_diverged};

/// How long a standby may be without a stream before its data are suspected.
const WITHOUT_STREAM: Duration = Duration::from_secs(1);

/// When it is looked at again whether data can follow that should, and do not.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// How old answers may be that were asked for when the stream broke.
const ANSWERS_AGE: Duration = Duration::from_secs(5);

/// Where a standby under `leader` gets its WAL from.
pub(super) fn upstream(seen: &Seen, leader: &str) -> Upstream {
    let fits = |name: &&str| {
        *name != seen.me.name
            && *name != leader
            && seen.cluster.members.get(*name).is_some_and(|member| member.running)
    };
    let chosen = replicate_from(&seen.me.tags).filter(fits).unwrap_or(leader);
    Upstream::Member(chosen.to_owned())
}

/// The rows.
pub(super) fn rows(
    seen: &Seen,
    now: Moment,
    leader: &str,
    current: &Upstream,
    stream_lost: Option<Moment>,
) -> Choice {
    let wanted = upstream(seen, leader);
    if *current != wanted {
        return Row::Follows.says(Action::Follow(wanted), format!("{leader} leads"));
    }
    let Some(lost) = stream_lost else {
        return Row::Following.waits(format!("{leader} leads, and this is its standby"));
    };
    let member = seen.cluster.members.get(leader);
    if now >= lost + WITHOUT_STREAM && leads_already(member) {
        if let Some(choice) = running_diverged(seen) {
            return choice;
        }
        match seen.postgres.rewind {
            Rewind::Unknown => {
                let why = format!("nothing streams from {leader}: can these data follow it?");
                return checks_rewind(seen, now, leader, why);
            }
            Rewind::Needed if member.is_some_and(|member| member.checkpointed) => {
                return Row::StopsToRewind.says(
                    Action::Stop(StopMode::Fast),
                    format!("the data go beyond the point where the timeline of {leader} began"),
                );
            }
            Rewind::Needed => {
                return Row::LeaderNotCheckpointed
                    .waits(format!("{leader} has yet to make its first checkpoint as the leader"));
            }
            Rewind::NotNeeded
                if seen.postgres.rewind_tried.is_none_or(|at| now >= at + LOOK_AGAIN) =>
            {
                let why = format!("nothing streams from {leader}, though it should: why?");
                return checks_rewind(seen, now, leader, why);
            }
            Rewind::NotNeeded | Rewind::Failed(_) => {}
        }
    }
    // The leader may be dying. Who is ahead is known, then, by the time its key goes.
    let stale = |name: &str| {
        let after = lost.max(now - ANSWERS_AGE);
        seen.peers.get(name).is_none_or(|peer| peer.asked.is_none_or(|asked| asked < after))
    };
    let ask: Vec<String> =
        seen.others().map(|(name, _)| name).filter(|name| stale(name)).map(str::to_owned).collect();
    if !ask.is_empty() {
        return Row::StreamLost
            .says(Action::AskPeers(ask), format!("nothing streams from {leader}"))
            .in_(Duration::from_millis(500), now);
    }
    Row::StreamLost
        .waits(format!("nothing streams from {leader}"))
        .in_(Duration::from_millis(500), now)
}
