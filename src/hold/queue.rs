//! Who waits, and who goes next.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;

/// Names one who waits. Numbers grow with each arrival.
pub(crate) type Id = u64;

/// What an arrival meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The gate is open and nobody is queued.
    Passed,
    /// It waits.
    Queued(Id),
    /// As many wait as may.
    Full,
}

#[derive(Debug)]
enum Phase {
    Closed,
    Open,
    /// Never with an empty queue: then it is open.
    Ramping {
        /// How many were let go last; fewer only if no more were there.
        width: usize,
        /// Those of them that have not reported yet.
        outstanding: BTreeSet<Id>,
        /// When the next are let go in any case.
        step_ends: Instant,
    },
}

/// The queue before the gate, without a clock or a lock.
#[derive(Debug)]
pub(crate) struct HoldQueue {
    limit: usize,
    step_limit: Duration,
    phase: Phase,
    /// In order of arrival, which is the order of the numbers.
    queued: BTreeSet<Id>,
    arrivals: u64,
    peak: usize,
    /// The same, since the gate was last closed.
    gap_peak: usize,
}

impl HoldQueue {
    /// A closed gate with nobody before it.
    pub(crate) fn new(limit: usize, step_limit: Duration) -> Self {
        let (phase, queued) = (Phase::Closed, BTreeSet::new());
        Self { limit, step_limit, phase, queued, arrivals: 0, peak: 0, gap_peak: 0 }
    }

    pub(crate) fn arrive(&mut self) -> Arrival {
        self.arrive_among(self.limit)
    }

    /// As [`arrive`](Self::arrive), for one who can do nothing but wait its turn: it is not refused where as
    /// many wait as may, but stands behind them, one of at most as many again.
    pub(crate) fn line_up(&mut self) -> Arrival {
        self.arrive_among(self.limit.saturating_mul(2))
    }

    fn arrive_among(&mut self, limit: usize) -> Arrival {
        if self.is_open() {
            return Arrival::Passed;
        }
        if self.queued.len() >= limit {
            return Arrival::Full;
        }
        self.arrivals += 1;
        self.queued.insert(self.arrivals);
        self.gap_peak = self.gap_peak.max(self.queued.len());
        self.peak = self.peak.max(self.gap_peak);
        Arrival::Queued(self.arrivals)
    }

    /// One gives up waiting; false where it does not wait any more.
    pub(crate) fn leave(&mut self, id: Id) -> bool {
        let was_queued = self.queued.remove(&id);
        self.open_if_empty();
        was_queued
    }

    /// A leader is there: the first is let go. Changes nothing where the gate is not closed.
    pub(crate) fn open(&mut self, now: Instant) -> Vec<Id> {
        match self.phase {
            Phase::Closed => self.release(1, now),
            Phase::Open | Phase::Ramping { .. } => Vec::new(),
        }
    }

    /// The leader is gone: nobody is let go any more. Those who were keep their permission.
    pub(crate) fn close(&mut self) {
        if !matches!(self.phase, Phase::Closed) {
            self.gap_peak = self.queued.len();
        }
        self.phase = Phase::Closed;
    }

    /// One who was let go has its connection, or failed. With the last of its batch the next is let go.
    pub(crate) fn done(&mut self, id: Id, now: Instant) -> Vec<Id> {
        if let Phase::Ramping { width, outstanding, .. } = &mut self.phase
            && outstanding.remove(&id)
            && outstanding.is_empty()
        {
            let width = *width;
            return self.release(width.saturating_mul(2), now);
        }
        Vec::new()
    }

    /// Lets the next batch go where the last one takes too long.
    pub(crate) fn tick(&mut self, now: Instant) -> Vec<Id> {
        match &self.phase {
            Phase::Ramping { width, step_ends, .. } if now >= *step_ends => {
                let width = *width;
                self.release(width.saturating_mul(2), now)
            }
            Phase::Ramping { .. } | Phase::Open | Phase::Closed => Vec::new(),
        }
    }

    /// When to call [`tick`](Self::tick).
    pub(crate) fn step_ends(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Ramping { step_ends, .. } => Some(*step_ends),
            Phase::Open | Phase::Closed => None,
        }
    }

    /// Whether arrivals pass.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }

    /// Whether there is no leader.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }

    pub(crate) fn len(&self) -> usize {
        self.queued.len()
    }

    /// The most that ever waited at once.
    pub(crate) fn peak(&self) -> usize {
        self.peak
    }

    /// The most that waited at once since the gate was last closed.
    pub(crate) fn gap_peak(&self) -> usize {
        self.gap_peak
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    fn release(&mut self, width: usize, now: Instant) -> Vec<Id> {
        let released: Vec<Id> =
            std::iter::from_fn(|| self.queued.pop_first()).take(width).collect();
        self.phase = Phase::Ramping {
            width,
            outstanding: released.iter().copied().collect(),
            // Counted from now: a late tick must not bring the following steps closer together.
            step_ends: now + self.step_limit,
        };
        self.open_if_empty();
        released
    }

    fn open_if_empty(&mut self) {
        if self.queued.is_empty() && matches!(self.phase, Phase::Ramping { .. }) {
            self.phase = Phase::Open;
        }
    }
}
