//! The lease as everyone sees it: numbers that a plain thread reads without locks.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::clock::BootTime;

/// The lease of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LeaseState {
    /// etcd's id for it; 0: there is none.
    pub id: i64,
    /// Until when it is known to live: the moment at which the last successful renewal was *sent*, plus
    /// the ttl. etcd does not end it sooner.
    pub valid_until: BootTime,
    /// The ttl that etcd granted.
    pub granted_ttl: Duration,
}

impl LeaseState {
    /// Whether it lives at `now`.
    #[must_use]
    pub fn is_valid(&self, now: BootTime) -> bool {
        self.id != 0 && now < self.valid_until
    }
}

/// How long this node may lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leadership {
    /// Until when the lease that the leader key hangs on is known to live; [`BootTime::ZERO`] while the
    /// key is not ours. Nobody else can get the key sooner by etcd's own doing.
    pub until: BootTime,
    /// Since when the key is known not to be as we left it (deleted, or made anew; or its lease revoked),
    /// before `until`. It may be another's at any moment from then on. Cleared when the session has
    /// proven the key to be ours again.
    pub disputed_since: Option<BootTime>,
}

impl Leadership {
    /// When a writable server must have stopped: at `until`, or `grace` after the key was found missing.
    /// [`BootTime::ZERO`] where nothing permits it to write.
    #[must_use]
    pub fn ends(&self, grace: Duration) -> BootTime {
        match self.disputed_since {
            Some(since) => self.until.min(since.plus(grace)),
            None => self.until,
        }
    }
}

/// The lease, the leadership that hangs on it, and the gate of its renewal.
///
/// Readers take no lock and never wait: the fence's thread holds an `Arc` of this. Writers, all in the
/// session, take turns.
#[derive(Debug)]
pub struct LeaseCell {
    id: AtomicI64,
    valid_until: AtomicU64,
    granted_ttl: AtomicU64,
    leader_until: AtomicU64,
    disputed_since: AtomicU64,
    renew_until: AtomicU64,
    turn: Mutex<Bound>,
    published: watch::Sender<LeaseState>,
}

/// The lease that the leader key hangs on; 0: the key is not ours.
#[derive(Debug, Default)]
struct Bound {
    lease: i64,
}

impl Default for LeaseCell {
    fn default() -> Self {
        Self {
            id: AtomicI64::new(0),
            valid_until: AtomicU64::new(0),
            granted_ttl: AtomicU64::new(0),
            leader_until: AtomicU64::new(0),
            disputed_since: AtomicU64::new(0),
            renew_until: AtomicU64::new(u64::MAX),
            turn: Mutex::default(),
            published: watch::Sender::default(),
        }
    }
}

/// For everyone.
impl LeaseCell {
    /// The lease. The three numbers are read one after the other.
    #[must_use]
    pub fn state(&self) -> LeaseState {
        LeaseState {
            id: self.id.load(Ordering::Acquire),
            valid_until: BootTime::from_nanos(self.valid_until.load(Ordering::Acquire)),
            granted_ttl: Duration::from_nanos(self.granted_ttl.load(Ordering::Acquire)),
        }
    }

    /// How long this node may lead.
    #[must_use]
    pub fn leadership(&self) -> Leadership {
        let disputed = self.disputed_since.load(Ordering::Acquire);
        Leadership {
            until: BootTime::from_nanos(self.leader_until.load(Ordering::Acquire)),
            disputed_since: (disputed != 0).then_some(BootTime::from_nanos(disputed)),
        }
    }

    /// The lease's states, for tasks to wait on.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<LeaseState> {
        self.published.subscribe()
    }

    /// Permits renewals that are sent before `until`. The decision loop calls it as it goes round, so that
    /// a loop that has come to a stop lets the lease run out. [`BootTime::MAX`], as at the start, permits
    /// all.
    pub fn allow_renewal_until(&self, until: BootTime) {
        self.renew_until.store(until.as_nanos(), Ordering::Release);
    }

    /// Forbids renewals until they are permitted again: the postmaster is dead, or the node gives up.
    pub fn forbid_renewal(&self) {
        self.allow_renewal_until(BootTime::ZERO);
    }

    /// Whether a renewal may be sent at `now`.
    #[must_use]
    pub fn may_renew(&self, now: BootTime) -> bool {
        now.as_nanos() < self.renew_until.load(Ordering::Acquire)
    }
}

