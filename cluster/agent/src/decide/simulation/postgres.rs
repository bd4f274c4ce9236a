//! PostgreSQL, simulated: branches of history, positions, streams, the rule for acknowledging commits.

use std::collections::BTreeMap;

use leaderpool::patroni::Timeline;

use super::node::local_news;
use super::world::{Event, MS, NAMES, SEC, Time, World, index, trace};
use crate::decide::{ControlState, Moment, StopMode, SyncNames, Upstream};

/// A stretch of history: what one promotion began.
#[derive(Debug, Clone)]
pub(super) struct Branch {
    pub(super) timeline: Timeline,
    /// From which branch, and where.
    pub(super) parent: Option<(usize, u64)>,
}

/// The state of the process.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Proc {
    Down { failed: bool },
    Starting { primary: bool },
    Primary,
    Standby,
    Stopping { mode: StopMode, was_primary: bool, writes: bool },
}

#[derive(Debug, Clone)]
pub(super) struct Follower {
    pub(super) connection: u64,
    pub(super) flushed: u64,
    sent: u64,
    in_flight: bool,
    heard: Time,
}

/// One server and its data.
#[derive(Debug, Clone)]
pub(super) struct Pg {
    pub(super) data: bool,
    pub(super) proc: Proc,
    pub(super) since: Moment,
    /// Each new order makes the steps of the one before it void.
    pub(super) turn: u64,
    pub(super) branch: usize,
    pub(super) lsn: u64,
    pub(super) control: ControlState,
    pub(super) checkpoint: u64,
    pub(super) upstream: Upstream,
    /// From whom it streams, over which connection, and when it last heard of it.
    pub(super) stream: Option<(usize, u64, Time)>,
    pub(super) stream_lost: Option<Moment>,
    pub(super) followers: BTreeMap<usize, Follower>,
    pub(super) names: SyncNames,
    /// In the configuration file.
    pub(super) names_set: SyncNames,
    pub(super) names_since: Option<u64>,
    pub(super) names_turn: u64,
    pub(super) acked: u64,
    pub(super) promoting: bool,
    pub(super) checkpointed: bool,
    pub(super) crashes: u32,
    pub(super) promote_failed: Option<Moment>,
}

/// A step of something that was begun.
#[derive(Debug, Clone)]
pub(super) enum PgStep {
    Started,
    StartFailed,
    /// Sessions are gone.
    SessionsEnded,
    /// The shutdown checkpoint is written.
    ShutDown,
    Ended,
    Promoted(Timeline),
    NamesInEffect(u64, SyncNames),
    NamesSeen(u64),
    Checkpointed,
}

/// How a piece of work ended.
#[derive(Debug, Clone)]
pub(super) enum WorkDone {
    Bootstrapped(bool),
    Cloned(Option<usize>),
    Checked(usize),
    Rewound(usize, bool),
    Recovered,
}

impl Pg {
    pub(super) fn new(data: bool) -> Self {
        Self {
            data,
            proc: Proc::Down { failed: false },
            since: Moment::default(),
            turn: 0,
            branch: 0,
            lsn: 1000,
            control: ControlState::ShutDownInRecovery,
            checkpoint: 1000,
            upstream: Upstream::Nobody,
            stream: None,
            stream_lost: None,
            followers: BTreeMap::new(),
            names: SyncNames::Nobody,
            names_set: SyncNames::Nobody,
            names_since: None,
            names_turn: 0,
            acked: 0,
            promoting: false,
            checkpointed: true,
            crashes: 0,
            promote_failed: None,
        }
    }

    pub(super) fn writes(&self) -> bool {
        matches!(self.proc, Proc::Primary | Proc::Stopping { writes: true, .. })
    }

    pub(super) fn runs(&self) -> bool {
        matches!(self.proc, Proc::Primary | Proc::Standby)
    }
}

