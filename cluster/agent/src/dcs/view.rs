//! The cluster's keys as last seen, with their revisions, and what changed between two looks. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use leaderpool::patroni::{ClusterSnapshot, Key, KeyPrefix, RawKey, SystemId};

use super::clock::BootTime;
use super::writes::Seen;

/// All keys of the cluster at one revision.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DcsView {
    /// The store's revision that this shows; 0: nothing was read yet.
    pub revision: i64,
    /// The values, parsed; what cannot be read is named in its `rejected`.
    pub cluster: Arc<ClusterSnapshot>,
    /// The keys as they stand, by name, with revisions and leases.
    pub keys: Arc<BTreeMap<Key, RawKey>>,
    /// When the last linearizable read was sent, before which nothing is missing here. As old as this view;
    /// [`Session::proven_at`](super::Session::proven_at) tells the latest.
    pub as_of: BootTime,
    /// Why this may be out of date; `None` while the watch is alive and proven.
    pub stale: Option<Arc<str>>,
}

/// The key `initialize`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Initialize {
    /// There is none: nobody has made the cluster.
    Absent,
    /// Somebody is making it.
    InProgress,
    /// It was made, and this is its system identifier.
    Done(SystemId),
    /// It holds something else, which `cluster.rejected` names.
    Unreadable,
}

impl DcsView {
    pub(super) fn new(
        prefix: &KeyPrefix,
        revision: i64,
        keys: &BTreeMap<String, RawKey>,
        as_of: BootTime,
    ) -> Self {
        let cluster = ClusterSnapshot::from_raw(prefix, revision, keys.values());
        let keys =
            keys.values().filter_map(|raw| Some((prefix.parse(&raw.key)?, raw.clone()))).collect();
        Self { revision, cluster: Arc::new(cluster), keys: Arc::new(keys), as_of, stale: None }
    }

    /// Whether anything was read yet, and nothing is known to be missing.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.revision != 0 && self.stale.is_none()
    }

    /// A key as it stands.
    #[must_use]
    pub fn key(&self, key: &Key) -> Option<&RawKey> {
        self.keys.get(key)
    }

    /// What a change of `key` is to be based on.
    #[must_use]
    pub fn seen(&self, key: &Key) -> Seen {
        Seen::of(self.key(key))
    }

    /// The leader key as it stands.
    #[must_use]
    pub fn leader(&self) -> Option<&RawKey> {
        self.key(&Key::Leader)
    }

    /// Whether, and as what, the cluster was made.
    #[must_use]
    pub fn initialize(&self) -> Initialize {
        match (self.key(&Key::Initialize), self.cluster.system_id) {
            (None, _) => Initialize::Absent,
            (Some(_), Some(id)) => Initialize::Done(id),
            (Some(raw), None) if raw.value.trim_ascii().is_empty() => Initialize::InProgress,
            (Some(_), None) => Initialize::Unreadable,
        }
    }

    /// The members to ask when etcd is gone: names and URLs of their REST APIs. `None` where there is no
    /// such key, or it cannot be read.
    #[must_use]
    pub fn failsafe(&self) -> Option<BTreeMap<String, String>> {
        serde_json::from_slice(&self.key(&Key::Failsafe)?.value).ok()
    }
}

/// What changed between two views: the reasons to look again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// The leader key went away.
    pub leader_deleted: bool,
    /// The leader key names another, was made anew, or hangs on another lease.
    pub leader_changed: bool,
    /// The dynamic configuration changed.
    pub config: bool,
    /// A switchover or failover was asked for, or cleared.
    pub failover: bool,
    /// The synchronous state changed.
    pub sync: bool,
    /// The leader's position changed.
    pub status: bool,
    /// `initialize`, `history`, `failsafe`, or a key of no known name.
    pub other: bool,
    /// These members' keys were written.
    pub members: Vec<String>,
    /// These members' keys went away.
    pub members_gone: Vec<String>,
    /// The view became current, or stale.
    pub health: bool,
}

