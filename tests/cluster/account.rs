//! Writers that keep an account of what the pool told them, to be held against the table.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, ensure};
use leaderpool::tokio_postgres::types::{ToSql, Type};
use leaderpool::{Epoch, LeaderPool};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::bed::Bed;

/// How long a statement may take before its writer gives it up.
const PATIENCE: Duration = Duration::from_secs(3);

/// What became of one insert, as its writer saw it.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The database acknowledged it.
    Acked { at: Instant, node: String },
    /// It was sent, and then something went wrong: it may be in the table or not.
    Unknown { why: String, sqlstate: Option<String> },
    /// No connection was to be had: it cannot be in the table.
    NotSent { why: String },
}

/// A connection that a writer was given.
#[derive(Debug, Clone, Copy)]
pub struct Lent {
    /// When it was asked for.
    pub asked: Instant,
    /// The reign it was given under.
    pub epoch: Option<Epoch>,
}

/// Writers at work.
pub struct Account {
    entries: Arc<Mutex<BTreeMap<i64, Outcome>>>,
    lent: Arc<Mutex<Vec<Lent>>>,
    stop: CancellationToken,
    writers: JoinSet<()>,
}

/// What the writers saw, in numbers.
#[derive(Debug)]
pub struct Summary {
    pub acked: usize,
    pub unknown: usize,
    pub not_sent: usize,
    /// Acknowledged, and not in the table: lost by asynchronous replication.
    pub lost: usize,
}

impl Account {
    /// Starts `writers` writers, each inserting one row at a time.
    pub fn open(pool: &LeaderPool, writers: usize) -> Self {
        let entries = Arc::new(Mutex::new(BTreeMap::new()));
        let lent = Arc::new(Mutex::new(Vec::new()));
        let stop = CancellationToken::new();
        let next = Arc::new(AtomicI64::new(1));
        let mut set = JoinSet::new();
        for writer in 0..writers {
            let (pool, entries, lent) = (pool.clone(), Arc::clone(&entries), Arc::clone(&lent));
            let (next, stop) = (Arc::clone(&next), stop.clone());
            set.spawn(async move {
                while !stop.is_cancelled() {
                    let id = next.fetch_add(1, Ordering::Relaxed);
                    let outcome = insert(&pool, id, writer as i32, &lent).await;
                    let failed = !matches!(outcome, Outcome::Acked { .. });
                    entries.lock().expect("not poisoned").insert(id, outcome);
                    sleep(Duration::from_millis(if failed { 10 } else { 2 })).await;
                }
            });
        }
        Self { entries, lent, stop, writers: set }
    }

    /// Every connection given out so far.
    pub fn lent(&self) -> Vec<Lent> {
        self.lent.lock().expect("not poisoned").clone()
    }

    /// When a commit was first acknowledged at or after `since`, and by whom.
    pub async fn first_ack_after(&self, since: Instant) -> anyhow::Result<(Instant, String)> {
        self.first_ack(since, |_| true).await
    }

