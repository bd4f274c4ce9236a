//! The simulated world: time, network, nodes, clients.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::rc::Rc;
use std::time::Duration;

use leaderpool::patroni::{SystemId, Tags, Timeline};

use super::check::Checker;
use super::etcd::{Answered, Etcd, Keys, Op, Request, SCAN};
use super::faults::Fault;
use super::node::{Agent, Clock, Node};
use super::postgres::{Branch, Pg, PgStep, WorkDone};
use super::rng::Rng;
use super::teeth::Mutation;
use crate::decide::{Answer, Moment, Rules, SyncMode};

/// Microseconds of real time.
pub(super) type Time = u64;
pub(super) const MS: Time = 1_000;
pub(super) const SEC: Time = 1_000_000;

pub(super) const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// The index of a member's name.
pub(super) fn index(name: &str) -> usize {
    usize::from(name.as_bytes()[0] - b'a')
}

/// What one run is about.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    pub(super) nodes: usize,
    pub(super) rules: Rules,
    pub(super) watchdog: bool,
    /// Whether the cluster is yet to be made.
    pub(super) empty: bool,
    pub(super) tags: Vec<Tags>,
    /// Speed of each node's clock, in thousandths of etcd's.
    pub(super) rates: Vec<u64>,
    /// When faults end.
    pub(super) quiet: Time,
    /// Whose faults are added.
    pub(super) faults_of: Option<Mutation>,
    /// Which rule is broken.
    pub(super) mutation: Option<Mutation>,
}

/// Something that happens at a moment.
#[derive(Debug, Clone)]
pub(super) enum Event {
    /// The agent's loop.
    Wake(usize, u32, u64),
    /// The agent's session with etcd.
    Renew(usize, u32),
    /// The agent's fence.
    Fence(usize, u32),
    /// The device.
    Watchdog(usize),
    Scan,
    ToEtcd(Request),
    FromEtcd(Request, Answered),
    Watch(usize, u32, Rc<Keys>),
    Ask {
        from: usize,
        boot: u32,
        to: usize,
        asked: Moment,
    },
    Told {
        to: usize,
        boot: u32,
        by: usize,
        asked: Moment,
        answer: Option<Answer>,
    },
    Failsafe {
        from: usize,
        boot: u32,
        to: usize,
        round: Moment,
    },
    FailsafeTold {
        to: usize,
        boot: u32,
        by: usize,
        round: Moment,
        accepts: bool,
    },
    Pg(usize, u64, PgStep),
    Work(usize, u32, u64, WorkDone),
    Wal {
        to: usize,
        from: usize,
        connection: u64,
        branch: usize,
        lsn: u64,
    },
    WalAck {
        to: usize,
        from: usize,
        connection: u64,
        lsn: u64,
    },
    /// The standby's WAL receiver looks after itself.
    Receiver(usize),
    /// One side of a stream learns that it is broken.
    Broken(usize, u64),
    Client,
    Fault(Fault),
    Thaw(usize),
    Boot(usize),
    StartAgent(usize),
    Heal(usize, usize),
}

struct Queued(Time, u64, Event);

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Queued {}
impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// The world.
pub(super) struct World {
    pub(super) now: Time,
    pub(super) setup: Setup,
    pub(super) rng: Rng,
    queue: BinaryHeap<Reverse<Queued>>,
    sequence: u64,
    pub(super) etcd: Etcd,
    pub(super) nodes: Vec<Node>,
    pub(super) branches: Vec<Branch>,
    /// Links that are cut, one way each; the last site is etcd.
    cut: Vec<Vec<bool>>,
    /// Until when messages are slow, and some are lost.
    pub(super) storm_until: Time,
    /// How often each client writes.
    pub(super) client_pace: Time,
    next_connection: u64,
    pub(super) check: Checker,
    pub(super) trace: Option<Vec<String>>,
    pub(super) events: u64,
}

/// Writes a line to the trace, where there is one.
macro_rules! trace {
    ($world:expr, $($arg:tt)*) => {
        if let Some(lines) = &mut $world.trace {
            let line = format!($($arg)*);
            lines.push(format!("{:>10.4} {line}", $world.now as f64 / 1e6));
        }
    };
}
pub(super) use trace;

pub(super) const SYSTEM: SystemId = SystemId(7_711_353_190_614_709_005);

