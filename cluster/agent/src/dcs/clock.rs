//! The clock that leases are counted on.

use std::fmt;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A moment on `CLOCK_BOOTTIME`, in nanoseconds since the machine booted.
///
/// It goes on while the machine is suspended and is never set, so that a lease counted on it has ended
/// here no later than it ends in etcd. The same for every process of one machine, and meaningless on
/// another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BootTime(u64);

impl BootTime {
    /// Before every other moment: what "none yet" compares as.
    pub const ZERO: BootTime = BootTime(0);
    /// After every other moment.
    pub const MAX: BootTime = BootTime(u64::MAX);

    /// The present moment.
    #[must_use]
    pub fn now() -> Self {
        let now = clock_gettime(ClockId::Boottime);
        let whole = u64::try_from(now.tv_sec).unwrap_or_default().saturating_mul(1_000_000_000);
        Self(whole.saturating_add(u64::try_from(now.tv_nsec).unwrap_or_default()))
    }

    /// The moment `nanos` nanoseconds after boot.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since boot.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// `span` later; [`MAX`](Self::MAX) where that cannot be told.
    #[must_use]
    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// From `earlier` to here; zero where `earlier` is not earlier.
    #[must_use]
    pub fn since(self, earlier: BootTime) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Debug for BootTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "boot+{:?}", Duration::from_nanos(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_and_never_overflows() {
        let first = BootTime::now();
        assert!(first > BootTime::ZERO && BootTime::now() >= first);
        assert_eq!(first.plus(Duration::from_secs(3)).since(first), Duration::from_secs(3));
        assert_eq!(first.since(first.plus(Duration::from_secs(3))), Duration::ZERO);
        assert_eq!(first.plus(Duration::MAX), BootTime::MAX);
    }
}
