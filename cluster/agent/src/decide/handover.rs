//! The leader hands over: a switchover that was asked for, an agent that stops, a server that does not
//! come up.
//!
//! In order: the candidate is checked, the server is shut down (fast; the lease is renewed meanwhile), and once
//! the control file says that nothing is written any more and the candidate has received all of it, the
//! key is released. A switchover whose candidate does not get there is called off: the server is started as
//! a primary again, and nothing is lost.

use std::borrow::Cow;
use std::time::Duration;

use leaderpool::patroni::Lsn;

use super::action::{Action, Choice, Chore, DemoteKind, HandOver};
use super::moment::Moment;
use super::rank::failover_priority;
use super::rows::Row;
use super::seen::{
    ControlState, Due, Etcd, FailoverSeen, Handover, HandoverWhy, Seen, Server, StopMode, SyncMode,
};
use super::starting::starts_as_primary;

/// How old a candidate's answer may be when the leader steps down for it.
const FRESH: Duration = Duration::from_secs(1);

/// How long a candidate may take to answer, or to receive the last of the WAL.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often a question is asked again.
const AGAIN: Duration = Duration::from_millis(100);

/// Why `name` cannot take over from a leader that has written `written`; `None` where it can, as far as the
/// keys and the leader's own walsenders tell.
pub(super) fn unfit(seen: &Seen, name: &str, written: Lsn) -> Option<&'static str> {
    let Some(member) = seen.cluster.members.get(name) else { return Some("it has no member key") };
    if failover_priority(&member.tags) <= 0 {
        return Some("its tags forbid it");
    }
    if !member.running {
        return Some("its server does not run");
    }
    let Some(row) = seen.postgres.standbys.iter().find(|row| row.name == name) else {
        return Some("it does not replicate from this server");
    };
    if !row.streaming {
        return Some("it does not stream yet");
    }
    if written.bytes_since(row.flushed) > seen.rules.maximum_lag_on_failover {
        return Some("it lags by more than maximum_lag_on_failover");
    }
    (!counts_as_synchronous(seen, name)).then_some("it is no synchronous standby")
}

/// Whether `name` may take over as far as the synchronous state goes.
fn counts_as_synchronous(seen: &Seen, name: &str) -> bool {
    seen.rules.synchronous_mode == SyncMode::Off
        || seen.cluster.sync.as_ref().is_some_and(|sync| sync.key.standbys.contains(name))
}

/// The member that is best fit to take over.
pub(super) fn heir(seen: &Seen, written: Lsn) -> Option<String> {
    let fit = seen.others().filter(|(name, _)| unfit(seen, name, written).is_none());
    let best = fit.max_by_key(|(name, member)| {
        let row = seen.postgres.standbys.iter().find(|row| row.name == *name);
        (row.map(|row| row.flushed), failover_priority(&member.tags), std::cmp::Reverse(*name))
    });
    best.map(|(name, _)| name.to_owned())
}

/// The last position that is known of a server that has ended.
pub(super) fn last_written(seen: &Seen) -> Lsn {
    let checkpoint = seen.postgres.control.map(|control| control.checkpoint);
    checkpoint.max(seen.cluster.optime).unwrap_or_default()
}

/// The rows of a leader that is asked for a switchover; `None` where there is nothing to do about it now.
pub(super) fn asked(seen: &Seen, now: Moment, written: Lsn) -> Option<Choice> {
    let failover = seen.cluster.failover.as_ref()?;
    let request = &failover.request;
    let me = &seen.me.name;
    if request.leader.as_ref().is_some_and(|leader| leader != me) {
        return Some(clear(failover, "it names another leader"));
    }
    if request.member.as_ref() == Some(me) {
        return Some(clear(failover, "its candidate leads"));
    }
    match failover.due {
        Due::Now => {}
        Due::Unreadable => return Some(clear(failover, "its time cannot be read")),
        Due::At(at) if now < at => return None,
        Due::At(at) if now > at + seen.rules.loop_wait * 3 / 2 => {
            return Some(clear(failover, "its time has passed"));
        }
        Due::At(_) => {}
    }
    let Some(to) = &request.member else {
        if seen.rules.pause {
            return Some(clear(failover, "a switchover in pause needs a candidate"));
        }
        return Some(match heir(seen, written) {
            Some(to) => Row::NameCandidate.says(
                Action::KeepLeading(vec![Chore::NameCandidate {
                    revision: failover.revision,
                    to: to.clone(),
                }]),
                format!("a switchover was asked for, and {to} is the fittest"),
            ),
            None => clear(failover, "no member is fit to take over"),
        });
    };
    candidate(seen, now, failover, to, written)
}

