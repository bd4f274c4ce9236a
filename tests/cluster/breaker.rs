//! A replica fails, in ways that its breaker has to see; reads go elsewhere and come back.

use std::convert::Infallible;
use std::time::Duration;

use anyhow::{Context, ensure};
use leaderpool::topology::BreakerState;
use leaderpool::{LeaderPool, TopologyEvent};
use tokio::sync::broadcast;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::bed::{Bed, eventually};

/// Changes of one member's breaker, as a subscriber sees them.
struct Changes {
    member: String,
    events: broadcast::Receiver<TopologyEvent>,
    seen: Vec<(BreakerState, BreakerState)>,
}

impl Changes {
    fn of(member: &str, pool: &LeaderPool) -> Self {
        Self { member: member.to_owned(), events: pool.events(), seen: Vec::new() }
    }

    /// Waits until it changes to `wanted`, and says why it did.
    async fn wait_for(&mut self, wanted: BreakerState) -> anyhow::Result<String> {
        let deadline = Instant::now() + Duration::from_secs(40);
        loop {
            let event = timeout_at(deadline, self.events.recv()).await;
            let event =
                event.with_context(|| format!("never {wanted}; seen: {:?}", self.seen))??;
            if let TopologyEvent::BreakerChanged { member, from, to, reason } = event
                && member == self.member
            {
                self.seen.push((from, to));
                if to == wanted {
                    return Ok(reason);
                }
            }
        }
    }

    /// Those that are there already.
    fn drain(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            if let TopologyEvent::BreakerChanged { member, from, to, .. } = event
                && member == self.member
            {
                self.seen.push((from, to));
            }
        }
    }
}

/// Who served a read, which must succeed in a short time.
async fn read(pool: &LeaderPool) -> anyhow::Result<String> {
    let client = pool.read().await?;
    let node = client.node().to_owned();
    let answer = timeout(Duration::from_secs(2), client.query_one("SELECT 1", &[])).await;
    answer.with_context(|| format!("no answer from {node}"))?.with_context(|| node.clone())?;
    Ok(node)
}

/// Until one fails: where one replica takes no connection, the other one does.
async fn read_in_bursts(pool: &LeaderPool) -> anyhow::Result<Infallible> {
    loop {
        let reads = (0..8).map(|_| pool.query_read("SELECT 1", &[]));
        futures_util::future::try_join_all(reads).await?;
        sleep(Duration::from_millis(350)).await;
    }
}

/// Until one fails on another node than `frozen`; counts those that met it. Until it is noticed, they hang.
async fn read_elsewhere(
    pool: &LeaderPool,
    frozen: &str,
    met: &mut usize,
) -> anyhow::Result<Infallible> {
    loop {
        if let Err(error) = read(pool).await {
            ensure!(format!("{error:#}").contains(frozen), "another read: {error:#}");
            *met += 1;
        }
        sleep(Duration::from_millis(5)).await;
    }
}

