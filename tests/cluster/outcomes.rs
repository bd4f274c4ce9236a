//! Work given to the pool as a whole: no error where waiting helps, no row twice, no commit left in doubt.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use leaderpool::{
    Epoch, LeaderPool, OperationError, Outcome, TopologyEvent, TransactionError, TxOptions,
};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::account::{Account, Lent};
use crate::bed::{Bed, eventually};

const WRITERS: usize = 64;
const TIMES: usize = 10;

/// What one writer was told of one row.
#[derive(Debug, Clone)]
enum Told {
    Committed { settled: bool, took: Duration },
    Failed { outcome: Outcome, why: String },
}

/// Writers that hand each insert to the pool.
struct Writers {
    stop: CancellationToken,
    tasks: JoinSet<Vec<(i64, Told)>>,
    acked: Arc<AtomicI64>,
}

impl Writers {
    fn start(pool: &LeaderPool, within: Duration) -> Self {
        let stop = CancellationToken::new();
        let (next, acked) = (Arc::new(AtomicI64::new(1)), Arc::new(AtomicI64::new(0)));
        let mut tasks = JoinSet::new();
        for writer in 0..WRITERS {
            let (pool, stop, next) = (pool.clone(), stop.clone(), Arc::clone(&next));
            let acked = Arc::clone(&acked);
            tasks.spawn(async move {
                let options = TxOptions::new().within(within);
                let mut told = Vec::new();
                while !stop.is_cancelled() {
                    let id = next.fetch_add(1, Ordering::Relaxed);
                    let started = Instant::now();
                    let insert = "INSERT INTO account VALUES ($1, $2)";
                    let done =
                        pool.execute_write_with(&options, insert, &[&id, &(writer as i32)]).await;
                    told.push((
                        id,
                        match done {
                            Ok(done) => {
                                acked.fetch_add(1, Ordering::Relaxed);
                                Told::Committed { settled: done.settled, took: started.elapsed() }
                            }
                            Err(error) => {
                                Told::Failed { outcome: error.outcome(), why: error.to_string() }
                            }
                        },
                    ));
                    sleep(Duration::from_millis(20)).await;
                }
                told
            });
        }
        Self { stop, tasks, acked }
    }

    async fn progress(&self) -> anyhow::Result<()> {
        let before = self.acked.load(Ordering::Relaxed);
        eventually("commits go on", Duration::from_secs(60), async || {
            let now = self.acked.load(Ordering::Relaxed);
            if now > before + WRITERS as i64 { Ok(()) } else { Err(format!("{before} -> {now}")) }
        })
        .await
    }

    /// Stops them and holds what they were told against the table.
    async fn finish(mut self, bed: &Bed) -> anyhow::Result<BTreeMap<i64, Told>> {
        self.stop.cancel();
        let mut told = BTreeMap::new();
        while let Some(done) = self.tasks.join_next().await {
            told.extend(done?);
        }
        let primary = bed.cluster.wait_healthy(Duration::from_secs(60)).await?;
        let rows = bed
            .cluster
            .connect(&primary)
            .await?
            .query("SELECT id, count(*) FROM account GROUP BY id", &[])
            .await?;
        let mut table: BTreeMap<i64, i64> =
            rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        for (id, told) in &told {
            let count = table.remove(id).unwrap_or(0);
            let right = match told {
                Told::Committed { .. } => count == 1,
                Told::Failed { outcome: Outcome::Unknown, .. } => count <= 1,
                Told::Failed { outcome: Outcome::NotSent | Outcome::NotApplied, .. } => count == 0,
            };
            ensure!(right, "row {id} is there {count} times, and its writer was told: {told:?}");
        }
        ensure!(table.is_empty(), "rows that nobody wrote: {table:?}");
        Ok(told)
    }
}

fn describe(told: &BTreeMap<i64, Told>) -> (usize, usize, Duration, Vec<String>) {
    let (mut committed, mut settled, mut longest, mut failed) = (0, 0, Duration::ZERO, Vec::new());
    for told in told.values() {
        match told {
            Told::Committed { settled: proved, took } => {
                committed += 1;
                settled += usize::from(*proved);
                longest = longest.max(*took);
            }
            Told::Failed { outcome, why } => failed.push(format!("{outcome:?}: {why}")),
        }
    }
    (committed, settled, longest, failed)
}

