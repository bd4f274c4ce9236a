//! Nobody holds the leader key.

use std::time::Duration;

use leaderpool::patroni::MemberRole;

use super::action::{Action, Choice, DemoteKind};
use super::failsafe;
use super::fence::leads_until;
use super::moment::{Moment, over};
use super::rank::{Position, failover_priority, mine};
use super::rows::Row;
use super::seen::{
    FailoverSeen, Leader, MemberSeen, Peer, Seen, Server, StopMode, SyncMode, Watchdog,
};
use super::sync::{MayRace, may_race};

/// How long a member that does not answer is waited for: who is ahead may be dead.
const ANSWER_LIMIT: Duration = Duration::from_millis(300);

/// How old an answer may be, where nothing has moved since.
const ANSWERS_AGE: Duration = Duration::from_secs(10);

/// How often a member whose answer stands in the way is asked again.
const AGAIN: Duration = Duration::from_millis(200);

/// When the leader key was first seen to be absent, and who held it before.
fn gone(seen: &Seen, now: Moment) -> (Moment, Option<&str>) {
    match &seen.cluster.leader {
        Leader::Absent { since, last, .. } => (*since, last.as_deref()),
        Leader::Held { .. } => (now, None),
    }
}

/// How long someone who should go first is waited for.
fn patience(seen: &Seen) -> Duration {
    seen.rules.loop_wait.clamp(Duration::from_secs(1), Duration::from_secs(10))
}

/// The rows of a primary whose key is gone.
pub(super) fn primary(seen: &Seen, now: Moment) -> Choice {
    let Leader::Absent { verified, .. } = seen.cluster.leader else {
        return Row::KeyGone.says(Action::VerifyLeaderKey, "the leader key is to be read again");
    };
    if !verified {
        return Row::KeyGone
            .says(Action::VerifyLeaderKey, "the leader key seems to be gone: is it?")
            .in_(Duration::from_millis(500), now);
    }
    let stop = |row: Row, reason: &'static str| {
        let kind = DemoteKind::ImmediateNoLock;
        row.says(Action::Demote { kind, stop: StopMode::Immediate, hand_over: None }, reason)
    };
    if mine(seen).is_some_and(|mine| mine.timeline < seen.newest_timeline()) {
        return stop(Row::OldTimeline, "another member has led on a newer timeline");
    }
    if may_race(seen) != MayRace::Yes {
        return stop(Row::NotInSync, "the key `sync` does not name this member any more");
    }
    if seen.reign.is_some() && now < leads_until(seen) {
        if !session_is_good(seen, now) {
            return Row::NoSession
                .waits("the leader key is to be put again, as soon as there is a lease for it")
                .in_(Duration::from_millis(100), now);
        }
        return acquire(
            seen,
            Row::KeyPutAgain,
            "the leader key was deleted while this member led: it is put again".to_owned(),
        );
    }
    // A server that was found running: nobody knows what happened since it lost the key.
    race(seen, now)
}

/// Whether the session's lease lasts long enough to begin to lead with it.
fn session_is_good(seen: &Seen, now: Moment) -> bool {
    seen.session.is_some_and(|lease| lease.left(now) >= lease.ttl / 2)
}

fn acquire(seen: &Seen, row: Row, reason: String) -> Choice {
    let sync_revision = seen.cluster.sync.as_ref().map_or(0, |sync| sync.revision);
    row.says(Action::AcquireLeader { sync_revision }, reason)
}

/// Why this member does not become leader, whatever the others do.
fn disqualified(seen: &Seen, now: Moment) -> Option<Choice> {
    let out = |row: Row, reason: &'static str| Some(row.waits(reason));
    if failover_priority(&seen.me.tags) <= 0 {
        return out(Row::NeverLeads, "the tags of this member forbid it to lead");
    }
    if seen.watchdog == Watchdog::Missing {
        return out(Row::WatchdogMissing, "the watchdog is required, and does not work");
    }
    let listed = seen.cluster.failsafe.as_ref();
    if seen.rules.failsafe_mode && listed.is_some_and(|list| !list.contains_key(&seen.me.name)) {
        return out(Row::NotInFailsafe, "the key `failsafe` does not name this member");
    }
    if let Some(failed) = seen.postgres.promote_failed {
        let end = failed + seen.rules.ttl;
        if now < end {
            let reason = "the last promotion failed: the others go first";
            return Some(Row::PromotionFailed.waits(reason).until(end));
        }
    }
    let (end, why) = failsafe::holds_back(seen, now)?;
    let promised = seen.failsafe.promised.is_some();
    let asked = seen.cluster.failsafe.iter().filter(|_| !promised).flat_map(|list| list.keys());
    let ask: Vec<String> = asked
        .filter(|name| **name != seen.me.name)
        .filter(|name| {
            !seen.peers.get(*name).is_some_and(|peer| {
                peer.answered(seen.me.started)
                    || peer.asked.is_some_and(|asked| asked + AGAIN > now)
            })
        })
        .cloned()
        .collect();
    if ask.is_empty() {
        return Some(Row::FailsafeHolds.waits(why).until(end).in_(AGAIN, now));
    }
    Some(Row::FailsafeHolds.says(Action::AskPeers(ask), why).until(end).in_(AGAIN, now))
}

