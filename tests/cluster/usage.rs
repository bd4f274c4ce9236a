//! The pool on a healthy cluster.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};
use leaderpool::patroni::{Lsn, SystemId, Timeline};
use leaderpool::{CausalToken, CheckoutError, Config, LeaderPool, ReadPolicy, Role, TxOptions};
use tokio::time::{Instant, sleep, timeout};

use crate::account::Account;
use crate::bed::{Bed, eventually};

/// Writes meet the primary, reads are spread over the replicas, and each answer says where it came from.
pub async fn reads_and_writes_go_where_they_belong(bed: &Bed) -> anyhow::Result<()> {
    let pool = bed.pool().await?;
    let primary = bed.cluster.primary().await?;
    let recovery = "SELECT pg_is_in_recovery()";
    let mut readers = BTreeSet::new();
    for _ in 0..40 {
        let client = pool.write().await?;
        ensure!(client.node() == primary && client.role() == Role::Write);
        ensure!(!client.query_one(recovery, &[]).await?.get::<_, bool>(0));
        ensure!(client.epoch() == pool.report().epoch);
        let client = pool.read().await?;
        ensure!(client.query_one(recovery, &[]).await?.get::<_, bool>(0));
        readers.insert(client.node().to_owned());
        let client = pool.read_with(ReadPolicy::leader()).await?;
        ensure!(client.node() == primary && client.role() == Role::Read);
    }
    ensure!(readers.len() == 2, "reads go to {readers:?} only");
    let statement = pool.write().await?.prepare_cached("SELECT 1").await?;
    ensure!(statement.params().is_empty());
    let report = serde_json::to_value(pool.report())?;
    ensure!(
        report["leader"] == primary.as_str() && report["nodes"].as_array().map(Vec::len) == Some(3)
    );
    Ok(pool.close().await?)
}

/// A replica that stops replaying is not read under a bound, is read without one, and comes back.
pub async fn bounded_staleness_is_kept(bed: &Bed) -> anyhow::Result<()> {
    let pool = bed.pool().await?;
    let account = Account::open(&pool, 2);
    let fresh = || ReadPolicy::at_most_behind(Duration::from_secs(1)).or_wait();
    pool.read_with(fresh()).await?;
    let paused = bed.replica().await?;
    // Its manager would resume the replay within a second.
    bed.cluster.freeze_manager(&paused).await?;
    let session = bed.cluster.connect(&paused).await?;
    session.batch_execute("SELECT pg_wal_replay_pause()").await?;
    let result = async {
        sleep(Duration::from_millis(1500)).await;
        let mut under_no_bound = BTreeSet::new();
        for _ in 0..100 {
            let client = pool.read_with(fresh()).await?;
            ensure!(
                client.node() != paused,
                "a read under a bound went to the paused replica: {:?}",
                pool.report().nodes
            );
            under_no_bound.insert(pool.read().await?.node().to_owned());
            sleep(Duration::from_millis(5)).await;
        }
        ensure!(under_no_bound.contains(&paused), "without a bound it is as good as any");
        let bytes = ReadPolicy::at_most_bytes_behind(1).or_error();
        let lag =
            pool.report().nodes.iter().find(|node| node.name == paused).and_then(|n| n.lag_bytes);
        ensure!(lag.is_some_and(|lag| lag > 0), "lag of the paused replica: {lag:?}");
        if let Ok(client) = pool.read_with(bytes).await {
            ensure!(client.node() != paused);
        }
        anyhow::Ok(())
    }
    .await;
    session.batch_execute("SELECT pg_wal_replay_resume()").await?;
    bed.cluster.thaw_manager(&paused).await?;
    result?;
    eventually("the replica is fresh again", Duration::from_secs(10), async || {
        let client = pool.read_with(fresh()).await.map_err(|error| error.to_string())?;
        if client.node() == paused { Ok(()) } else { Err(client.node().to_owned()) }
    })
    .await?;
    account.close(bed, false).await?;
    Ok(pool.close().await?)
}

