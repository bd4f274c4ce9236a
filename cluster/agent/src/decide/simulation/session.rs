//! The agent's session with etcd: lease, keys, watch.

use std::rc::Rc;
use std::time::Duration;

use super::etcd::{Answered, Keys, Op, Request};
use super::node::{Excuse, member_value};
use super::teeth::Mutation;
use super::world::{Event, MS, NAMES, World, index};
use crate::decide::*;

impl World {
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
    pub(super) fn put_member(&mut self, i: usize) {
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

    /// It has the key, and its lease: from now on there is no excuse.
    pub(super) fn trusts(&mut self, i: usize) {
        let node = &mut self.nodes[i];
        if node.clock_lies.is_none() && node.excuse != Some(Excuse::Revoked) {
            node.excuse = None;
        }
    }
}
