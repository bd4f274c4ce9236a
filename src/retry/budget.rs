//! A bound on the share of calls that are retries.

use std::time::Duration;

use tower::retry::budget::{Budget, TpsBudget};

/// How much may be retried.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BudgetConfig {
    /// For how long a call counts. From 1 s to 60 s, whole seconds; default 10 s.
    pub window: Duration,
    /// Retries per second that are always allowed, averaged over the window. Default 10.
    pub min_per_second: u32,
    /// Retries allowed beyond that, as a share of the calls. From 0 to 1; default 0.2. Rounded down to
    /// the next 1/n.
    pub share: f64,
}

impl Default for BudgetConfig {
    fn default() -> Self {
        Self { window: Duration::from_secs(10), min_per_second: 10, share: 0.2 }
    }
}

/// The budget's configuration is impossible.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BudgetError {
    /// The window.
    #[error("the retry budget's window must be from 1 to 60 whole seconds, not {0:?}")]
    Window(Duration),
    /// The share.
    #[error("the retry budget's share must be from 0 to 1, not {0}")]
    Share(f64),
    /// The rate.
    #[error("the retry budget's rate must be at most 100000 a second, not {0}")]
    Rate(u32),
}

/// Keeps retries from multiplying an overload: a pool whose calls all fail soon retries only a fifth of
/// them.
///
/// tower's `TpsBudget`: each call pays in, each retry takes out. With the defaults, 100 retries at once
/// are allowed (10 a second, saved up over 10 s) and one more for every fifth call. What was paid in or
/// taken out is remembered for 5 to 11 s, depending on how evenly calls arrive; hence **in any 5 s there
/// are at most 100 retries and a fifth of the calls of the last 11 s**.
///
/// It reads tokio's clock, and is the one part of this module with a state of its own.
#[derive(Debug)]
pub struct RetryBudget(TpsBudget);

impl RetryBudget {
    /// A budget to share between all calls of a pool.
    ///
    /// # Errors
    /// Where the configuration is out of range.
    pub fn new(config: BudgetConfig) -> Result<Self, BudgetError> {
        let BudgetConfig { window, min_per_second, share } = config;
        if window.subsec_nanos() != 0 || !(1..=60).contains(&window.as_secs()) {
            return Err(BudgetError::Window(window));
        }
        if !(0.0..=1.0).contains(&share) {
            return Err(BudgetError::Share(share));
        }
        if min_per_second > 100_000 {
            return Err(BudgetError::Rate(min_per_second));
        }
        // tower truncates 1/share to whole calls per retry, so that 0.6 would count as 1.
        let share = if share == 0.0 { 0.0 } else { 1.0 / ((1.0 / share - 1e-9).ceil() + 0.25) };
        Ok(Self(TpsBudget::new(window, min_per_second, share as f32)))
    }

    /// A call is made: its first attempt.
    pub fn record_call(&self) {
        self.0.deposit();
    }

    /// Whether one more retry is allowed, which then counts as made.
    #[must_use]
    pub fn try_retry(&self) -> bool {
        self.0.withdraw()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;
    use tokio::time::{Instant, advance, pause};

    use super::*;

    #[tokio::test]
    async fn the_reserve_and_then_every_fifth_call() {
        pause();
        let budget = RetryBudget::new(BudgetConfig::default()).expect("a budget");
        assert_eq!((0..1000).filter(|_| budget.try_retry()).count(), 100);
        let mut retries = 0;
        for _ in 0..50 {
            budget.record_call();
            retries += usize::from(budget.try_retry());
        }
        assert_eq!(retries, 10);
        advance(Duration::from_secs(30)).await;
        assert_eq!((0..1000).filter(|_| budget.try_retry()).count(), 100, "saved up again");
    }

    #[tokio::test]
    async fn shares_are_rounded_down() {
        pause();
        for (share, per_100) in [(0.0, 0), (0.01, 1), (0.2, 20), (0.3, 25), (0.6, 50), (1.0, 100)] {
            let config = BudgetConfig { min_per_second: 0, share, ..BudgetConfig::default() };
            let budget = RetryBudget::new(config).expect("a budget");
            (0..100).for_each(|_| budget.record_call());
            assert_eq!((0..1000).filter(|_| budget.try_retry()).count(), per_100, "share {share}");
        }
    }

    #[test]
    fn impossible_configurations_are_refused() {
        let default = BudgetConfig::default();
        for window in [0, 999, 1500, 61_000] {
            let config = BudgetConfig { window: Duration::from_millis(window), ..default };
            assert!(RetryBudget::new(config).is_err(), "{window} ms");
        }
        for share in [-0.1, 1.1, f64::NAN] {
            assert!(RetryBudget::new(BudgetConfig { share, ..default }).is_err(), "{share}");
        }
        let config = BudgetConfig { min_per_second: u32::MAX, ..default };
        assert!(RetryBudget::new(config).is_err());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Calls(usize),
        Retries(usize),
        Wait(u64),
    }

    proptest! {
        #[test]
        fn never_more_than_documented(steps in proptest::collection::vec(
            prop_oneof![
                (1_usize..60).prop_map(Step::Calls),
                (1_usize..150).prop_map(Step::Retries),
                (1_u64..4000).prop_map(Step::Wait),
                (990_u64..1030).prop_map(Step::Wait),
            ],
            1..200,
        )) {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let budget = RetryBudget::new(BudgetConfig::default()).expect("a budget");
                let (mut calls, mut retries) = (VecDeque::new(), VecDeque::new());
                for step in steps {
                    let now = Instant::now();
                    match step {
                        Step::Calls(count) => for _ in 0..count {
                            budget.record_call();
                            calls.push_back(now);
                        },
                        Step::Retries(count) => {
                            let made = (0..count).filter(|_| budget.try_retry()).count();
                            retries.extend(std::iter::repeat_n(now, made));
                            calls.retain(|at| now - *at <= Duration::from_secs(11));
                            retries.retain(|at| now - *at < Duration::from_secs(5));
                            prop_assert!(
                                made == 0 || retries.len() * 5 <= 500 + calls.len(),
                                "{} retries in 5 s, {} calls in 11 s", retries.len(), calls.len()
                            );
                        }
                        Step::Wait(ms) => advance(Duration::from_millis(ms)).await,
                    }
                }
                Ok(())
            })?;
        }
    }
}
