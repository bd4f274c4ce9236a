//! The fence: a primary whose lease runs out stops, before the lease can be granted to another.
//!
//! The plan is data. [`decide`](super::decide) hands it out with every decision, and the fence's own thread
//! carries it out by [`FencePlan::due`], whether or not the rest of the agent still runs.

use std::time::Duration;

use super::action::{Action, Choice, DemoteKind};
use super::moment::{Moment, held};
use super::rows::Row;
use super::seen::{Etcd, Initialize, Leader, Seen, Server, StopMode, Work};

/// When a server that could write is stopped, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FencePlan {
    /// From here on, fast.
    pub fast: Moment,
    /// From here on, immediately.
    pub immediate: Moment,
    /// From here on, by SIGKILL.
    pub kill: Moment,
    /// By then it must not write any more.
    pub deadline: Moment,
}

impl FencePlan {
    /// The plan for a leadership of `ttl` that ends at `deadline`: the last sixth of the `ttl` for a fast
    /// stop, the last twelfth for an immediate one, the last thirtieth (at least 250 ms) for SIGKILL.
    #[must_use]
    pub fn new(deadline: Moment, ttl: Duration) -> Self {
        let kill = (ttl / 30).max(Duration::from_millis(250));
        let immediate = (ttl / 12).max(kill);
        let fast = (ttl / 6).max(immediate);
        Self {
            fast: deadline - fast,
            immediate: deadline - immediate,
            kill: deadline - kill,
            deadline,
        }
    }

    /// How to stop the server at `now`; `None` where it is too early.
    #[must_use]
    pub fn due(&self, now: Moment) -> Option<StopMode> {
        if now >= self.kill {
            Some(StopMode::Kill)
        } else if now >= self.immediate {
            Some(StopMode::Immediate)
        } else if now >= self.fast {
            Some(StopMode::Fast)
        } else {
            None
        }
    }

    /// The next moment at which the plan says something new; `None` after its last.
    #[must_use]
    pub fn next(&self, now: Moment) -> Option<Moment> {
        [self.fast, self.immediate, self.kill].into_iter().find(|at| *at > now)
    }
}

/// The plan for this server; `None` where it cannot write, or where nothing binds it.
#[must_use]
pub fn plan(seen: &Seen) -> Option<FencePlan> {
    let making = matches!(seen.cluster.initialize, Initialize::InProgress { mine: true, .. });
    if !seen.could_write() || seen.rules.pause || making {
        return None;
    }
    // The lease's own ttl: the configuration may have changed since it was granted.
    let ttl = seen.reign.map_or(seen.rules.ttl, |reign| reign.ttl);
    Some(FencePlan::new(leads_until(seen), ttl))
}

/// Until when this member may write.
pub(super) fn leads_until(seen: &Seen) -> Moment {
    // A process that finds a server running which it did not start knows of no lease. It has a tenth of the
    // ttl to find one; the fence begins a sixth before the end.
    let grace = seen.me.started + seen.rules.ttl / 10 + seen.rules.ttl / 6;
    let lease = seen.reign.map_or(grace, |reign| reign.deadline());
    let failsafe = seen.failsafe.accepted.filter(|_| seen.rules.failsafe_mode);
    failsafe.map_or(lease, |accepted| lease.max(accepted + held(seen.rules.ttl)))
}

/// What the watchdog device is set to, for leases of `ttl` and Patroni's `safety_margin`: within the lease,
/// and after the fence has had its turn.
#[must_use]
pub fn watchdog_timeout(ttl: Duration, safety_margin: Duration) -> Duration {
    (ttl.saturating_sub(safety_margin)).max(ttl / 2).min(ttl * 17 / 20)
}

/// Whether the watchdog may be pinged at `now`: not where it would then fire after the lease's end. Ping
/// it after each renewal while the server could write; close it when it cannot.
#[must_use]
pub fn may_ping_watchdog(plan: &FencePlan, timeout: Duration, now: Moment) -> bool {
    now + timeout <= plan.deadline
}

/// The rows that come before all others: whoever could write and must not, stops.
pub(super) fn rows(seen: &Seen, now: Moment) -> Option<Choice> {
    let plan = plan(seen)?;
    if let Some(stop) = plan.due(now) {
        // With etcd there, a process that has just begun finds out first.
        let silent = match seen.etcd {
            Etcd::Answers => "the lease was not renewed in time",
            Etcd::Silent(_) => "etcd is silent and the lease runs out",
            Etcd::Unknown => "etcd has not answered and no lease is known",
        };
        let offline = Action::Demote { kind: DemoteKind::Offline, stop, hand_over: None };
        return Some(
            Row::FenceDue.says(offline, format!("{silent}: it ends at {}", plan.deadline)),
        );
    }
    if seen.etcd == Etcd::Unknown {
        return None;
    }
    let at_once = |row: Row, reason: String| {
        let harder = match seen.postgres.server {
            // An immediate stop takes milliseconds, where nothing is wrong with the machine.
            Server::Stopping { mode: StopMode::Immediate | StopMode::Kill, since, .. }
                if now >= since + Duration::from_millis(500) =>
            {
                StopMode::Kill
            }
            _ => StopMode::Immediate,
        };
        let kind = DemoteKind::ImmediateNoLock;
        Some(row.says(Action::Demote { kind, stop: harder, hand_over: None }, reason))
    };
    match &seen.cluster.leader {
        Leader::Held { by, .. } if *by != seen.me.name => {
            at_once(Row::AnotherLeads, format!("the leader key names {by}"))
        }
        Leader::Held { .. } => None,
        Leader::Absent { taken: true, last, .. } => at_once(
            Row::AnotherHasLed,
            format!(
                "{} has held the leader key since",
                last.as_deref().unwrap_or("another member")
            ),
        ),
        Leader::Absent { .. } if seen.is_doing(Work::Promote) => at_once(
            Row::PromotingWithoutKey,
            "the leader key is gone while the server is being promoted".to_owned(),
        ),
        Leader::Absent { .. } if matches!(seen.postgres.server, Server::Stopping { .. }) => {
            let why = "the leader key is gone while the primary is being shut down";
            at_once(Row::StoppingWithoutKey, why.to_owned())
        }
        Leader::Absent { .. } if matches!(seen.postgres.server, Server::Starting { .. }) => {
            at_once(
                Row::StartingWithoutKey,
                "the leader key is gone while the primary is being started".to_owned(),
            )
        }
        Leader::Absent { .. } => None,
    }
}
