//! Carrying a decision out.

use std::rc::Rc;
use std::time::Duration;

use leaderpool::patroni::{Lsn, MemberRole};

use super::etcd::{Answered, Op, Request};
use super::node::{Agent, Excuse, member_value};
use super::postgres::{PgStep, Proc, WorkDone};
use super::teeth::Mutation;
use super::world::{Event, MS, NAMES, SEC, SYSTEM, World, index, trace};
use crate::decide::{
    Action, Chore, CloneSource, ControlState, Decision, Doing, Handover, Initialize, Rewind,
    SyncKey, SyncMode, SyncNames, SyncStep, Upstream, Work,
};

impl World {
    fn agent(&mut self, i: usize) -> &mut Agent {
        self.nodes[i].agent.as_mut().expect("the agent that decides is there")
    }

    /// Sends a write, unless one has not been answered yet.
    fn write(&mut self, i: usize, op: Op) {
        let now = self.local(i);
        let agent = self.agent(i);
        if agent.asked.is_some_and(|asked| now < asked + Duration::from_secs(1)) {
            return;
        }
        if matches!(op, Op::WriteSync(..)) {
            // One that was answered is to be seen first.
            if agent.sync_written.is_some_and(|written| agent.revision < written) {
                return;
            }
            agent.sync_sent = Some(now);
        }
        agent.asked = Some(now);
        self.ask_etcd(i, op);
    }

    fn begin(&mut self, i: usize, work: Work, time: u64, done: WorkDone) {
        let now = self.local(i);
        let agent = self.agent(i);
        agent.seen.doing = Some(Doing { work, since: now });
        agent.work_turn += 1;
        let (boot, turn) = (agent.boot, agent.work_turn);
        self.after(time, Event::Work(i, boot, turn, done));
    }

