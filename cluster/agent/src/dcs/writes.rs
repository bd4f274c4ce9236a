//! The writes, and what their answers mean. Pure.
//!
//! Three rules. What is written depends on what was seen: no write is unconditional. What a leader writes
//! depends on its reign as well, so that nothing of it lands after another took over, even where etcd
//! carries it out late. And an answer can be judged after an attempt whose outcome is not known: by what
//! stands in the store.

use leaderpool::patroni::RawKey;

use super::request::{Answer, Cond, Op, Request};

/// Proof of a reign: the leader key named us when it was made at this revision. The key's create revision
/// only changes with the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reign {
    /// The create revision of the leader key.
    pub create_revision: i64,
}

/// The state of a key that a change is based on: the revision of its last write, 0 for no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seen {
    /// The mod revision.
    pub mod_revision: i64,
}

impl Seen {
    /// There was no such key.
    pub const NOTHING: Seen = Seen { mod_revision: 0 };

    /// The key as it was read.
    #[must_use]
    pub fn of(key: Option<&RawKey>) -> Self {
        Self { mod_revision: key.map_or(0, |key| key.mod_revision) }
    }
}

/// What came of racing for the leader key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acquired {
    /// It is ours, and hangs on our lease.
    Won(Reign),
    /// There is one already. Where it names ourselves, it hangs on a lease of an earlier run:
    /// [`rebind`](super::Session::rebind) takes it over.
    Held(RawKey),
}

/// Whether the leader key is still ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// It is, and hangs on our lease.
    Mine(Reign),
    /// It is not: another's, made anew, or gone. Nothing was written.
    Lost(Option<RawKey>),
}

/// What came of giving the leader key up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Released {
    /// It is gone.
    Yes,
    /// It was not ours any more; nothing was written.
    WasNotOurs(Option<RawKey>),
}

/// What came of changing a key that was seen before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// It is as wanted, and this is its state now.
    Done(Seen),
    /// It had changed since it was seen: nothing was written. This is what stands there.
    Conflict(Option<RawKey>),
    /// The leader key does not show the reign any more: nothing was written.
    NotLeader(Option<RawKey>),
}

/// Names that the writes are made in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) leader: String,
    pub(super) member: String,
    pub(super) me: String,
}

impl Names {
    fn holds_me(&self) -> Cond {
        Cond::Holds(self.leader.clone(), self.me.clone().into_bytes())
    }

    fn reigns(&self, reign: Reign) -> [Cond; 2] {
        [self.holds_me(), Cond::Created(self.leader.clone(), reign.create_revision)]
    }

    fn is_me(&self, key: &RawKey) -> bool {
        key.value == self.me.as_bytes()
    }

    fn is_reign(&self, key: Option<&RawKey>, reign: Reign) -> bool {
        key.is_some_and(|key| self.is_me(key) && key.create_revision == reign.create_revision)
    }

    fn put_me(&self, lease: i64) -> Op {
        Op::Put { key: self.leader.clone(), value: self.me.clone().into_bytes(), lease }
    }

    /// Whether `key`, read linearizably, is ours on our lease.
    pub(super) fn mine(&self, key: &RawKey, lease: i64) -> Option<Reign> {
        (self.is_me(key) && key.lease == lease && lease != 0)
            .then_some(Reign { create_revision: key.create_revision })
    }
}

/// Take the leader key where there is none.
///
/// `guard` is our member key as we last wrote it. An attempt that got no answer may be carried out much
/// later, by a member of etcd that was frozen with it; writing the member key again makes that impossible.
#[derive(Debug, Clone)]
pub(super) struct Acquire<'a> {
    pub(super) names: &'a Names,
    pub(super) lease: i64,
    pub(super) guard: Seen,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AcquireVerdict {
    Won(Reign),
    Held(RawKey),
    /// There is no leader, but the member key is not as we left it; as it is now.
    Guarded(Seen),
}

impl Acquire<'_> {
    pub(super) fn request(&self) -> Request {
        Request {
            when: vec![
                Cond::Created(self.names.leader.clone(), 0),
                Cond::Modified(self.names.member.clone(), self.guard.mod_revision),
            ],
            then: self.names.put_me(self.lease),
            look: vec![self.names.leader.clone(), self.names.member.clone()],
        }
    }

    pub(super) fn judge(&self, answer: &Answer) -> AcquireVerdict {
        if answer.done {
            return AcquireVerdict::Won(Reign { create_revision: answer.revision });
        }
        match answer.found(0) {
            // An earlier attempt got through: nobody else has this lease.
            Some(key) => match self.names.mine(key, self.lease) {
                Some(reign) => AcquireVerdict::Won(reign),
                None => AcquireVerdict::Held(key.clone()),
            },
            None => AcquireVerdict::Guarded(Seen::of(answer.found(1))),
        }
    }
}