    /// The first pause of at least `GAP` between two acknowledged commits after `since`: when it began, when
    /// it ended, and by whom. A dead server's backends notice the death of their postmaster one by one, so
    /// that commits may go on for some moments after it.
    pub async fn first_gap_after(
        &self,
        since: Instant,
    ) -> anyhow::Result<(Instant, Instant, String)> {
        const GAP: Duration = Duration::from_millis(300);
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            let mut acks: Vec<(Instant, String)> = {
                let entries = self.entries.lock().expect("not poisoned");
                let acks = entries.values().filter_map(|outcome| match outcome {
                    Outcome::Acked { at, node } => Some((*at, node.clone())),
                    Outcome::Unknown { .. } | Outcome::NotSent { .. } => None,
                });
                acks.collect()
            };
            acks.sort();
            let gap =
                acks.windows(2).find(|pair| pair[1].0 > since && pair[1].0 - pair[0].0 >= GAP);
            match gap {
                Some(pair) => return Ok((pair[0].0, pair[1].0, pair[1].1.clone())),
                None if Instant::now() >= deadline => {
                    anyhow::bail!("commits did not pause and go on within 90 s; {:?}", self.tail())
                }
                None => sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// The same, by a node other than `old`.
    pub async fn first_ack_elsewhere(
        &self,
        since: Instant,
        old: &str,
    ) -> anyhow::Result<(Instant, String)> {
        self.first_ack(since, |node| node != old).await
    }

    async fn first_ack(
        &self,
        since: Instant,
        wanted: impl Fn(&str) -> bool,
    ) -> anyhow::Result<(Instant, String)> {
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            let found = {
                let entries = self.entries.lock().expect("not poisoned");
                let acks = entries.values().filter_map(|outcome| match outcome {
                    Outcome::Acked { at, node } if *at >= since && wanted(node) => {
                        Some((*at, node.clone()))
                    }
                    _ => None,
                });
                acks.min()
            };
            match found {
                Some(found) => return Ok(found),
                None if Instant::now() >= deadline => {
                    anyhow::bail!("no commit was acknowledged within 90 s; {:?}", self.tail())
                }
                None => sleep(Duration::from_millis(5)).await,
            }
        }
    }

    fn tail(&self) -> Vec<(i64, Outcome)> {
        let entries = self.entries.lock().expect("not poisoned");
        entries.iter().rev().take(5).map(|(id, outcome)| (*id, outcome.clone())).collect()
    }

    /// Stops the writers and holds their account against the table on the cluster's primary.
    ///
    /// Always: a row in the table was acknowledged or is of unknown outcome, none is there twice, none
    /// whose insert was never sent, and no write was refused as read-only. Unless `may_lose`: each
    /// acknowledged row is there.
    pub async fn close(mut self, bed: &Bed, may_lose: bool) -> anyhow::Result<Summary> {
        self.stop.cancel();
        timeout(Duration::from_secs(60), async {
            while self.writers.join_next().await.is_some() {}
        })
        .await
        .context("the writers did not stop")?;
        let primary = bed.cluster.wait_healthy(Duration::from_secs(90)).await?;
        let rows = bed
            .cluster
            .connect(&primary)
            .await?
            .query("SELECT id FROM account ORDER BY id", &[])
            .await?;
        let entries = self.entries.lock().expect("not poisoned").clone();
        let table: BTreeSet<i64> = rows.iter().map(|row| row.get(0)).collect();
        ensure!(table.len() == rows.len(), "a row is there twice");
        let mut summary = Summary { acked: 0, unknown: 0, not_sent: 0, lost: 0 };
        for (id, outcome) in &entries {
            match outcome {
                Outcome::Acked { .. } => {
                    summary.acked += 1;
                    summary.lost += usize::from(!table.contains(id));
                }
                Outcome::Unknown { why, sqlstate } => {
                    summary.unknown += 1;
                    ensure!(
                        sqlstate.as_deref() != Some("25006"),
                        "a write met a read-only node: {why}"
                    );
                }
                Outcome::NotSent { why } => {
                    summary.not_sent += 1;
                    ensure!(!table.contains(id), "row {id} is there, though never sent: {why}");
                }
            }
        }
        let strangers: Vec<&i64> = table.iter().filter(|id| !entries.contains_key(id)).collect();
        ensure!(strangers.is_empty(), "rows that nobody wrote: {strangers:?}");
        ensure!(summary.acked > 0, "nothing was written");
        ensure!(may_lose || summary.lost == 0, "acknowledged rows are missing: {summary:?}");
        Ok(summary)
    }
}

async fn insert(pool: &LeaderPool, id: i64, writer: i32, lent: &Mutex<Vec<Lent>>) -> Outcome {
    let asked = Instant::now();
    let client = match pool.write_within(Duration::from_secs(60)).await {
        Ok(client) => client,
        Err(error) => return Outcome::NotSent { why: error.to_string() },
    };
    lent.lock().expect("not poisoned").push(Lent { asked, epoch: client.epoch() });
    // Without preparing first: then everything that fails was sent as a write.
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&id, Type::INT8), (&writer, Type::INT4)];
    let work = client.query_typed("INSERT INTO account VALUES ($1, $2)", &parameters);
    match timeout(PATIENCE, work).await {
        Ok(Ok(_)) => Outcome::Acked { at: Instant::now(), node: client.node().to_owned() },
        Ok(Err(error)) => Outcome::Unknown {
            why: client.end_cause().unwrap_or_else(|| error.to_string()),
            sqlstate: error.code().map(|code| code.code().to_owned()),
        },
        Err(_) => {
            Outcome::Unknown { why: format!("no answer within {PATIENCE:?}"), sqlstate: None }
        }
    }
}
