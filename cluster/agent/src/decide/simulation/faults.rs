//! What goes wrong, and when.

use leaderpool::patroni::{FailoverRequest, Tags};

use super::node::{Excuse, Frozen};
use super::rng::Rng;
use super::world::{Event, MS, NAMES, SEC, Setup, Time, World, micros, trace};
use crate::decide::{Rules, SyncMode};

/// A fault. Nodes are chosen when it strikes, so that most hit the leader.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// The machine is gone, for a time.
    Crash(Time),
    KillPostmaster,
    /// The agent's process is killed; the server goes on. Then it is started again.
    KillAgent(Time),
    StopAgent,
    Freeze(Frozen, Time),
    /// The agent's loop hangs, but not its other threads.
    StallLoop(Time),
    /// The same, and its server dies.
    StallAndDie(Time),
    /// From etcd, from the others, or from both; one way or both.
    Cut {
        etcd: bool,
        peers: Peers,
        one_way: bool,
        time: Time,
    },
    EtcdDown(Time),
    EtcdLeader,
    /// etcd does what it is asked, and answers late: by up to half a `ttl`.
    EtcdSlow(Time),
    /// etcd takes a lease that is alive.
    Revoke,
    /// Somebody deletes the leader key.
    DeleteKey,
    Switchover {
        named: bool,
    },
    /// An operator's failover to a member.
    Failover,
    /// Every machine is gone at once.
    PowerCut,
    /// Synchronous mode is switched.
    Mode(SyncMode),
    SlowStarts(Time),
    StartsFail(Time),
    StopsHang(Time),
    Storm(Time),
    BreakStream,
    /// One thing of the above, to the leader, whoever that is.
    SwitchLeader,
    KillLeader,
    StopLeader,
    LoseLeader,
    /// Everything is well again.
    Quiet,
}

/// From which of the others a node is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peers {
    None,
    Some,
    All,
}

pub(super) fn setup(rng: &mut Rng) -> Setup {
    let nodes = rng.pick(&[2, 3, 3, 3, 3, 3, 4, 5]);
    let ttl = std::time::Duration::from_secs(rng.pick(&[5, 6, 10, 20, 30]));
    let mode = rng.pick(&[SyncMode::Off, SyncMode::On, SyncMode::On, SyncMode::Quorum]);
    let rules = Rules {
        ttl,
        loop_wait: ttl / 3,
        synchronous_mode: mode,
        synchronous_mode_strict: rng.chance(25),
        synchronous_node_count: rng.pick(&[1, 1, 1, 2]),
        failsafe_mode: rng.chance(35),
        check_timeline: rng.chance(20),
        primary_start_timeout: rng.pick(&[
            std::time::Duration::from_secs(300),
            std::time::Duration::from_secs(10),
            std::time::Duration::ZERO,
        ]),
        use_pg_rewind: rng.chance(90),
        maximum_lag_on_failover: rng.pick(&[1 << 20, 1 << 20, 1 << 20, 2_000]),
        maximum_lag_on_syncnode: rng.pick(&[None, None, None, Some(1_500)]),
        ..Rules::default()
    };
    let tagged = rng.chance(15);
    let tags = (0..nodes).map(|_| if tagged { tags(rng) } else { Tags::default() }).collect();
    let drifts = rng.chance(50);
    let rates = (0..nodes).map(|_| if drifts { rng.range(900, 1100) } else { 1000 }).collect();
    let window = micros(ttl) * rng.range(3, 8);
    Setup {
        nodes,
        tags,
        watchdog: rng.chance(40),
        empty: rng.chance(8),
        rates,
        quiet: 10 * SEC + window,
        faults_of: None,
        mutation: None,
        rules,
    }
}

/// A member that never leads would leave a cluster of two without one.
fn tags(rng: &mut Rng) -> Tags {
    let number = |name: &str, value: u64| (name.to_owned(), value.into());
    match rng.below(6) {
        0 => Tags { nosync: true, ..Tags::default() },
        1 => Tags { other: [number("failover_priority", 2)].into(), ..Tags::default() },
        2 => Tags { other: [number("sync_priority", 2)].into(), ..Tags::default() },
        _ => Tags::default(),
    }
}