    pub(super) fn perform(&mut self, i: usize, decision: Decision) {
        let now = self.local(i);
        self.agent(i).confirms = matches!(&decision.action, Action::KeepLeading(chores)
            if chores.contains(&Chore::Sync(SyncStep::Confirm)));
        match decision.action {
            Action::Wait => {}
            Action::AskPeers(names) => {
                for name in names {
                    let agent = self.agent(i);
                    let boot = agent.boot;
                    agent.seen.peers.entry(name.clone()).or_default().asked = Some(now);
                    let to = index(&name);
                    self.send(i, to, Event::Ask { from: i, boot, to, asked: now });
                }
            }
            Action::VerifyLeaderKey => self.write(i, Op::Read(true)),
            Action::Bootstrap { replacing } => self.write(i, Op::TakeInitialize(replacing)),
            Action::FinishBootstrap => {
                if let Some(lease) = self.agent(i).lease {
                    self.write(i, Op::FinishBootstrap { lease, system: SYSTEM });
                }
            }
            Action::AbandonBootstrap => {
                self.nodes[i].pg.data = false;
                self.write(i, Op::DeleteInitialize);
            }
            Action::CloneFrom(source) => {
                let CloneSource::Member(from) = source else { return };
                let time = self.rng.range(300 * MS, 3 * SEC);
                self.begin(i, Work::Clone, time, WorkDone::Cloned(Some(index(&from))));
            }
            Action::Reclone => {
                self.check.reclone(&self.setup.rules, NAMES[i]);
                self.nodes[i].pg.data = false;
            }
            Action::StartAsPrimary => {
                self.agent(i).seen.handover = None;
                self.open_watchdog(i);
                self.pg_start(i, true, Upstream::Nobody);
            }
            Action::StartAsStandby(upstream) => self.pg_start(i, false, upstream),
            Action::Follow(upstream) => {
                let since = self.local(i);
                let pg = &mut self.nodes[i].pg;
                pg.upstream = upstream;
                if pg.stream.take().is_some() || pg.stream_lost.is_none() {
                    pg.stream_lost = Some(since);
                }
            }
            Action::CheckRewind { from } => {
                let time = self.rng.range(5 * MS, 80 * MS);
                self.begin(i, Work::CheckRewind, time, WorkDone::Checked(index(&from)));
            }
            Action::CrashRecover => {
                let time = self.rng.range(50 * MS, SEC);
                self.begin(i, Work::CrashRecover, time, WorkDone::Recovered);
            }
            Action::Rewind { from } => {
                let time = self.rng.range(200 * MS, 2 * SEC);
                let fails = self.rng.chance(3);
                self.begin(i, Work::Rewind, time, WorkDone::Rewound(index(&from), fails));
            }
            Action::AcquireLeader { sync_revision } => {
                if let Some(lease) = self.agent(i).lease {
                    self.write(i, Op::Acquire { lease, sync_revision });
                    if self.setup.mutation == Some(Mutation::PromoteWithoutKey) {
                        self.pg_promote(i, leaderpool::patroni::Timeline(0));
                    }
                }
            }
            Action::ReattachLeader => {
                if let Some(lease) = self.agent(i).lease {
                    self.write(i, Op::Reattach(lease));
                }
            }
            Action::WriteSync { key, revision } => {
                self.write(i, Op::WriteSync(Some(key), revision));
            }
            Action::SetSyncNames(names) => self.set_names(i, names),
            Action::ClaimTimeline(timeline) => {
                if self.setup.mutation == Some(Mutation::NoClaim) {
                    self.agent(i).seen.claimed = Some(timeline);
                } else {
                    self.write(i, Op::Claim(timeline));
                }
            }
            Action::Promote { above } => {
                self.open_watchdog(i);
                self.pg_promote(i, above);
                if self.nodes[i].pg.promoting {
                    self.agent(i).seen.doing = Some(Doing { work: Work::Promote, since: now });
                }
            }
            Action::KeepLeading(chores) => {
                for chore in chores {
                    self.chore(i, chore);
                }
            }
            Action::Demote { stop, hand_over, .. } => {
                let early = self.setup.mutation == Some(Mutation::ReleaseEarly);
                if let Some(hand_over) = hand_over {
                    let agent = self.agent(i);
                    agent.seen.handover =
                        Some(Handover { to: hand_over.to, why: hand_over.why, since: now });
                    if early {
                        self.release(i, Some(Lsn(self.nodes[i].pg.lsn)));
                    }
                }
                self.pg_stop(i, stop);
            }
            Action::Stop(mode) => self.pg_stop(i, mode),
            Action::ReleaseLeader { optime, .. } => self.release(i, optime),
            Action::PingFailsafe => {
                let agent = self.agent(i);
                agent.seen.failsafe.asked = Some(now);
                let boot = agent.boot;
                let asked = agent.seen.cluster.failsafe.clone().unwrap_or_default();
                let others: Vec<usize> =
                    asked.keys().map(|name| index(name)).filter(|j| *j != i).collect();
                if others.is_empty() {
                    agent.seen.failsafe.accepted = Some(now);
                }
                for to in others {
                    self.send(i, to, Event::Failsafe { from: i, boot, to, round: now });
                }
            }
            Action::Exit { code } => {
                trace!(self, "{}: the agent ends, {code}", NAMES[i]);
                let node = &mut self.nodes[i];
                node.agent = None;
                node.watchdog = None;
                let time = self.rng.range(SEC, 5 * SEC);
                self.after(time, Event::StartAgent(i));
            }
        }
    }

    fn release(&mut self, i: usize, optime: Option<Lsn>) {
        let checkpointed = self.nodes[i].pg.checkpointed;
        let mut member = member_value(&self.agent(i).seen, checkpointed);
        member.running = false;
        member.role = MemberRole::Demoted;
        self.write(i, Op::Release { optime, member: Rc::new(member) });
    }

    /// With synchronous mode off and its key gone, the configuration is without names.
    pub(super) fn forgets_names(&mut self, i: usize) {
        let node = &self.nodes[i];
        let Some(agent) = &node.agent else { return };
        let off = agent.seen.rules.synchronous_mode == SyncMode::Off;
        let leads = agent.seen.holds_key() && node.pg.proc == Proc::Primary;
        if off
            && leads
            && agent.seen.cluster.sync.is_none()
            && node.pg.names_set != SyncNames::Nobody
        {
            self.pg_set_names(i, SyncNames::Nobody);
        }
    }

