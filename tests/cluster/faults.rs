//! The leader goes away, in every way it can.

use std::time::{Duration, SystemTime};

use anyhow::ensure;
use leaderpool::{LeaderPool, TopologyEvent};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::account::Account;
use crate::bed::{Bed, Manager, eventually};

const POLL: Duration = Duration::from_millis(5);

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Prints how long after the server turned writable the pool's first commit was acknowledged.
fn tell(what: &str, since: Instant, writable: Instant, acked: Instant) {
    eprintln!(
        "  {what}: writable after {:.0} ms, first pooled commit {:+.1} ms later",
        ms(writable - since),
        acked.saturating_duration_since(writable).as_secs_f64() * 1000.0,
    );
}

/// A planned change of leader: the key moves before the promotion.
pub async fn switchover(bed: &Bed) -> anyhow::Result<()> {
    let pool = bed.pool().await?;
    let account = Account::open(&pool, 8);
    let poller = bed.cluster.poll_writable(POLL);
    let mut epochs = vec![pool.report().epoch];
    for _ in 0..2 {
        let old = bed.cluster.wait_healthy(Duration::from_secs(60)).await?;
        let new = bed.replica().await?;
        account.first_ack_after(Instant::now()).await?;
        let since = Instant::now();
        bed.cluster.switchover(&old, &new).await?;
        let (acked, node) = account.first_ack_elsewhere(since, &old).await?;
        ensure!(node == new, "commits go to {node}, not to {new}");
        let writable = poller.first_writable_after(since, &new).expect("it was promoted");
        tell("switchover", since, writable.at, acked);
        epochs.push(pool.report().epoch);
    }
    let summary = account.close(bed, false).await?;
    eprintln!("  {summary:?}");
    let ordered = epochs.windows(2).all(|pair| match (pair[0], pair[1]) {
        (Some(before), Some(after)) => after.is_at_least(&before) && after != before,
        _ => false,
    });
    ensure!(ordered, "the epochs do not grow: {epochs:?}");
    ensure!(poller.overlaps().is_empty(), "two nodes were writable at once");
    let failovers = pool.report().failovers;
    ensure!(failovers.len() >= 2, "the report misses a failover: {failovers:?}");
    Ok(pool.close().await?)
}