/// Puts faults into the world's future.
pub(super) fn schedule(world: &mut World) {
    let quiet = world.setup.quiet;
    world.at(quiet, Event::Fault(Fault::Quiet));
    let ttl = micros(world.setup.rules.ttl);
    if let Some(mutation) = world.setup.faults_of {
        for fault in mutation.faults(ttl) {
            let at = world.rng.range(4 * SEC, quiet - SEC);
            world.at(at, Event::Fault(fault));
        }
    }
    if world.setup.mutation.is_none() && world.rng.chance(15) {
        let modes = [SyncMode::Off, SyncMode::On, SyncMode::Quorum];
        for part in 0..world.rng.range(1, 2) {
            // Apart from each other by more than any view lags.
            let half = (quiet - 4 * SEC) / 2;
            let at = 4 * SEC + part * half + world.rng.below(half / 2);
            let mode = world.rng.pick(&modes);
            world.at(at, Event::Fault(Fault::Mode(mode)));
        }
    }
    let count = world.rng.range(1, 10);
    for _ in 0..count {
        let at = world.rng.range(4 * SEC, quiet - SEC);
        let time = world.rng.range(50 * MS, ttl * 2);
        let fault = one(&mut world.rng, time);
        world.at(at, Event::Fault(fault));
        // Troubles come together.
        if world.rng.chance(35) {
            let time = world.rng.range(50 * MS, ttl * 2);
            let fault = one(&mut world.rng, time);
            let soon = if world.rng.chance(50) {
                world.rng.below(300 * MS)
            } else {
                world.rng.below(2 * ttl)
            };
            world.at((at + soon).min(quiet - 1), Event::Fault(fault));
        }
    }
}

fn one(rng: &mut Rng, time: Time) -> Fault {
    match rng.below(100) {
        0..=15 => Fault::Crash(time),
        16..=26 => Fault::KillPostmaster,
        27..=30 => Fault::KillAgent(time.min(8 * SEC)),
        31..=33 => Fault::StopAgent,
        34..=37 => Fault::Freeze(Frozen::Agent, time),
        38..=41 => Fault::Freeze(Frozen::Processes, time),
        42..=43 => Fault::Freeze(Frozen::Machine, time),
        44..=45 => Fault::StallLoop(time),
        46 => Fault::StallAndDie(time * 2),
        47..=58 => Fault::Cut {
            etcd: rng.chance(70),
            peers: rng.pick(&[Peers::None, Peers::None, Peers::Some, Peers::All, Peers::All]),
            one_way: rng.chance(25),
            time,
        },
        59..=63 => Fault::EtcdDown(time),
        64..=65 => Fault::EtcdLeader,
        66 => Fault::EtcdSlow(time),
        67..=68 => Fault::Revoke,
        69..=71 => Fault::DeleteKey,
        72..=80 => Fault::Switchover { named: rng.chance(60) },
        81 => Fault::Failover,
        82 => Fault::PowerCut,
        83..=85 => Fault::SlowStarts(time),
        86..=88 => Fault::StartsFail(time),
        89..=92 => Fault::StopsHang(time),
        93..=96 => Fault::Storm(time),
        _ => Fault::BreakStream,
    }
}

impl World {
    /// The leader mostly, else anyone.
    fn victim(&mut self) -> usize {
        match self.etcd.keys.leader {
            Some((leader, _)) if self.rng.chance(65) => leader,
            _ => self.rng.below(self.nodes.len() as u64) as usize,
        }
    }