/// Ten planned changes of leader under 64 writers: they cost latency, and no error.
pub async fn ten_switchovers_cost_no_error(bed: &Bed) -> anyhow::Result<()> {
    let pool = bed.pool().await?;
    let writers = Writers::start(&pool, Duration::from_secs(60));
    for _ in 0..TIMES {
        let old = bed.cluster.wait_healthy(Duration::from_secs(60)).await?;
        writers.progress().await?;
        bed.cluster.switchover(&old, &bed.replica().await?).await?;
        writers.progress().await?;
    }
    let told = writers.finish(bed).await?;
    let (committed, settled, longest, failed) = describe(&told);
    eprintln!(
        "  {committed} committed, {settled} of them settled; the longest took {:.1} s; {} failed",
        longest.as_secs_f64(),
        failed.len()
    );
    ensure!(failed.is_empty(), "errors reached callers: {failed:#?}");
    let report = pool.report();
    ensure!(report.held_peak > 0, "nobody was held");
    Ok(pool.close().await?)
}

/// A time in which writes were held, as the pool told it.
struct Hold {
    began: Instant,
    reason: String,
    /// When the next leader was admitted, and in which epoch.
    ended: Option<(Instant, Epoch)>,
}

/// Notes when writes are held until `stop`. Each moment is taken after what it tells of.
async fn note_holds(pool: LeaderPool, stop: CancellationToken) -> Vec<Hold> {
    let mut events = pool.events();
    let mut holds: Vec<Hold> = Vec::new();
    while let Some(Ok(event)) = stop.run_until_cancelled(events.recv()).await {
        let now = Instant::now();
        match event {
            TopologyEvent::LeaderLost { reason, .. } => {
                holds.push(Hold { began: now, reason: reason.to_string(), ended: None });
            }
            TopologyEvent::Admitted { epoch, .. } => {
                if let Some(last) = holds.last_mut() {
                    last.ended.get_or_insert((now, epoch));
                }
            }
            _ => {}
        }
    }
    holds
}

/// Planned changes of leader under callers that take a connection and do the rest themselves. What is sent
/// when the server stops is in doubt, so the pool stops lending when the change is asked for: from then
/// on a call gets the next leader, or waits.
pub async fn plain_writers_are_held_before_the_leader_goes(bed: &Bed) -> anyhow::Result<()> {
    const CHANGES: usize = 5;
    let pool = bed.pool().await?;
    let stop = CancellationToken::new();
    let noting = tokio::spawn(note_holds(pool.clone(), stop.clone()));
    let account = Account::open(&pool, 32);
    for _ in 0..CHANGES {
        let old = bed.cluster.wait_healthy(Duration::from_secs(60)).await?;
        let new = bed.replica().await?;
        account.first_ack_after(Instant::now()).await?;
        let since = Instant::now();
        bed.cluster.switchover(&old, &new).await?;
        let (_, node) = account.first_ack_elsewhere(since, &old).await?;
        ensure!(node == new, "commits go to {node}, not to {new}");
    }
    stop.cancel();
    let holds = noting.await?;
    let lent = account.lent();
    let summary = account.close(bed, false).await?;
    let announced = holds.iter().filter(|hold| hold.reason.contains("switchover")).count();
    eprintln!("  {CHANGES} switchovers, {announced} of them seen before they began: {summary:?}");
    ensure!(announced > 0, "no switchover was seen coming");
    ensure!(lent_by_the_next(&holds, &lent)? > 0, "nobody asked while writes were held");
    ensure!(summary.not_sent == 0, "a writer waited in vain: {summary:?}");
    Ok(pool.close().await?)
}

