//! What came of the pairs.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// The reader's answer to one pair; one line of text.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answer {
    /// Whether the row was there.
    pub fresh: bool,
    /// Whether a replica served it.
    pub by_replica: bool,
    /// How long the read waited for its connection, in microseconds: for replay, mostly.
    pub waited_us: u64,
    /// The same row without its token, from any replica, where that was tried.
    pub without_token: Option<bool>,
}

/// All of them.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Account {
    pub pairs: usize,
    pub stale: usize,
    pub by_replicas: usize,
    /// Ascending, once it is made up.
    pub waits_us: Vec<u64>,
    pub tried_without: usize,
    pub stale_without: usize,
}

impl Account {
    pub fn add(&mut self, answer: &Answer) {
        self.pairs += 1;
        self.stale += usize::from(!answer.fresh);
        self.by_replicas += usize::from(answer.by_replica);
        self.waits_us.push(answer.waited_us);
        if let Some(fresh) = answer.without_token {
            self.tried_without += 1;
            self.stale_without += usize::from(!fresh);
        }
    }

    pub fn join(&mut self, other: Self) {
        self.pairs += other.pairs;
        self.stale += other.stale;
        self.by_replicas += other.by_replicas;
        self.waits_us.extend(other.waits_us);
        self.tried_without += other.tried_without;
        self.stale_without += other.stale_without;
        self.waits_us.sort_unstable();
    }

    fn wait(&self, percent: usize) -> f64 {
        let last = self.waits_us.len().saturating_sub(1);
        let micros = self.waits_us.get(last * percent / 100).copied().unwrap_or_default();
        Duration::from_micros(micros).as_secs_f64() * 1000.0
    }

    /// For whoever looks on.
    pub fn told(&self, took: Duration, pauses: usize) -> String {
        let (pairs, seconds) = (self.pairs as f64, took.as_secs_f64());
        format!(
            "pairs           {} in {seconds:.0} s ({:.0}/s), replay paused {pauses} times\n\
             stale reads     {}\n\
             by replicas     {:.1} %\n\
             waits           p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms\n\
             without token   {} of {} stale",
            self.pairs,
            pairs / seconds,
            self.stale,
            100.0 * self.by_replicas as f64 / pairs,
            self.wait(50),
            self.wait(99),
            self.wait(100),
            self.stale_without,
            self.tried_without,
        )
    }

    pub fn check(&self, pairs: usize) -> Result<()> {
        ensure!(self.pairs == pairs, "{} pairs of {pairs}", self.pairs);
        ensure!(self.stale == 0, "{} stale reads", self.stale);
        ensure!(self.stale_without > 0, "the replicas did not lag: this proved nothing");
        let shares = [self.by_replicas, self.pairs - self.by_replicas];
        ensure!(shares.iter().all(|share| *share > pairs / 100), "all from one side: {shares:?}");
        Ok(())
    }
}
