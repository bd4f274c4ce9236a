//! How soon after a new primary accepts writes the first pooled write is acknowledged, against Patroni.
//!
//! A poller asks every node each 5 ms whether it is in recovery; eight writers insert through the pool all
//! the time. `cargo bench --bench failover`; `-- --times N` for more than 5 of each fault, `-- --patroni3`
//! for Debian's version.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use leaderpool::{Config, LeaderPool};
use leaderpool_testbed::{Cluster, ClusterBuilder, Manager, WritablePoller};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

const WRITERS: usize = 8;

#[derive(Default)]
struct Seen {
    /// The last acknowledged commits: when, and by whom.
    acks: Mutex<Vec<(Instant, String)>>,
    acked: AtomicUsize,
    errors: AtomicUsize,
    read_only: AtomicUsize,
    stop: AtomicBool,
}

/// Acknowledged commits are never this far apart but in a failover.
const GAP: Duration = Duration::from_millis(300);

/// Two neighbouring commits with a gap between them.
struct Gap {
    last: Instant,
    first: Instant,
    node: String,
}

impl Seen {
    fn any_ack_since(&self, since: Instant) -> bool {
        self.acks.lock().expect("not poisoned").iter().any(|(at, _)| *at >= since)
    }

    /// The first gap that begins after `since`. A dead server's backends notice their postmaster's death
    /// one by one, so that commits may go on for some moments after the fault.
    fn gap(&self, since: Instant) -> Option<Gap> {
        let mut acks = self.acks.lock().expect("not poisoned").clone();
        acks.sort();
        acks.windows(2)
            .find(|pair| pair[1].0 > since && pair[1].0 - pair[0].0 >= GAP)
            .map(|pair| Gap { last: pair[0].0, first: pair[1].0, node: pair[1].1.clone() })
    }
}

async fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        if let Some(value) = probe() {
            return Ok(value);
        }
        anyhow::ensure!(Instant::now() < deadline, "{what}: not within 90 s");
        sleep(Duration::from_millis(5)).await;
    }
}

async fn write(pool: LeaderPool, seen: Arc<Seen>) {
    while !seen.stop.load(Ordering::Relaxed) {
        let Ok(client) = pool.write_within(Duration::from_secs(60)).await else {
            seen.errors.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let insert = client.batch_execute("INSERT INTO bench DEFAULT VALUES");
        match timeout(Duration::from_secs(3), insert).await {
            Ok(Ok(())) => {
                seen.acked.fetch_add(1, Ordering::Relaxed);
                let mut acks = seen.acks.lock().expect("not poisoned");
                acks.push((Instant::now(), client.node().to_owned()));
            }
            Ok(Err(error)) => {
                seen.errors.fetch_add(1, Ordering::Relaxed);
                if error.code().is_some_and(|code| code.code() == "25006") {
                    seen.read_only.fetch_add(1, Ordering::Relaxed);
                }
            }
            Err(_) => {
                seen.errors.fetch_add(1, Ordering::Relaxed);
            }
        }
        drop(client);
        sleep(Duration::from_millis(2)).await;
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let times = match arguments.iter().position(|argument| argument == "--times") {
        Some(at) => arguments.get(at + 1).context("--times needs a number")?.parse()?,
        None => 5,
    };
    let manager = if arguments.iter().any(|argument| argument == "--patroni3") {
        Manager::Patroni3
    } else {
        Manager::Patroni4
    };
    tokio::runtime::Runtime::new()?.block_on(run(manager, times))
}

async fn run(manager: Manager, times: usize) -> anyhow::Result<()> {
    let name = manager.name();
    let cluster = ClusterBuilder::fast().manager(manager).start().await?;
    let pool = LeaderPool::connect(Config::from_toml(&cluster.client_toml())?).await?;
    pool.write().await?.batch_execute("CREATE TABLE bench (id bigserial PRIMARY KEY)").await?;
    let seen = Arc::new(Seen::default());
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        writers.spawn(write(pool.clone(), Arc::clone(&seen)));
    }
    let poller = cluster.poll_writable(Duration::from_millis(5));
    for fault in ["switchover", "postmaster killed"] {
        let (mut after, mut gaps) = (Vec::new(), Vec::new());
        for _ in 0..times {
            let (late, gap) = once(&cluster, &poller, &seen, fault).await?;
            println!(
                "  {fault}: write gap {gap:.3} s, first pooled write {late:+.1} ms after writable"
            );
            after.push(late);
            gaps.push(gap);
        }
        println!(
            "{name}, {fault}: median of {times}: first pooled write {:.1} ms after the 5 ms poller saw the \
             new primary writable; write gap {:.3} s",
            median(&after),
            median(&gaps),
        );
    }
    seen.stop.store(true, Ordering::Relaxed);
    while writers.join_next().await.is_some() {}
    println!(
        "{} commits acknowledged, {} errors reached callers, {} of them read-only (25006)",
        seen.acked.load(Ordering::Relaxed),
        seen.errors.load(Ordering::Relaxed),
        seen.read_only.load(Ordering::Relaxed),
    );
    pool.close().await?;
    cluster.shutdown().await
}

/// One fault: milliseconds from writable to the first acknowledged write, and the whole gap in seconds.
async fn once(
    cluster: &Cluster,
    poller: &WritablePoller,
    seen: &Seen,
    fault: &str,
) -> anyhow::Result<(f64, f64)> {
    let old = cluster.wait_healthy(Duration::from_secs(60)).await?;
    sleep(Duration::from_millis(500)).await;
    seen.acks.lock().expect("not poisoned").clear();
    let before = Instant::now();
    wait_for("a commit", || seen.any_ack_since(before).then_some(())).await?;
    let since = Instant::now();
    if fault == "switchover" {
        let nodes = cluster.nodes();
        let new =
            nodes.iter().map(|node| node.name()).find(|name| *name != old).context("one node")?;
        cluster.switchover(&old, new).await?;
    } else {
        cluster.kill_postmaster(&old).await?;
    }
    let gap = wait_for("a commit after the fault", || seen.gap(since)).await?;
    let writable =
        poller.first_writable_after(gap.last, &gap.node).context("the poller missed it")?.at;
    let late = gap.first.saturating_duration_since(writable).as_secs_f64() * 1e3;
    Ok((late, (gap.first - gap.last).as_secs_f64()))
}