/// The server is restarted by its manager, with no word of it in etcd: the first connection that sees it
/// going away closes the gate for all.
pub async fn the_first_57p01_closes_the_gate(bed: &Bed) -> anyhow::Result<()> {
    let pool = bed.pool().await?;
    let stop = CancellationToken::new();
    let noting = tokio::spawn(note_holds(pool.clone(), stop.clone()));
    let account = Account::open(&pool, 32);
    account.first_ack_after(Instant::now()).await?;
    let leader = bed.cluster.primary().await?;
    bed.cluster.restart(&leader).await?;
    account.first_ack_after(Instant::now()).await?;
    stop.cancel();
    let holds = noting.await?;
    let summary = account.close(bed, false).await?;
    let reasons: Vec<&str> = holds.iter().map(|hold| &*hold.reason).collect();
    eprintln!("  restarted: {reasons:?}, {summary:?}");
    ensure!(reasons.iter().any(|why| why.contains("going away")), "seen too late: {reasons:?}");
    // Whoever had a connection then: one statement each.
    ensure!(summary.unknown <= 32, "some met the restart twice: {summary:?}");
    Ok(pool.close().await?)
}

/// That whoever asked while writes were held was given the reign that followed; and how many did.
fn lent_by_the_next(holds: &[Hold], lent: &[Lent]) -> anyhow::Result<usize> {
    let mut count = 0;
    for hold in holds {
        let Some((ended, epoch)) = hold.ended else { continue };
        for lent in lent.iter().filter(|lent| lent.asked >= hold.began && lent.asked < ended) {
            count += 1;
            ensure!(
                lent.epoch.is_some_and(|given| given.is_at_least(&epoch)),
                "asked for while writes were held ({}), given under {:?} before {epoch}",
                hold.reason,
                lent.epoch
            );
        }
    }
    Ok(count)
}

/// Ten crashes of the server, in synchronous mode: no row twice, none lost, and every commit in doubt is
/// settled, rightly.
pub async fn ten_kills_leave_nothing_in_doubt(bed: &Bed) -> anyhow::Result<()> {
    bed.cluster.patch_config(&json!({"synchronous_mode": true})).await?;
    let result = kill_ten_times(bed).await;
    bed.cluster.patch_config(&json!({"synchronous_mode": null})).await?;
    result
}

async fn kill_ten_times(bed: &Bed) -> anyhow::Result<()> {
    let pool = bed.pool().await?;
    let writers = Writers::start(&pool, Duration::from_secs(60));
    for _ in 0..TIMES {
        let old = bed.cluster.wait_healthy(Duration::from_secs(60)).await?;
        writers.progress().await?;
        bed.cluster.kill_postmaster(&old).await?;
        eventually("the crash is seen", Duration::from_secs(5), async || {
            let report = pool.report();
            report.leader.is_none().then_some(()).ok_or(report.leader_state)
        })
        .await?;
        writers.progress().await?;
    }
    let told = writers.finish(bed).await?;
    let (committed, settled, longest, failed) = describe(&told);
    eprintln!(
        "  {committed} committed, {settled} of them settled; the longest took {:.1} s; {} failed",
        longest.as_secs_f64(),
        failed.len()
    );
    ensure!(failed.is_empty(), "errors reached callers: {failed:#?}");
    Ok(pool.close().await?)
}

