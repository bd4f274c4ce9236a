//! etcd, simulated: one history of revisions, leases with a scan for the expired, compare-and-swap.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use leaderpool::patroni::{FailoverRequest, Lsn, SystemId, Timeline};

use super::world::{SEC, Time};
use crate::decide::{MemberSeen, Moment, SyncKey, SyncMode};

/// All keys at one revision.
#[derive(Debug, Clone, Default)]
pub(super) struct Keys {
    pub(super) revision: i64,
    /// Who, on which lease.
    pub(super) leader: Option<(usize, u64)>,
    /// The value, the lease and the revision of each member key.
    pub(super) members: BTreeMap<usize, (Rc<MemberSeen>, u64, i64)>,
    /// The identifier, or who is making the cluster.
    pub(super) initialize: Option<(Result<SystemId, usize>, i64)>,
    pub(super) status: Option<Lsn>,
    pub(super) sync: Option<(SyncKey, i64)>,
    pub(super) failover: Option<(FailoverRequest, i64)>,
    pub(super) history: Option<Timeline>,
    pub(super) claimed: Option<Timeline>,
    pub(super) failsafe: Option<BTreeMap<String, String>>,
    /// Of the dynamic configuration.
    pub(super) mode: SyncMode,
}

/// What a node asks of etcd.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Grant(Duration),
    KeepAlive(u64),
    /// A linearizable read; whether it is to confirm that the leader key is gone.
    Read(bool),
    PutMember(u64, Rc<MemberSeen>),
    Acquire {
        lease: u64,
        sync_revision: i64,
    },
    Reattach(u64),
    Release {
        optime: Option<Lsn>,
        member: Rc<MemberSeen>,
    },
    TakeInitialize(Option<i64>),
    FinishBootstrap {
        lease: u64,
        system: SystemId,
    },
    DeleteInitialize,
    WriteInitialize(SystemId),
    WriteStatus(Lsn),
    WriteSync(Option<SyncKey>, i64),
    Claim(Timeline),
    WriteHistory(Timeline),
    WriteFailsafe(BTreeMap<String, String>),
    ClearFailover(i64),
    NameCandidate(i64, String),
}

/// What it answers.
#[derive(Debug, Clone)]
pub(super) enum Answered {
    /// At this revision.
    Done(i64),
    /// A condition did not hold.
    Refused,
    Granted(u64),
    Gone,
    Keys(Rc<Keys>),
}

#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) node: usize,
    pub(super) boot: u32,
    pub(super) sent: Moment,
    pub(super) op: Op,
}

#[derive(Debug, Clone)]
struct Lease {
    ttl: Time,
    expires: Time,
}

#[derive(Debug, Default)]
pub(super) struct Etcd {
    pub(super) keys: Rc<Keys>,
    leases: BTreeMap<u64, Lease>,
    next_lease: u64,
    /// Until when nobody answers.
    pub(super) down_until: Time,
    /// Until when its answers are late.
    pub(super) slow_until: Time,
}

impl Etcd {
    pub(super) fn is_up(&self, now: Time) -> bool {
        now >= self.down_until
    }

    /// A change of leader, or the end of an outage: every lease gets its full ttl again, and more.
    pub(super) fn leader_changes(&mut self, now: Time, election: Time) {
        for lease in self.leases.values_mut() {
            lease.expires = now + lease.ttl + election;
        }
    }

    /// Ends the leases that have run out. Returns whether keys went with them.
    pub(super) fn scan(&mut self, now: Time) -> bool {
        let dead: Vec<u64> =
            self.leases.iter().filter(|(_, l)| l.expires <= now).map(|(id, _)| *id).collect();
        let mut changed = false;
        for id in dead {
            changed |= self.revoke(id);
        }
        changed
    }

    /// Ends a lease; all its keys go at one revision.
    pub(super) fn revoke(&mut self, id: u64) -> bool {
        self.leases.remove(&id);
        let mine = self.keys.leader.is_some_and(|(_, lease)| lease == id)
            || self.keys.members.values().any(|(_, lease, _)| *lease == id);
        if mine {
            self.change(|keys, _| {
                if keys.leader.is_some_and(|(_, lease)| lease == id) {
                    keys.leader = None;
                }
                keys.members.retain(|_, (_, lease, _)| *lease != id);
            });
        }
        mine
    }

    pub(super) fn change(&mut self, with: impl FnOnce(&mut Keys, i64)) {
        let keys = Rc::make_mut(&mut self.keys);
        keys.revision += 1;
        let revision = keys.revision;
        with(keys, revision);
    }

