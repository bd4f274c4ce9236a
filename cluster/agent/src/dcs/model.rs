//! A model of etcd, and what must hold of the leader key on it: two agents, answers that are lost, and
//! attempts that are carried out long after they were given up.

use std::collections::{BTreeMap, BTreeSet};

use leaderpool::patroni::RawKey;
use proptest::prelude::*;

use super::request::{Answer, Cond, Op, Request};
use super::writes::{
    Acquire, AcquireVerdict, Change, Changed, Kept, Names, Rebind, Reign, Release, Released, Seen,
};

#[derive(Debug, Default)]
struct Etcd {
    revision: i64,
    keys: BTreeMap<String, RawKey>,
    leases: BTreeSet<i64>,
}

impl Etcd {
    fn holds(&self, cond: &Cond) -> bool {
        match cond {
            Cond::Created(key, at) => self.keys.get(key).map_or(0, |k| k.create_revision) == *at,
            Cond::Modified(key, at) => self.keys.get(key).map_or(0, |k| k.mod_revision) == *at,
            Cond::Leased(key, lease) => self.keys.get(key).map_or(0, |k| k.lease) == *lease,
            Cond::Holds(key, value) => self.keys.get(key).is_some_and(|k| k.value == *value),
        }
    }

    /// `None`: refused for want of the lease.
    fn apply(&mut self, request: &Request) -> Option<Answer> {
        if !request.when.iter().all(|cond| self.holds(cond)) {
            let found = request.look.iter().map(|key| self.keys.get(key).cloned()).collect();
            return Some(Answer { done: false, revision: self.revision, found });
        }
        match &request.then {
            Op::Put { lease, .. } if *lease != 0 && !self.leases.contains(lease) => return None,
            Op::Put { key, value, lease } => {
                self.revision += 1;
                let created = self.keys.get(key).map_or(self.revision, |k| k.create_revision);
                let raw = RawKey {
                    key: key.clone(),
                    value: value.clone(),
                    create_revision: created,
                    mod_revision: self.revision,
                    lease: *lease,
                };
                self.keys.insert(key.clone(), raw);
            }
            Op::Delete { key } => {
                self.revision += 1;
                self.keys.remove(key);
            }
        }
        Some(Answer { done: true, revision: self.revision, found: Vec::new() })
    }

    fn expire(&mut self, lease: i64) {
        self.leases.remove(&lease);
        self.revision += 1;
        self.keys.retain(|_, key| key.lease != lease || key.lease == 0);
    }
}

/// What the network does to the attempts of one operation, one after the other; the last one gets through.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// It never arrives.
    Lost,
    /// It is carried out, and the answer is lost.
    Unanswered,
    /// It waits in a frozen member, and may be carried out at any later time.
    Late,
}

struct Agent {
    names: Names,
    lease: i64,
    member: Seen,
    reign: Option<Reign>,
}

struct World {
    etcd: Etcd,
    agents: [Agent; 2],
    late: Vec<Request>,
    next_lease: i64,
}

impl World {
    fn new() -> Self {
        let agent = |me: &str, lease| Agent {
            names: Names {
                leader: "leader".into(),
                member: format!("members/{me}"),
                me: me.into(),
            },
            lease,
            member: Seen::NOTHING,
            reign: None,
        };
        let mut world = Self {
            etcd: Etcd { revision: 1, leases: BTreeSet::from([1, 2]), ..Etcd::default() },
            agents: [agent("a", 1), agent("b", 2)],
            late: Vec::new(),
            next_lease: 3,
        };
        world.touch(0);
        world.touch(1);
        world
    }

    /// One operation: attempts with these fates, then one that is answered, or none (`gives_up`).
    fn send(&mut self, request: &Request, fates: &[Fate], gives_up: bool) -> Sent {
        let mut after_unknown = false;
        for fate in fates {
            after_unknown = true;
            match fate {
                Fate::Lost => {}
                Fate::Unanswered => {
                    self.apply(request);
                }
                Fate::Late => self.late.push(request.clone()),
            }
        }
        if gives_up && after_unknown {
            return Sent::Unknown;
        }
        self.apply(request).map_or(Sent::NoLease, |answer| Sent::Answered(answer, after_unknown))
    }

