//! How busy a member is: work in flight, and how fast it answers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::client::Role;

/// The weight of the newest sample, in percent.
const NEWEST: u64 = 20;
/// What a failure counts as: fast failures must not make a member look fast.
const FAILURE: Duration = Duration::from_secs(1);

/// Bits for the work in flight: a hundred times as many as `pool.max_size` may be.
const IN_FLIGHT: u32 = 20;
/// Bits for the checkouts of one role. Read once a second, so that four million may fall in between.
const CHECKOUTS: u32 = 22;

/// Work in flight and smoothed latency of one member.
#[derive(Debug, Default)]
pub(crate) struct Load {
    /// Work in flight, and above it the checkouts for writing, and those for reading. One number, so that to
    /// count checkouts costs nothing beside what is done anyway.
    work: AtomicU64,
    /// Nanoseconds; 0 before the first sample.
    latency: AtomicU64,
}

impl Load {
    pub(crate) fn in_flight(&self) -> usize {
        (self.work.load(Ordering::Relaxed) & ((1 << IN_FLIGHT) - 1)) as usize
    }

    pub(crate) fn begin(&self, role: Role) {
        let one = match role {
            Role::Write => 1 << IN_FLIGHT,
            Role::Read => 1 << (IN_FLIGHT + CHECKOUTS),
        };
        self.work.fetch_add(one + 1, Ordering::Relaxed);
    }

    pub(crate) fn end(&self) {
        self.work.fetch_sub(1, Ordering::Relaxed);
    }

    /// The checkouts so far, to be compared with those of earlier.
    #[cfg(any(test, feature = "metrics"))]
    pub(crate) fn tally(&self) -> Tally {
        Tally(self.work.load(Ordering::Relaxed) >> IN_FLIGHT)
    }

    pub(crate) fn latency(&self) -> Duration {
        Duration::from_nanos(self.latency.load(Ordering::Relaxed))
    }

    /// Takes in how long one answer took.
    pub(crate) fn sample(&self, latency: Duration) {
        let sample = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).clamp(1, u64::MAX / 200);
        // Lost updates between two threads cost one sample, which the next makes up for.
        let known = self.latency.load(Ordering::Relaxed);
        let next =
            if known == 0 { sample } else { (known * (100 - NEWEST) + sample * NEWEST) / 100 };
        self.latency.store(next, Ordering::Relaxed);
    }

    /// Takes in that there was no answer.
    pub(crate) fn failure(&self) {
        self.sample(FAILURE);
    }
}

/// How many checkouts there were, up to some multiple of what the bits hold.
#[cfg(any(test, feature = "metrics"))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally(u64);

#[cfg(any(test, feature = "metrics"))]
impl Tally {
    /// Checkouts for writing, and for reading, since `earlier`. A count that runs over carries into the next
    /// one, and the difference of the whole numbers takes that back.
    pub(crate) fn since(self, earlier: Self) -> (u64, u64) {
        let both = self.0.wrapping_sub(earlier.0) & ((1 << (64 - IN_FLIGHT)) - 1);
        (both & ((1 << CHECKOUTS) - 1), both >> CHECKOUTS)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn checkouts_are_counted_across_every_overflow(
            start in any::<u64>(),
            (writes, reads) in (0_u64..1 << CHECKOUTS, 0_u64..1 << CHECKOUTS),
            busy in 0_u64..10_000,
        ) {
            let load = Load::default();
            load.work.store(start >> IN_FLIGHT << IN_FLIGHT, Ordering::Relaxed);
            let earlier = load.tally();
            let one = |bits| 1_u64 << bits;
            // As that many calls of `begin` do, and of `end` for all but `busy`.
            let begun = (one(IN_FLIGHT) + 1)
                .wrapping_mul(writes)
                .wrapping_add((one(IN_FLIGHT + CHECKOUTS) + 1).wrapping_mul(reads));
            load.work.fetch_add(begun, Ordering::Relaxed);
            load.work.fetch_sub((writes + reads).saturating_sub(busy), Ordering::Relaxed);
            prop_assert_eq!(load.tally().since(earlier), (writes, reads));
            prop_assert_eq!(load.in_flight() as u64, busy.min(writes + reads));
        }
    }

    #[test]
    fn work_is_counted_by_role() {
        let (load, before) = (Load::default(), Tally::default());
        load.begin(Role::Write);
        load.begin(Role::Read);
        load.begin(Role::Read);
        assert_eq!((load.in_flight(), load.tally().since(before)), (3, (1, 2)));
        (0..3).for_each(|_| load.end());
        assert_eq!((load.in_flight(), load.tally().since(before)), (0, (1, 2)));
    }

    #[test]
    fn latency_is_smoothed_and_failures_count_as_slow() {
        let load = Load::default();
        load.sample(Duration::from_millis(1));
        assert_eq!(load.latency(), Duration::from_millis(1));
        load.sample(Duration::from_millis(11));
        assert_eq!(load.latency(), Duration::from_millis(3));
        load.failure();
        assert!(load.latency() > Duration::from_millis(200));
        load.sample(Duration::MAX);
        load.sample(Duration::MAX);
        assert!(load.latency() > Duration::from_secs(1), "no overflow");
    }
}