impl World {
    /// Whether the history that ends at (`branch`, `lsn`) holds the place (`of`, `at`).
    pub(super) fn holds(&self, branch: usize, lsn: u64, of: usize, at: u64) -> bool {
        let (mut branch, mut lsn) = (branch, lsn);
        loop {
            if branch == of {
                return at <= lsn;
            }
            match self.branches[branch].parent {
                Some((parent, fork)) => (branch, lsn) = (parent, fork),
                None => return false,
            }
        }
    }

    /// How much of branch `of` the history that ends on `branch` has.
    pub(super) fn reaches(&self, branch: usize, lsn: u64, of: usize) -> u64 {
        let (mut branch, mut lsn) = (branch, lsn);
        loop {
            if branch == of {
                return lsn;
            }
            match self.branches[branch].parent {
                Some((parent, fork)) => (branch, lsn) = (parent, fork),
                None => return 0,
            }
        }
    }

    fn step(&mut self, i: usize, time: Time, step: PgStep) {
        let turn = self.nodes[i].pg.turn;
        self.after(time, Event::Pg(i, turn, step));
    }

    pub(super) fn pg_start(&mut self, i: usize, primary: bool, upstream: Upstream) {
        let now = self.local(i);
        let node = &mut self.nodes[i];
        if !matches!(node.pg.proc, Proc::Down { .. }) || !node.pg.data {
            return;
        }
        node.pg.turn += 1;
        node.pg.since = now;
        node.pg.proc = Proc::Starting { primary };
        node.pg.upstream = upstream;
        node.pg.stream = None;
        node.pg.stream_lost = Some(now);
        node.pg.names_since = None;
        node.pg.names = node.pg.names_set.clone();
        node.pg.names_turn += 1;
        node.pg.promoting = false;
        node.pg.followers.clear();
        node.pg.control =
            if primary { ControlState::InProduction } else { ControlState::InRecovery };
        trace!(self, "{}: server starts, primary: {primary}", NAMES[i]);
        let slow = self.now < self.nodes[i].slow_until;
        let fails = self.now < self.nodes[i].fails_until;
        let time = if slow {
            self.rng.range(2 * SEC, 30 * SEC)
        } else {
            self.rng.range(50 * MS, 900 * MS)
        };
        self.step(i, time, if fails { PgStep::StartFailed } else { PgStep::Started });
    }

    pub(super) fn pg_stop(&mut self, i: usize, mode: StopMode) {
        let now = self.local(i);
        let hangs = self.now < self.nodes[i].hangs_until;
        let node = &mut self.nodes[i];
        let was_primary = match node.pg.proc {
            Proc::Down { .. } => return,
            Proc::Stopping { mode: before, .. } if before >= mode => return,
            Proc::Stopping { was_primary, .. } => was_primary,
            Proc::Primary => true,
            Proc::Standby => node.pg.promoting,
            Proc::Starting { primary } => primary,
        };
        let writes = node.pg.writes();
        node.pg.turn += 1;
        node.pg.since = now;
        node.pg.promoting = false;
        node.pg.proc = Proc::Stopping { mode, was_primary, writes };
        trace!(self, "{}: server is stopped, {mode:?}", NAMES[i]);
        match mode {
            StopMode::Fast => {
                // One that hangs goes on writing: the worst that can be.
                if !hangs {
                    let time = self.rng.range(MS, 20 * MS);
                    self.step(i, time, PgStep::SessionsEnded);
                    let time = time + self.rng.range(10 * MS, 400 * MS);
                    self.step(i, time, PgStep::ShutDown);
                    let archiver = if self.rng.chance(10) { self.rng.below(3 * SEC) } else { 0 };
                    self.step(i, time + 20 * MS + archiver, PgStep::Ended);
                }
            }
            StopMode::Immediate => {
                let time = if hangs {
                    self.rng.range(SEC, 20 * SEC)
                } else {
                    self.rng.range(5 * MS, 100 * MS)
                };
                self.step(i, time, PgStep::Ended);
            }
            StopMode::Kill => {
                let time = self.rng.range(MS, 100 * MS);
                self.step(i, time, PgStep::Ended);
            }
        }
        local_news(self, i);
    }

