//! The breaker behind a lock that a healthy member's calls do not take.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use super::window::Slots;
use super::{Breaker, BreakerConfig, Failure, Identity, Outcome, Pass, State, Ticket, Transition};

/// Closed, and a success changes nothing but a count.
const CALM: u8 = 0;
/// Closed, with failures in a row that a success ends.
const TROUBLED: u8 = 1;
/// Open or half-open.
const GUARDED: u8 = 2;

/// A [`Breaker`] for many threads. While it is closed, passing is one atomic load; and while nothing fails,
/// a success is one atomic addition, with the lock taken once for each slot of the window.
#[derive(Debug)]
pub(crate) struct SharedBreaker {
    gate: AtomicU8,
    slots: Slots,
    /// Successes of this slot that the breaker was not told of yet. One that is added while the slot
    /// changes may be counted to the next: a tenth of the window late.
    slot: AtomicU64,
    successes: AtomicU64,
    breaker: Mutex<Breaker>,
}

impl SharedBreaker {
    pub(crate) fn new(config: BreakerConfig, now: Instant) -> Self {
        let breaker = Breaker::new(config, now);
        Self {
            gate: AtomicU8::new(CALM),
            slots: breaker.slots,
            slot: AtomicU64::new(0),
            successes: AtomicU64::new(0),
            breaker: Mutex::new(breaker),
        }
    }

    pub(crate) fn state(&self) -> State {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner).state()
    }

    /// See [`Breaker::success`].
    pub(crate) fn success(&self, now: Instant) {
        let slot = self.slots.number(now);
        if self.gate.load(Ordering::Acquire) == CALM && slot <= self.slot.load(Ordering::Relaxed) {
            self.successes.fetch_add(1, Ordering::Relaxed);
        } else {
            self.locked(now, |breaker| breaker.success(now));
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
    #[inline]
    pub(crate) fn try_pass(self: &Arc<Self>, now: Instant) -> (Pass<Trial>, Option<Transition>) {
        if self.gate.load(Ordering::Acquire) != GUARDED {
            return (Pass::Allowed, None);
        }
        let (pass, transition) = self.locked(now, |breaker| breaker.try_pass(now));
        (self.on_trial(pass), transition)
    }

    /// See [`Breaker::pass_as_last`].
    #[inline]
    pub(crate) fn pass_as_last(
        self: &Arc<Self>,
        now: Instant,
    ) -> (Pass<Trial>, Option<Transition>) {
        if self.gate.load(Ordering::Acquire) != GUARDED {
            return (Pass::Allowed, None);
        }
        let (pass, transition) = self.locked(now, |breaker| breaker.pass_as_last(now));
        (self.on_trial(pass), transition)
    }

    /// See [`Breaker::would_pass`].
    #[inline]
    pub(crate) fn would_pass(&self, now: Instant) -> bool {
        self.gate.load(Ordering::Acquire) != GUARDED
            || self.locked(now, |breaker| breaker.would_pass(now))
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
        let gate = match breaker.calm() {
            (true, true) => CALM,
            (true, false) => TROUBLED,
            (false, _) => GUARDED,
        };
        self.gate.store(gate, Ordering::Release);
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
    /// The member answered.
    pub(crate) fn success(self, now: Instant) -> Option<Transition> {
        self.settle(Outcome::Success, now)
    }

    /// It failed.
    pub(crate) fn failure(self, kind: Failure, now: Instant) -> Option<Transition> {
        self.settle(Outcome::Failure(kind), now)
    }

    fn settle(mut self, outcome: Outcome, now: Instant) -> Option<Transition> {
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
