//! A machine with its clock, its server, its watchdog and its agent; what `run/` does, in miniature.

use std::collections::BTreeMap;
use std::time::Duration;

use leaderpool::patroni::{Lsn, Timeline};

use super::postgres::{Pg, Proc};
use super::teeth::Mutation;
use super::world::{Event, MS, NAMES, SYSTEM, Setup, Time, World, index, micros, trace};
use crate::decide::*;

/// CLOCK_BOOTTIME of one boot of one machine.
#[derive(Debug, Clone)]
pub(super) struct Clock {
    began: Time,
    rate: u64,
    offset: Time,
    /// Since when it stands still, with the machine.
    stopped: Option<Time>,
}

impl Clock {
    pub(super) fn new(began: Time, rate: u64, offset: Time) -> Self {
        Self { began, rate, offset, stopped: None }
    }

    pub(super) fn read(&self, now: Time) -> Moment {
        let now = self.stopped.unwrap_or(now);
        Moment(Duration::from_micros(self.offset + (now - self.began) * self.rate / 1000))
    }

    /// When it will show `moment`.
    pub(super) fn when(&self, moment: Moment) -> Time {
        let passed = micros(moment.0).saturating_sub(self.offset);
        self.began + (passed * 1000).div_ceil(self.rate)
    }

    pub(super) fn stop(&mut self, now: Time) {
        self.stopped.get_or_insert(now);
    }

    pub(super) fn goes_on(&mut self, now: Time) {
        if let Some(stopped) = self.stopped.take() {
            self.began += now - stopped;
        }
    }
}

/// What of a machine stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frozen {
    Agent,
    Processes,
    /// The whole machine and its clock, its watchdog too: a virtual one that is paused.
    Machine,
}

/// Why a node may write without the key: nothing on it could know better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Excuse {
    /// Its agent was killed, and there is no watchdog.
    Killed,
    /// Its agent was frozen, and there is no watchdog.
    Frozen,
    /// It stood still, its clock with it.
    StoodStill,
    /// etcd took its lease while it was alive.
    Revoked,
}

/// One machine.
pub(super) struct Node {
    pub(super) machine: bool,
    pub(super) clock: Clock,
    pub(super) rate: u64,
    pub(super) pg: Pg,
    pub(super) agent: Option<Box<Agent>>,
    boots: u32,
    pub(super) frozen: Option<Frozen>,
    pub(super) backlog: Vec<Event>,
    pub(super) slow_until: Time,
    pub(super) fails_until: Time,
    pub(super) hangs_until: Time,
    pub(super) loop_stalls_until: Time,
    pub(super) watch_broken: bool,
    /// Whether it has written `sync` as the leader since synchronous mode was switched on.
    pub(super) promises: bool,
    pub(super) watched_until: Time,
    /// When the watchdog device resets the machine.
    pub(super) watchdog: Option<Time>,
    pub(super) excuse: Option<Excuse>,
    pub(super) excuse_ends: Option<Time>,
    /// Since when its clock is behind without anybody knowing: what it counts from before then is wrong.
    pub(super) clock_lies: Option<Moment>,
}

/// The process beside the server.
pub(super) struct Agent {
    pub(super) boot: u32,
    pub(super) seen: Seen,
    turn: u64,
    wakes_at: Time,
    pub(super) renew_until: Option<Moment>,
    pub(super) lease: Option<u64>,
    pub(super) reign_lease: Option<u64>,
    /// When the last request was sent that etcd has answered.
    pub(super) answered: Option<Moment>,
    pub(super) revision: i64,
    /// A write that has not been answered, and when it was sent.
    pub(super) asked: Option<Moment>,
    pub(super) taken: bool,
    pub(super) put: Option<(u64, MemberSeen, Moment)>,
    pub(super) rewind_of: Option<(usize, Option<Timeline>)>,
    pub(super) work_turn: u64,
    pub(super) accepted: BTreeMap<usize, Moment>,
    fence_at: Option<Time>,
    pub(super) names_asked: Option<(SyncNames, Moment)>,
    /// The last write of `sync` that was not answered, by when it was sent.
    pub(super) sync_sent: Option<Moment>,
    /// The revision of the last one that was.
    pub(super) sync_written: Option<i64>,
    pub(super) checkpoint_asked: Option<Moment>,
    /// Whether it waits for standbys to catch up.
    pub(super) confirms: bool,
    /// Whether it waits for an operator.
    pub(super) diverged: bool,
}

