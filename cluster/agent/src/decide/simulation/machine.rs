//! Machines: they crash, boot, freeze and thaw; their watchdogs.

use std::time::Duration;

use super::node::{Clock, Excuse, Frozen};
use super::postgres::Proc;
use super::world::{Event, MS, NAMES, SEC, World, trace};
use crate::decide::*;

impl World {
    pub(super) fn ping_watchdog(&mut self, i: usize) {
        if !self.setup.watchdog {
            return;
        }
        let now = self.local(i);
        let node = &mut self.nodes[i];
        let Some(agent) = &node.agent else { return };
        let Some(plan) = fence_plan(&agent.seen) else { return };
        let ttl = agent.seen.reign.map_or(agent.seen.rules.ttl, |reign| reign.ttl);
        let timeout = watchdog_timeout(ttl, Duration::from_secs(5));
        if may_ping_watchdog(&plan, timeout, now) {
            let at = node.clock.when(now + timeout);
            node.watchdog = Some(at);
            self.at(at, Event::Watchdog(i));
        }
    }

    /// Opens the device before the server can write.
    pub(super) fn open_watchdog(&mut self, i: usize) {
        if !self.setup.watchdog {
            return;
        }
        let now = self.local(i);
        let node = &mut self.nodes[i];
        let Some(agent) = &node.agent else { return };
        let Some(reign) = agent.seen.reign else { return };
        let timeout = watchdog_timeout(reign.ttl, Duration::from_secs(5));
        // No later than within the lease, however long ago it was renewed.
        let at = node.clock.when((now + timeout).min(reign.deadline()));
        node.watchdog = Some(at);
        self.at(at, Event::Watchdog(i));
    }

    /// The device resets the machine.
    pub(super) fn watchdog_looks(&mut self, i: usize) {
        let node = &mut self.nodes[i];
        if node.frozen == Some(Frozen::Machine) {
            node.backlog.push(Event::Watchdog(i));
            return;
        }
        if node.machine && node.watchdog.is_some_and(|at| at <= self.now) {
            trace!(self, "{}: the watchdog resets the machine", NAMES[i]);
            self.check.watchdog_resets += 1;
            self.crash(i);
            let time = self.rng.range(2 * SEC, 10 * SEC);
            self.after(time, Event::Boot(i));
        }
    }

    pub(super) fn crash(&mut self, i: usize) {
        let node = &mut self.nodes[i];
        if !node.machine {
            return;
        }
        trace!(self, "{}: the machine is gone", NAMES[i]);
        let node = &mut self.nodes[i];
        node.machine = false;
        node.agent = None;
        node.frozen = None;
        node.backlog.clear();
        node.watchdog = None;
        node.excuse = None;
        node.clock_lies = None;
        node.pg.turn += 1;
        node.pg.names_turn += 1;
        node.pg.proc = Proc::Down { failed: false };
        node.pg.promoting = false;
        node.pg.stream = None;
        node.pg.followers.clear();
    }

    pub(super) fn boot(&mut self, i: usize) {
        let (now, rate) = (self.now, self.nodes[i].rate);
        let node = &mut self.nodes[i];
        if node.machine {
            return;
        }
        node.machine = true;
        node.clock = Clock::new(now, rate, 10 * SEC);
        node.pg.since = node.clock.read(now);
        node.pg.crashes = 0;
        node.pg.promote_failed = None;
        node.watch_broken = false;
        node.watched_until = 0;
        trace!(self, "{}: the machine boots", NAMES[i]);
        self.start_agent(i);
    }

    pub(super) fn freeze(&mut self, i: usize, what: Frozen) {
        let (now, watchdog) = (self.now, self.setup.watchdog);
        let node = &mut self.nodes[i];
        if !node.machine || node.frozen.is_some() || (what == Frozen::Agent && node.agent.is_none())
        {
            return;
        }
        node.frozen = Some(what);
        if what == Frozen::Machine {
            node.clock.stop(now);
        }
        let could = node.pg.writes()
            || node.pg.promoting
            || matches!(node.pg.proc, Proc::Starting { primary: true });
        if what == Frozen::Machine || (could && !watchdog) {
            let why = if what == Frozen::Machine { Excuse::StoodStill } else { Excuse::Frozen };
            // A graver one stays.
            if matches!(node.excuse, None | Some(Excuse::Frozen)) {
                node.excuse = Some(why);
            }
            node.excuse_ends = None;
        }
        trace!(self, "{}: frozen, {what:?}", NAMES[i]);
    }

    pub(super) fn thaw(&mut self, i: usize) {
        let now = self.now;
        let node = &mut self.nodes[i];
        let Some(what) = node.frozen.take() else { return };
        node.clock.goes_on(now);
        trace!(self, "{}: goes on", NAMES[i]);
        let node = &mut self.nodes[i];
        if what == Frozen::Machine {
            node.clock_lies = Some(node.clock.read(now));
        } else if node.excuse == Some(Excuse::Frozen) {
            // The clock went on, so the fence knows at once. It has this long.
            node.excuse_ends = Some(now + SEC);
        }
        let writable = node.writable();
        let backlog = std::mem::take(&mut node.backlog);
        for event in backlog {
            let time = match event {
                // Of a priority above all others, and its memory locked.
                Event::Fence(..) => self.rng.range(100, MS),
                Event::Watchdog(_) => {
                    // Its clock stood still as well.
                    self.rng.range(MS, SEC)
                }
                _ => self.rng.range(MS, 6 * MS),
            };
            self.after(time, event);
        }
        if writable {
            self.became_writable(i);
        }
    }
}
