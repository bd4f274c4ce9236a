//! Time as the agent counts it, and the one clock that matters: that of a lease.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// A moment on `CLOCK_BOOTTIME`, as the time since the machine was started.
///
/// That clock goes on while the machine sleeps, and nobody sets it. Sums saturate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Moment(pub Duration);

impl Moment {
    /// The time from `earlier` to `self`; zero where `earlier` is not earlier.
    #[must_use]
    pub fn since(self, earlier: Moment) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, time: Duration) -> Moment {
        Moment(self.0.saturating_add(time))
    }
}

impl Sub<Duration> for Moment {
    type Output = Moment;

    fn sub(self, time: Duration) -> Moment {
        Moment(self.0.saturating_sub(time))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}s", self.0.as_secs_f64())
    }
}

/// By how much two clocks may differ in speed, as a divisor: a tenth.
///
/// Whoever holds something for a time counts a tenth less, whoever waits for it to end a tenth more.
const DRIFT: u32 = 10;

/// What the holder of a lease may count on of `time` that another clock grants.
#[must_use]
pub fn held(time: Duration) -> Duration {
    time.saturating_sub(time / DRIFT)
}

/// How long to wait until `time` on another clock is surely over.
#[must_use]
pub fn over(time: Duration) -> Duration {
    // One ninth more than a tenth of it: 1 / 0.9.
    time.saturating_add(time / (DRIFT - 1))
}

/// A lease in etcd, counted here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseClock {
    /// When its last successful renewal, or the request that granted it, was *sent*. etcd counts from
    /// when it got that, which is later.
    pub sent: Moment,
    /// For how long etcd granted it, which need not be the `ttl` of the configuration.
    pub ttl: Duration,
}

impl LeaseClock {
    /// Until when it is surely still granted, be etcd's clock a tenth faster than this one.
    #[must_use]
    pub fn deadline(self) -> Moment {
        self.sent + held(self.ttl)
    }

    /// What is left of it at `now`.
    #[must_use]
    pub fn left(self, now: Moment) -> Duration {
        self.deadline().since(now)
    }
}