    /// The postmaster dies by itself.
    pub(super) fn pg_dies(&mut self, i: usize) {
        if matches!(self.nodes[i].pg.proc, Proc::Down { .. }) {
            return;
        }
        self.nodes[i].pg.crashes += 1;
        self.nodes[i].pg.turn += 1;
        self.pg_ended(i, false);
    }

    pub(super) fn pg_ended(&mut self, i: usize, failed: bool) {
        let now = self.local(i);
        let pg = &mut self.nodes[i].pg;
        pg.proc = Proc::Down { failed };
        pg.since = now;
        pg.promoting = false;
        pg.stream = None;
        let followers = std::mem::take(&mut pg.followers);
        trace!(self, "{}: server has ended", NAMES[i]);
        // The kernel closes its connections.
        for (j, follower) in followers {
            self.send(i, j, Event::Broken(j, follower.connection));
        }
        local_news(self, i);
    }

    pub(super) fn pg_promote(&mut self, i: usize, above: Timeline) {
        let fails = self.now < self.nodes[i].fails_until;
        let pg = &mut self.nodes[i].pg;
        if pg.proc != Proc::Standby || pg.promoting {
            return;
        }
        pg.promoting = true;
        pg.turn += 1;
        pg.stream = None;
        trace!(self, "{}: promote above {above}", NAMES[i]);
        let time = if fails { 30 * SEC } else { self.rng.range(20 * MS, 400 * MS) };
        self.step(i, time, PgStep::Promoted(above));
    }

    pub(super) fn pg_set_names(&mut self, i: usize, names: SyncNames) {
        let pg = &mut self.nodes[i].pg;
        pg.names_turn += 1;
        pg.names_set.clone_from(&names);
        let turn = pg.names_turn;
        let time = self.rng.range(2 * MS, 60 * MS);
        self.after(time, Event::Pg(i, u64::MAX, PgStep::NamesInEffect(turn, names)));
    }

    pub(super) fn pg_steps(&mut self, i: usize, turn: u64, step: PgStep) {
        let now = self.local(i);
        let pg = &mut self.nodes[i].pg;
        if turn != pg.turn && turn != u64::MAX {
            return;
        }
        match step {
            PgStep::Started => {
                let Proc::Starting { primary } = pg.proc else { return };
                pg.since = now;
                pg.proc = if primary { Proc::Primary } else { Proc::Standby };
                pg.acked = 0;
                pg.checkpointed = true;
                trace!(self, "{}: server runs, primary: {primary}", NAMES[i]);
                if primary {
                    self.became_writable(i);
                }
                let time = self.rng.range(5 * MS, 200 * MS);
                let turn = self.nodes[i].pg.names_turn;
                self.after(time, Event::Pg(i, u64::MAX, PgStep::NamesSeen(turn)));
            }
            PgStep::StartFailed => {
                self.nodes[i].pg.turn += 1;
                self.pg_ended(i, true);
                return;
            }
            PgStep::SessionsEnded => {
                if let Proc::Stopping { writes, .. } = &mut pg.proc {
                    *writes = false;
                }
                return;
            }
            PgStep::ShutDown => {
                let Proc::Stopping { was_primary, .. } = pg.proc else { return };
                pg.control = if was_primary && !matches!(pg.control, ControlState::InRecovery) {
                    pg.lsn += 40;
                    pg.checkpoint = pg.lsn;
                    ControlState::ShutDown
                } else {
                    ControlState::ShutDownInRecovery
                };
                self.send_wal(i);
            }
            PgStep::Ended => {
                self.nodes[i].pg.turn += 1;
                self.pg_ended(i, false);
                return;
            }
            PgStep::Promoted(above) => {
                let timeline = Timeline(self.branches[pg.branch].timeline.max(above).0 + 1);
                let from = (pg.branch, pg.lsn);
                let failed = self.now < self.nodes[i].fails_until;
                let pg = &mut self.nodes[i].pg;
                pg.promoting = false;
                if failed {
                    pg.promote_failed = Some(now);
                    local_news(self, i);
                    return;
                }
                self.branches.push(Branch { timeline, parent: Some(from) });
                pg.branch = self.branches.len() - 1;
                pg.lsn += 10;
                pg.acked = 0;
                pg.proc = Proc::Primary;
                pg.control = ControlState::InProduction;
                pg.since = now;
                pg.checkpointed = false;
                pg.followers.clear();
                trace!(self, "{}: promoted to timeline {timeline}", NAMES[i]);
                let branch = self.nodes[i].pg.branch;
                self.check.promotion(&self.branches, branch, NAMES[i]);
                self.became_writable(i);
            }
            PgStep::NamesInEffect(turn, names) => {
                if turn != pg.names_turn {
                    return;
                }
                trace!(self, "{}: commits wait for {names:?}", NAMES[i]);
                let pg = &mut self.nodes[i].pg;
                pg.names = names;
                pg.names_since = None;
                self.acknowledge(i);
                let time = self.rng.range(5 * MS, 50 * MS);
                self.after(time, Event::Pg(i, u64::MAX, PgStep::NamesSeen(turn)));
            }
            PgStep::NamesSeen(turn) => {
                if turn != pg.names_turn || !pg.runs() || pg.names_since.is_some() {
                    return;
                }
                pg.names_since = Some(pg.lsn);
            }
            PgStep::Checkpointed => pg.checkpointed = true,
        }
        local_news(self, i);
    }