/// How the request that was asked for concerns this member.
enum Request<'a> {
    /// It does not.
    None,
    /// It names this member.
    Mine(&'a FailoverSeen),
    /// It names another, who goes first.
    Others(&'a str, Moment),
}

fn request<'a>(seen: &'a Seen, now: Moment) -> Request<'a> {
    let Some(failover) = &seen.cluster.failover else { return Request::None };
    let (since, last) = gone(seen, now);
    // One that has another leader in mind is old.
    let stale = match (&failover.request.leader, last) {
        (Some(leader), Some(last)) => leader != last,
        _ => false,
    };
    let early = matches!(failover.due, super::seen::Due::At(at) if now < at);
    match &failover.request.member {
        Some(member) if !stale && !early => {
            if *member == seen.me.name {
                return Request::Mine(failover);
            }
            let end = since.max(failover.since) + patience(seen);
            let peer = seen.peers.get(member);
            let unable = peer.and_then(|peer| peer.answer.as_ref()).is_some_and(|answer| {
                answer.asked >= since && (!answer.running || answer.limitation.is_some())
            });
            let known = seen.cluster.members.contains_key(member);
            if unable || !known || now >= end {
                Request::None
            } else {
                Request::Others(member, end)
            }
        }
        _ => Request::None,
    }
}

/// Since when surely nobody has led: only what others have said since then tells how far they are.
fn free_since(seen: &Seen, now: Moment) -> Moment {
    let Leader::Absent { since, last, over: ended, .. } = &seen.cluster.leader else { return now };
    let mut free = ended.unwrap_or(*since).max(*since);
    for (name, peer) in seen.peers.iter().filter(|(name, _)| **name != seen.me.name) {
        let claims = peer.answer.as_ref().filter(|answer| answer.leads && answer.asked >= *since);
        if let Some(answer) = claims {
            free = free.max(answer.asked + over(seen.rules.ttl));
        }
        let member = seen.cluster.members.get(name);
        let led = (ended.is_none() && last.as_ref() == Some(name))
            || member.is_some_and(|member| member.role == MemberRole::Primary);
        if led {
            free = free.max(peer.denies_since.unwrap_or(now));
        }
    }
    free
}

/// The rows of a running server that has no key and whose cluster has no leader.
pub(super) fn race(seen: &Seen, now: Moment) -> Choice {
    if let Some(choice) = disqualified(seen, now) {
        return choice;
    }
    let Some(mine) = mine(seen) else { return Row::StartsUp.waits("the server is starting") };
    let (since, last) = gone(seen, now);
    let manual = match request(seen, now) {
        Request::Others(other, end) => {
            return Row::StandsBack
                .waits(format!("{other} was asked to take over, and goes first"))
                .until(end)
                .in_(AGAIN, now);
        }
        Request::Mine(failover) => Some(failover.request.leader.is_none()),
        Request::None => None,
    };
    if let Some(choice) = last_leader_lives(seen, now, since, last) {
        return choice;
    }
    let votes = match may_race(seen) {
        MayRace::Yes => 0,
        MayRace::WithVotes(votes) => votes,
        // An operator who names a leader to fail over to takes the loss.
        MayRace::No if manual == Some(true) => 0,
        MayRace::No => {
            return Row::NotInSync
                .waits("the key `sync` does not name this member: it may lack commits");
        }
    };
    let free = free_since(seen, now);
    let released =
        last.and_then(|last| seen.cluster.members.get(last)).is_some_and(MemberSeen::has_stopped);
    let named = manual == Some(true) || (manual.is_some() && released);
    if !named && let Some(choice) = lags(seen, mine).or_else(|| behind(seen, now, free, last, mine))
    {
        return choice;
    }
    if votes > 0
        && let Some(choice) = votes_lack(seen, now, free, mine, votes)
    {
        return choice;
    }
    if !session_is_good(seen, now) {
        return Row::NoSession
            .waits("a lease that was just renewed is needed to lead")
            .in_(Duration::from_millis(100), now);
    }
    let reason = if named {
        "this member was asked to take over".to_owned()
    } else {
        format!("nobody leads, and nobody is ahead of {} on timeline {}", mine.lsn, mine.timeline)
    };
    acquire(seen, Row::Acquires, reason)
}

