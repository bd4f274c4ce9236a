//! Work without any timeout of its own, on a node that stops to answer.

use std::time::Duration;

use anyhow::{Context, ensure};
use leaderpool::{Client, LeaderPool, TxOptions};
use tokio::time::{Instant, sleep, timeout};

use crate::bed::{Bed, eventually};

/// From the last answer to the cut, on a busy machine.
const AT_MOST: Duration = Duration::from_secs(12);

/// A pool that gives a node up after 1.5 s of being down.
async fn pool(bed: &Bed) -> anyhow::Result<LeaderPool> {
    let mut config = bed.config()?;
    config.probe.interval = Duration::from_millis(200);
    config.probe.watchful_interval = Duration::from_millis(100);
    config.probe.timeout = Duration::from_millis(300);
    config.pool.hung_after = Duration::from_millis(500);
    Ok(LeaderPool::connect(config).await?)
}

/// A plain query, as a caller would write it: how long it took to fail, and why.
async fn fails(client: Client, sql: &str) -> anyhow::Result<(Duration, String)> {
    let started = Instant::now();
    let ended = timeout(Duration::from_secs(60), client.query(sql, &[])).await;
    let Err(error) = ended.context("it hangs for ever")? else {
        anyhow::bail!("{sql} was answered by a frozen server");
    };
    ensure!(error.is_closed(), "another error: {error}");
    Ok((started.elapsed(), client.end_cause().context("no cause")?))
}

/// The primary freezes, with its connections open: what waits for its answer ends by the bound and says why.
/// A blip is sat out, and so is a statement that is only slow.
pub async fn work_on_a_frozen_primary_ends(bed: &Bed) -> anyhow::Result<()> {
    let pool = pool(bed).await?;
    let primary = bed.cluster.primary().await?;

    // Slow, far beyond the bounds, while the node answers its probe.
    let slow = pool.write().await?;
    let (slept, seen) = tokio::join!(
        slow.batch_execute("SELECT pg_sleep(5)"),
        eventually("the slow statement is seen", Duration::from_secs(4), async || {
            let report = pool.report();
            let hung = report.nodes.iter().find(|node| node.name == primary).map(|node| node.hung);
            if hung == Some(1) { Ok(()) } else { Err(format!("{hung:?}")) }
        }),
    );
    slept?;
    seen?;

    // A blip.
    let brief = slow.batch_execute("SELECT pg_sleep(0.2)");
    let blip = async {
        sleep(Duration::from_millis(100)).await;
        bed.cluster.freeze_node(&primary).await?;
        sleep(Duration::from_millis(900)).await;
        bed.cluster.thaw_node(&primary).await
    };
    let (answered, blip) = tokio::join!(brief, blip);
    blip?;
    answered.context("a blip cut the work")?;
    drop(slow);

    // For good, as far as anybody can tell.
    let (running, next) = (pool.write().await?, pool.write().await?);
    let running = tokio::spawn(fails(running, "SELECT pg_sleep(600)"));
    sleep(Duration::from_millis(300)).await;
    bed.cluster.freeze_node(&primary).await?;
    let result = async {
        let frozen = Instant::now();
        let next = tokio::spawn(fails(next, "INSERT INTO account VALUES (1, 0)"));
        let closure = {
            let pool = pool.clone();
            let options = TxOptions::new().within(Duration::from_secs(90));
            tokio::spawn(async move {
                let insert = "INSERT INTO account VALUES (2, 0)";
                pool.execute_write_with(&options, insert, &[]).await
            })
        };
        for task in [running, next] {
            let (took, cause) = task.await??;
            eprintln!("  ended after {:.1} s: {cause}", took.as_secs_f64());
            ensure!(cause.contains("the node has been down for"), "{cause}");
            ensure!(frozen.elapsed() > Duration::from_secs(1) && frozen.elapsed() < AT_MOST);
        }
        anyhow::Ok(closure)
    }
    .await;
    bed.cluster.thaw_node(&primary).await?;
    // Given to the pool as a whole, the same work outlasts it.
    result?.await??;
    let leader = pool.write_within(Duration::from_secs(60)).await?;
    let rows = leader.query_one("SELECT count(*) FROM account WHERE id = 2", &[]).await?;
    ensure!(rows.get::<_, i64>(0) == 1);
    drop(leader);
    bed.cluster.wait_healthy(Duration::from_secs(60)).await?;
    Ok(pool.close().await?)
}