/// Futures dropped at any moment: what they asked for is cancelled, and nobody gets their connection.
pub async fn abandoned_work_leaves_no_mess(bed: &Bed) -> anyhow::Result<()> {
    let mut config = bed.config()?;
    config.pool.max_size = 4;
    let pool = LeaderPool::connect(config).await?;
    // A long statement, given up.
    for _ in 0..4 {
        let client = pool.write().await?;
        let asleep = client.batch_execute("SELECT pg_sleep(60)");
        ensure!(timeout(Duration::from_millis(50), asleep).await.is_err());
    }
    let started = Instant::now();
    let client = pool.write().await?;
    client.batch_execute("SELECT 1").await?;
    ensure!(started.elapsed() < Duration::from_secs(2), "waited behind an abandoned statement");
    eventually("the statements are cancelled", Duration::from_secs(5), async || {
        let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%' \
                        AND state = 'active' AND pid <> pg_backend_pid()";
        let row = client.query_one(sleeping, &[]).await.map_err(|error| error.to_string())?;
        match row.get::<_, i64>(0) {
            0 => Ok(()),
            count => Err(format!("{count} still asleep")),
        }
    })
    .await?;
    // A transaction begun by hand, given up before the driver could even send it, and the connection asked
    // for again at once.
    for _ in 0..20 {
        let client = pool.write().await?;
        {
            let begin = client.batch_execute("BEGIN; INSERT INTO account VALUES (-4, 0)");
            let mut begin = std::pin::pin!(begin);
            futures_util::future::poll_fn(|cx| {
                let _ = begin.as_mut().poll(cx);
                std::task::Poll::Ready(())
            })
            .await;
        }
        drop(client);
        let next = pool.write().await?;
        let row = next.query_one("SELECT pg_current_xact_id_if_assigned() IS NULL", &[]).await?;
        ensure!(row.get::<_, bool>(0), "lent out with a BEGIN on its way");
    }
    // A transaction, given up before and in the middle of a statement.
    for middle in [false, true] {
        let mut client = pool.write().await?;
        let transaction = client.transaction().await?;
        transaction.batch_execute("INSERT INTO account VALUES (-1, 0)").await?;
        if middle {
            let asleep = transaction.batch_execute("SELECT pg_sleep(60)");
            ensure!(timeout(Duration::from_millis(50), asleep).await.is_err());
        }
    }
    // BEGIN by hand, forgotten.
    pool.write().await?.batch_execute("BEGIN; INSERT INTO account VALUES (-2, 0)").await?;
    // Many, at random moments.
    let mut tasks = tokio::task::JoinSet::new();
    for round in 0..400_u64 {
        let pool = pool.clone();
        tasks.spawn(async move {
            let work = async {
                let mut client = pool.write().await?;
                let transaction = client.transaction().await?;
                transaction.batch_execute("INSERT INTO account VALUES (-3, 0)").await?;
                transaction.batch_execute("SELECT pg_sleep(0.002)").await?;
                transaction.rollback().await?;
                anyhow::Ok(())
            };
            let _ = timeout(Duration::from_micros(round * 37 % 9000), work).await;
        });
    }
    while tasks.join_next().await.is_some() {}
    for _ in 0..8 {
        let client = pool.write().await?;
        // A forgotten transaction has written, and began before.
        let fresh = "SELECT pg_current_xact_id_if_assigned() IS NULL \
                     AND now() > statement_timestamp() - interval '50 ms', \
                     (SELECT count(*) FROM account)";
        let row = client.query_one(fresh, &[]).await?;
        ensure!(row.get::<_, bool>(0), "lent out inside a transaction");
        ensure!(row.get::<_, i64>(1) == 0, "an abandoned insert was kept");
    }
    drop(client);
    eventually("everything came back", Duration::from_secs(5), async || {
        let report = pool.report();
        if report.lent == 0 && report.waiting == 0 { Ok(()) } else { Err(format!("{report:?}")) }
    })
    .await?;
    Ok(pool.close().await?)
}