/// The last leader may be alive: then the key went without its lease, and it will put it again or stop.
fn last_leader_lives(
    seen: &Seen,
    now: Moment,
    since: Moment,
    last: Option<&str>,
) -> Option<Choice> {
    for (name, peer) in &seen.peers {
        let Some(answer) = peer.answer.as_ref().filter(|answer| answer.leads) else { continue };
        let asked = peer.asked.unwrap_or(answer.asked);
        let ask = |again: bool| {
            let reason = format!("{name} says that it leads");
            Some(if again {
                Row::PrimaryLives.says(Action::AskPeers(vec![name.clone()]), reason).in_(AGAIN, now)
            } else {
                Row::PrimaryLives.waits(reason).in_(AGAIN, now)
            })
        };
        if *name == seen.me.name {
            continue;
        }
        if answer.asked >= since {
            // Without a key it counts on a lease, for a ttl at most, or has one by now.
            if now < answer.asked + over(seen.rules.ttl) {
                return ask(now >= asked + AGAIN);
            }
        } else if now < answer.asked + ANSWERS_AGE && !peer.refused(since) {
            // That was before the key went. It is asked once more.
            if asked < since || now < asked + ANSWER_LIMIT {
                return ask(asked < since);
            }
        }
    }
    // An expired lease takes the member key with it. One that is still there, and does not say that it has
    // released the key, shows that the key alone was deleted.
    let ended = matches!(seen.cluster.leader, Leader::Absent { over: Some(_), .. });
    let suspect = |name: &str, member: &MemberSeen| {
        let held = Some(name) == last && !ended;
        let peer = seen.peers.get(name);
        let denies = peer.and_then(|peer| peer.answer.as_ref()).is_some_and(|answer| !answer.leads);
        (held || member.role == MemberRole::Primary)
            && !(denies && peer.is_some_and(|peer| peer.answered(since)))
    };
    let (name, _) = seen.others().find(|(name, member)| suspect(name, member))?;
    let reason = format!("the leader key went, but {name} still has its lease: does it lead?");
    let asked = seen.peers.get(name).and_then(|peer| peer.asked).filter(|asked| *asked >= since);
    Some(if asked.is_none_or(|asked| now >= asked + AGAIN) {
        Row::LastLeaderAsked.says(Action::AskPeers(vec![name.to_owned()]), reason).in_(AGAIN, now)
    } else {
        Row::LastLeaderAsked.waits(reason).in_(AGAIN, now)
    })
}

/// This member lags too far behind what the leader had last written down, or is on an older timeline.
fn lags(seen: &Seen, mine: Position) -> Option<Choice> {
    if let Some(optime) = seen.cluster.optime {
        let lag = optime.bytes_since(mine.lsn);
        if lag > seen.rules.maximum_lag_on_failover {
            return Some(Row::LagsTooFar.waits(format!(
                "{lag} bytes behind the last leader, more than maximum_lag_on_failover"
            )));
        }
    }
    let history = seen.cluster.history.filter(|timeline| *timeline > mine.timeline)?;
    let was_primary = matches!(seen.postgres.server, Server::Primary { .. });
    (seen.rules.check_timeline || was_primary).then(|| {
        Row::OldTimeline.waits(format!("on timeline {}, older than {history}", mine.timeline))
    })
}