    pub(super) fn strike(&mut self, fault: Fault) {
        trace!(self, "fault: {fault:?}");
        let n = self.nodes.len();
        let etcd = self.etcd_site();
        match fault {
            Fault::Crash(time) => {
                let i = self.victim();
                self.crash(i);
                self.after(time.max(SEC), Event::Boot(i));
            }
            Fault::KillPostmaster => {
                let i = self.victim();
                if self.nodes[i].machine && !self.nodes[i].pg_frozen() {
                    self.pg_dies(i);
                }
            }
            Fault::KillAgent(time) => {
                let i = self.victim();
                let watchdog = self.setup.watchdog;
                let node = &mut self.nodes[i];
                if node.agent.take().is_some() {
                    trace!(self, "{}: the agent is killed", NAMES[i]);
                    let node = &mut self.nodes[i];
                    let starts =
                        matches!(node.pg.proc, super::postgres::Proc::Starting { primary: true });
                    if (node.pg.writes() || node.pg.promoting || starts) && !watchdog {
                        node.excuse = Some(Excuse::Killed);
                        node.excuse_ends = None;
                    }
                }
                self.after(time, Event::StartAgent(i));
            }
            Fault::StopAgent => {
                let i = self.victim();
                let now = self.local(i);
                if let Some(agent) = &mut self.nodes[i].agent {
                    agent.seen.stopping = Some(now);
                    self.wake(i);
                }
            }
            Fault::Freeze(what, time) => {
                let i = self.victim();
                if self.nodes[i].frozen.is_none() {
                    self.freeze(i, what);
                    self.after(time, Event::Thaw(i));
                }
            }
            Fault::StallLoop(time) => {
                let i = self.victim();
                self.nodes[i].loop_stalls_until = self.now + time;
            }
            Fault::StallAndDie(time) => {
                let i = self.victim();
                self.nodes[i].loop_stalls_until = self.now + time;
                if self.nodes[i].machine && !self.nodes[i].pg_frozen() {
                    self.pg_dies(i);
                }
            }
            Fault::Cut { etcd: from_etcd, peers, one_way, time } => {
                let i = self.victim();
                let mut others = Vec::new();
                if from_etcd || peers == Peers::None {
                    others.push(etcd);
                }
                for j in (0..n).filter(|j| *j != i) {
                    if peers == Peers::All || (peers == Peers::Some && self.rng.chance(50)) {
                        others.push(j);
                    }
                }
                for j in others {
                    self.cut(i, j);
                    self.after(time, Event::Heal(i, j));
                    if !one_way {
                        self.cut(j, i);
                        self.after(time, Event::Heal(j, i));
                    }
                }
            }
            Fault::EtcdDown(time) => {
                self.etcd.down_until = self.now + time;
                let election = self.rng.below(SEC);
                // Leases are prolonged by whoever leads when it is back.
                self.etcd.leader_changes(self.now + time, election);
                self.check.leases_prolonged();
            }
            Fault::EtcdLeader => {
                let gap = self.rng.range(200 * MS, 2 * SEC);
                self.etcd.down_until = self.etcd.down_until.max(self.now + gap);
                let election = self.rng.below(SEC);
                self.etcd.leader_changes(self.now + gap, election);
                self.check.leases_prolonged();
            }
            Fault::EtcdSlow(time) => self.etcd.slow_until = self.now + time,
            Fault::Revoke => {
                if let (Some(lease), Some((i, _))) =
                    (self.etcd.leader_lease(), self.etcd.keys.leader)
                {
                    self.nodes[i].excuse = Some(Excuse::Revoked);
                    self.nodes[i].excuse_ends = None;
                    self.etcd.revoke(lease);
                    self.keys_changed();
                }
            }
            Fault::DeleteKey => {
                if self.etcd.keys.leader.is_some() {
                    self.etcd.change(|keys, _| keys.leader = None);
                    self.keys_changed();
                }
            }
            Fault::Switchover { named } => {
                let Some((leader, _)) = self.etcd.keys.leader else { return };
                let to = self.rng.below(n as u64) as usize;
                let member = (named && to != leader).then(|| NAMES[to].to_owned());
                let leader = Some(NAMES[leader].to_owned());
                let request = FailoverRequest { leader, member, scheduled_at: None };
                self.etcd.change(|keys, revision| keys.failover = Some((request, revision)));
                self.keys_changed();
            }
            Fault::Failover => {
                // In synchronous mode the operator would take the loss upon himself.
                if !self.is_sync() {
                    let member = Some(NAMES[self.rng.below(n as u64) as usize].to_owned());
                    let request = FailoverRequest { leader: None, member, scheduled_at: None };
                    self.etcd.change(|keys, revision| keys.failover = Some((request, revision)));
                    self.keys_changed();
                }
            }
            Fault::PowerCut => {
                for i in 0..n {
                    self.crash(i);
                    let time = self.rng.range(SEC, 8 * SEC);
                    self.after(time, Event::Boot(i));
                }
            }
            Fault::Mode(mode) => {
                self.etcd.change(|keys, _| keys.mode = mode);
                self.mode_changed();
                self.keys_changed();
            }
            Fault::SlowStarts(time) => {
                let i = self.victim();
                self.nodes[i].slow_until = self.now + time;
            }
            Fault::StartsFail(time) => {
                let i = self.victim();
                self.nodes[i].fails_until = self.now + time;
            }
            Fault::StopsHang(time) => {
                let i = self.victim();
                self.nodes[i].hangs_until = self.now + time;
            }
            Fault::Storm(time) => self.storm_until = self.now + time,
            Fault::BreakStream => {
                let i = self.victim();
                if let Some((from, connection, _)) = self.nodes[i].pg.stream {
                    self.stream_breaks(i, connection);
                    self.send(i, from, Event::Broken(from, connection));
                }
            }
            Fault::SwitchLeader | Fault::KillLeader | Fault::StopLeader | Fault::LoseLeader => {
                self.strike_leader(fault);
            }
            Fault::Quiet => self.all_is_well_again(),
        }
    }

    fn strike_leader(&mut self, fault: Fault) {
        let Some((leader, _)) = self.etcd.keys.leader else { return };
        match fault {
            Fault::KillLeader => self.pg_dies(leader),
            Fault::LoseLeader => self.crash(leader),
            Fault::StopLeader => {
                let now = self.local(leader);
                if let Some(agent) = &mut self.nodes[leader].agent {
                    agent.seen.stopping = Some(now);
                    self.wake(leader);
                }
            }
            _ => {
                let leader = Some(NAMES[leader].to_owned());
                let request = FailoverRequest { leader, member: None, scheduled_at: None };
                self.etcd.change(|keys, revision| keys.failover = Some((request, revision)));
                self.keys_changed();
            }
        }
    }

    fn all_is_well_again(&mut self) {
        self.heal_all();
        for i in 0..self.nodes.len() {
            let node = &mut self.nodes[i];
            node.slow_until = 0;
            node.fails_until = 0;
            node.hangs_until = 0;
            node.loop_stalls_until = 0;
            if self.nodes[i].frozen.is_some() {
                self.thaw(i);
            }
            self.after(MS, Event::Boot(i));
            self.after(2 * MS, Event::StartAgent(i));
            self.wake(i);
        }
    }
}
