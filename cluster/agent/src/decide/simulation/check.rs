//! What must hold at every moment.

use std::collections::{BTreeMap, BTreeSet};

use leaderpool::patroni::Timeline;

use super::postgres::{Branch, Proc};
use super::world::{NAMES, SEC, Time, World, micros, trace};
use crate::decide::{HandoverWhy, Row, Rules, SyncMode};

/// What was seen in a run.
#[derive(Debug, Default)]
pub(super) struct Checker {
    /// The first thing that was wrong.
    pub(super) violation: Option<String>,
    /// The rows that decisions came from.
    pub(super) rows: BTreeSet<Row>,
    /// Up to where commits were acknowledged, on each branch.
    acked: BTreeMap<usize, u64>,
    /// The same, of those that an automatic failover must keep.
    promised: BTreeMap<usize, u64>,
    /// A switchover whose key was released: to whom, and from which branch.
    planned: Option<(usize, usize)>,
    pub(super) writes: u64,
    pub(super) promotions: u64,
    pub(super) switchovers: u64,
    pub(super) rewinds: u64,
    pub(super) watchdog_resets: u64,
    pub(super) excused: u64,
    pub(super) last_acked: Time,
    /// When commits were acknowledged, where somebody wants to know.
    pub(super) acks: Option<Vec<Time>>,
    /// Since when the holder of the key has had no server, and who that is.
    dead: Option<(usize, Time)>,
}

impl Checker {
    fn fail(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// A new leader of etcd has given every lease its full ttl again.
    pub(super) fn leases_prolonged(&mut self) {
        self.dead = None;
    }

    /// No two promotions make the same timeline.
    pub(super) fn promotion(&mut self, branches: &[Branch], branch: usize, who: &str) {
        self.promotions += 1;
        let timeline: Timeline = branches[branch].timeline;
        if branches.iter().filter(|other| other.timeline == timeline).count() > 1 {
            self.fail(format!("{who} was promoted to timeline {timeline}, which another had made"));
        }
    }

    /// Data are thrown away only where the configuration says so.
    pub(super) fn reclone(&mut self, rules: &Rules, who: &str) {
        if !rules.remove_data_on_divergence && !rules.remove_data_on_rewind_failure {
            self.fail(format!("{who} throws its data away, and nothing allows that"));
        }
    }
}

impl World {
    fn is_excused(&self, i: usize) -> bool {
        let node = &self.nodes[i];
        node.excuse.is_some() && node.excuse_ends.is_none_or(|end| self.now < end)
    }

    /// A server takes writes from now on, or again.
    pub(super) fn became_writable(&mut self, i: usize) {
        if !self.nodes[i].writable() {
            return;
        }
        for (j, name) in NAMES.iter().enumerate().take(self.nodes.len()) {
            if i == j || !self.nodes[j].writable() {
                continue;
            }
            if self.is_excused(i) || self.is_excused(j) {
                self.check.excused += 1;
                trace!(self, "two servers take writes, and nobody could help it");
                continue;
            }
            let what = format!("{} and {name} take writes at the same moment", NAMES[i]);
            self.check.fail(what);
        }
        if self.is_excused(i) {
            // It has thawed: no failover.
            return;
        }
        let (branch, lsn) = (self.nodes[i].pg.branch, self.nodes[i].pg.lsn);
        let lost: Vec<(usize, u64)> = self
            .check
            .promised
            .iter()
            .filter(|(of, at)| !self.holds(branch, lsn, **of, **at))
            .map(|(of, at)| (*of, *at))
            .collect();
        if let Some((of, at)) = lost.first() {
            let has = self.reaches(branch, lsn, *of);
            let what = format!(
                "{} leads and lacks acknowledged commits: it has branch {of} to {has}, acknowledged to {at}",
                NAMES[i]
            );
            self.check.fail(what);
        }
        if let Some((to, of)) = self.check.planned.take()
            && to == i
        {
            self.check.switchovers += 1;
            let at = self.check.acked.get(&of).copied().unwrap_or(0);
            if !self.holds(branch, lsn, of, at) {
                let what = format!("a switchover to {} lost acknowledged commits", NAMES[i]);
                self.check.fail(what);
            }
        }
    }

