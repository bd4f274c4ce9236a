//! The pool's services in stacks of tower's layers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use leaderpool::service::{ReadRequest, TxRequest, WriteRequest};
use leaderpool::{OperationError, ReadPolicy, Role, TxOptions};
use tokio::time::{Instant, sleep, timeout};
use tower::load_shed::error::Overloaded;
use tower::{Service, ServiceBuilder, ServiceExt};

use crate::bed::{Bed, eventually};

const LIMIT: Duration = Duration::from_secs(30);
const INSERT: &str = "INSERT INTO account VALUES ($1, $2)";

/// Through a switchover: whoever waits for readiness is served by the next leader, whoever sheds is told at once,
/// and reads go on.
pub async fn services_follow_the_leader(bed: &Bed) -> anyhow::Result<()> {
    let pool = bed.pool().await?;
    let old = bed.cluster.primary().await?;
    let new = bed.replica().await?;
    let transactions = ServiceBuilder::new()
        .concurrency_limit(4)
        .service(pool.transaction_service(TxOptions::new().within(LIMIT)));
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = tokio::task::JoinSet::new();
    let stored = Arc::new(AtomicUsize::new(0));

    // Wait for their turn, then for a connection.
    for worker in 0..8_i32 {
        let (mut writes, stop, stored) =
            (pool.write_service(), Arc::clone(&stop), Arc::clone(&stored));
        tasks.spawn(async move {
            let mut held = 0;
            while !stop.load(Ordering::Relaxed) {
                held += usize::from(!writes.is_ready());
                let ready = timeout(LIMIT, writes.ready()).await.context("never ready")??;
                let client = ready.call(WriteRequest::new().within(LIMIT)).await?;
                ensure!(client.role() == Role::Write && client.is_leader());
                // What is under way on the old leader may be cut; it is not the service's to mend.
                if client.execute(INSERT, &[&1_i64, &worker]).await.is_ok() {
                    stored.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(held)
        });
    }
    // Whole transactions, four at once: none is lost, none is refused.
    for worker in 8..16_i32 {
        let (stack, stop) = (transactions.clone(), Arc::clone(&stop));
        let stored = Arc::clone(&stored);
        tasks.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let request = TxRequest::new(move |tx| async move {
                    tx.execute(INSERT, &[&2_i64, &worker]).await
                });
                let done = stack.clone().oneshot(request).await?;
                ensure!(done.value == 1 && done.token.is_some());
                stored.fetch_add(1, Ordering::Relaxed);
            }
            Ok(0)
        });
    }
    // Reads are ready all the time.
    let reads = ServiceBuilder::new().load_shed().service(pool.read_service(ReadPolicy::any()));
    let (reading, stop_reading) = (reads.clone(), Arc::clone(&stop));
    tasks.spawn(async move {
        while !stop_reading.load(Ordering::Relaxed) {
            let client = reading.clone().oneshot(ReadRequest::new()).await;
            client.map_err(|error| anyhow::anyhow!("a read was not served: {error}"))?;
            sleep(Duration::from_millis(5)).await;
        }
        Ok(0)
    });
    // Sheds: an answer at once, whichever.
    let shedding = ServiceBuilder::new().load_shed().service(pool.write_service());
    let (shed_by, stop_shedding) = (shedding.clone(), Arc::clone(&stop));
    tasks.spawn(async move {
        let mut shed = 0;
        while !stop_shedding.load(Ordering::Relaxed) {
            let request = WriteRequest::new().within(LIMIT);
            match shed_by.clone().oneshot(request).await {
                Ok(client) => ensure!(client.is_leader()),
                Err(error) => {
                    ensure!(error.is::<Overloaded>(), "{error}");
                    shed += 1;
                }
            }
            sleep(Duration::from_millis(2)).await;
        }
        ensure!(shed > 0, "nothing was shed");
        Ok(shed)
    });

    sleep(Duration::from_millis(300)).await;
    let started = Instant::now();
    bed.cluster.switchover(&old, &new).await?;
    eventually("the new leader serves", LIMIT, async || {
        let leader = pool.report().leader;
        if leader.as_ref() == Some(&new) { Ok(()) } else { Err(format!("{leader:?}")) }
    })
    .await?;
    let before = stored.load(Ordering::Relaxed);
    sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);
    let mut waited_or_shed = Vec::new();
    while let Some(task) = tasks.join_next().await {
        waited_or_shed.push(task??);
    }
    eprintln!(
        "  {} stored; waits and sheds of each: {waited_or_shed:?}; {:.1} s",
        stored.load(Ordering::Relaxed),
        started.elapsed().as_secs_f64()
    );
    ensure!(stored.load(Ordering::Relaxed) > before, "nobody wrote to the new leader");
    let report = pool.report();
    ensure!(report.held == 0 && report.waiting == 0, "somebody is left: {report:?}");
    ensure!(report.held_peak > 0, "who was not ready stood in the queue: {}", report.held_peak);

    // Reads from the leader wait for it as writes do; others take the policy of the request.
    let mut leader = pool.read_service(ReadPolicy::leader());
    let client = leader.ready().await?.call(ReadRequest::new()).await?;
    ensure!(client.node() == new && client.role() == Role::Read);
    drop(client);
    let request = ReadRequest::new().policy(ReadPolicy::leader()).within(LIMIT);
    let client = pool.read_service(ReadPolicy::any()).ready().await?.call(request).await?;
    ensure!(client.node() == new);
    drop(client);

    // Read-only transactions are ready by their policy, and run there.
    let options = TxOptions::new().read_only(ReadPolicy::any().or_error());
    let mut service = pool.transaction_service(options);
    ensure!(service.is_ready());
    let request = TxRequest::new(|tx| async move {
        let row = tx.query_one("SELECT pg_is_in_recovery()", &[]).await?;
        Ok::<bool, OperationError>(row.get(0))
    });
    let done = service.ready().await?.call(request).await?;
    ensure!(done.value, "it ran on the leader");
    Ok(pool.close().await?)
}