    /// Each client writes to whichever server lets it.
    pub(super) fn clients_write(&mut self) {
        for i in 0..self.nodes.len() {
            let node = &self.nodes[i];
            if !node.machine || node.pg_frozen() || !node.pg.writes() {
                continue;
            }
            let bytes = self.rng.range(50, 400);
            self.nodes[i].pg.lsn += bytes;
            self.check.writes += 1;
            self.acknowledge(i);
            self.send_wal(i);
        }
    }

    /// Which commits are acknowledged now.
    fn acknowledge(&mut self, i: usize) {
        let node = &self.nodes[i];
        let pg = &node.pg;
        if !pg.writes() || !node.machine || node.pg_frozen() {
            return;
        }
        let flushed = |j: usize| pg.followers.get(&j).map_or(0, |follower| follower.flushed);
        let reached = |count: usize, names: &mut dyn Iterator<Item = usize>| {
            let mut all: Vec<u64> = names.map(flushed).collect();
            all.sort_unstable_by(|a, b| b.cmp(a));
            if count == 0 { pg.lsn } else { all.get(count - 1).copied().unwrap_or(0).min(pg.lsn) }
        };
        let acked = match &pg.names {
            SyncNames::Nobody | SyncNames::Foreign => pg.lsn,
            SyncNames::Anyone => reached(1, &mut pg.followers.keys().copied()),
            SyncNames::All(names) => {
                reached(names.len(), &mut names.iter().map(|name| index(name)))
            }
            SyncNames::Some(count, names) => {
                reached(*count, &mut names.iter().map(|name| index(name)))
            }
        };
        if acked > pg.acked {
            let branch = pg.branch;
            self.nodes[i].pg.acked = acked;
            self.acknowledged(i, branch, acked);
        }
    }

    pub(super) fn send_wal(&mut self, i: usize) {
        let (branch, lsn) = (self.nodes[i].pg.branch, self.nodes[i].pg.lsn);
        let open: Vec<usize> = self.nodes[i].pg.followers.keys().copied().collect();
        for j in open {
            let now = self.now;
            let Some(follower) = self.nodes[i].pg.followers.get_mut(&j) else { continue };
            if follower.in_flight {
                // wal_sender_timeout.
                if now > follower.heard + 3 * SEC {
                    let connection = follower.connection;
                    self.stream_breaks(i, connection);
                }
                continue;
            }
            follower.in_flight = true;
            follower.sent = lsn;
            follower.heard = now;
            let connection = follower.connection;
            self.send(i, j, Event::Wal { to: j, from: i, connection, branch, lsn });
        }
    }