/// The closure form in the small: retries, savepoints, aborted transactions, errors of its own.
pub async fn transactions_end_as_they_say(bed: &Bed) -> anyhow::Result<()> {
    let pool = bed.pool().await?;
    let count = async |id: i64| -> anyhow::Result<i64> {
        let row = pool
            .write()
            .await?
            .query_one("SELECT count(*) FROM account WHERE id = $1", &[&id])
            .await?;
        Ok(row.get(0))
    };
    let insert = "INSERT INTO account VALUES ($1, 0)";

    // Committed, with a token.
    let done = pool
        .transaction_with(&TxOptions::new(), |tx| async move {
            tx.execute(insert, &[&1_i64]).await?;
            Ok::<_, OperationError>(tx.node().to_owned())
        })
        .await?;
    ensure!(done.token.is_some() && done.attempts == 1 && !done.settled);
    ensure!(count(1).await? == 1);

    // The closure's own error rolls back.
    let refused = pool
        .transaction(|tx| async move {
            tx.execute(insert, &[&2_i64]).await.map_err(|error| error.to_string())?;
            Err::<(), _>("changed my mind".to_owned())
        })
        .await;
    ensure!(matches!(refused, Err(TransactionError::RolledBack(why)) if why == "changed my mind"));
    ensure!(count(2).await? == 0);

    // A statement fails and the closure goes on as if nothing had happened: that is no commit.
    let swallowed = pool
        .transaction(|tx| async move {
            tx.execute(insert, &[&3_i64]).await?;
            let _ = tx.batch_execute("SELECT 1/0").await;
            Ok::<_, OperationError>(())
        })
        .await;
    let error = swallowed.expect_err("an aborted transaction does not commit");
    ensure!(error.outcome() == Outcome::NotApplied, "{error}");
    ensure!(error.to_string().contains("division by zero"), "{error}");
    ensure!(count(3).await? == 0);

    // Within a savepoint it may.
    pool.transaction(|tx| async move {
        tx.execute(insert, &[&4_i64]).await?;
        let undone: Result<(), OperationError> = tx
            .savepoint(async |tx: &leaderpool::Tx| {
                tx.execute(insert, &[&5_i64]).await?;
                tx.batch_execute("SELECT 1/0").await
            })
            .await;
        assert!(undone.is_err());
        Ok::<_, OperationError>(())
    })
    .await?;
    ensure!(count(4).await? == 1 && count(5).await? == 0);

    // A deferred constraint fails at the commit itself.
    pool.execute_write(
        "CREATE TABLE IF NOT EXISTS deferred (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)",
        &[],
    )
    .await?;
    let twice = pool
        .transaction(|tx| async move {
            tx.batch_execute("INSERT INTO deferred VALUES (1), (1)").await?;
            Ok::<_, OperationError>(())
        })
        .await;
    let error = twice.expect_err("not unique").into_operation_error();
    ensure!(error.outcome() == Outcome::NotApplied, "{error}");
    ensure!(error.sqlstate().is_some_and(|code| code.as_str() == "23505"), "{error}");
    ensure!(error.attempts() == 1, "a constraint is not tried again: {error}");

    // Two that cannot both be right: one is run again, and both end well.
    pool.execute_write("CREATE TABLE IF NOT EXISTS tally (id int PRIMARY KEY, n int)", &[]).await?;
    pool.execute_write("INSERT INTO tally VALUES (1, 0) ON CONFLICT (id) DO UPDATE SET n = 0", &[])
        .await?;
    let mut set = JoinSet::new();
    for _ in 0..8 {
        let pool = pool.clone();
        set.spawn(async move {
            let options =
                TxOptions::new().isolation(leaderpool::Isolation::RepeatableRead).attempts(200);
            pool.transaction_with(&options, |tx| async move {
                let row = tx.query_one("SELECT n FROM tally WHERE id = 1", &[]).await?;
                tokio::time::sleep(Duration::from_millis(5)).await;
                let next = row.get::<_, i32>(0) + 1;
                tx.execute("UPDATE tally SET n = $1 WHERE id = 1", &[&next]).await
            })
            .await
            .map(|done| done.attempts)
        });
    }
    let mut attempts = 0;
    while let Some(done) = set.join_next().await {
        attempts += done??;
    }
    let row =
        pool.query_read_with(leaderpool::ReadPolicy::leader(), "SELECT n FROM tally", &[]).await?;
    ensure!(row.first().context("a row")?.get::<_, i32>(0) == 8, "an update was lost");
    ensure!(attempts > 8, "nobody had to try again");

    // The deadline is one for all of it.
    let started = Instant::now();
    let slow = pool
        .transaction_with(&TxOptions::new().within(Duration::from_millis(400)), |tx| async move {
            tx.execute(insert, &[&6_i64]).await?;
            tx.batch_execute("SELECT pg_sleep(30)").await
        })
        .await;
    let error = slow.expect_err("it takes too long");
    ensure!(started.elapsed() < Duration::from_secs(3), "took {:?}", started.elapsed());
    ensure!(error.outcome() == Outcome::NotApplied, "{error}");
    ensure!(count(6).await? == 0);
    Ok(pool.close().await?)
}