    /// Carries out a request. Returns the answer, and whether keys changed.
    pub(super) fn handle(&mut self, request: &Request, now: Time) -> (Answered, bool) {
        let me = request.node;
        let before = self.keys.revision;
        let leads = self.keys.leader.is_some_and(|(name, _)| name == me);
        let answer = match &request.op {
            Op::Grant(ttl) => {
                self.next_lease += 1;
                let ttl = ttl.as_micros() as Time;
                self.leases.insert(self.next_lease, Lease { ttl, expires: now + ttl });
                Answered::Granted(self.next_lease)
            }
            Op::KeepAlive(id) => match self.leases.get_mut(id) {
                Some(lease) => {
                    // A change of leader may have given it more than its ttl.
                    lease.expires = lease.expires.max(now + lease.ttl);
                    Answered::Done(before)
                }
                None => Answered::Gone,
            },
            Op::Read(_) => Answered::Keys(Rc::clone(&self.keys)),
            Op::PutMember(lease, member) => self.when(self.has(*lease), |keys, revision| {
                keys.members.insert(me, (Rc::clone(member), *lease, revision));
            }),
            Op::Acquire { lease, sync_revision } => {
                let sync = self.keys.sync.as_ref().map_or(0, |(_, revision)| *revision);
                let free = self.keys.leader.is_none() && sync == *sync_revision;
                self.when(free && self.has(*lease), |keys, _| keys.leader = Some((me, *lease)))
            }
            Op::Reattach(lease) => {
                self.when(leads && self.has(*lease), |keys, _| keys.leader = Some((me, *lease)))
            }
            Op::Release { optime, member } => self.when(leads, |keys, revision| {
                keys.leader = None;
                keys.status = optime.or(keys.status);
                if let Some(own) = keys.members.get_mut(&me) {
                    own.0 = Rc::clone(member);
                    own.2 = revision;
                }
            }),
            Op::TakeInitialize(replacing) => {
                let present = self.keys.initialize.as_ref().map(|(_, revision)| *revision);
                self.when(present == *replacing, |keys, revision| {
                    keys.initialize = Some((Err(me), revision));
                })
            }
            Op::FinishBootstrap { lease, system } => {
                let mine = matches!(self.keys.initialize, Some((Err(maker), _)) if maker == me);
                let free = mine && self.keys.leader.is_none() && self.has(*lease);
                self.when(free, |keys, revision| {
                    keys.initialize = Some((Ok(*system), revision));
                    keys.leader = Some((me, *lease));
                })
            }
            Op::DeleteInitialize => {
                let mine = matches!(self.keys.initialize, Some((Err(maker), _)) if maker == me);
                self.when(mine, |keys, _| keys.initialize = None)
            }
            Op::WriteInitialize(system) => self.when(leads, |keys, revision| {
                keys.initialize = Some((Ok(*system), revision));
            }),
            Op::WriteStatus(lsn) => self.when(leads, |keys, _| keys.status = Some(*lsn)),
            Op::WriteSync(key, revision) => {
                let present = self.keys.sync.as_ref().map_or(0, |(_, revision)| *revision);
                self.when(present == *revision, |keys, revision| {
                    keys.sync = key.clone().map(|key| (key, revision));
                })
            }
            Op::Claim(timeline) => {
                let newer = self.keys.claimed.is_none_or(|claimed| claimed < *timeline);
                self.when(leads && newer, |keys, _| keys.claimed = Some(*timeline))
            }
            Op::WriteHistory(timeline) => {
                let newer = self.keys.history.is_none_or(|history| history < *timeline);
                self.when(leads && newer, |keys, _| keys.history = Some(*timeline))
            }
            Op::WriteFailsafe(members) => {
                self.when(leads, |keys, _| keys.failsafe = Some(members.clone()))
            }
            Op::ClearFailover(revision) => {
                let same = self.keys.failover.as_ref().is_some_and(|(_, r)| r == revision);
                self.when(same, |keys, _| keys.failover = None)
            }
            Op::NameCandidate(revision, to) => {
                let same = self.keys.failover.as_ref().is_some_and(|(_, r)| r == revision);
                self.when(same, |keys, now| {
                    if let Some((request, revision)) = &mut keys.failover {
                        request.member = Some(to.clone());
                        *revision = now;
                    }
                })
            }
        };
        (answer, self.keys.revision != before)
    }

    fn has(&self, lease: u64) -> bool {
        self.leases.contains_key(&lease)
    }

    fn when(&mut self, holds: bool, then: impl FnOnce(&mut Keys, i64)) -> Answered {
        if !holds {
            return Answered::Refused;
        }
        self.change(then);
        Answered::Done(self.keys.revision)
    }

    /// The lease of the leader key.
    pub(super) fn leader_lease(&self) -> Option<u64> {
        self.keys.leader.map(|(_, lease)| lease)
    }
}

/// How often etcd looks for leases that have run out.
pub(super) const SCAN: Time = SEC / 2;
