//! How busy a member is: work in flight, and how fast it answers.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// The weight of the newest sample, in percent.
const NEWEST: u64 = 20;
/// What a failure counts as: fast failures must not make a member look fast.
const FAILURE: Duration = Duration::from_secs(1);

/// Work in flight and smoothed latency of one member.
#[derive(Debug, Default)]
pub(crate) struct Load {
    in_flight: AtomicUsize,
    /// Nanoseconds; 0 before the first sample.
    latency: AtomicU64,
}

impl Load {
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(crate) fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn end(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
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

#[cfg(test)]
mod tests {
    use super::*;

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