/// `close` waits for connections that are out, up to its deadline; afterwards nothing is lent.
pub async fn closing_waits_for_what_is_out(bed: &Bed) -> anyhow::Result<()> {
    let mut config = bed.config()?;
    config.pool.close_timeout = Duration::from_secs(5);
    let pool = LeaderPool::connect(config.clone()).await?;
    let client = pool.write().await?;
    let closing = tokio::spawn({
        let pool = pool.clone();
        async move { pool.close().await }
    });
    sleep(Duration::from_millis(200)).await;
    ensure!(!closing.is_finished(), "it did not wait");
    client.batch_execute("SELECT 1").await?;
    drop(client);
    closing.await??;
    ensure!(matches!(pool.write().await, Err(CheckoutError::Closed)));
    ensure!(matches!(pool.read().await, Err(CheckoutError::Closed)));

    config.pool.close_timeout = Duration::from_millis(600);
    let pool = LeaderPool::connect(config).await?;
    let client = pool.write().await?;
    let error = pool.close().await.expect_err("one is still out");
    ensure!(error.still_out == 1, "{error}");
    drop(client);
    Ok(())
}

/// Without etcd, the members' REST API says who leads.
pub async fn rest_alone_is_a_source(bed: &Bed) -> anyhow::Result<()> {
    let mut config = bed.config()?;
    config.etcd = None;
    let pool = LeaderPool::connect(config).await?;
    let old = bed.cluster.primary().await?;
    ensure!(pool.write().await?.node() == old);
    let account = Account::open(&pool, 2);
    let new = bed.replica().await?;
    let since = Instant::now();
    bed.cluster.switchover(&old, &new).await?;
    let (_, node) = account.first_ack_elsewhere(since, &old).await?;
    ensure!(node == new);
    account.close(bed, false).await?;
    Ok(pool.close().await?)
}

/// Without any of them, the servers themselves do.
pub async fn a_host_list_is_a_source(bed: &Bed) -> anyhow::Result<()> {
    let nodes = bed.cluster.nodes();
    let hosts = nodes.iter().map(|node| format!("127.0.0.1:{}", node.postgres_port()));
    let own = bed.config()?;
    let mut config = Config::builder().fixed(hosts).user("postgres").build()?;
    config.postgres = own.postgres.clone();
    let pool = LeaderPool::connect(config).await?;
    let old = bed.cluster.primary().await?;
    let port = bed.cluster.node(&old)?.postgres_port();
    ensure!(pool.write().await?.node() == format!("127.0.0.1:{port}"));
    let account = Account::open(&pool, 2);
    let new = bed.replica().await?;
    bed.cluster.switchover(&old, &new).await?;
    let (_, node) =
        account.first_ack_elsewhere(Instant::now(), &format!("127.0.0.1:{port}")).await?;
    ensure!(node.ends_with(&bed.cluster.node(&new)?.postgres_port().to_string()), "{node}");
    account.close(bed, false).await?;
    Ok(pool.close().await?)
}