    fn set_names(&mut self, i: usize, names: SyncNames) {
        let now = self.local(i);
        let agent = self.agent(i);
        let again = agent
            .names_asked
            .as_ref()
            .is_some_and(|(asked, at)| *asked == names && now < *at + Duration::from_millis(500));
        if !again {
            agent.names_asked = Some((names.clone(), now));
            self.pg_set_names(i, names);
        }
    }

    fn chore(&mut self, i: usize, chore: Chore) {
        let now = self.local(i);
        match chore {
            Chore::WriteInitialize(system) => self.write(i, Op::WriteInitialize(system)),
            Chore::WriteStatus(lsn) => {
                self.agent(i).seen.status_written = Some(now);
                self.ask_etcd(i, Op::WriteStatus(lsn));
            }
            Chore::WriteHistory => {
                let timeline = self.branches[self.nodes[i].pg.branch].timeline;
                self.ask_etcd(i, Op::WriteHistory(timeline));
            }
            Chore::WriteFailsafe(members) => self.write(i, Op::WriteFailsafe(members)),
            Chore::Checkpoint => {
                let agent = self.agent(i);
                if agent.checkpoint_asked.is_none_or(|at| now > at + Duration::from_secs(1)) {
                    agent.checkpoint_asked = Some(now);
                    let turn = self.nodes[i].pg.turn;
                    let time = self.rng.range(20 * MS, 400 * MS);
                    self.after(time, Event::Pg(i, turn, PgStep::Checkpointed));
                }
            }
            Chore::Sync(step) => self.sync_step(i, step),
            Chore::ClearFailover { revision, .. } => self.write(i, Op::ClearFailover(revision)),
            Chore::NameCandidate { revision, to } => self.write(i, Op::NameCandidate(revision, to)),
        }
    }

    fn sync_step(&mut self, i: usize, step: SyncStep) {
        let mutation = self.setup.mutation;
        let agent = self.agent(i);
        let revision = agent.seen.cluster.sync.as_ref().map_or(0, |sync| sync.revision);
        match step {
            SyncStep::Done | SyncStep::Confirm => {}
            SyncStep::DeleteKey => self.write(i, Op::WriteSync(None, revision)),
            SyncStep::WriteKey(key) => self.write(i, Op::WriteSync(Some(key), revision)),
            SyncStep::SetNames(names) => {
                if mutation == Some(Mutation::SyncKeyFirst)
                    && let SyncNames::All(standbys) = &names
                {
                    // The key before what it promises.
                    let leader = Some(NAMES[i].to_owned());
                    let key = SyncKey { leader, quorum: 0, standbys: standbys.clone() };
                    self.write(i, Op::WriteSync(Some(key), revision));
                }
                self.set_names(i, names);
            }
        }
    }

    /// A write was answered.
    pub(super) fn write_answered(
        &mut self,
        i: usize,
        request: &Request,
        op: &Op,
        answer: &Answered,
    ) {
        let done = matches!(answer, Answered::Done(_));
        if matches!(op, Op::PutMember(..) | Op::WriteStatus(_) | Op::WriteHistory(_)) {
            return;
        }
        let now = self.local(i);
        let agent = self.agent(i);
        agent.asked = None;
        if let (Op::WriteSync(..), Answered::Done(revision)) = (op, answer) {
            agent.sync_written = Some(*revision);
            if agent.sync_sent == Some(request.sent) {
                agent.sync_sent = None;
            }
        }
        if !done {
            return;
        }
        match op {
            Op::Acquire { lease, .. } | Op::Reattach(lease) | Op::FinishBootstrap { lease, .. }
                if agent.lease == Some(*lease) =>
            {
                agent.reign_lease = Some(*lease);
                agent.seen.reign = agent.seen.session;
                if self.nodes[i].excuse == Some(Excuse::Revoked) {
                    self.nodes[i].excuse = None;
                }
                self.trusts(i);
            }
            Op::Claim(timeline) => agent.seen.claimed = Some(*timeline),
            Op::Release { .. } => {
                agent.seen.handover = None;
            }
            Op::TakeInitialize(_) => {
                // Whatever revision it got: nobody else can have put it since.
                agent.seen.cluster.initialize =
                    Initialize::InProgress { mine: true, since: now, revision: agent.revision };
                let fails = self.rng.chance(10);
                let time = self.rng.range(500 * MS, 2 * SEC);
                self.begin(i, Work::Bootstrap, time, WorkDone::Bootstrapped(!fails));
            }
            _ => {}
        }
    }