    /// Applies, and sees to it that nobody writes over another's leader key.
    fn apply(&mut self, request: &Request) -> Option<Answer> {
        let before = self.etcd.keys.get("leader").cloned();
        let answer = self.etcd.apply(request);
        if let (Some(before), Some(after)) = (before, self.etcd.keys.get("leader")) {
            assert_eq!(before.value, after.value, "a leader key was robbed by {request:?}");
        }
        answer
    }

    fn touch(&mut self, index: usize) {
        let agent = &self.agents[index];
        let (names, lease, mut seen) = (agent.names.clone(), agent.lease, agent.member);
        for _ in 0..3 {
            let change = Change {
                names: &names,
                key: names.member.clone(),
                seen: Some(seen),
                value: Some(b"{}".to_vec()),
                lease,
                reign: None,
            };
            match self.send(&change.request(), &[], false) {
                Sent::Answered(answer, unknown) => match change.judge(&answer, unknown) {
                    Changed::Done(now) => {
                        self.agents[index].member = now;
                        return;
                    }
                    Changed::Conflict(found) | Changed::NotLeader(found) => {
                        seen = Seen::of(found.as_ref());
                    }
                },
                Sent::NoLease | Sent::Unknown => return,
            }
        }
    }

    fn acquire(&mut self, index: usize, fates: &[Fate], gives_up: bool) {
        let agent = &self.agents[index];
        let (names, lease, guard) = (agent.names.clone(), agent.lease, agent.member);
        let acquire = Acquire { names: &names, lease, guard };
        match self.send(&acquire.request(), fates, gives_up) {
            Sent::Answered(answer, after_unknown) => {
                let reign = match acquire.judge(&answer) {
                    AcquireVerdict::Won(reign) => Some(reign),
                    AcquireVerdict::Held(_) | AcquireVerdict::Guarded(_) => None,
                };
                self.agents[index].reign = reign;
                if after_unknown {
                    self.touch(index);
                }
            }
            // What the session does then, before it races or releases again.
            Sent::Unknown => self.touch(index),
            Sent::NoLease => {}
        }
    }

    fn keep(&mut self, index: usize, fates: &[Fate], gives_up: bool) {
        let agent = &self.agents[index];
        let Some(reign) = agent.reign else { return };
        let (names, lease) = (agent.names.clone(), agent.lease);
        let seen = self.etcd.keys.get("leader").cloned();
        let kept = match seen {
            Some(seen)
                if seen.value == names.me.as_bytes()
                    && seen.create_revision == reign.create_revision =>
            {
                if names.mine(&seen, lease).is_some() {
                    return;
                }
                let rebind = Rebind { names: &names, lease, seen: &seen };
                match self.send(&rebind.request(), fates, gives_up) {
                    Sent::Answered(answer, _) => rebind.judge(&answer),
                    Sent::Unknown | Sent::NoLease => return,
                }
            }
            other => Kept::Lost(other),
        };
        if let Kept::Lost(_) = kept {
            self.agents[index].reign = None;
        }
    }

    fn release(&mut self, index: usize, fates: &[Fate]) {
        let Some(reign) = self.agents[index].reign.take() else { return };
        let names = self.agents[index].names.clone();
        let release = Release { names: &names, reign };
        if let Sent::Answered(answer, unknown) = self.send(&release.request(), fates, false) {
            let released = release.judge(&answer, unknown);
            let stands = self.etcd.keys.get("leader");
            if released == Released::Yes {
                assert!(stands.is_none(), "released, and yet {stands:?}");
            }
        }
    }

    /// A leader's write: lands only in its reign.
    fn status(&mut self, index: usize, fates: &[Fate]) {
        let agent = &self.agents[index];
        let Some(reign) = agent.reign else { return };
        let names = agent.names.clone();
        let change = Change {
            names: &names,
            key: "status".into(),
            seen: None,
            value: Some(format!("{}@{}", names.me, reign.create_revision).into_bytes()),
            lease: 0,
            reign: Some(reign),
        };
        self.send(&change.request(), fates, false);
    }

    fn renew(&mut self, index: usize) {
        let lease = self.next_lease;
        self.next_lease += 1;
        self.etcd.leases.insert(lease);
        self.agents[index].lease = lease;
        self.touch(index);
    }