/// Whoever holds the token of a write reads it, from wherever, while replicas stop and go.
pub async fn tokens_read_their_own_writes(bed: &Bed) -> anyhow::Result<()> {
    let (writes, reads) = (bed.pool().await?, bed.pool().await?);
    let primary = bed.cluster.primary().await?;
    let mut replicas = Vec::new();
    for node in bed.cluster.nodes().iter().filter(|node| node.name() != primary) {
        // Its manager would resume the replay.
        bed.cluster.freeze_manager(node.name()).await?;
        replicas.push(bed.cluster.connect(node.name()).await?);
    }
    let result = async {
        let mut pairs = tokio::task::JoinSet::new();
        for worker in 0..8_i64 {
            let (writes, reads) = (writes.clone(), reads.clone());
            pairs.spawn(async move {
                let mut from_replicas = 0;
                for number in 0..150_i64 {
                    let id = worker * 1000 + number;
                    let options = TxOptions::new();
                    let insert = "INSERT INTO account VALUES ($1, 0)";
                    let done = writes.execute_write_with(&options, insert, &[&id]).await?;
                    let token = done.token.context("a write gives a token")?;
                    // As another process would get it.
                    let token: CausalToken = token.to_string().parse()?;
                    let client = reads.read_with(ReadPolicy::after(token)).await?;
                    let found = client
                        .query_one("SELECT count(*) FROM account WHERE id = $1", &[&id])
                        .await?;
                    ensure!(found.get::<_, i64>(0) == 1, "a stale read from {}", client.node());
                    from_replicas += usize::from(!client.is_leader());
                }
                anyhow::Ok(from_replicas)
            });
        }
        let mut from_replicas = 0;
        let mut paused = false;
        let until = Instant::now() + Duration::from_secs(15);
        while !pairs.is_empty() {
            ensure!(Instant::now() < until, "too slow: the managers must not stay frozen");
            paused = !paused;
            let command = if paused { "pg_wal_replay_pause" } else { "pg_wal_replay_resume" };
            for replica in &replicas {
                replica.batch_execute(&format!("SELECT {command}()")).await?;
            }
            let wait = Instant::now() + Duration::from_millis(120);
            while let Ok(Some(done)) = tokio::time::timeout_at(wait, pairs.join_next()).await {
                from_replicas += done??;
            }
        }
        eprintln!("  1200 pairs, {from_replicas} read from replicas");
        ensure!(from_replicas > 100 && from_replicas < 1200, "all from one side: {from_replicas}");
        anyhow::Ok(())
    }
    .await;
    for (replica, node) in
        replicas.iter().zip(bed.cluster.nodes().iter().filter(|node| node.name() != primary))
    {
        replica.batch_execute("SELECT pg_wal_replay_resume()").await?;
        bed.cluster.thaw_manager(node.name()).await?;
    }
    result?;

    // A token of another cluster is told apart at once.
    let token = CausalToken { system_id: SystemId(1), timeline: Timeline(1), lsn: Lsn(1) };
    let error = reads.read_with(ReadPolicy::after(token)).await.expect_err("not of this cluster");
    ensure!(matches!(error, CheckoutError::Token { .. }), "{error}");
    writes.close().await?;
    Ok(reads.close().await?)
}

/// A token stays good across a failover that kept its write; one beyond the switch point says that it is
/// lost, and the pool that gave it out reports it.
pub async fn tokens_know_what_a_failover_kept(bed: &Bed) -> anyhow::Result<()> {
    let pool = bed.pool().await?;
    let old = bed.cluster.primary().await?;
    let insert = "INSERT INTO account VALUES ($1, 0)";
    let kept = pool.execute_write_with(&TxOptions::new(), insert, &[&1_i64]).await?;
    let kept = kept.token.context("a token")?;
    // Once a replica has it, stop the senders, so that the next commit stays where it is.
    pool.read_with(ReadPolicy::after(kept).or_wait()).await?;
    let senders = bed
        .cluster
        .connect(&old)
        .await?
        .query("SELECT pid::text FROM pg_stat_replication", &[])
        .await?;
    ensure!(senders.len() == 2, "{} senders", senders.len());
    let pids = senders.iter().map(|row| row.get::<_, String>(0));
    let stopped = std::process::Command::new("kill").arg("-STOP").args(pids).status()?;
    ensure!(stopped.success());
    let lost = pool.execute_write_with(&TxOptions::new(), insert, &[&2_i64]).await;
    bed.cluster.kill_node(&old).await?;
    let lost = lost?.token.context("a token")?;
    let client = pool.write_within(Duration::from_secs(60)).await?;
    ensure!(client.node() != old);
    drop(client);
    let client = pool.read_with(ReadPolicy::after(kept)).await?;
    let row = client.query_one("SELECT count(*) FROM account WHERE id = 1", &[]).await?;
    ensure!(row.get::<_, i64>(0) == 1, "a kept write is not there");
    drop(client);
    let rows = pool.query_read_with(ReadPolicy::leader(), "SELECT id FROM account", &[]).await?;
    ensure!(rows.len() == 1, "the commit had left the machine after all");
    let error = pool.read_with(ReadPolicy::after(lost)).await.expect_err("its write is lost");
    ensure!(error.to_string().contains("lost in a failover"), "{error}");
    let report = eventually("the loss is reported", Duration::from_secs(20), async || {
        let report = pool.report();
        if report.lost_writes.is_empty() { Err("nothing".to_owned()) } else { Ok(report) }
    })
    .await?;
    ensure!(report.lost_writes[0].count == 1 && report.lost_writes[0].last == lost);
    bed.cluster.start_node(&old).await?;
    bed.cluster.wait_healthy(Duration::from_secs(60)).await?;
    Ok(pool.close().await?)
}