/// A switchover that is asked for and never comes: writes are held for some seconds, once, and then the reign
/// goes on with the connections it had. Garbage in that key holds nothing.
pub async fn switchover_that_never_comes(bed: &Bed) -> anyhow::Result<()> {
    let mut config = bed.config()?;
    config.pool.max_size = 2;
    let pool = LeaderPool::connect(config).await?;
    let (leader, other) = (bed.cluster.primary().await?, bed.replica().await?);
    let pid = async || -> anyhow::Result<i32> {
        let row = pool.write().await?.query_one("SELECT pg_backend_pid()", &[]).await?;
        Ok(row.get(0))
    };
    let at_work = pool.write().await?;
    let (before, idle) = (pool.report(), pid().await?);
    let mut events = pool.events();
    // It would clear the key.
    bed.cluster.freeze_manager(&leader).await?;
    let result = async {
        let request = format!(r#"{{"leader":"{leader}","member":"{other}"}}"#);
        let asked = Instant::now();
        bed.cluster.put_key("failover", &request).await?;
        let held = eventually("writes are held", Duration::from_secs(5), async || {
            let report = pool.report();
            if report.leader.is_none() { Ok(report) } else { Err(report.leader_state) }
        })
        .await?;
        ensure!(held.leader_state.contains(&format!("give it to {other}")), "{held:?}");
        // What is in flight goes on.
        at_work.batch_execute("SELECT pg_sleep(0.5)").await?;
        let resumed = pid().await?;
        eprintln!("  held for {:.1} s", asked.elapsed().as_secs_f64());
        ensure!(resumed == idle, "the connection was not kept");
        let after = pool.report();
        ensure!(after.epoch == before.epoch && after.leader == before.leader, "{after:?}");
        at_work.batch_execute("SELECT 1").await?;
        for value in ["{}", &request, "{", "[1]", "\u{7f}", &request, "a:b:c", &request, "{}"] {
            bed.cluster.put_key("failover", value).await?;
            ensure!(pid().await? == idle, "held once more, for {value}");
        }
        // Another pool, and a request for later.
        let later = bed.pool().await?;
        let due = SystemTime::now() + Duration::from_millis(1500);
        let at = humantime::format_rfc3339_micros(due);
        let request = format!(r#"{{"leader":"{leader}","scheduled_at":"{at}"}}"#);
        bed.cluster.put_key("failover", &request).await?;
        eventually("the request is seen", Duration::from_secs(5), async || {
            later.report().switchover.map(|_| ()).ok_or_else(|| "none".to_owned())
        })
        .await?;
        let early = later.report();
        ensure!(early.leader.is_some() || SystemTime::now() >= due, "held at once");
        eventually("it is due", Duration::from_secs(5), async || {
            later.report().leader.is_none().then_some(()).ok_or_else(|| "not held".to_owned())
        })
        .await?;
        // It is written to the microsecond.
        ensure!(SystemTime::now() + Duration::from_micros(1) >= due, "held too early");
        bed.cluster.put_key("failover", "{}").await?;
        drop(later.write().await?);
        Ok(later.close().await?)
    }
    .await;
    bed.cluster.put_key("failover", "{}").await?;
    bed.cluster.thaw_manager(&leader).await?;
    result?;
    let mut lost = Vec::new();
    while let Ok(event) = events.try_recv() {
        if let TopologyEvent::LeaderLost { reason, .. } = event {
            lost.push(reason.to_string());
        }
    }
    ensure!(lost == [format!("a switchover to {other} is under way")], "{lost:?}");
    drop(at_work);
    Ok(pool.close().await?)
}

/// The server crashes and is started again where it was.
pub async fn postmaster_killed(bed: &Bed) -> anyhow::Result<()> {
    let pool = bed.pool().await?;
    let account = Account::open(&pool, 8);
    let poller = bed.cluster.poll_writable(POLL);
    for _ in 0..2 {
        let old = bed.cluster.wait_healthy(Duration::from_secs(60)).await?;
        account.first_ack_after(Instant::now()).await?;
        let since = Instant::now();
        bed.cluster.kill_postmaster(&old).await?;
        let (last, acked, node) = account.first_gap_after(since).await?;
        let writable = poller.first_writable_after(last, &node).expect("it is writable");
        tell("postmaster killed", since, writable.at, acked);
    }
    let summary = account.close(bed, false).await?;
    eprintln!("  {summary:?}");
    ensure!(poller.overlaps().is_empty(), "two nodes were writable at once");
    Ok(pool.close().await?)
}

/// The whole machine dies: its lease must run out first. In synchronous mode nothing acknowledged is lost.
pub async fn node_killed(bed: &Bed) -> anyhow::Result<()> {
    bed.cluster.patch_config(&json!({"synchronous_mode": true})).await?;
    eventually("a synchronous standby", Duration::from_secs(30), async || {
        let key = bed.cluster.get_key("sync").await.map_err(|error| error.to_string())?;
        let value = key.map(|key| key.value).unwrap_or_default();
        if value.contains("patroni-") && !value.contains("\"sync_standby\":null") {
            Ok(())
        } else {
            Err(value)
        }
    })
    .await?;
    let result = kill_node_under_load(bed).await;
    bed.cluster.patch_config(&json!({"synchronous_mode": null})).await?;
    result
}

async fn kill_node_under_load(bed: &Bed) -> anyhow::Result<()> {
    let pool = bed.pool().await?;
    eventually("the pool sees the mode", Duration::from_secs(5), async || {
        if pool.report().synchronous { Ok(()) } else { Err("asynchronous".to_owned()) }
    })
    .await?;
    let account = Account::open(&pool, 8);
    let poller = bed.cluster.poll_writable(POLL);
    let old = bed.cluster.primary().await?;
    account.first_ack_after(Instant::now()).await?;
    let since = Instant::now();
    bed.cluster.kill_node(&old).await?;
    let (acked, node) = account.first_ack_elsewhere(since, &old).await?;
    let writable = poller.first_writable_after(since, &node).expect("it was promoted");
    tell("node killed", since, writable.at, acked);
    bed.cluster.start_node(&old).await?;
    bed.cluster.wait_streaming(&old, Duration::from_secs(60)).await?;
    eventually("the old leader reads again", Duration::from_secs(10), async || {
        let report = pool.report();
        let node = report.nodes.iter().find(|node| node.name == old);
        match node {
            Some(node) if node.problem.is_none() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;
    let summary = account.close(bed, false).await?;
    eprintln!("  {summary:?}");
    Ok(pool.close().await?)
}

/// The machine hangs with its connections open, another leads, and then it wakes up believing that it
/// still does.
pub async fn primary_frozen(bed: &Bed) -> anyhow::Result<()> {
    let pool = bed.pool().await?;
    // More than its pool holds: those who wait for the frozen node's connections must not stay there.
    let account = Account::open(&pool, 60);
    let old = bed.cluster.primary().await?;
    account.first_ack_after(Instant::now()).await?;
    let since = Instant::now();
    bed.cluster.freeze_node(&old).await?;
    eventually("writes are held", Duration::from_secs(5), async || {
        let report = pool.report();
        report.leader.is_none().then_some(()).ok_or(report.leader_state)
    })
    .await?;
    let (acked, node) = account.first_ack_elsewhere(since, &old).await?;
    // All of them go on, not only the first.
    let leader = bed.cluster.connect(&node).await?;
    let newest: i64 = leader.query_one("SELECT max(id) FROM account", &[]).await?.get(0);
    let going_on = "SELECT count(DISTINCT writer) FROM account WHERE id > $1";
    eventually("every writer goes on", Duration::from_secs(3), async || {
        let row =
            leader.query_one(going_on, &[&newest]).await.map_err(|error| error.to_string())?;
        let writers: i64 = row.get(0);
        if writers == 60 { Ok(()) } else { Err(format!("{writers} of 60")) }
    })
    .await?;
    eprintln!(
        "  primary frozen: first pooled commit on {node} after {:.1} s",
        ms(acked - since) / 1e3
    );
    bed.cluster.thaw_node(&old).await?;
    // For some moments it says that it is writable, on its old timeline.
    let thawed = Instant::now();
    let mut robbed = false;
    while thawed.elapsed() < Duration::from_secs(3) {
        ensure!(pool.report().leader.as_deref() != Some(&*old), "the thawed node was admitted");
        robbed |= bed.leader_key().await? == old;
        sleep(POLL).await;
    }
    if robbed {
        // Patroni 3.0.2 renews by an unconditional put where its lease ran out, and so its thawed leader may
        // take the key from the new one, which steps down: two histories, with what was acknowledged since the
        // failover in the one that lost. All that a pool can do is to write to neither.
        ensure!(bed.manager == Manager::Patroni3, "the thawed node took the key back");
        eprintln!("  the thawed node's manager took the key back: writes stay held");
        let taken = Instant::now();
        while taken.elapsed() < Duration::from_secs(5) {
            let report = pool.report();
            ensure!(report.leader.as_deref() != Some(&*old), "the thawed node was admitted");
            sleep(POLL).await;
        }
        let refused = pool.report().nodes.into_iter().find(|node| node.name == old);
        let problem = refused.and_then(|node| node.problem).unwrap_or_default();
        ensure!(problem.contains("former primary"), "{old} is not refused: {problem:?}");
        bed.spoil();
        drop(account);
        return Ok(pool.close().await?);
    }
    bed.cluster.wait_streaming(&old, Duration::from_secs(60)).await?;
    // Asynchronous: what the frozen node acknowledged last may not have left it.
    let summary = account.close(bed, true).await?;
    eprintln!("  {summary:?}");
    Ok(pool.close().await?)
}

/// Somebody deletes the leader key. Its holder takes it again, or another does; nobody is written to in
/// between.
pub async fn leader_key_deleted(bed: &Bed) -> anyhow::Result<()> {
    let pool = bed.pool().await?;
    let account = Account::open(&pool, 8);
    account.first_ack_after(Instant::now()).await?;
    let before = pool.report();
    let since = Instant::now();
    bed.cluster.delete_leader_key().await?;
    let report = eventually("a new reign of the key", Duration::from_secs(30), async || {
        let report = pool.report();
        match (report.epoch, before.epoch) {
            (Some(now), Some(then)) if now.revision > then.revision && report.leader.is_some() => {
                Ok(report)
            }
            _ => Err(report.leader_state),
        }
    })
    .await?;
    eprintln!(
        "  leader key deleted: {:?} -> {:?} after {:.0} ms",
        before.leader,
        report.leader,
        ms(since.elapsed())
    );
    account.first_ack_after(Instant::now()).await?;
    let same = report.leader == before.leader;
    let timelines = (before.epoch.map(|e| e.timeline), report.epoch.map(|e| e.timeline));
    ensure!(
        same == (timelines.0 == timelines.1),
        "leader and timeline change together: {timelines:?}"
    );
    // Where the key was taken by another, the old leader's last commits may be lost.
    let summary = account.close(bed, !same).await?;
    eprintln!("  {summary:?}");
    Ok(pool.close().await?)
}