/// For the session.
impl LeaseCell {
    /// There is a new lease. The leader key, if it is ours, hangs on the old one until it is
    /// [bound](Self::bind_leader) to this.
    pub(super) fn granted(&self, id: i64, sent: BootTime, ttl: Duration) {
        let _turn = self.turn();
        // First the older numbers away: a reader between the stores must not see the new id with them.
        self.valid_until.store(0, Ordering::Release);
        self.id.store(id, Ordering::Release);
        self.granted_ttl.store(nanos(ttl), Ordering::Release);
        self.valid_until.store(sent.plus(ttl).as_nanos(), Ordering::Release);
        self.publish();
    }

    /// The renewal of lease `id` that was sent at `sent` succeeded, for `ttl` from then.
    pub(super) fn renewed(&self, id: i64, sent: BootTime, ttl: Duration) {
        let bound = self.turn();
        if self.id.load(Ordering::Acquire) != id {
            return;
        }
        let granted = self.granted_ttl.load(Ordering::Acquire);
        let until = sent.plus(ttl.min(Duration::from_nanos(granted))).as_nanos();
        let until = until.max(self.valid_until.load(Ordering::Acquire));
        self.valid_until.store(until, Ordering::Release);
        if bound.lease == id {
            self.leader_until.store(until, Ordering::Release);
        }
        self.publish();
    }

    /// etcd says that lease `id` is gone, with all keys that hung on it.
    pub(super) fn lost(&self, id: i64, now: BootTime) {
        let bound = self.turn();
        if bound.lease == id && id != 0 {
            self.dispute_at(now);
        }
        if self.id.load(Ordering::Acquire) == id {
            self.valid_until.store(0, Ordering::Release);
            self.id.store(0, Ordering::Release);
            self.publish();
        }
    }

    /// The leader key is ours and hangs on lease `id`: proven by an answer to what was sent while `id` was
    /// the lease.
    pub(super) fn bind_leader(&self, id: i64) {
        let mut bound = self.turn();
        if self.id.load(Ordering::Acquire) != id {
            // The lease went while the answer was on its way. What hung on it before still counts.
            return;
        }
        bound.lease = id;
        self.leader_until.store(self.valid_until.load(Ordering::Acquire), Ordering::Release);
        self.disputed_since.store(0, Ordering::Release);
    }

    /// The leader key is not ours.
    pub(super) fn unbind_leader(&self) {
        let mut bound = self.turn();
        bound.lease = 0;
        self.leader_until.store(0, Ordering::Release);
        self.disputed_since.store(0, Ordering::Release);
    }

    /// The leader key is not as we left it.
    pub(super) fn dispute(&self, now: BootTime) {
        let bound = self.turn();
        if bound.lease != 0 {
            self.dispute_at(now);
        }
    }

    fn dispute_at(&self, now: BootTime) {
        // The first moment stays.
        let _ = self.disputed_since.compare_exchange(
            0,
            now.as_nanos(),
            Ordering::AcqRel,
            Ordering::Acquire,
        );
    }

    fn publish(&self) {
        let state = self.state();
        self.published.send_if_modified(|last| std::mem::replace(last, state) != state);
    }

    fn turn(&self) -> std::sync::MutexGuard<'_, Bound> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TTL: Duration = Duration::from_secs(30);

    fn at(seconds: u64) -> BootTime {
        BootTime::ZERO.plus(Duration::from_secs(seconds))
    }

    #[test]
    fn validity_counts_from_the_sending() {
        let cell = LeaseCell::default();
        assert!(!cell.state().is_valid(at(1)));
        cell.granted(7, at(100), TTL);
        assert_eq!(cell.state(), LeaseState { id: 7, valid_until: at(130), granted_ttl: TTL });
        cell.renewed(7, at(110), TTL);
        assert!(cell.state().is_valid(at(139)) && !cell.state().is_valid(at(140)));
        // An answer that comes late, and a lease that etcd shortened, extend nothing.
        cell.renewed(7, at(105), TTL);
        cell.renewed(7, at(111), Duration::from_secs(3));
        assert_eq!(cell.state().valid_until, at(140));
        // Neither does one of another lease, nor more than was granted.
        cell.renewed(8, at(120), TTL);
        assert_eq!(cell.state().valid_until, at(140));
        cell.renewed(7, at(112), 2 * TTL);
        assert_eq!(cell.state().valid_until, at(142));
    }