impl World {
    pub(super) fn new(setup: Setup, mut rng: Rng, traced: bool) -> Self {
        let n = setup.nodes;
        let mut etcd = Etcd::default();
        etcd.change(|keys, _| keys.mode = setup.rules.synchronous_mode);
        if !setup.empty {
            etcd.change(|keys, revision| keys.initialize = Some((Ok(SYSTEM), revision)));
        }
        let nodes = (0..n)
            .map(|i| {
                let clock = Clock::new(0, setup.rates[i], rng.below(1000 * SEC));
                Node::new(clock, Pg::new(!setup.empty))
            })
            .collect();
        let mut world = Self {
            now: 0,
            rng,
            queue: BinaryHeap::new(),
            sequence: 0,
            etcd,
            nodes,
            branches: vec![Branch { timeline: Timeline(1), parent: None }],
            cut: vec![vec![false; n + 1]; n + 1],
            storm_until: 0,
            // About a hundred writes in a ttl, whatever that is.
            client_pace: micros(setup.rules.ttl) / 100,
            next_connection: 0,
            check: Checker::default(),
            trace: traced.then(Vec::new),
            events: 0,
            setup,
        };
        world.at(SCAN, Event::Scan);
        world.at(100 * MS, Event::Client);
        for i in 0..n {
            let at = world.rng.below(500 * MS);
            world.at(at, Event::StartAgent(i));
            world.at(at, Event::Receiver(i));
        }
        world
    }

