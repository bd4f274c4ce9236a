//! A machine with its clock, its server, its watchdog and its agent; what `run/` does, in miniature.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use leaderpool::patroni::{Lsn, Timeline};

use super::etcd::{Answered, Keys, Op, Request};
use super::postgres::{Pg, Proc};
use super::teeth::Mutation;
use super::world::{Event, MS, NAMES, SEC, SYSTEM, Setup, Time, World, index, micros, trace};
use crate::decide::{
    Answer, Cluster, Control, Data, Doing, Due, Etcd, FailoverSeen, Failsafe, FencePlan,
    Initialize, Leader, LeaseClock, Me, MemberSeen, Moment, NamesInEffect, Peer, Postgres, Rewind,
    Row, Seen, Server, StandbyRow, SyncMode, SyncNames, SyncSeen, Watchdog, Work, accepts_failsafe,
    decide, fence_plan, may_ping_watchdog, watchdog_timeout,
};

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

    fn stop(&mut self, now: Time) {
        self.stopped.get_or_insert(now);
    }

    fn goes_on(&mut self, now: Time) {
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
    rate: u64,
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
    clock_lies: Option<Moment>,
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
    answered: Option<Moment>,
    pub(super) revision: i64,
    /// A write that has not been answered, and when it was sent.
    pub(super) asked: Option<Moment>,
    pub(super) taken: bool,
    put: Option<(u64, MemberSeen, Moment)>,
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

    fn agent_mut(&mut self, i: usize, boot: u32) -> Option<&mut Agent> {
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

    /// The session: a lease, its renewal, and a read that proves the watch.
    pub(super) fn agent_renews(&mut self, i: usize, boot: u32) {
        let now = self.local(i);
        let Some(agent) = self.agent_mut(i, boot) else { return };
        let ttl = agent.seen.rules.ttl;
        let may = agent.renew_until.is_some_and(|until| now <= until);
        let op = match agent.lease {
            None => Some(Op::Grant(ttl)),
            Some(lease) if may => Some(Op::KeepAlive(lease)),
            Some(_) => None,
        };
        if let Some(op) = op {
            self.ask_etcd(i, op);
        }
        self.ask_etcd(i, Op::Read(false));
        let next = self.nodes[i].clock.when(now + ttl / 10);
        self.at(next.max(self.now + MS), Event::Renew(i, boot));
    }

    pub(super) fn ask_etcd(&mut self, i: usize, op: Op) {
        let sent = self.local(i);
        let Some(agent) = &self.nodes[i].agent else { return };
        let request = Request { node: i, boot: agent.boot, sent, op };
        let site = self.etcd_site();
        self.send(i, site, Event::ToEtcd(request));
    }

    pub(super) fn etcd_answers(&mut self, request: Request, answer: Answered) {
        let i = request.node;
        let now = self.local(i);
        let mutation = self.setup.mutation;
        let Some(agent) = self.agent_mut(i, request.boot) else { return };
        agent.answered = agent.answered.max(Some(request.sent));
        let counted = if mutation == Some(Mutation::LeaseFromReply) { now } else { request.sent };
        // Clocks are believed to go alike.
        let drift = mutation == Some(Mutation::NoDrift);
        let count = |ttl: Duration| if drift { ttl * 10 / 9 } else { ttl };
        match (&request.op, &answer) {
            (Op::Grant(ttl), Answered::Granted(id)) => {
                if agent.lease.is_none() {
                    agent.lease = Some(*id);
                    agent.seen.session = Some(LeaseClock { sent: counted, ttl: count(*ttl) });
                }
            }
            (Op::KeepAlive(id), Answered::Done(_)) => {
                if agent.lease == Some(*id)
                    && let Some(session) = &mut agent.seen.session
                {
                    session.sent = session.sent.max(counted);
                    let node = &mut self.nodes[i];
                    if node.clock_lies.is_some_and(|since| request.sent > since) {
                        node.clock_lies = None;
                    }
                }
                let Some(agent) = self.agent_mut(i, request.boot) else { return };
                if agent.reign_lease == Some(*id)
                    && agent.seen.holds_key()
                    && let Some(reign) = &mut agent.seen.reign
                {
                    reign.sent = reign.sent.max(counted);
                    self.ping_watchdog(i);
                    self.arm_fence(i);
                    self.trusts(i);
                }
                return;
            }
            (Op::KeepAlive(id), Answered::Gone) => {
                if agent.lease == Some(*id) {
                    agent.lease = None;
                    agent.seen.session = None;
                }
            }
            (Op::Read(verify), Answered::Keys(keys)) => {
                let keys = Rc::clone(keys);
                let (boot, verify) = (request.boot, *verify);
                let known = self.agent_mut(i, boot).is_some_and(|a| a.revision >= keys.revision);
                // While the watch holds, the read only proves that it does.
                // A new one begins at what was read, if nothing was missed since.
                let broken = self.nodes[i].watch_broken;
                self.nodes[i].watch_broken &= self.etcd.keys.revision > keys.revision;
                let Some(agent) = self.agent_mut(i, boot) else { return };
                if broken || agent.revision < 0 {
                    self.agent_sees(i, boot, &keys, true);
                }
                let Some(agent) = self.agent_mut(i, boot) else { return };
                if let Leader::Absent { verified, .. } = &mut agent.seen.cluster.leader
                    && verify
                    && keys.leader.is_none()
                {
                    *verified = true;
                } else if known {
                    return;
                }
            }
            (op, answer) => self.write_answered(i, &request, op, answer),
        }
        self.wake(i);
    }

    /// The keys have changed, or were read.
    pub(super) fn agent_sees(&mut self, i: usize, boot: u32, keys: &Rc<Keys>, gap: bool) {
        let now = self.local(i);
        let Some(agent) = self.agent_mut(i, boot) else { return };
        if keys.revision <= agent.revision {
            return;
        }
        agent.revision = keys.revision;
        if agent.seen.etcd == Etcd::Unknown && agent.answered.is_some() {
            agent.seen.etcd = Etcd::Answers;
        }
        let me = agent.seen.me.name.clone();
        let could_write = agent.seen.could_write();
        let cluster = &mut agent.seen.cluster;
        match keys.leader {
            Some((holder, lease)) => {
                let by = NAMES[holder];
                if by == me {
                    agent.taken = false;
                    if agent.lease == Some(lease) && agent.reign_lease != Some(lease) {
                        agent.reign_lease = Some(lease);
                        agent.seen.reign = agent.seen.session;
                    }
                } else {
                    agent.taken |= could_write;
                }
                let attached = by == me && agent.lease == Some(lease);
                if by == me && !attached {
                    agent.reign_lease = None;
                }
                cluster.leader = Leader::Held { by: by.to_owned(), attached };
            }
            None => {
                if gap && matches!(cluster.leader, Leader::Absent { .. }) {
                    // Somebody may have led meanwhile.
                    cluster.leader = Leader::Absent {
                        since: now,
                        last: None,
                        verified: false,
                        taken: agent.taken,
                        over: Some(now),
                    };
                }
                if let Leader::Held { by, .. } = &cluster.leader {
                    let last = Some(by.clone());
                    cluster.leader = Leader::Absent {
                        since: now,
                        last,
                        verified: false,
                        taken: agent.taken,
                        over: None,
                    };
                }
            }
        }
        cluster.initialize = match &keys.initialize {
            None => Initialize::Absent,
            Some((Ok(system), _)) => Initialize::Done(*system),
            Some((Err(maker), revision)) => {
                let since = match cluster.initialize {
                    Initialize::InProgress { since, revision: same, .. } if same == *revision => {
                        since
                    }
                    _ => now,
                };
                // It is ours if this process put it: `write_answered` says so.
                let mine = matches!(
                    cluster.initialize,
                    Initialize::InProgress { mine: true, revision: same, .. } if same == *revision
                );
                let _ = maker;
                Initialize::InProgress { mine, since, revision: *revision }
            }
        };
        cluster.members.retain(|name, _| keys.members.contains_key(&index(name)));
        for (j, (member, _, _)) in &keys.members {
            match cluster.members.get_mut(NAMES[*j]) {
                Some(known) if *known == **member => {}
                Some(known) => known.clone_from(member),
                None => {
                    cluster.members.insert(NAMES[*j].to_owned(), (**member).clone());
                }
            }
        }
        if let Leader::Absent { last: Some(last), over, .. } = &mut cluster.leader {
            let member = cluster.members.get(last);
            if over.is_none() && member.is_none_or(MemberSeen::has_stopped) {
                *over = Some(now);
            }
        }
        cluster.optime = keys.status;
        cluster.sync = keys.sync.as_ref().map(|(key, revision)| SyncSeen {
            key: key.clone(),
            revision: *revision,
            settled: false,
        });
        cluster.failover = keys.failover.as_ref().map(|(request, revision)| {
            let since = match &cluster.failover {
                Some(known) if known.revision == *revision => known.since,
                _ => now,
            };
            FailoverSeen { request: request.clone(), due: Due::Now, since, revision: *revision }
        });
        agent.seen.rules.synchronous_mode = keys.mode;
        cluster.history = keys.history;
        cluster.claimed = keys.claimed;
        cluster.failsafe.clone_from(&keys.failsafe);
        self.wake(i);
    }

    /// Puts the member key where it has changed, and now and then for its position.
    fn put_member(&mut self, i: usize) {
        let now = self.local(i);
        let Some(agent) = &self.nodes[i].agent else { return };
        let (Some(lease), Etcd::Answers) = (agent.lease, agent.seen.etcd) else { return };
        let member = member_value(&agent.seen, self.nodes[i].pg.checkpointed);
        let Some(agent) = &mut self.nodes[i].agent else { return };
        let due = agent.put.as_ref().is_none_or(|(on, put, at)| {
            let same = MemberSeen { lsn: member.lsn, ..put.clone() } == member;
            *on != lease || !same || now >= *at + agent.seen.rules.loop_wait
        });
        let there = agent.seen.cluster.members.contains_key(&agent.seen.me.name);
        let late = agent.put.as_ref().is_none_or(|(_, _, at)| now >= *at + Duration::from_secs(1));
        if due || (!there && late) {
            agent.put = Some((lease, member.clone(), now));
            self.ask_etcd(i, Op::PutMember(lease, Rc::new(member)));
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

    /// It has the key, and its lease: from now on there is no excuse.
    pub(super) fn trusts(&mut self, i: usize) {
        let node = &mut self.nodes[i];
        if node.clock_lies.is_none() && node.excuse != Some(Excuse::Revoked) {
            node.excuse = None;
        }
    }

    fn ping_watchdog(&mut self, i: usize) {
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

    /// A peer's REST API is asked.
    pub(super) fn peer_is_asked(&mut self, from: usize, boot: u32, to: usize, asked: Moment) {
        let node = &self.nodes[to];
        if !node.machine {
            return;
        }
        self.refresh(to);
        let node = &self.nodes[to];
        let answer = match &node.agent {
            // Connection refused.
            None => None,
            Some(agent) => {
                let pg = &node.pg;
                Some(Answer {
                    asked,
                    running: pg.runs(),
                    primary: pg.proc == Proc::Primary,
                    leads: agent.seen.leads(),
                    timeline: self.branches[pg.branch].timeline,
                    lsn: Lsn(pg.lsn),
                    limitation: agent.seen.stopping.map(|_| "the agent stops".to_owned()),
                })
            }
        };
        self.send(to, from, Event::Told { to: from, boot, by: to, asked, answer });
    }

    pub(super) fn peer_answers(
        &mut self,
        to: usize,
        boot: u32,
        by: usize,
        asked: Moment,
        answer: Option<Answer>,
    ) {
        let now = self.local(to);
        let ignore = self.setup.mutation == Some(Mutation::IgnorePeers);
        let Some(agent) = self.agent_mut(to, boot) else { return };
        let peer: &mut Peer = agent.seen.peers.entry(NAMES[by].to_owned()).or_default();
        match answer {
            None => {
                peer.failed = peer.failed.max(Some(asked));
                peer.denies_since = None;
                peer.running_since = None;
            }
            Some(mut answer) => {
                if ignore {
                    answer.lsn = Lsn(0);
                    answer.timeline = Timeline(0);
                    answer.primary = false;
                    answer.leads = false;
                }
                if answer.running {
                    peer.running_since.get_or_insert(now);
                } else {
                    peer.running_since = None;
                }
                if answer.leads {
                    peer.denies_since = None;
                } else {
                    peer.denies_since.get_or_insert(asked);
                }
                if peer.answer.as_ref().is_none_or(|known| known.asked <= answer.asked) {
                    peer.answer = Some(answer);
                }
            }
        }
        self.wake(to);
    }

    pub(super) fn failsafe_asked(&mut self, from: usize, boot: u32, to: usize, round: Moment) {
        let now = self.local(to);
        self.refresh(to);
        let Some(agent) = &mut self.nodes[to].agent else { return };
        let accepts = accepts_failsafe(&agent.seen, NAMES[from]).is_ok();
        if accepts {
            agent.seen.failsafe.promised = Some((NAMES[from].to_owned(), now));
        }
        self.send(to, from, Event::FailsafeTold { to: from, boot, by: to, round, accepts });
    }

    pub(super) fn failsafe_told(
        &mut self,
        to: usize,
        boot: u32,
        by: usize,
        round: Moment,
        accepts: bool,
    ) {
        let majority = self.setup.mutation == Some(Mutation::FailsafeByMajority);
        let Some(agent) = self.agent_mut(to, boot) else { return };
        if !accepts || agent.seen.failsafe.asked != Some(round) {
            return;
        }
        agent.accepted.insert(by, round);
        let Some(asked) = &agent.seen.cluster.failsafe else { return };
        let all = asked.keys().filter(|name| **name != agent.seen.me.name);
        let yes = all.clone().filter(|name| agent.accepted.get(&index(name)) == Some(&round));
        if yes.count() == all.count() || majority {
            agent.seen.failsafe.accepted = Some(round);
            trace!(self, "{}: everyone accepts", NAMES[to]);
            self.arm_fence(to);
            self.ping_watchdog(to);
            self.wake(to);
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