    #[test]
    fn leadership_follows_the_lease_that_the_key_hangs_on() {
        let cell = LeaseCell::default();
        cell.granted(7, at(100), TTL);
        assert_eq!(cell.leadership(), Leadership::default());
        cell.bind_leader(7);
        cell.renewed(7, at(110), TTL);
        assert_eq!(cell.leadership().until, at(140));
        // A new lease: the key hangs on the old one, which nobody renews, until it is bound.
        cell.granted(8, at(115), TTL);
        cell.renewed(8, at(120), TTL);
        assert_eq!(cell.leadership().until, at(140));
        cell.bind_leader(8);
        assert_eq!(cell.leadership().until, at(150));
        cell.unbind_leader();
        assert_eq!(cell.leadership().until, BootTime::ZERO);
        cell.renewed(8, at(130), TTL);
        assert_eq!(cell.leadership().until, BootTime::ZERO);
    }

    #[test]
    fn a_lost_lease_is_known_at_once_and_leaves_a_grace() {
        let cell = LeaseCell::default();
        cell.granted(7, at(100), TTL);
        cell.bind_leader(7);
        cell.lost(7, at(105));
        cell.lost(7, at(106));
        assert_eq!(cell.state().id, 0);
        let leadership = cell.leadership();
        assert_eq!(leadership.disputed_since, Some(at(105)));
        assert_eq!(leadership.ends(Duration::from_secs(1)), at(106));
        assert_eq!(leadership.ends(TTL), at(130));
        cell.granted(8, at(107), TTL);
        cell.bind_leader(8);
        assert_eq!(cell.leadership(), Leadership { until: at(137), disputed_since: None });
        // A late answer about the old lease binds nothing.
        cell.unbind_leader();
        cell.bind_leader(7);
        assert_eq!(cell.leadership().until, BootTime::ZERO);
    }

    #[test]
    fn the_gate() {
        let cell = LeaseCell::default();
        assert!(cell.may_renew(at(5)));
        cell.allow_renewal_until(at(10));
        assert!(cell.may_renew(at(9)) && !cell.may_renew(at(10)));
        cell.forbid_renewal();
        assert!(!cell.may_renew(BootTime::ZERO));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Grant,
        Renew { id: i64, ago: u64 },
        Lose(i64),
        Bind(i64),
        Unbind,
        Dispute,
        Wait(u64),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Grant),
            (1..5_i64, 0..20_u64).prop_map(|(id, ago)| Step::Renew { id, ago }),
            (1..5_i64).prop_map(Step::Lose),
            (1..5_i64).prop_map(Step::Bind),
            Just(Step::Unbind),
            Just(Step::Dispute),
            (0..10_u64).prop_map(Step::Wait),
        ]
    }

    proptest! {
        /// Whatever happens, leadership never outlives the last renewal of the lease that the key hangs on.
        #[test]
        fn leadership_is_covered_by_a_renewal(steps in proptest::collection::vec(any_step(), 0..60)) {
            let cell = LeaseCell::default();
            let (mut now, mut next) = (1000, 1);
            // The last moment to which etcd keeps each lease.
            let mut kept = std::collections::BTreeMap::new();
            let mut bound = 0;
            for step in steps {
                match step {
                    Step::Grant => {
                        cell.granted(next, at(now), TTL);
                        kept.insert(next, at(now).plus(TTL));
                        next += 1;
                    }
                    Step::Renew { id, ago } => {
                        if let Some(until) = kept.get_mut(&id) {
                            *until = (*until).max(at(now - ago).plus(TTL));
                            cell.renewed(id, at(now - ago), TTL);
                        }
                    }
                    Step::Lose(id) => cell.lost(id, at(now)),
                    Step::Bind(id) => {
                        if cell.state().id == id {
                            bound = id;
                        }
                        cell.bind_leader(id);
                    }
                    Step::Unbind => {
                        bound = 0;
                        cell.unbind_leader();
                    }
                    Step::Dispute => cell.dispute(at(now)),
                    Step::Wait(seconds) => now += seconds,
                }
                let until = cell.leadership().until;
                let allowed = kept.get(&bound).copied().unwrap_or(BootTime::ZERO);
                prop_assert!(until <= allowed, "{until:?} > {allowed:?}");
                let state = cell.state();
                if state.id != 0 {
                    prop_assert!(state.valid_until <= kept[&state.id]);
                }
            }
        }
    }
}
