//! The breaker behind a lock that a healthy member's calls do not take.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use super::window::Slots;
use super::{
    Breaker, BreakerConfig, Failure, Identity, Outcome, Pass, Proof, State, Ticket, Transition,
};

/// What a call has to know of the breaker before it takes any lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing(u8);

impl Standing {
    /// Closed, and nothing failed lately: no outcome but a failure matters.
    pub(super) const CALM: Self = Self(0);
    /// Closed, with failures in the window: successes count against them.
    pub(super) const COUNTING: Self = Self(1);
    /// Closed, with connect failures in a row that a new connection ends.
    pub(super) const CONNECTS_FAIL: Self = Self(2);
    /// Closed, with timeouts in a row that any answer ends.
    pub(super) const TIMES_OUT: Self = Self(4);
    /// Open or half-open.
    pub(super) const GUARDED: Self = Self(8);

    pub(super) const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// A [`Breaker`] for many threads. While it is closed, passing is one atomic load. So is a success while
/// nothing failed lately; otherwise it is one atomic addition, or ends a run under the lock.
#[derive(Debug)]
pub(crate) struct SharedBreaker {
    standing: AtomicU8,
    slots: Slots,
    /// Successes since the lock was last taken, which was in this slot of the window: they count to it. So
    /// [`settle_up`](Self::settle_up) must be called about as often as slots change.
    slot: AtomicU64,
    successes: AtomicU64,
    breaker: Mutex<Breaker>,
}

impl SharedBreaker {
    pub(crate) fn new(config: BreakerConfig, now: Instant) -> Self {
        let breaker = Breaker::new(config, now);
        Self {
            standing: AtomicU8::new(Standing::CALM.0),
            slots: breaker.slots,
            slot: AtomicU64::new(0),
            successes: AtomicU64::new(0),
            breaker: Mutex::new(breaker),
        }
    }

    fn standing(&self) -> Standing {
        Standing(self.standing.load(Ordering::Acquire))
    }

    /// Whether it is closed, and no success would tell it anything.
    #[inline]
    pub(crate) fn is_calm(&self) -> bool {
        self.standing() == Standing::CALM
    }

    /// Whether it is closed.
    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        !self.standing().has(Standing::GUARDED)
    }

    pub(crate) fn state(&self) -> State {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner).state()
    }

    /// See [`Breaker::success`]. The clock is looked at only where that is of use.
    #[inline]
    pub(crate) fn success(&self, proof: Proof, now: impl FnOnce() -> Instant) {
        let standing = self.standing();
        if standing == Standing::CALM {
            return;
        }
        let news = match proof {
            Proof::Connected => standing.has(Standing::CONNECTS_FAIL.with(Standing::TIMES_OUT)),
            Proof::Answered => standing.has(Standing::TIMES_OUT),
        };
        if news {
            let now = now();
            self.locked(now, |breaker| breaker.success(proof, now));
        } else if standing.has(Standing::COUNTING) {
            self.successes.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lets time pass: without it, a failure that has left the window would be counted against for ever.
    pub(crate) fn settle_up(&self, now: Instant) {
        if !self.is_calm() {
            self.locked(now, |breaker| {
                breaker.advance(now);
            });
        }
    }

    /// See [`Breaker::failure`].
    pub(crate) fn failure(&self, kind: Failure, now: Instant) -> Option<Transition> {
        self.locked(now, |breaker| breaker.failure(kind, rand::random(), now))
    }

    /// See [`Breaker::reset`].
    pub(crate) fn reset(&self, identity: Identity, now: Instant) -> Option<Transition> {
        self.locked(now, |breaker| breaker.reset(identity, now))
    }

    /// See [`Breaker::try_pass`].
    pub(crate) fn try_pass(self: &Arc<Self>, now: Instant) -> (Pass<Trial>, Option<Transition>) {
        let (pass, transition) = self.locked(now, |breaker| breaker.try_pass(now));
        (self.on_trial(pass), transition)
    }

    /// See [`Breaker::pass_as_last`].
    pub(crate) fn pass_as_last(
        self: &Arc<Self>,
        now: Instant,
    ) -> (Pass<Trial>, Option<Transition>) {
        let (pass, transition) = self.locked(now, |breaker| breaker.pass_as_last(now));
        (self.on_trial(pass), transition)
    }

    /// See [`Breaker::last_resort`].
    pub(crate) fn last_resort(self: &Arc<Self>, now: Instant) -> Option<Trial> {
        let ticket = self.locked(now, |breaker| breaker.last_resort())?;
        Some(Trial { breaker: Arc::clone(self), ticket, settled: false })
    }

    /// See [`Breaker::would_pass`].
    pub(crate) fn would_pass(&self, now: Instant) -> bool {
        self.locked(now, |breaker| breaker.would_pass(now))
    }

    fn on_trial(self: &Arc<Self>, pass: Pass<Ticket>) -> Pass<Trial> {
        let trial = |ticket| Trial { breaker: Arc::clone(self), ticket, settled: false };
        match pass {
            Pass::Allowed => Pass::Allowed,
            Pass::Probe(ticket) => Pass::Probe(trial(ticket)),
            Pass::LastResort(ticket) => Pass::LastResort(trial(ticket)),
            Pass::Refused { retry_at } => Pass::Refused { retry_at },
        }
    }

    fn locked<T>(&self, now: Instant, work: impl FnOnce(&mut Breaker) -> T) -> T {
        let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        let successes = self.successes.swap(0, Ordering::Relaxed);
        let slot = self.slot.fetch_max(self.slots.number(now), Ordering::Relaxed);
        if successes > 0 {
            breaker.count_successes(slot, successes);
        }
        let result = work(&mut breaker);
        self.standing.store(breaker.standing().0, Ordering::Release);
        result
    }
}

/// A call on trial: a probe, or the last resort. Dropped without an outcome, it tells nothing, and another
/// probe may pass.
///
/// A probe that is held back for long keeps others away: tell its outcome with the member's first answer,
/// not at the end of the work.
#[derive(Debug)]
pub(crate) struct Trial {
    breaker: Arc<SharedBreaker>,
    ticket: Ticket,
    settled: bool,
}

impl Trial {
    /// It came to `outcome`.
    pub(crate) fn settle(mut self, outcome: Outcome, now: Instant) -> Option<Transition> {
        self.settled = true;
        let ticket = self.ticket;
        self.breaker.locked(now, |breaker| breaker.settle(ticket, outcome, rand::random(), now))
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if !self.settled {
            let (ticket, now) = (self.ticket, Instant::now());
            let transition = self
                .breaker
                .locked(now, |breaker| breaker.settle(ticket, Outcome::Abandoned, 0, now));
            debug_assert_eq!(transition, None, "what tells nothing changes nothing");
        }
    }
}