    pub(super) fn wal_arrives(
        &mut self,
        to: usize,
        from: usize,
        connection: u64,
        branch: usize,
        lsn: u64,
    ) {
        let now = self.now;
        let node = &mut self.nodes[to];
        if !node.machine || node.pg.proc != Proc::Standby || node.pg.promoting {
            return;
        }
        match &mut node.pg.stream {
            Some((upstream, open, heard)) if *open == connection => {
                debug_assert_eq!(*upstream, from);
                *heard = now;
            }
            _ => return,
        }
        if !self.holds(branch, lsn, self.nodes[to].pg.branch, self.nodes[to].pg.lsn) {
            // Only what comes after what it has is ever sent.
            return;
        }
        let pg = &mut self.nodes[to].pg;
        (pg.branch, pg.lsn) = (branch, lsn);
        self.send(to, from, Event::WalAck { to: from, from: to, connection, lsn });
    }

    pub(super) fn wal_acked(&mut self, to: usize, from: usize, connection: u64, lsn: u64) {
        let now = self.now;
        let pg = &mut self.nodes[to].pg;
        let Some(follower) = pg.followers.get_mut(&from) else { return };
        if follower.connection != connection {
            return;
        }
        follower.flushed = follower.flushed.max(lsn);
        follower.in_flight = false;
        follower.heard = now;
        let more = pg.lsn > follower.sent;
        self.acknowledge(to);
        if more {
            self.send_wal(to);
        }
        // The agent looks at pg_stat_replication while it has something to confirm.
        if self.is_sync() && self.nodes[to].agent.as_ref().is_some_and(|agent| agent.confirms) {
            self.wake(to);
        }
    }

    /// The WAL receiver: connects, or finds its stream dead.
    pub(super) fn receiver_looks(&mut self, i: usize) {
        let node = &self.nodes[i];
        if !node.machine || node.pg_frozen() || node.pg.proc != Proc::Standby || node.pg.promoting {
            return;
        }
        if let Some((_, connection, heard)) = node.pg.stream {
            if self.now > heard + 3 * SEC {
                self.stream_breaks(i, connection);
            }
            return;
        }
        let Upstream::Member(name) = &node.pg.upstream else { return };
        let up = index(name);
        let other = &self.nodes[up];
        let serves = other.machine && !other.pg_frozen() && other.pg.proc == Proc::Primary;
        if !serves || up == i || self.is_cut(i, up) || self.is_cut(up, i) {
            return;
        }
        let (mine, theirs) = (&self.nodes[i].pg, &self.nodes[up].pg);
        if !self.holds(theirs.branch, theirs.lsn, mine.branch, mine.lsn) {
            if let Some(lines) = &mut self.trace {
                lines.push(format!("{:>10.4} {}: cannot follow", self.now as f64 / 1e6, NAMES[i]));
            }
            return;
        }
        let flushed = mine.lsn;
        let connection = self.connection();
        let heard = self.now;
        self.nodes[i].pg.stream = Some((up, connection, heard));
        self.nodes[i].pg.stream_lost = None;
        let follower = Follower { connection, flushed, sent: flushed, in_flight: false, heard };
        self.nodes[up].pg.followers.insert(i, follower);
        trace!(self, "{}: streams from {}", NAMES[i], NAMES[up]);
        self.send_wal(up);
        local_news(self, i);
        local_news(self, up);
    }

    pub(super) fn stream_breaks(&mut self, i: usize, connection: u64) {
        let now = self.local(i);
        let pg = &mut self.nodes[i].pg;
        let before = pg.followers.len();
        pg.followers.retain(|_, follower| follower.connection != connection);
        let mut changed = pg.followers.len() != before;
        if pg.stream.is_some_and(|(_, open, _)| open == connection) {
            pg.stream = None;
            pg.stream_lost = Some(now);
            changed = true;
        }
        if changed {
            trace!(self, "{}: a stream is broken", NAMES[i]);
            local_news(self, i);
        }
    }
}