impl Changes {
    /// What is different in `new`. Nothing that happened in between and was undone is told, but a key that
    /// was deleted and made anew is.
    #[must_use]
    pub fn between(old: &DcsView, new: &DcsView) -> Self {
        let mut changes = Self {
            health: old.is_current() != new.is_current() || old.stale != new.stale,
            ..Self::default()
        };
        let changed = |key: &&Key| match (old.keys.get(*key), new.keys.get(*key)) {
            (None, None) => false,
            (Some(old), Some(new)) => old.mod_revision != new.mod_revision || old != new,
            _ => true,
        };
        let both = old.keys.keys().chain(new.keys.keys().filter(|key| !old.keys.contains_key(key)));
        for key in both.filter(changed) {
            let gone = !new.keys.contains_key(key);
            match key {
                Key::Leader if gone => changes.leader_deleted = true,
                Key::Leader => changes.leader_changed = true,
                Key::Config => changes.config = true,
                Key::Failover => changes.failover = true,
                Key::Sync => changes.sync = true,
                Key::Status | Key::OptimeLeader => changes.status = true,
                Key::Member(name) if gone => changes.members_gone.push(name.clone()),
                Key::Member(name) => changes.members.push(name.clone()),
                Key::Initialize | Key::History | Key::Failsafe | Key::Other(_) => {
                    changes.other = true;
                }
            }
        }
        changes
    }

    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The keys as the watch holds them, by full name.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Store {
    pub(super) revision: i64,
    pub(super) keys: BTreeMap<String, RawKey>,
}

impl Store {
    /// Takes the events of one message of the watch in: keys as written, or with create revision 0 as
    /// deleted. Tells whether anything changed.
    pub(super) fn take(&mut self, events: impl IntoIterator<Item = RawKey>) -> bool {
        // A verifying read may have been ahead of the watch; the events of one message share revisions.
        let known = self.revision;
        let mut changed = false;
        for raw in events.into_iter().filter(|raw| raw.mod_revision > known) {
            changed = true;
            self.revision = self.revision.max(raw.mod_revision);
            if raw.create_revision == 0 {
                self.keys.remove(&raw.key);
            } else {
                self.keys.insert(raw.key.clone(), raw);
            }
        }
        changed
    }