async fn spared(pool: &LeaderPool, replica: &str, how_long: Duration) -> anyhow::Result<()> {
    let until = Instant::now() + how_long;
    while Instant::now() < until {
        ensure!(read(pool).await? != replica, "a read went to {replica}");
        ensure!(pool.write().await?.is_leader());
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

async fn read_from_again(pool: &LeaderPool, replica: &str) -> anyhow::Result<()> {
    eventually("reads come back", Duration::from_secs(30), async || {
        let node = read(pool).await.map_err(|error| format!("{error:#}"))?;
        if node == replica { Ok(()) } else { Err(format!("read from {node}")) }
    })
    .await
}

/// The server goes on with the sessions it has, so that its probe is answered; but it takes no new ones.
pub async fn replica_that_takes_no_connections(bed: &Bed) -> anyhow::Result<()> {
    let mut config = bed.config()?;
    config.postgres.connect_timeout = Duration::from_millis(500);
    // Each burst of reads has to make its connections.
    config.pool.idle_timeout = Duration::from_millis(100);
    config.pool.min_idle = 0;
    config.breaker.open_at_most = Duration::from_secs(2);
    let pool = LeaderPool::connect(config).await?;
    let replica = bed.replica().await?;
    read_from_again(&pool, &replica).await?;
    let mut changes = Changes::of(&replica, &pool);
    let session = bed.cluster.connect(&replica).await?;
    let file = session.query_one("SELECT pg_read_file('postmaster.pid')", &[]).await?;
    let postmaster = file.get::<_, &str>(0).lines().next().context("no pid")?.to_owned();
    let send = |signal: &str| {
        let status = std::process::Command::new("kill").args([signal, &postmaster]).status()?;
        ensure!(status.success());
        anyhow::Ok(())
    };
    send("-STOP")?;
    let result = async {
        let reason = tokio::select! {
            reason = changes.wait_for(BreakerState::Open) => reason?,
            error = read_in_bursts(&pool) => match error? {},
        };
        ensure!(reason.contains("connect failures in a row"), "{reason}");
        spared(&pool, &replica, Duration::from_secs(4)).await?;
        let report = pool.report();
        let node = report.nodes.iter().find(|node| node.name == replica).context("no node")?;
        ensure!(node.problem.is_none(), "its probe is answered: {node:?}");
        ensure!(node.breaker.state != BreakerState::Closed, "{node:?}");
        changes.drain();
        let reopened = (BreakerState::HalfOpen, BreakerState::Open);
        ensure!(changes.seen.contains(&reopened), "not tried again: {:?}", changes.seen);
        anyhow::Ok(())
    }
    .await;
    send("-CONT")?;
    result?;
    let reason = changes.wait_for(BreakerState::Closed).await?;
    ensure!(reason == "it answers again", "{reason}");
    read_from_again(&pool, &replica).await?;
    changes.drain();
    let report = pool.report();
    let node = report.nodes.iter().find(|node| node.name == replica).context("no node")?;
    // Each told once: to subscribers, and in the count.
    ensure!(node.breaker.transitions == changes.seen.len() as u64, "{node:?}: {:?}", changes.seen);
    ensure!(changes.seen.windows(2).all(|pair| pair[0].1 == pair[1].0), "{:?}", changes.seen);
    Ok(pool.close().await?)
}

/// Frozen with all its sessions, and then killed: its probe fails too, and it comes back as itself, or as
/// another run of the server.
pub async fn replica_frozen_and_killed(bed: &Bed) -> anyhow::Result<()> {
    let mut config = bed.config()?;
    config.probe.interval = Duration::from_millis(250);
    config.probe.timeout = Duration::from_millis(400);
    config.breaker.open_at_most = Duration::from_secs(2);
    let pool = LeaderPool::connect(config).await?;
    let replica = bed.replica().await?;
    read_from_again(&pool, &replica).await?;

    let mut changes = Changes::of(&replica, &pool);
    bed.cluster.freeze_postmaster(&replica).await?;
    let result = async {
        let mut met = 0;
        let reason = tokio::select! {
            reason = changes.wait_for(BreakerState::Open) => reason?,
            error = read_elsewhere(&pool, &replica, &mut met) => match error? {},
        };
        eprintln!("  frozen: {reason}; {met} reads had met it");
        spared(&pool, &replica, Duration::from_secs(3)).await
    }
    .await;
    bed.cluster.thaw_postmaster(&replica).await?;
    result?;
    let reason = changes.wait_for(BreakerState::Closed).await?;
    // With so impatient a probe a busy leader may have been lost and admitted again: another reign.
    let anew = "a new reign or a new postmaster";
    ensure!(reason == "it answers again" || reason == anew, "{reason}");
    read_from_again(&pool, &replica).await?;

    // Its manager would start it again at once.
    bed.cluster.freeze_manager(&replica).await?;
    bed.cluster.kill_postmaster(&replica).await?;
    let result = async {
        let reason = changes.wait_for(BreakerState::Open).await?;
        eprintln!("  killed: {reason}");
        spared(&pool, &replica, Duration::from_secs(2)).await
    }
    .await;
    bed.cluster.thaw_manager(&replica).await?;
    result?;
    let reason = changes.wait_for(BreakerState::Closed).await?;
    ensure!(reason == "a new reign or a new postmaster", "{reason}");
    read_from_again(&pool, &replica).await?;
    Ok(pool.close().await?)
}
