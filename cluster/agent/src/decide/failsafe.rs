//! Failsafe mode: a primary goes on without etcd while *every* member accepts that.
//!
//! A member that accepts treats the primary as the leader for a `ttl`, a tenth more by its own clock; the
//! primary counts a tenth less, from when it sent the round. So nobody can take the key, be etcd's view what
//! it may, before the primary has stopped counting on them. A process that has just begun does not know what
//! the one before it accepted, and waits as long.

use std::time::Duration;

use super::moment::{Moment, over};
use super::seen::{Seen, Server, Work};

/// Whether this member accepts that `primary`, which asks, leads on without etcd.
///
/// # Errors
/// Why not.
pub fn accepts(seen: &Seen, primary: &str) -> Result<(), &'static str> {
    if !seen.rules.failsafe_mode {
        return Err("failsafe mode is off");
    }
    if seen.holds_key() {
        return Err("this member holds the leader key");
    }
    if seen.other_leader().is_some_and(|leader| leader != primary) {
        return Err("another member holds the leader key");
    }
    if matches!(seen.postgres.server, Server::Primary { .. }) || seen.is_doing(Work::Promote) {
        return Err("this member runs a primary");
    }
    Ok(())
}

/// Until when this member must not become leader, and for whose sake.
pub(super) fn holds_back(seen: &Seen, now: Moment) -> Option<(Moment, String)> {
    if !seen.rules.failsafe_mode {
        return None;
    }
    let wait = over(seen.rules.ttl);
    if let Some((primary, accepted)) = &seen.failsafe.promised {
        let end = *accepted + wait;
        if now < end && *primary != seen.me.name {
            return Some((end, format!("{primary} leads on in failsafe mode")));
        }
    }
    let end = seen.me.started + wait;
    (now < end && !everyone_denies(seen)).then(|| {
        (
            end,
            "what was accepted in failsafe mode before this process began is not known".to_owned(),
        )
    })
}

/// Whether each member that could lead on in failsafe mode has said, since this process began, that it runs
/// no primary.
fn everyone_denies(seen: &Seen) -> bool {
    let denies = |name: &String| {
        let answer = seen.peers.get(name).and_then(|peer| peer.answer.as_ref());
        answer.is_some_and(|answer| answer.asked >= seen.me.started && !answer.leads)
    };
    let asked = seen.cluster.failsafe.iter().flat_map(|asked| asked.keys());
    asked.filter(|name| **name != seen.me.name).all(denies)
}

/// How often the members are asked while etcd is silent.
pub(super) fn pace(ttl: Duration) -> Duration {
    ttl / 10
}
