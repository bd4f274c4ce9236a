//! The pause between two attempts.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

/// Pauses that double from 5 ms to 1 s, each drawn evenly between nothing and its bound ("full jitter"):
/// callers that failed together do not come back together.
///
/// `backon` doubles the bound. Its own jitter only adds to it, which would keep callers apart half as well.
#[derive(Debug)]
pub struct Backoff(<ExponentialBuilder as BackoffBuilder>::Backoff);

impl Backoff {
    /// The first bound.
    pub const MIN: Duration = Duration::from_millis(5);
    /// The last bound.
    pub const MAX: Duration = Duration::from_secs(1);

    /// From the start.
    #[must_use]
    pub fn new() -> Self {
        Self(
            ExponentialBuilder::new()
                .with_factor(2.0)
                .with_min_delay(Self::MIN)
                .with_max_delay(Self::MAX)
                .without_max_times()
                .build(),
        )
    }

    /// The next pause, for a `draw` between 0 and 1.
    pub fn next_drawn(&mut self, draw: f64) -> Duration {
        let bound = self.0.next().unwrap_or(Self::MAX).min(Self::MAX);
        bound.mul_f64(if draw.is_finite() { draw.clamp(0.0, 1.0) } else { 1.0 })
    }

    /// The next pause, drawn from the thread's random numbers.
    pub fn next_pause(&mut self) -> Duration {
        self.next_drawn(rand::random())
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bounds_double_up_to_a_second() {
        let mut backoff = Backoff::new();
        let bounds: Vec<u128> =
            (0..10).map(|_| backoff.next_drawn(1.0).as_micros().div_ceil(1000)).collect();
        assert_eq!(bounds, [5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        let mut backoff = Backoff::new();
        assert_eq!(backoff.next_drawn(0.0), Duration::ZERO);
        assert_eq!(backoff.next_drawn(0.5), Duration::from_millis(5));
        assert!(backoff.next_pause() <= Duration::from_millis(21));
    }

    proptest! {
        #[test]
        fn no_pause_is_over_the_maximum(draws in proptest::collection::vec(any::<f64>(), 1..100)) {
            let mut backoff = Backoff::new();
            for draw in draws {
                prop_assert!(backoff.next_drawn(draw) <= Backoff::MAX);
            }
        }
    }
}