fn candidate(
    seen: &Seen,
    now: Moment,
    failover: &FailoverSeen,
    to: &str,
    written: Lsn,
) -> Option<Choice> {
    // An operator may fail over to a standby that is not synchronous, but not switch over to one.
    let manual = failover.request.leader.is_none();
    match unfit(seen, to, written) {
        Some("it is no synchronous standby") if manual => {}
        Some(why) => return Some(clear(failover, format!("{to} cannot take over: {why}"))),
        None => {}
    }
    let peer = seen.peers.get(to).cloned().unwrap_or_default();
    let wanted = Moment(now.0.saturating_sub(FRESH)).max(failover.since);
    if peer.answered(wanted) {
        let answer = peer.answer.as_ref()?;
        if let Some(why) = &answer.limitation {
            return Some(clear(failover, format!("{to} cannot take over: {why}")));
        }
        if !answer.running || answer.primary {
            return Some(clear(
                failover,
                format!("{to} cannot take over: it is no running standby"),
            ));
        }
        let hand_over = HandOver { to: Some(to.to_owned()), why: HandoverWhy::Switchover };
        return Some(Row::SwitchoverBegins.says(
            graceful(Some(hand_over)),
            format!("a switchover to {to} was asked for, and it is fit"),
        ));
    }
    let first = match failover.due {
        Due::At(at) => at.max(failover.since),
        Due::Now | Due::Unreadable => failover.since,
    };
    if now > first + PATIENCE {
        return Some(clear(failover, format!("{to} does not answer")));
    }
    Some(
        Row::CandidateAsked
            .says(
                Action::AskPeers(vec![to.to_owned()]),
                format!("{to} is asked before it takes over"),
            )
            .in_(AGAIN, now),
    )
}

fn graceful(hand_over: Option<HandOver>) -> Action {
    Action::Demote { kind: DemoteKind::Graceful, stop: StopMode::Fast, hand_over }
}

fn clear(failover: &FailoverSeen, reason: impl Into<Cow<'static, str>>) -> Choice {
    let reason = reason.into();
    let chore = Chore::ClearFailover { revision: failover.revision, reason: reason.clone() };
    Row::RequestRefused.says(Action::KeepLeading(vec![chore]), reason)
}

/// How long a server may take to shut down.
fn stop_limit(seen: &Seen) -> Duration {
    seen.rules.primary_stop_timeout.unwrap_or(seen.rules.ttl * 2)
}

/// The rows of a handing over that was begun and whose key is still ours.
pub(super) fn under_way(seen: &Seen, now: Moment) -> Option<Choice> {
    let handover = seen.handover.as_ref()?;
    if !seen.holds_key() {
        return None;
    }
    let limit = stop_limit(seen);
    let control = seen.postgres.control;
    let shut_down = control.filter(|control| control.state == ControlState::ShutDown);
    match seen.postgres.server {
        Server::Stopping { .. } if shut_down.is_some() => {}
        Server::Stopping { mode: StopMode::Fast, .. } if now < handover.since + limit => {
            return Some(
                Row::HandoverDrains
                    .waits("the server is shutting down, and the key is kept meanwhile")
                    .until(handover.since + limit),
            );
        }
        Server::Stopping { mode, since, .. } => {
            let stuck = now >= since + Duration::from_secs(1) && mode >= StopMode::Immediate;
            let stop = if stuck { StopMode::Kill } else { StopMode::Immediate };
            let kind = DemoteKind::Immediate;
            return Some(Row::HandoverStuck.says(
                Action::Demote { kind, stop, hand_over: None },
                "the server does not shut down in time",
            ));
        }
        Server::Primary { .. } | Server::Starting { as_primary: true, .. } => {
            let stop = if handover.why == HandoverWhy::GiveUp {
                StopMode::Immediate
            } else {
                StopMode::Fast
            };
            let kind = DemoteKind::Graceful;
            return Some(Row::HandoverStops.says(
                Action::Demote { kind, stop, hand_over: None },
                "the server is to shut down, and has not begun",
            ));
        }
        // Nothing can be released or called off in silence: the server is as any that is down.
        Server::Down { .. } if seen.etcd == Etcd::Answers => {}
        Server::Down { .. } | Server::Standby { .. } | Server::Starting { .. } => return None,
    }
    let release = |to: Option<String>, reason: String| {
        let optime = shut_down.map(|control| control.checkpoint);
        Some(Row::HandoverReleases.says(Action::ReleaseLeader { to, optime }, reason))
    };
    if handover.why == HandoverWhy::GiveUp {
        return release(handover.to.clone(), "the server has stopped".to_owned());
    }
    let Some(end) = shut_down.map(|control| control.checkpoint) else {
        return called_off(seen, now, handover, "the server did not shut down in order");
    };
    let Some(to) = &handover.to else {
        return called_off(seen, now, handover, "nobody is fit to take over");
    };
    let peer = seen.peers.get(to).cloned().unwrap_or_default();
    let has_all = peer.answer.as_ref().is_some_and(|answer| {
        answer.running && !answer.primary && answer.lsn >= end && answer.asked >= handover.since
    });
    let row = seen.postgres.standbys.iter().find(|row| row.name == *to);
    if has_all || row.is_some_and(|row| row.flushed >= end) {
        return release(Some(to.clone()), format!("{to} has received everything, up to {end}"));
    }
    let stopped = match seen.postgres.server {
        Server::Down { since, .. } | Server::Stopping { since, .. } => since,
        Server::Standby { .. } | Server::Primary { .. } | Server::Starting { .. } => handover.since,
    };
    if now < stopped + PATIENCE {
        return Some(
            Row::HandoverWaits
                .says(Action::AskPeers(vec![to.clone()]), format!("{to} has yet to receive {end}"))
                .in_(AGAIN, now),
        );
    }
    called_off(seen, now, handover, "the candidate has not received everything")
}