impl Node {
    pub(super) fn new(clock: Clock, pg: Pg) -> Self {
        let rate = clock.rate;
        Self {
            machine: true,
            clock,
            rate,
            pg,
            agent: None,
            boots: 0,
            frozen: None,
            backlog: Vec::new(),
            slow_until: 0,
            fails_until: 0,
            hangs_until: 0,
            loop_stalls_until: 0,
            watch_broken: false,
            promises: false,
            watched_until: 0,
            watchdog: None,
            excuse: None,
            excuse_ends: None,
            clock_lies: None,
        }
    }

    pub(super) fn next_boot(&mut self) -> u32 {
        self.boots += 1;
        self.boots
    }

    pub(super) fn agent_frozen(&self) -> bool {
        self.frozen.is_some()
    }

    pub(super) fn pg_frozen(&self) -> bool {
        matches!(self.frozen, Some(Frozen::Processes | Frozen::Machine))
    }

    /// The process that watches keys.
    pub(super) fn watching(&self) -> Option<u32> {
        if !self.machine || self.watch_broken {
            return None;
        }
        self.agent.as_ref().map(|agent| agent.boot)
    }

    /// Whether its server takes writes at this moment.
    pub(super) fn writable(&self) -> bool {
        self.machine && !self.pg_frozen() && self.pg.writes()
    }
}

impl Agent {
    pub(super) fn new(i: usize, boot: u32, now: Moment, setup: &Setup) -> Box<Self> {
        let seen = Seen {
            me: Me {
                name: NAMES[i].to_owned(),
                tags: setup.tags[i].clone(),
                started: now,
                may_bootstrap: true,
                replica_without_leader: false,
            },
            rules: setup.rules.clone(),
            etcd: Etcd::Unknown,
            cluster: Cluster {
                initialize: Initialize::Absent,
                leader: Leader::Absent {
                    since: now,
                    last: None,
                    verified: false,
                    taken: false,
                    over: Some(now),
                },
                members: BTreeMap::new(),
                optime: None,
                sync: None,
                failover: None,
                history: None,
                claimed: None,
                failsafe: None,
            },
            peers: BTreeMap::new(),
            postgres: Postgres {
                data: Data::Empty,
                server: Server::Down { since: now, start_failed: false },
                control: None,
                rewind: Rewind::Unknown,
                rewind_tried: None,
                crashes: 0,
                promote_failed: None,
                standbys: Vec::new(),
                names: NamesInEffect::default(),
            },
            session: None,
            reign: None,
            failsafe: Failsafe::default(),
            watchdog: if setup.watchdog { Watchdog::Ready } else { Watchdog::Off },
            doing: None,
            handover: None,
            claimed: None,
            status_written: None,
            stopping: None,
        };
        Box::new(Self {
            boot,
            seen,
            turn: 0,
            wakes_at: Time::MAX,
            renew_until: None,
            lease: None,
            reign_lease: None,
            answered: None,
            revision: -1,
            asked: None,
            taken: false,
            put: None,
            rewind_of: None,
            work_turn: 0,
            accepted: BTreeMap::new(),
            fence_at: None,
            names_asked: None,
            sync_sent: None,
            sync_written: None,
            checkpoint_asked: None,
            confirms: false,
            diverged: false,
        })
    }
}

/// The server's agent is told that something has happened.
pub(super) fn local_news(world: &mut World, i: usize) {
    world.wake(i);
}

impl World {
    /// Has the agent decide again in a moment.
    pub(super) fn wake(&mut self, i: usize) {
        let delay = 100 + self.rng.below(900);
        self.wake_at(i, self.now + delay);
    }

    fn wake_at(&mut self, i: usize, at: Time) {
        let Some(agent) = &mut self.nodes[i].agent else { return };
        if agent.wakes_at <= at && agent.wakes_at > self.now {
            return;
        }
        agent.turn += 1;
        agent.wakes_at = at;
        let (boot, turn) = (agent.boot, agent.turn);
        self.at(at, Event::Wake(i, boot, turn));
    }

    pub(super) fn agent_mut(&mut self, i: usize, boot: u32) -> Option<&mut Agent> {
        self.nodes[i].agent.as_deref_mut().filter(|agent| agent.boot == boot)
    }

