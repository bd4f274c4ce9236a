//! What to do now: a pure function, and the whole of failover.
//!
//! [`decide`] takes the cluster as this agent sees it, its own PostgreSQL, the configuration and the time
//! ([`Seen`]), and returns one [`Decision`]: what to do, from which [`Row`] of the table, why in words, when to
//! look again, until when the lease may be renewed, and when the server is stopped if it is not. It does no
//! IO and reads no clock. Each situation has a file; `choose` is the order in which they are
//! looked at.
//!
//! What holds, whatever is seen:
//!
//! - **A lease is counted from when its last successful renewal was sent**, and a tenth short, so that it
//!   ends here before it ends in etcd even where the clocks differ in speed by a tenth. A server that could
//!   write is stopped before that ([`FencePlan`]). The key's own lease counts, not the configuration's `ttl`.
//! - **The key comes before the promotion**, by compare-and-swap on its absence and on the revision of
//!   `sync`: whoever led since has changed that, and a stale view cannot win.
//! - **A promotion makes a timeline that nobody else has made.** It is claimed in a key first, so that two
//!   servers promoted one after the other, the first of them dead before anyone heard of it, differ.
//! - **The lease is not renewed for a dead server**, unless it is being started, nor by a loop that hangs.
//! - **A leader key that goes without its lease** (a hand, or etcd itself) is told from one that ran out by the
//!   member key, which hangs on the same lease: nobody takes over from a leader whose lease is
//!   alive before it has said that it leads no more.
//! - **Preferences end, safety does not.** Who is ahead goes first for a while, and is not waited for beyond
//!   it; votes in quorum mode, promises in failsafe mode and the synchronous state have no such end.

mod action;
mod bootstrap;
mod failsafe;
mod fence;
mod follower;
mod handover;
mod leader;
mod moment;
mod no_leader;
mod pause;
mod promoting;
mod rank;
mod rows;
mod seen;
mod silent;
#[cfg(test)]
mod simulation;
mod starting;
mod sync;
#[cfg(test)]
mod table;

use std::time::Duration;

pub use action::{Action, Chore, CloneSource, Decision, DemoteKind, HandOver};
pub use failsafe::accepts as accepts_failsafe;
pub use fence::{FencePlan, may_ping_watchdog, plan as fence_plan, watchdog_timeout};
pub use moment::{LeaseClock, Moment, held, over};
pub use rows::Row;
pub use seen::{
    Answer, Cluster, Control, ControlState, Data, Doing, Due, Etcd, FailoverSeen, Failsafe,
    Handover, HandoverWhy, Initialize, Leader, Me, MemberSeen, NamesInEffect, Peer, Postgres,
    Rewind, Rules, Seen, Server, StandbyRow, StopMode, SyncMode, SyncSeen, Upstream, Watchdog,
    Work,
};
pub use sync::{
    SyncKey, SyncNames, SyncStep, SyncView, is_safe as sync_is_safe, plan as plan_sync,
};

use action::Choice;

/// No decision asks to be looked at again sooner than this.
const SOONEST: Duration = Duration::from_millis(10);

/// What to do at `now`.
#[must_use]
pub fn decide(seen: &Seen, now: Moment) -> Decision {
    let Choice { row, action, reason, look_again } = choose(seen, now);
    let fence = fence::plan(seen);
    let leads = seen.reign.is_some() || seen.holds_key();
    let pace =
        if leads { seen.rules.loop_wait.min(seen.rules.ttl / 10) } else { seen.rules.loop_wait };
    let mut next = look_again.map_or(now + pace, |at| at.min(now + pace));
    if let Some(at) = fence.and_then(|fence| fence.next(now)) {
        next = next.min(at);
    }
    let look_again = next.max(now + SOONEST);
    let renew_until = may_renew(seen, row).then(|| look_again + seen.rules.ttl / 5);
    Decision { row, action, reason, look_again, renew_until, fence }
}

/// The order of the situations.
fn choose(seen: &Seen, now: Moment) -> Choice {
    let urgent = fence::rows(seen, now)
        .or_else(|| handover::under_way(seen, now))
        .or_else(|| handover::agent_stops(seen, now))
        .or_else(|| starting::under_way(seen));
    if let Some(choice) = urgent {
        return choice;
    }
    if seen.rules.pause {
        return pause::rows(seen, now);
    }
    if seen.etcd != Etcd::Answers {
        return silent::rows(seen, now);
    }
    if let Some(choice) = bootstrap::rows(seen, now) {
        return choice;
    }
    match &seen.postgres.server {
        Server::Down { since, start_failed } => starting::down(seen, now, *since, *start_failed),
        Server::Starting { since, .. } => starting::starting(seen, now, *since),
        Server::Stopping { since, mode, was_primary } => {
            starting::stopping(now, *since, *mode, *was_primary)
        }
        Server::Primary { timeline, written } if seen.holds_key() => {
            leader::rows(seen, now, *timeline, *written)
        }
        Server::Primary { .. } => no_leader::primary(seen, now),
        Server::Standby { timeline, received, upstream, stream_lost } => {
            if seen.holds_key() {
                promoting::rows(seen, now, *timeline, *received, upstream)
            } else if let Some(leader) = seen.other_leader() {
                follower::rows(seen, now, leader, upstream, *stream_lost)
            } else {
                no_leader::race(seen, now)
            }
        }
    }
}

/// Whether the lease may be renewed: not where it keeps a leader key for a server that is dead, and that
/// nobody is starting.
fn may_renew(seen: &Seen, row: Row) -> bool {
    if !seen.holds_key() {
        return true;
    }
    match seen.postgres.server {
        Server::Primary { .. } | Server::Standby { .. } | Server::Starting { .. } => true,
        Server::Stopping { .. } => seen.handover.is_some() || seen.rules.standby_cluster,
        Server::Down { .. } => matches!(
            row,
            Row::HandoverWaits
                | Row::HandoverReleases
                | Row::HandoverCalledOff
                | Row::UnderWay
                | Row::KeyReattached
                | Row::DeadPrimaryRestarts
                | Row::StartFailedWaits
                | Row::LeaseTooShort
                | Row::KeyHolderStarts
                | Row::StandbyLeaderStarts
                | Row::BootstrapStarts
        ),
    }
}