    /// A piece of work has ended.
    pub(super) fn work_ends(&mut self, i: usize, boot: u32, turn: u64, done: WorkDone) {
        let now = self.now;
        let Some(agent) = self.nodes[i].agent.as_deref_mut() else { return };
        if agent.boot != boot || agent.work_turn != turn {
            return;
        }
        let reach = |world: &World, from: usize| {
            world.nodes[from].writable() && !world.is_cut(i, from) && !world.is_cut(from, i)
        };
        let local = self.local(i);
        if let WorkDone::Checked(_) | WorkDone::Rewound(..) = done {
            self.agent(i).seen.postgres.rewind_tried = Some(local);
        }
        match done {
            WorkDone::Bootstrapped(well) => {
                self.nodes[i].pg.data = well;
                self.nodes[i].pg.control = ControlState::ShutDown;
            }
            WorkDone::Cloned(from) => {
                if let Some(from) = from.filter(|from| reach(self, *from)) {
                    let (branch, lsn) = (self.nodes[from].pg.branch, self.nodes[from].pg.lsn);
                    let pg = &mut self.nodes[i].pg;
                    (pg.data, pg.branch, pg.lsn) = (true, branch, lsn);
                    pg.control = ControlState::ShutDownInRecovery;
                }
            }
            WorkDone::Checked(from) => {
                let verdict = reach(self, from).then(|| {
                    let (mine, theirs) = (&self.nodes[i].pg, &self.nodes[from].pg);
                    self.holds(theirs.branch, theirs.lsn, mine.branch, mine.lsn)
                });
                let agent = self.agent(i);
                if agent.rewind_of.is_some_and(|(leader, _)| leader == from) {
                    agent.seen.postgres.rewind = match verdict {
                        None => Rewind::Unknown,
                        Some(true) => Rewind::NotNeeded,
                        Some(false) => Rewind::Needed,
                    };
                }
            }
            WorkDone::Rewound(from, fails) => {
                if fails && reach(self, from) && now < self.setup.quiet {
                    // Tried again: a real one would fail for a reason.
                    self.agent(i).seen.postgres.rewind = Rewind::Unknown;
                } else if reach(self, from) {
                    self.rewind(i, from);
                    self.check.rewinds += 1;
                    self.agent(i).seen.postgres.rewind = Rewind::NotNeeded;
                } else {
                    self.agent(i).seen.postgres.rewind = Rewind::Unknown;
                }
            }
            WorkDone::Recovered => self.nodes[i].pg.control = ControlState::ShutDown,
        }
        self.agent(i).seen.doing = None;
        self.wake(i);
    }

    /// Back to where the histories part.
    fn rewind(&mut self, i: usize, from: usize) {
        let (branch, lsn) = (self.nodes[i].pg.branch, self.nodes[i].pg.lsn);
        let (to, end) = (self.nodes[from].pg.branch, self.nodes[from].pg.lsn);
        let (mut of, mut at) = (branch, lsn);
        loop {
            let reached = self.reaches(to, end, of);
            if reached > 0 {
                at = at.min(reached);
                break;
            }
            match self.branches[of].parent {
                Some((parent, fork)) => (of, at) = (parent, at.min(fork)),
                None => break,
            }
        }
        trace!(self, "{}: rewound from {lsn} on {branch} to {at} on {of}", NAMES[i]);
        let pg = &mut self.nodes[i].pg;
        (pg.branch, pg.lsn) = (of, at);
        pg.control = ControlState::ShutDownInRecovery;
    }
}
