//! The faults that everything else relies on, against both versions of Patroni.

use std::time::Duration;

use anyhow::{Result, ensure};
use leaderpool_testbed::{Cluster, ClusterBuilder, Manager};
use tokio::time::Instant;

const MINUTE: Duration = Duration::from_secs(60);

/// Prints what a step took: the run's log is where the speed of the testbed itself is watched.
async fn timed<T>(what: &str, step: impl Future<Output = Result<T>>) -> Result<T> {
    let began = Instant::now();
    let result = step.await?;
    println!("{what}: {:.2?}", began.elapsed());
    Ok(result)
}

async fn write(cluster: &Cluster, node: &str) -> Result<()> {
    let client = cluster.connect(node).await?;
    client.batch_execute("create table if not exists t (n int); insert into t values (1)").await?;
    Ok(())
}

/// Whose node is killed. A primary's costs its lease, 20 s, so only one of the tests does that.
#[derive(Clone, Copy)]
enum Victim {
    Primary,
    Replica,
}

async fn exercise(cluster: &Cluster, victim: Victim) -> Result<()> {
    let first = cluster.primary().await?;
    ensure!(first == "patroni-master", "the first node bootstraps, not {first}");
    ensure!(cluster.leader_key().await?.as_deref() == Some("patroni-master"));
    write(cluster, &first).await?;
    let poller = cluster.poll_writable(Duration::from_millis(5));

    let second = "patroni-replica1";
    timed("switchover", async {
        let began = Instant::now();
        cluster.switchover(&first, second).await?;
        let (writable, _) = poller.wait_other_writable(began, &first, MINUTE).await?;
        ensure!(writable == second, "{writable} was promoted, not {second}");
        ensure!(cluster.wait_healthy(MINUTE).await? == second);
        Ok(())
    })
    .await?;

    timed("kill_postmaster, healthy again", async {
        let before = cluster.node(second)?.postmaster()?.pid;
        cluster.kill_postmaster(second).await?;
        // Patroni starts a crashed primary again where it was; one that had no time to is replaced.
        let healthy = cluster.wait_healthy(MINUTE).await?;
        ensure!(cluster.node(second)?.postmaster()?.pid != before);
        write(cluster, &healthy).await
    })
    .await?;

    let killed = match victim {
        Victim::Primary => cluster.primary().await?,
        Victim::Replica => "patroni-replica2".to_owned(),
    };
    let primary = timed("kill_node, a writable other", async {
        let moment = Instant::now();
        cluster.kill_node(&killed).await?;
        ensure!(cluster.node(&killed)?.processes().is_empty(), "something survived");
        let primary = match victim {
            Victim::Primary => poller.wait_other_writable(moment, &killed, MINUTE).await?.0,
            Victim::Replica => cluster.wait_healthy(MINUTE).await?,
        };
        write(cluster, &primary).await?;
        Ok(primary)
    })
    .await?;
    timed("start_node, healthy again", async {
        cluster.start_node(&killed).await?;
        ensure!(cluster.wait_healthy(MINUTE).await? == primary);
        Ok(())
    })
    .await?;

    timed("freeze and thaw a replica", async {
        cluster.freeze_node(&killed).await?;
        let silent =
            tokio::time::timeout(Duration::from_millis(500), cluster.connect(&killed)).await;
        ensure!(silent.is_err(), "a frozen server answered");
        cluster.thaw_node(&killed).await?;
        cluster.wait_healthy(MINUTE).await?;
        cluster.freeze_postmaster(&killed).await?;
        let silent =
            tokio::time::timeout(Duration::from_millis(500), cluster.connect(&killed)).await;
        ensure!(silent.is_err(), "a frozen postmaster answered");
        ensure!(cluster.node(&killed)?.rest().get("/liveness", MINUTE).await?.status == 200);
        cluster.thaw_postmaster(&killed).await?;
        cluster.wait_healthy(MINUTE).await?;
        Ok(())
    })
    .await?;

    let intervals = poller.intervals();
    ensure!(poller.overlaps().is_empty(), "two were writable at once: {intervals:#?}");
    ensure!(intervals.iter().any(|i| i.node == primary && i.open), "{intervals:#?}");
    Ok(())
}

async fn start_and_exercise(manager: Manager, victim: Victim) {
    let run = async {
        let builder = ClusterBuilder::fast().manager(manager);
        let cluster = timed("start, 3 nodes", builder.start()).await?;
        exercise(&cluster, victim).await?;
        let dir = cluster.dir().to_owned();
        timed("shutdown", cluster.shutdown()).await?;
        ensure!(leaderpool_testbed::process::scan::under(&dir).is_empty());
        drop(cluster);
        ensure!(!dir.exists() || std::env::var_os("TESTBED_KEEP").is_some());
        Ok(())
    };
    if let Err(error) = run.await {
        panic!("{error:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn patroni_4_survives_the_faults() {
    start_and_exercise(Manager::Patroni4, Victim::Primary).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn patroni_3_survives_the_faults() {
    start_and_exercise(Manager::Patroni3, Victim::Replica).await;
}
