//! Who is writable, and since when: the measuring instrument for failovers.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep};
use tokio_postgres::NoTls;
use tokio_util::sync::CancellationToken;

use crate::postgres;

/// A moment, on both clocks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sighting {
    /// For differences.
    pub at: Instant,
    /// Seconds since 1970, to compare with logs and other processes.
    pub unix: f64,
}

impl Sighting {
    /// This moment.
    #[must_use]
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { at: Instant::now(), unix: since.as_secs_f64() }
    }
}

/// A span in which a node said, each time it was asked, that it was writable.
#[derive(Debug, Clone, PartialEq)]
pub struct Interval {
    /// The node.
    pub node: String,
    /// The first answer.
    pub from: Sighting,
    /// The last answer.
    pub to: Sighting,
    /// Whether it was still so at the time of asking.
    pub open: bool,
}

/// Asks every node, on a connection of its own that is kept and remade at once, whether it is in recovery.
#[derive(Debug)]
pub struct WritablePoller {
    seen: Arc<Mutex<Vec<Interval>>>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl WritablePoller {
    /// Begins to ask nodes, each with its port, every `interval`.
    #[must_use]
    pub fn start(nodes: Vec<(String, u16)>, interval: Duration) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let stop = CancellationToken::new();
        let (record, stopped) = (seen.clone(), stop.clone());
        // A thread of its own: a busy test must not blur the measurement.
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let Ok(runtime) = runtime else { return };
            runtime.block_on(async {
                let watches = nodes.iter().map(|(node, port)| {
                    let watch = Watch { node, port: *port, interval, record: &record };
                    watch.run()
                });
                let all = futures_util::future::join_all(watches);
                let _ = stopped.run_until_cancelled(all).await;
            });
        });
        Self { seen, stop, thread: Some(thread) }
    }

    /// Every interval so far, in the order of their beginnings.
    #[must_use]
    pub fn intervals(&self) -> Vec<Interval> {
        self.seen.lock().expect("not poisoned").clone()
    }

    /// When a node was first seen writable after `instant`.
    #[must_use]
    pub fn first_writable_after(&self, instant: Instant, node: &str) -> Option<Sighting> {
        let intervals = self.intervals();
        let mut own = intervals.into_iter().filter(|interval| interval.node == node);
        own.find_map(|interval| (interval.from.at >= instant).then_some(interval.from))
    }

    /// Waits for any node other than `old` to turn writable after `instant`.
    ///
    /// # Errors
    /// When the deadline passes.
    pub async fn wait_other_writable(
        &self,
        instant: Instant,
        old: &str,
        deadline: Duration,
    ) -> Result<(String, Sighting)> {
        let end = Instant::now() + deadline;
        loop {
            let found =
                self.intervals().into_iter().find(|i| i.node != old && i.from.at >= instant);
            if let Some(interval) = found {
                return Ok((interval.node, interval.from));
            }
            if Instant::now() > end {
                bail!(
                    "no node but {old} turned writable within {deadline:?}: {:?}",
                    self.intervals()
                );
            }
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Pairs of intervals of two nodes that overlap: none, if no two were ever writable at once.
    #[must_use]
    pub fn overlaps(&self) -> Vec<(Interval, Interval)> {
        let intervals = self.intervals();
        let mut found = Vec::new();
        for (i, one) in intervals.iter().enumerate() {
            for two in &intervals[i + 1..] {
                let apart = one.to.at < two.from.at || two.to.at < one.from.at;
                if one.node != two.node && !apart {
                    found.push((one.clone(), two.clone()));
                }
            }
        }
        found
    }

    /// Stops asking, and hands the intervals over.
    #[must_use]
    pub fn stop(mut self) -> Vec<Interval> {
        self.finish();
        self.intervals()
    }

    fn finish(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for WritablePoller {
    fn drop(&mut self) {
        self.finish();
    }
}

/// The watch on one node.
struct Watch<'a> {
    node: &'a str,
    port: u16,
    interval: Duration,
    record: &'a Mutex<Vec<Interval>>,
}

impl Watch<'_> {
    async fn run(self) {
        let conninfo =
            format!("{} application_name=poller", postgres::conninfo(self.port, "postgres"));
        loop {
            if let Ok((client, connection)) = tokio_postgres::connect(&conninfo, NoTls).await {
                // Without a time limit: a frozen server's answer, once it is thawed, is what we want to see.
                tokio::select! {
                    () = self.ask(&client) => {}
                    _ = connection => {}
                }
            }
            self.not_writable();
            sleep(self.interval).await;
        }
    }

    async fn ask(&self, client: &tokio_postgres::Client) {
        let Ok(query) = client.prepare("select pg_is_in_recovery()").await else { return };
        loop {
            let Ok(row) = client.query_one(&query, &[]).await else { return };
            match row.get(0) {
                true => self.not_writable(),
                false => self.writable(),
            }
            sleep(self.interval).await;
        }
    }

    fn writable(&self) {
        let now = Sighting::now();
        let mut record = self.record.lock().expect("not poisoned");
        // After a long silence a new interval begins: in between nobody knows.
        let silence = self.interval * 10 + Duration::from_millis(50);
        let last = record.iter_mut().rev().find(|i| i.node == self.node && i.open);
        match last {
            Some(interval) if now.at - interval.to.at <= silence => interval.to = now,
            silent => {
                if let Some(interval) = silent {
                    interval.open = false;
                }
                let node = self.node.to_owned();
                record.push(Interval { node, from: now, to: now, open: true });
            }
        }
    }

    fn not_writable(&self) {
        let mut record = self.record.lock().expect("not poisoned");
        for interval in record.iter_mut().filter(|i| i.node == self.node) {
            interval.open = false;
        }
    }
}