    /// Takes a linearizable read in that was begun when the revision was `at_least`. Tells whether it
    /// differs.
    pub(super) fn adopt(&mut self, fresh: Store, at_least: i64) -> bool {
        // Behind what the watch said while it was under way, it has nothing new. But one that is behind even
        // its own beginning comes from another store behind the same address: that is the truth now.
        if fresh.revision < self.revision && fresh.revision >= at_least {
            return false;
        }
        let differs = self.keys != fresh.keys;
        *self = fresh;
        differs
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prefix() -> KeyPrefix {
        KeyPrefix::new("db", "c")
    }

    fn raw(key: &str, value: &str, create: i64, modified: i64) -> RawKey {
        RawKey {
            key: format!("/db/c/{key}"),
            value: value.as_bytes().to_vec(),
            create_revision: create,
            mod_revision: modified,
            lease: 5,
        }
    }

    fn view(keys: &[RawKey]) -> DcsView {
        let keys = keys.iter().map(|raw| (raw.key.clone(), raw.clone())).collect();
        DcsView::new(&prefix(), 9, &keys, BootTime::from_nanos(1))
    }

    #[test]
    fn changes_name_their_reason() {
        let leader = raw("leader", "pg0", 3, 3);
        let member = raw("members/pg0", r#"{"conn_url":"postgres://h:1/x"}"#, 2, 2);
        let old = view(&[leader.clone(), member.clone()]);
        type Check = fn(&Changes) -> bool;
        let table: [(&str, Vec<RawKey>, Check); 8] = [
            ("deleted", vec![member.clone()], |c| c.leader_deleted && !c.leader_changed),
            ("other leader", vec![raw("leader", "pg1", 4, 4), member.clone()], |c| {
                c.leader_changed
            }),
            ("made anew", vec![raw("leader", "pg0", 4, 4), member.clone()], |c| c.leader_changed),
            ("member", vec![leader.clone(), raw("members/pg0", "{}", 2, 7)], |c| {
                c.members == ["pg0"] && !c.leader_changed
            }),
            ("member gone", vec![leader.clone()], |c| c.members_gone == ["pg0"]),
            ("config", vec![leader.clone(), member.clone(), raw("config", "{}", 6, 6)], |c| {
                c.config && !c.failover
            }),
            ("failover", vec![leader.clone(), member.clone(), raw("failover", "{}", 6, 6)], |c| {
                c.failover
            }),
            ("nothing", vec![leader, member], Changes::is_empty),
        ];
        for (what, keys, check) in table {
            let changes = Changes::between(&old, &view(&keys));
            assert!(check(&changes), "{what}: {changes:?}");
        }
        let stale = DcsView { stale: Some("gone".into()), ..old.clone() };
        assert!(Changes::between(&old, &stale).health);
        assert!(Changes::between(&DcsView::default(), &old).health);
    }

    #[test]
    fn initialize_and_failsafe() {
        assert_eq!(view(&[]).initialize(), Initialize::Absent);
        let of = |value: &str| view(&[raw("initialize", value, 1, 1)]).initialize();
        assert_eq!(of(""), Initialize::InProgress);
        assert_eq!(of("77"), Initialize::Done(SystemId(77)));
        assert_eq!(of("seven"), Initialize::Unreadable);
        let failsafe = view(&[raw("failsafe", r#"{"pg0":"http://h:8008/patroni"}"#, 1, 1)]);
        assert_eq!(failsafe.failsafe().expect("reads")["pg0"], "http://h:8008/patroni");
        assert_eq!(view(&[raw("failsafe", "[]", 1, 1)]).failsafe(), None);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Put(u8),
        Delete(u8),
        /// This many events of the backlog reach the watch.
        Deliver(u8),
        /// A read begins, sees the store, and is taken in after so many events more.
        Read(u8),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..4_u8).prop_map(Step::Put),
            2 => (0..4_u8).prop_map(Step::Delete),
            2 => (1..4_u8).prop_map(Step::Deliver),
            1 => (0..3_u8).prop_map(Step::Read),
        ]
    }

    proptest! {
        /// However reads and events interleave, the watch's keys are those that the store had at the
        /// watch's revision, which never goes back.
        #[test]
        fn reads_and_events_agree(steps in proptest::collection::vec(any_step(), 0..80)) {
            let mut truth = Store { revision: 1, ..Store::default() };
            let mut at = BTreeMap::from([(1, truth.keys.clone())]);
            let mut backlog = std::collections::VecDeque::new();
            let mut seen = truth.clone();
            let deliver = |backlog: &mut std::collections::VecDeque<RawKey>, seen: &mut Store, n| {
                for _ in 0..n {
                    let Some(event) = backlog.pop_front() else { break };
                    seen.take([event]);
                }
            };
            for step in steps {
                let before = seen.revision;
                match step {
                    Step::Put(key) => {
                        truth.revision += 1;
                        let name = format!("k{key}");
                        let create =
                            truth.keys.get(&name).map_or(truth.revision, |raw| raw.create_revision);
                        let put = RawKey { key: name.clone(), ..raw("", "v", create, truth.revision) };
                        truth.keys.insert(name, put.clone());
                        backlog.push_back(put);
                    }
                    Step::Delete(key) => {
                        let name = format!("k{key}");
                        if truth.keys.remove(&name).is_some() {
                            truth.revision += 1;
                            backlog.push_back(RawKey { key: name, ..raw("", "", 0, truth.revision) });
                        }
                    }
                    Step::Deliver(count) => deliver(&mut backlog, &mut seen, count),
                    Step::Read(count) => {
                        let (begun, fresh) = (seen.revision, truth.clone());
                        deliver(&mut backlog, &mut seen, count);
                        seen.adopt(fresh, begun);
                    }
                }
                at.insert(truth.revision, truth.keys.clone());
                prop_assert!(seen.revision >= before);
                prop_assert_eq!(&seen.keys, &at[&seen.revision]);
            }
        }
    }
}