/// Hang the leader key on our lease, where it is still the one that was seen, and names us.
#[derive(Debug, Clone)]
pub(super) struct Rebind<'a> {
    pub(super) names: &'a Names,
    pub(super) lease: i64,
    pub(super) seen: &'a RawKey,
}

impl Rebind<'_> {
    pub(super) fn request(&self) -> Request {
        let reign = Reign { create_revision: self.seen.create_revision };
        let [mine, created] = self.names.reigns(reign);
        Request {
            when: vec![mine, created, Cond::Leased(self.names.leader.clone(), self.seen.lease)],
            then: self.names.put_me(self.lease),
            look: vec![self.names.leader.clone()],
        }
    }

    pub(super) fn judge(&self, answer: &Answer) -> Kept {
        if answer.done {
            return Kept::Mine(Reign { create_revision: self.seen.create_revision });
        }
        let found = answer.found(0);
        match found.and_then(|key| self.names.mine(key, self.lease)) {
            Some(reign) if reign.create_revision == self.seen.create_revision => Kept::Mine(reign),
            _ => Kept::Lost(found.cloned()),
        }
    }
}

/// Give the leader key up.
#[derive(Debug, Clone)]
pub(super) struct Release<'a> {
    pub(super) names: &'a Names,
    pub(super) reign: Reign,
}

impl Release<'_> {
    pub(super) fn request(&self) -> Request {
        Request {
            when: self.names.reigns(self.reign).into(),
            then: Op::Delete { key: self.names.leader.clone() },
            look: vec![self.names.leader.clone()],
        }
    }

    pub(super) fn judge(&self, answer: &Answer, after_unknown: bool) -> Released {
        match answer.found(0) {
            _ if answer.done => Released::Yes,
            None if after_unknown => Released::Yes,
            found => Released::WasNotOurs(found.cloned()),
        }
    }
}

/// Write or delete a key that is as it was seen; for a leader, only while it is one.
#[derive(Debug, Clone)]
pub(super) struct Change<'a> {
    pub(super) names: &'a Names,
    pub(super) key: String,
    /// `None`: whatever stands there is replaced (only within a reign).
    pub(super) seen: Option<Seen>,
    /// `None`: it is deleted.
    pub(super) value: Option<Vec<u8>>,
    pub(super) lease: i64,
    pub(super) reign: Option<Reign>,
}

impl Change<'_> {
    pub(super) fn request(&self) -> Request {
        let mut when: Vec<Cond> =
            self.reign.map(|reign| self.names.reigns(reign).into()).unwrap_or_default();
        if let Some(seen) = self.seen {
            when.push(Cond::Modified(self.key.clone(), seen.mod_revision));
        }
        Request {
            when,
            then: match &self.value {
                Some(value) => {
                    Op::Put { key: self.key.clone(), value: value.clone(), lease: self.lease }
                }
                None => Op::Delete { key: self.key.clone() },
            },
            look: vec![self.key.clone(), self.names.leader.clone()],
        }
    }

    pub(super) fn judge(&self, answer: &Answer, after_unknown: bool) -> Changed {
        if answer.done {
            let revision = if self.value.is_some() { answer.revision } else { 0 };
            return Changed::Done(Seen { mod_revision: revision });
        }
        let (found, leader) = (answer.found(0), answer.found(1));
        if after_unknown && self.is_as_wanted(found) {
            return Changed::Done(Seen::of(found));
        }
        match self.reign {
            Some(reign) if !self.names.is_reign(leader, reign) => {
                Changed::NotLeader(leader.cloned())
            }
            _ => Changed::Conflict(found.cloned()),
        }
    }

    /// Whether `found` is what this change leaves behind, and newer than what it was based on.
    fn is_as_wanted(&self, found: Option<&RawKey>) -> bool {
        match (found, &self.value) {
            (None, None) => true,
            (Some(found), Some(value)) => {
                found.value == *value
                    && found.lease == self.lease
                    && self.seen.is_none_or(|seen| found.mod_revision > seen.mod_revision)
            }
            _ => false,
        }
    }
}