    pub(super) fn at(&mut self, time: Time, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse(Queued(time, self.sequence, event)));
    }

    pub(super) fn after(&mut self, time: Time, event: Event) {
        self.at(self.now + time, event);
    }

    /// The site that etcd is at.
    pub(super) fn etcd_site(&self) -> usize {
        self.setup.nodes
    }

    pub(super) fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cut[from][to]
    }

    pub(super) fn cut(&mut self, from: usize, to: usize) {
        self.cut[from][to] = true;
    }

    pub(super) fn heal(&mut self, from: usize, to: usize) {
        self.cut[from][to] = false;
    }

    pub(super) fn heal_all(&mut self) {
        for row in &mut self.cut {
            row.fill(false);
        }
        self.storm_until = 0;
        self.etcd.slow_until = 0;
        self.etcd.down_until = self.etcd.down_until.min(self.now);
    }

    pub(super) fn delay(&mut self) -> Time {
        let base = 150 + self.rng.below(700);
        if self.now < self.storm_until { base + self.rng.below(150 * MS) } else { base }
    }

    /// Sends a message; `false` where it is lost.
    pub(super) fn send(&mut self, from: usize, to: usize, event: Event) -> bool {
        let lost = self.now < self.storm_until && self.rng.chance(10);
        if self.is_cut(from, to) || lost {
            return false;
        }
        let delay = self.delay();
        self.after(delay, event);
        true
    }

    /// Tells every watcher that keys have changed.
    pub(super) fn keys_changed(&mut self) {
        let site = self.etcd_site();
        if let Some(lines) = &mut self.trace {
            let keys = &self.etcd.keys;
            lines.push(format!(
                "{:>10.4} etcd: revision {} leader {:?} sync {:?} failover {:?} history {:?} members {:?}",
                self.now as f64 / 1e6,
                keys.revision,
                keys.leader.map(|(name, lease)| (NAMES[name], lease)),
                keys.sync.as_ref().map(|(key, _)| key),
                keys.failover.as_ref().map(|(request, _)| request),
                keys.history,
                keys.members.keys().map(|name| NAMES[*name]).collect::<Vec<_>>(),
            ));
        }
        let keys = Rc::clone(&self.etcd.keys);
        for i in 0..self.nodes.len() {
            let Some(boot) = self.nodes[i].watching() else { continue };
            if self.is_cut(site, i) {
                // The stream is broken; a read makes a new one.
                self.nodes[i].watch_broken = true;
                continue;
            }
            let delay = self.delay();
            // In order, however slow.
            let at = (self.now + delay).max(self.nodes[i].watched_until + 1);
            self.nodes[i].watched_until = at;
            self.at(at, Event::Watch(i, boot, Rc::clone(&keys)));
        }
    }

    pub(super) fn connection(&mut self) -> u64 {
        self.next_connection += 1;
        self.next_connection
    }

    /// Runs until `end`, or until `stop` says so at the end of an event. Returns whether it did.
    pub(super) fn run(&mut self, end: Time, mut stop: impl FnMut(&mut World) -> bool) -> bool {
        while let Some(Reverse(Queued(time, sequence, event))) = self.queue.pop() {
            if time > end {
                self.queue.push(Reverse(Queued(time, sequence, event)));
                self.now = end;
                return false;
            }
            self.now = time;
            self.events += 1;
            self.handle(event);
            if self.check.violation.is_some() || stop(self) {
                return true;
            }
        }
        false
    }

    /// Whose event it is: one that is frozen gets it later.
    fn held_back(&mut self, event: &Event) -> bool {
        let (node, agents) = match event {
            Event::Wake(i, ..)
            | Event::Renew(i, _)
            | Event::Fence(i, _)
            | Event::Watch(i, ..)
            | Event::Work(i, ..) => (*i, true),
            Event::FromEtcd(request, _) => (request.node, true),
            Event::Ask { to, .. }
            | Event::Told { to, .. }
            | Event::Failsafe { to, .. }
            | Event::FailsafeTold { to, .. } => (*to, true),
            Event::Pg(i, ..) | Event::Broken(i, _) => (*i, false),
            Event::Wal { to, .. } | Event::WalAck { to, .. } => (*to, false),
            _ => return false,
        };
        let node = &mut self.nodes[node];
        if (agents && node.agent_frozen()) || (!agents && node.pg_frozen()) {
            node.backlog.push(event.clone());
            return true;
        }
        false
    }

    fn handle(&mut self, event: Event) {
        if self.held_back(&event) {
            return;
        }
        match event {
            Event::Wake(i, boot, turn) => self.agent_wakes(i, boot, turn),
            Event::Renew(i, boot) => self.agent_renews(i, boot),
            Event::Fence(i, boot) => self.fence_wakes(i, boot),
            Event::Watchdog(i) => self.watchdog_looks(i),
            Event::Scan => {
                if self.etcd.is_up(self.now) && self.etcd.scan(self.now) {
                    self.keys_changed();
                }
                self.nobody_leads_dead();
                self.after(SCAN, Event::Scan);
            }
            Event::ToEtcd(request) => {
                if !self.etcd.is_up(self.now) {
                    return;
                }
                let (answer, changed) = self.etcd.handle(&request, self.now);
                match request.op {
                    Op::Release { optime: Some(_), .. } if changed => {
                        self.key_released(request.node);
                    }
                    Op::WriteSync(Some(_), _) if changed && self.is_sync() => {
                        self.nodes[request.node].promises = true;
                    }
                    _ => {}
                }
                if changed {
                    self.keys_changed();
                }
                let (site, to) = (self.etcd_site(), request.node);
                if self.now < self.etcd.slow_until {
                    let late = self.rng.below(micros(self.setup.rules.ttl) / 2);
                    self.after(late, Event::FromEtcd(request, answer));
                } else {
                    self.send(site, to, Event::FromEtcd(request, answer));
                }
            }
            Event::FromEtcd(request, answer) => self.etcd_answers(request, answer),
            Event::Watch(i, boot, keys) => self.agent_sees(i, boot, &keys, false),
            Event::Ask { from, boot, to, asked } => self.peer_is_asked(from, boot, to, asked),
            Event::Told { to, boot, by, asked, answer } => {
                self.peer_answers(to, boot, by, asked, answer);
            }
            Event::Failsafe { from, boot, to, round } => self.failsafe_asked(from, boot, to, round),
            Event::FailsafeTold { to, boot, by, round, accepts } => {
                self.failsafe_told(to, boot, by, round, accepts);
            }
            Event::Pg(i, turn, step) => self.pg_steps(i, turn, step),
            Event::Work(i, boot, turn, done) => self.work_ends(i, boot, turn, done),
            Event::Wal { to, from, connection, branch, lsn } => {
                self.wal_arrives(to, from, connection, branch, lsn);
            }
            Event::WalAck { to, from, connection, lsn } => {
                self.wal_acked(to, from, connection, lsn);
            }
            Event::Receiver(i) => {
                self.receiver_looks(i);
                let again = 150 * MS + self.rng.below(100 * MS);
                self.after(again, Event::Receiver(i));
            }
            Event::Broken(i, connection) => self.stream_breaks(i, connection),
            Event::Client => {
                self.clients_write();
                let pace = self.client_pace;
                let again = self.rng.range(pace * 4 / 5, pace * 4 / 3);
                self.after(again, Event::Client);
            }
            Event::Fault(fault) => self.strike(fault),
            Event::Thaw(i) => self.thaw(i),
            Event::Boot(i) => self.boot(i),
            Event::StartAgent(i) => self.start_agent(i),
            Event::Heal(from, to) => self.heal(from, to),
        }
    }

    /// A node's process is started: it knows nothing.
    pub(super) fn start_agent(&mut self, i: usize) {
        let node = &self.nodes[i];
        if !node.machine || node.agent.is_some() {
            return;
        }
        let now = self.local(i);
        let boot = self.nodes[i].next_boot();
        let agent = Agent::new(i, boot, now, &self.setup);
        self.nodes[i].agent = Some(agent);
        trace!(self, "{}: agent starts", NAMES[i]);
        self.after(0, Event::Renew(i, boot));
        self.wake(i);
    }

    pub(super) fn local(&self, i: usize) -> Moment {
        self.nodes[i].clock.read(self.now)
    }

    pub(super) fn is_sync(&self) -> bool {
        self.etcd.keys.mode != SyncMode::Off
    }
}

pub(super) fn micros(time: Duration) -> Time {
    time.as_micros() as Time
}