    /// Synchronous mode is switched off: nothing is promised any more.
    pub(super) fn mode_changed(&mut self) {
        if !self.is_sync() {
            self.check.promised.clear();
            for node in &mut self.nodes {
                node.promises = false;
            }
        }
    }

    /// The key is not kept for a dead server: its lease is not renewed unless the server is being started.
    pub(super) fn nobody_leads_dead(&mut self) {
        let holder = self.etcd.keys.leader.map(|(name, _)| name);
        let dead = holder.filter(|holder| {
            let node = &self.nodes[*holder];
            // A process that begins anew begins anew to count.
            self.etcd.is_up(self.now)
                && (matches!(node.pg.proc, Proc::Down { .. }) || !node.machine)
        });
        let Some(dead) = dead else {
            self.check.dead = None;
            return;
        };
        match self.check.dead {
            Some((known, since)) if known == dead => {
                // What the loop may renew it for, itself, and the scan.
                let bound = 2 * micros(self.setup.rules.ttl) + 2 * SEC;
                if self.now > since + bound {
                    let what = format!("{} keeps the leader key for a dead server", NAMES[dead]);
                    self.check.fail(what);
                }
            }
            _ => self.check.dead = Some((dead, self.now)),
        }
    }

    /// A commit was acknowledged.
    pub(super) fn acknowledged(&mut self, i: usize, branch: usize, lsn: u64) {
        self.check.last_acked = self.now;
        if let Some(acks) = &mut self.check.acks {
            acks.push(self.now);
        }
        let leads = self.etcd.keys.leader.is_some_and(|(name, _)| name == i);
        let all = self.check.acked.entry(branch).or_default();
        *all = lsn.max(*all);
        // Without a watchdog nothing stops a primary whose agent is frozen. In quorum mode the standbys that
        // have not heard of a new leader acknowledge its commits.
        let beyond_help = self.etcd.keys.mode == SyncMode::Quorum && self.is_excused(i) && !leads;
        // The promise begins when the leader has written the key.
        let begun = self.nodes[i].promises && self.etcd.keys.sync.is_some();
        if self.is_sync() && begun && !beyond_help {
            let promised = self.check.promised.entry(branch).or_default();
            *promised = lsn.max(*promised);
        }
    }

    /// The leader key was released by a server that was shut down.
    pub(super) fn key_released(&mut self, i: usize) {
        let handover = self.nodes[i].agent.as_ref().and_then(|agent| agent.seen.handover.as_ref());
        self.check.planned = handover
            .filter(|handover| handover.why == HandoverWhy::Switchover)
            .and_then(|handover| handover.to.as_deref())
            .map(|to| (super::world::index(to), self.nodes[i].pg.branch));
    }

    /// Whether all is well again: one leader, whose commits are acknowledged, and the others follow it.
    pub(super) fn is_well(&self) -> Result<(), String> {
        let Some((leader, _)) = self.etcd.keys.leader else {
            return Err("nobody holds the leader key".to_owned());
        };
        if !self.nodes[leader].writable() {
            return Err(format!("{} leads and takes no writes", NAMES[leader]));
        }
        let mut followers = 0;
        for (i, node) in self.nodes.iter().enumerate() {
            let follows = node.pg.stream.is_some_and(|(from, ..)| from == leader);
            followers += usize::from(follows);
            let diverged = node.agent.as_ref().is_some_and(|agent| agent.diverged);
            let lost = diverged && !self.setup.rules.use_pg_rewind;
            if i != leader && !follows && !lost {
                return Err(format!("{} does not follow {}", NAMES[i], NAMES[leader]));
            }
        }
        // Strict, and every other member waits for an operator: so must the clients.
        let strict = self.is_sync() && self.setup.rules.synchronous_mode_strict;
        if self.check.last_acked <= self.setup.quiet && !(strict && followers == 0) {
            return Err("no commit was acknowledged".to_owned());
        }
        Ok(())
    }
}