fn called_off(
    seen: &Seen,
    now: Moment,
    handover: &Handover,
    reason: &'static str,
) -> Option<Choice> {
    if handover.why == HandoverWhy::Shutdown {
        let optime = None;
        return Some(
            Row::HandoverReleases.says(Action::ReleaseLeader { to: None, optime }, reason),
        );
    }
    // A server that is still ending is waited for, a while: it cannot be started twice.
    if !matches!(seen.postgres.server, Server::Down { .. }) {
        let end = handover.since + stop_limit(seen);
        if now < end {
            return Some(Row::HandoverDrains.waits(reason).until(end));
        }
        let (kind, stop) = (DemoteKind::Immediate, StopMode::Immediate);
        let stop = Action::Demote { kind, stop, hand_over: None };
        return Some(Row::HandoverStuck.says(stop, "the server does not end"));
    }
    // With too little left of the lease, the rows of a server that is down wait for more of it.
    starts_as_primary(seen, now)
        .then(|| Row::HandoverCalledOff.says(Action::StartAsPrimary, reason))
}

/// The rows of an agent that was asked to stop.
pub(super) fn agent_stops(seen: &Seen, now: Moment) -> Option<Choice> {
    let since = seen.stopping?;
    if seen.rules.pause {
        let exit = Action::Exit { code: 0 };
        return Some(Row::ExitPaused.says(exit, "paused: the server is left as it is"));
    }
    match seen.postgres.server {
        Server::Primary { written, .. } if seen.holds_key() => {
            let hand_over = Some(HandOver { to: heir(seen, written), why: HandoverWhy::Shutdown });
            Some(Row::ExitHandsOver.says(graceful(hand_over), "the agent is to stop"))
        }
        Server::Primary { .. } | Server::Starting { .. } | Server::Standby { .. } => {
            Some(Row::ExitStopsServer.says(Action::Stop(StopMode::Fast), "the agent is to stop"))
        }
        Server::Stopping { mode: StopMode::Fast, .. } if now >= since + stop_limit(seen) => {
            let stop = Action::Stop(StopMode::Immediate);
            Some(Row::ExitStopsServer.says(stop, "the server does not shut down in time"))
        }
        Server::Stopping { .. } => Some(Row::StoppingDown.waits("the server is shutting down")),
        Server::Down { .. } if seen.holds_key() && seen.etcd == Etcd::Answers => {
            let release = Action::ReleaseLeader { to: None, optime: None };
            Some(Row::ExitReleases.says(release, "the agent is to stop, and its server has"))
        }
        Server::Down { .. } => Some(
            Row::Exit.says(Action::Exit { code: 0 }, "the agent is to stop, and its server has"),
        ),
    }
}