/// Another member is ahead, or has not said yet whether it is.
fn behind(
    seen: &Seen,
    now: Moment,
    free: Moment,
    last: Option<&str>,
    mine: Position,
) -> Option<Choice> {
    let after = free.max(now - ANSWERS_AGE);
    // Who was asked when the stream from the leader broke and did not answer need not be waited for again.
    let before = match seen.postgres.server {
        Server::Standby { stream_lost: Some(lost), .. } => lost.min(after).max(now - ANSWERS_AGE),
        _ => after,
    };
    let mut ask = Vec::new();
    let mut waits: Option<Moment> = None;
    let others = seen.others().map(|(name, member)| (name, failover_priority(&member.tags)));
    // The last leader's member key may have gone with its lease; it may be back as a standby.
    let last = last.filter(|last| !seen.cluster.members.contains_key(*last));
    let last = last.filter(|last| *last != seen.me.name).map(|last| (last, 1));
    for (name, priority) in others.chain(last) {
        let nobody = Peer::default();
        let peer = seen.peers.get(name).unwrap_or(&nobody);
        if peer.answered(after) {
            let Some(answer) = &peer.answer else { continue };
            let place = Position { timeline: answer.timeline, lsn: answer.lsn };
            let first =
                place > mine || (place == mine && priority > failover_priority(&seen.me.tags));
            let able = answer.running
                && !answer.primary
                && priority > 0
                && answer.limitation.is_none()
                && may_race_too(seen, name);
            let up = peer.running_since.unwrap_or(answer.asked);
            let end = free.max(up) + patience(seen);
            if first && able && now < end {
                let reason =
                    format!("{name} goes first: at {} on timeline {}", answer.lsn, answer.timeline);
                return Some(Row::PeerGoesFirst.waits(reason).until(end).in_(AGAIN, now));
            }
        } else if peer.refused(after) || (peer.refused(before) && !peer.answered(before)) {
            // It is down.
        } else if !peer.answered(before)
            && peer.asked.is_some_and(|asked| asked >= before && now >= asked + ANSWER_LIMIT)
        {
            // It was silent.
        } else if peer.asked.is_none_or(|asked| asked < after) {
            ask.push(name.to_owned());
        } else if let Some(asked) = peer.asked
            && now < asked + ANSWER_LIMIT
        {
            waits = Some(waits.map_or(asked, |other| other.max(asked)));
        }
    }
    if !ask.is_empty() {
        return Some(
            Row::PeersAsked
                .says(Action::AskPeers(ask), "nobody leads: is another member ahead?")
                .in_(ANSWER_LIMIT, now),
        );
    }
    let reason = "the members were asked, and have a moment to answer";
    waits.map(|asked| Row::PeersAsked.waits(reason).until(asked + ANSWER_LIMIT))
}

/// Whether the synchronous state lets `name` become leader.
fn may_race_too(seen: &Seen, name: &str) -> bool {
    seen.rules.synchronous_mode != SyncMode::On
        || seen.cluster.sync.as_ref().is_none_or(|sync| {
            let key = &sync.key;
            key.leader.as_deref().is_none_or(|leader| leader == name) || key.standbys.contains(name)
        })
}

/// Too few of the standbys and the leader say that they are not ahead. Unlike rank this is no preference: they
/// are asked after the last leader's lease was over, and there is no end of waiting for them.
fn votes_lack(
    seen: &Seen,
    now: Moment,
    free: Moment,
    mine: Position,
    needed: usize,
) -> Option<Choice> {
    let key = &seen.cluster.sync.as_ref()?.key;
    let voters = key.standbys.iter().chain(&key.leader).filter(|name| **name != seen.me.name);
    let mut votes = 0;
    let mut ask = Vec::new();
    for name in voters {
        let peer = seen.peers.get(name);
        let answer = peer.and_then(|peer| peer.answer.as_ref());
        match answer.filter(|answer| answer.asked >= free) {
            Some(answer) if answer.running => {
                let place = Position { timeline: answer.timeline, lsn: answer.lsn };
                if place <= mine {
                    votes += 1;
                    continue;
                }
            }
            _ => {}
        }
        let asked = peer.and_then(|peer| peer.asked).filter(|asked| *asked >= free);
        if asked.is_none_or(|asked| now >= asked + AGAIN) {
            ask.push(name.clone());
        }
    }
    if votes >= needed {
        return None;
    }
    let reason = format!("{votes} votes of {needed} that are needed");
    Some(if ask.is_empty() {
        Row::VotesLack.waits(reason).in_(AGAIN, now)
    } else {
        Row::VotesLack.says(Action::AskPeers(ask), reason).in_(AGAIN, now)
    })
}
