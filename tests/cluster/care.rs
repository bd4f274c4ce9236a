//! The care of connections that nobody uses, or that somebody does not give back.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};
use leaderpool::report::NodeReport;
use leaderpool::tokio_postgres;
use leaderpool::{LeaderPool, Report};
use tokio::time::{Instant, sleep};
use tracing::Instrument;

use crate::bed::{Bed, eventually};

fn node<'a>(report: &'a Report, name: &str) -> anyhow::Result<&'a NodeReport> {
    report.nodes.iter().find(|node| node.name == name).with_context(|| format!("no {name}"))
}

/// The sessions of one pool on one node, by process; its probe's included.
async fn sessions(
    session: &tokio_postgres::Client,
    application: &str,
) -> Result<BTreeSet<i32>, tokio_postgres::Error> {
    let question = "SELECT pid FROM pg_stat_activity WHERE application_name = $1";
    let rows = session.query(question, &[&application]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

fn signal(signal: &str, pid: i32) -> anyhow::Result<()> {
    let status = std::process::Command::new("kill").args([signal, &pid.to_string()]).status()?;
    ensure!(status.success(), "kill {signal} {pid}");
    Ok(())
}

/// So many are ready on the leader and on one replica, never more than may be; they are no worse for being
/// idle, and follow the leader.
pub async fn some_are_kept_ready(bed: &Bed) -> anyhow::Result<()> {
    const READY: usize = 3;
    const MOST: usize = 4;
    let mut config = bed.config()?;
    config.pool.min_idle = READY;
    config.pool.max_size = MOST;
    config.pool.idle_timeout = Duration::from_millis(400);
    config.postgres.application_name = "kept_ready".into();
    let pool = LeaderPool::connect(config).await?;
    let ready = async |leader: &str| {
        let ready = eventually("connections are ready", Duration::from_secs(20), async || {
            let report = pool.report();
            let idle: Vec<(String, usize)> =
                report.nodes.iter().map(|node| (node.name.clone(), node.pool.idle)).collect();
            let on = |name: &str| idle.iter().find(|(of, _)| of == name).map(|(_, idle)| *idle);
            let full = idle.iter().filter(|(_, idle)| *idle == READY).count();
            let none = idle.iter().filter(|(_, idle)| *idle == 0).count();
            // The leader and its successor have them, and the third node has none.
            if on(leader) == Some(READY) && full == 2 && none == 1 {
                Ok(idle)
            } else {
                Err(format!("{idle:?}"))
            }
        });
        ready.await
    };
    let leader = bed.cluster.primary().await?;
    let session = bed.cluster.connect(&leader).await?;
    ready(&leader).await?;

    // The same ones, long after the idle time has passed.
    let before = sessions(&session, "kept_ready").await?;
    sleep(Duration::from_secs(2)).await;
    let after = sessions(&session, "kept_ready").await?;
    ensure!(before == after, "made anew: {before:?}, {after:?}");

    // In use, they are replaced, as far as there is room.
    let held = (pool.write().await?, pool.write().await?);
    eventually("the rest is ready", Duration::from_secs(10), async || {
        let report = pool.report();
        let node = node(&report, &leader).map_err(|error| error.to_string())?;
        if node.pool.idle == MOST - 2 { Ok(()) } else { Err(format!("{:?}", node.pool)) }
    })
    .await?;
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        let now = sessions(&session, "kept_ready").await?.len();
        ensure!(now <= MOST + 1, "{now} sessions, with the probe's");
        sleep(Duration::from_millis(20)).await;
    }
    drop(held);

    // What is too many goes, and the others stay.
    ready(&leader).await?;
    let new = bed.replica().await?;
    bed.cluster.switchover(&leader, &new).await?;
    pool.write_within(Duration::from_secs(60)).await?;
    bed.cluster.wait_healthy(Duration::from_secs(60)).await?;
    ready(&new).await?;
    Ok(pool.close().await?)
}

/// An idle connection is asked for a sign of life; the one that gives none is gone before anybody meets it.
pub async fn idle_connections_are_asked(bed: &Bed) -> anyhow::Result<()> {
    let mut config = bed.config()?;
    config.pool.min_idle = 0;
    config.pool.keepalive_interval = Duration::from_millis(400);
    config.probe.timeout = Duration::from_millis(500);
    let pool = LeaderPool::connect(config).await?;
    let leader = bed.cluster.primary().await?;
    let session = bed.cluster.connect(&leader).await?;
    let pids = {
        let (a, b) = (pool.write().await?, pool.write().await?);
        let pid = "SELECT pg_backend_pid()";
        let a: i32 = a.query_one(pid, &[]).await?.get(0);
        let b: i32 = b.query_one(pid, &[]).await?.get(0);
        [a, b]
    };
    // What the session itself did last, as the server tells it.
    let asked = async |pid: i32| -> anyhow::Result<f64> {
        let question =
            "SELECT extract(epoch FROM state_change)::float8 FROM pg_stat_activity WHERE pid = $1";
        Ok(session.query_one(question, &[&pid]).await?.get(0))
    };
    let before = [asked(pids[0]).await?, asked(pids[1]).await?];
    sleep(Duration::from_secs(2)).await;
    for (pid, before) in pids.into_iter().zip(before) {
        let after = asked(pid).await?;
        ensure!(after > before + 1.0, "{pid} was not asked: {before}, {after}");
    }
    ensure!(node(&pool.report(), &leader)?.pool.idle == 2);

    // One is dead, and its server does not say so.
    signal("-STOP", pids[0])?;
    let result = async {
        eventually("the dead one is gone", Duration::from_secs(10), async || {
            let report = pool.report();
            let node = node(&report, &leader).map_err(|error| error.to_string())?;
            if node.pool.size == 1 { Ok(()) } else { Err(format!("{:?}", node.pool)) }
        })
        .await?;
        for _ in 0..20 {
            let client = pool.write().await?;
            let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
            ensure!(pid != pids[0], "the dead one was handed out");
        }
        let report = pool.report();
        let node = node(&report, &leader)?;
        ensure!(node.breaker.transitions == 0 && node.problem.is_none(), "{node:?}");
        anyhow::Ok(())
    }
    .await;
    signal("-CONT", pids[0])?;
    result?;
    Ok(pool.close().await?)
}

/// A connection that does not come back is told of, once, by the span in which it was taken.
pub async fn leaks_are_told(bed: &Bed) -> anyhow::Result<()> {
    let mut config = bed.config()?;
    config.pool.leak_after = Duration::from_millis(400);
    let pool = LeaderPool::connect(config).await?;
    let leader = bed.cluster.primary().await?;
    let span = tracing::info_span!(target: "leaderpool", "forgetful", manager = %bed.manager);
    let kept = pool.write().instrument(span).await?;
    for _ in 0..10 {
        drop(pool.write().await?);
    }
    eventually("the leak is counted", Duration::from_secs(5), async || {
        match node(&pool.report(), &leader).map_err(|error| error.to_string())?.leaks {
            1 => Ok(()),
            leaks => Err(format!("{leaks}")),
        }
    })
    .await?;
    sleep(Duration::from_secs(1)).await;
    drop(kept);
    ensure!(node(&pool.report(), &leader)?.leaks == 1);
    let log = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("cluster.log");
    let log = std::fs::read_to_string(log)?;
    let told = format!("forgetful{{manager={}}}", bed.manager);
    let lines: Vec<&str> =
        log.lines().filter(|line| line.contains(&told) && line.contains("WARN")).collect();
    ensure!(lines.len() == 1 && lines[0].contains("pool.leak_after"), "{lines:?}");
    Ok(pool.close().await?)
}