    /// The loop decides, and does what was decided.
    pub(super) fn agent_wakes(&mut self, i: usize, boot: u32, turn: u64) {
        let stalls = self.nodes[i].loop_stalls_until;
        let Some(agent) = self.agent_mut(i, boot) else { return };
        if agent.turn != turn {
            return;
        }
        agent.wakes_at = Time::MAX;
        if self.now < stalls {
            self.wake_at(i, stalls);
            return;
        }
        self.refresh(i);
        let now = self.local(i);
        let Some(agent) = &mut self.nodes[i].agent else { return };
        let decision = decide(&agent.seen, now);
        agent.renew_until = decision.renew_until;
        agent.diverged = decision.row == Row::Diverged;
        if self.setup.mutation == Some(Mutation::RenewForTheDead) {
            agent.renew_until = Some(now + Duration::from_secs(1000));
        }
        self.check.rows.insert(decision.row);
        trace!(
            self,
            "{}: {} {:?} ({})",
            NAMES[i],
            decision.row.name(),
            decision.action,
            decision.reason
        );
        let next = self.nodes[i].clock.when(decision.look_again);
        self.wake_at(i, next.max(self.now + MS));
        self.perform(i, decision);
        self.forgets_names(i);
        self.put_member(i);
        self.arm_fence(i);
    }

    /// Copies what can be seen of the server, and of time, into what decisions are made from.
    pub(super) fn refresh(&mut self, i: usize) {
        let now = self.local(i);
        let node = &mut self.nodes[i];
        let Some(agent) = &mut node.agent else { return };
        let (pg, seen) = (&node.pg, &mut agent.seen);
        let timeline = self.branches[pg.branch].timeline;
        seen.postgres.data = if pg.data { Data::Present(SYSTEM) } else { Data::Empty };
        seen.postgres.server = match &pg.proc {
            Proc::Down { failed } => Server::Down { since: pg.since, start_failed: *failed },
            Proc::Starting { primary } => {
                Server::Starting { since: pg.since, as_primary: *primary }
            }
            Proc::Primary => Server::Primary { timeline, written: Lsn(pg.lsn) },
            Proc::Standby => Server::Standby {
                timeline,
                received: Lsn(pg.lsn),
                upstream: pg.upstream.clone(),
                stream_lost: pg.stream_lost,
            },
            Proc::Stopping { mode, was_primary, .. } => {
                Server::Stopping { since: pg.since, mode: *mode, was_primary: *was_primary }
            }
        };
        seen.postgres.control = match &pg.proc {
            Proc::Down { .. } | Proc::Stopping { .. } => Some(Control {
                state: pg.control,
                timeline,
                checkpoint: Lsn(pg.checkpoint),
                backup_label: false,
            }),
            Proc::Starting { .. } | Proc::Primary | Proc::Standby => None,
        };
        if pg.promoting && seen.doing.is_none() {
            seen.doing = Some(Doing { work: Work::Promote, since: pg.since });
        }
        if pg.proc == Proc::Primary {
            seen.postgres.rewind = Rewind::Unknown;
        }
        if !pg.promoting && seen.doing.is_some_and(|doing| doing.work == Work::Promote) {
            seen.doing = None;
        }
        seen.postgres.crashes = pg.crashes;
        seen.postgres.promote_failed = pg.promote_failed;
        if matches!(pg.proc, Proc::Primary | Proc::Stopping { was_primary: true, .. }) {
            seen.postgres.standbys.clear();
            for (j, follower) in &pg.followers {
                let counted = match &pg.names {
                    SyncNames::Nobody | SyncNames::Foreign => false,
                    SyncNames::Anyone => true,
                    SyncNames::All(names) | SyncNames::Some(_, names) => names.contains(NAMES[*j]),
                };
                seen.postgres.standbys.push(StandbyRow {
                    name: NAMES[*j].to_owned(),
                    streaming: true,
                    counted,
                    flushed: Lsn(follower.flushed),
                });
            }
        }
        seen.postgres.names = NamesInEffect {
            names: pg.names.clone(),
            set: (pg.names_set != pg.names).then(|| pg.names_set.clone()),
            since: pg.names_since.map(Lsn),
        };
        if let Some(sync) = &mut seen.cluster.sync {
            sync.settled = agent.sync_sent.is_none() && agent.sync_written == Some(sync.revision);
        }
        // etcd is silent when two renewals in a row were not answered.
        if let Some(answered) = agent.answered {
            let limit = seen.rules.ttl / 5 + Duration::from_millis(200);
            seen.etcd = if now > answered + limit { Etcd::Silent(answered) } else { Etcd::Answers };
        }
        let mine = matches!(&seen.cluster.leader, Leader::Held { by, .. } if *by == seen.me.name);
        if let Leader::Held { by, attached } = &mut seen.cluster.leader {
            *attached =
                *by == seen.me.name && agent.lease.is_some() && agent.lease == agent.reign_lease;
        }
        if !mine {
            seen.handover = None;
            seen.claimed = None;
            if !seen.could_write() {
                seen.reign = None;
                agent.reign_lease = None;
            }
        }
        match self.setup.mutation {
            Some(Mutation::IgnoreSync) if !mine => seen.rules.synchronous_mode = SyncMode::Off,
            Some(Mutation::IgnoreSync) => seen.rules.synchronous_mode = self.etcd.keys.mode,
            _ => {}
        }
        let could_write = seen.could_write();
        // What is known about the data holds for one leader on one timeline.
        let leader = match &seen.cluster.leader {
            Leader::Held { by, .. } if *by != seen.me.name => {
                Some((index(by), seen.cluster.members.get(by).and_then(|member| member.timeline)))
            }
            _ => None,
        };
        if leader.is_some() && leader != agent.rewind_of {
            agent.rewind_of = leader;
            seen.postgres.rewind = Rewind::Unknown;
            seen.postgres.rewind_tried = None;
        }
        if !could_write {
            node.watchdog = None;
        }
        // A promotion that a killed agent had ordered goes on.
        let counts = node.excuse == Some(Excuse::Revoked) && agent.seen.reign.is_some();
        if !could_write && !node.pg.promoting && !counts && node.clock_lies.is_none() {
            node.excuse = None;
        }
    }