    /// Whom each agent believes to lead by its own reign and a lease that lives.
    fn check(&self) {
        let leader = self.etcd.keys.get("leader");
        for agent in &self.agents {
            let Some(reign) = agent.reign else { continue };
            // The lease that the key hung on may have run out; its holder knows that by the clock.
            let Some(key) = leader else { continue };
            if key.create_revision == reign.create_revision {
                assert_eq!(key.value, agent.names.me.as_bytes(), "one reign, two leaders");
            }
        }
        let [a, b] = &self.agents;
        if let (Some(a), Some(b)) = (a.reign, b.reign) {
            assert_ne!(a, b, "both hold one reign");
        }
    }
}

enum Sent {
    Answered(Answer, bool),
    Unknown,
    NoLease,
}

#[derive(Debug, Clone)]
enum Step {
    Acquire(usize, Vec<Fate>, bool),
    Keep(usize, Vec<Fate>, bool),
    Release(usize, Vec<Fate>),
    Status(usize, Vec<Fate>),
    NewLease(usize),
    Expire(usize),
    Touch(usize),
    /// A frozen member thaws, and carries out what it took.
    Thaw,
    /// Somebody deletes the leader key by hand.
    DeleteByHand,
}

fn any_fates() -> impl Strategy<Value = Vec<Fate>> {
    let fate = prop_oneof![Just(Fate::Lost), Just(Fate::Unanswered), Just(Fate::Late)];
    proptest::collection::vec(fate, 0..3)
}

fn any_step() -> impl Strategy<Value = Step> {
    let who = || 0..2_usize;
    prop_oneof![
        4 => (who(), any_fates(), any::<bool>()).prop_map(|(w, f, g)| Step::Acquire(w, f, g)),
        3 => (who(), any_fates(), any::<bool>()).prop_map(|(w, f, g)| Step::Keep(w, f, g)),
        2 => (who(), any_fates()).prop_map(|(w, f)| Step::Release(w, f)),
        2 => (who(), any_fates()).prop_map(|(w, f)| Step::Status(w, f)),
        2 => who().prop_map(Step::NewLease),
        2 => who().prop_map(Step::Expire),
        1 => who().prop_map(Step::Touch),
        2 => Just(Step::Thaw),
        1 => Just(Step::DeleteByHand),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// No leader key is ever robbed, no reign has two leaders, and what is carried out late changes neither
    /// who leads nor what a later leader wrote.
    #[test]
    fn late_and_lost_attempts_never_make_two_leaders(
        steps in proptest::collection::vec(any_step(), 0..40)
    ) {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::Acquire(who, fates, gives_up) => world.acquire(who, &fates, gives_up),
                Step::Keep(who, fates, gives_up) => world.keep(who, &fates, gives_up),
                Step::Release(who, fates) => world.release(who, &fates),
                Step::Status(who, fates) => world.status(who, &fates),
                Step::NewLease(who) => world.renew(who),
                Step::Expire(who) => {
                    let lease = world.agents[who].lease;
                    world.etcd.expire(lease);
                    world.agents[who].reign = None;
                    world.agents[who].member = Seen::NOTHING;
                    world.renew(who);
                }
                Step::Touch(who) => world.touch(who),
                Step::Thaw => {
                    let leader = world.etcd.keys.get("leader").cloned();
                    for request in std::mem::take(&mut world.late) {
                        world.apply(&request);
                        let status = world.etcd.keys.get("status").map(|key| key.value.clone());
                        if let (Some(leader), Some(status)) = (&leader, status) {
                            let writer = String::from_utf8(status).expect("text");
                            let reign = writer.rsplit('@').next().expect("a reign");
                            let reign: i64 = reign.parse().expect("a number");
                            prop_assert!(reign <= leader.create_revision);
                        }
                    }
                    let after = world.etcd.keys.get("leader").cloned();
                    let same = |key: &Option<RawKey>| {
                        key.as_ref().map(|key| (key.value.clone(), key.create_revision))
                    };
                    prop_assert_eq!(same(&leader), same(&after), "a late attempt changed the leader");
                }
                Step::DeleteByHand => {
                    world.etcd.revision += 1;
                    world.etcd.keys.remove("leader");
                }
            }
            world.check();
        }
    }
}