    /// Has the fence look when its plan says so.
    pub(super) fn arm_fence(&mut self, i: usize) {
        if self.setup.mutation == Some(Mutation::NoFence) {
            return;
        }
        let now = self.local(i);
        let real = self.now;
        let node = &mut self.nodes[i];
        let Some(agent) = &mut node.agent else { return };
        let Some(plan) = fence_plan(&agent.seen) else {
            agent.fence_at = None;
            return;
        };
        let at = if plan.due(now).is_some() {
            real + MS
        } else {
            node.clock.when(plan.next(now).unwrap_or(now))
        };
        if agent.fence_at.is_none_or(|known| known > at || known <= real) {
            agent.fence_at = Some(at);
            let boot = agent.boot;
            self.at(at, Event::Fence(i, boot));
        }
    }

    /// The fence's own thread.
    pub(super) fn fence_wakes(&mut self, i: usize, boot: u32) {
        let now = self.local(i);
        let Some(agent) = self.agent_mut(i, boot) else { return };
        agent.fence_at = None;
        self.refresh(i);
        let plan: Option<FencePlan> =
            self.nodes[i].agent.as_ref().and_then(|agent| fence_plan(&agent.seen));
        if let Some(stop) = plan.and_then(|plan| plan.due(now)) {
            trace!(self, "{}: the fence stops the server, {stop:?}", NAMES[i]);
            self.pg_stop(i, stop);
        }
        if let Some(next) = plan.and_then(|plan| plan.next(now)) {
            let at = self.nodes[i].clock.when(next);
            if let Some(agent) = &mut self.nodes[i].agent {
                agent.fence_at = Some(at);
            }
            self.at(at.max(self.now + MS), Event::Fence(i, boot));
        }
    }
}

/// What the member key says.
pub(super) fn member_value(seen: &Seen, checkpointed: bool) -> MemberSeen {
    let (running, timeline, lsn) = match &seen.postgres.server {
        Server::Primary { timeline, written } => (true, Some(*timeline), Some(*written)),
        Server::Standby { timeline, received, .. } => (true, Some(*timeline), Some(*received)),
        Server::Starting { .. } | Server::Stopping { .. } | Server::Down { .. } => {
            (false, None, None)
        }
    };
    MemberSeen {
        running,
        initializing: seen.doing.is_some_and(|doing| doing.work == Work::Bootstrap),
        role: seen.role(),
        timeline,
        lsn,
        tags: seen.me.tags.clone(),
        checkpointed,
        api_url: Some(format!("http://{}", seen.me.name)),
    }
}
