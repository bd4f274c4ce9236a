//! etcd goes away, in every way it can. The leader does not go with it.

use std::time::Duration;

use anyhow::ensure;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::account::Account;
use crate::bed::{Bed, eventually};
use leaderpool::LeaderPool;

/// Without it the primary gives up by itself when etcd is away for longer than its retries.
async fn with_failsafe(
    bed: &Bed,
    body: impl AsyncFnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    bed.cluster.patch_config(&json!({"failsafe_mode": true})).await?;
    eventually("the failsafe members", Duration::from_secs(20), async || {
        let key = bed.cluster.get_key("failsafe").await.map_err(|error| error.to_string())?;
        let names = key.map(|key| key.value).unwrap_or_default();
        if names.matches("http").count() >= 3 { Ok(()) } else { Err(names) }
    })
    .await?;
    let result = body().await;
    bed.cluster.patch_config(&json!({"failsafe_mode": null})).await?;
    result
}

async fn degraded_within(pool: &LeaderPool, limit: Duration) -> anyhow::Result<()> {
    let since = Instant::now();
    let reason = eventually("degraded", limit, async || {
        let report = pool.report();
        report.degraded.ok_or(format!("watch age {:?} ms", report.watch_age_ms))
    })
    .await?;
    eprintln!("  degraded after {:.1} s: {reason}", since.elapsed().as_secs_f64());
    ensure!(reason.contains("http://127.0.0.1:"), "no endpoint is named: {reason}");
    Ok(())
}

async fn whole_within(pool: &LeaderPool, limit: Duration) -> anyhow::Result<()> {
    let since = Instant::now();
    eventually("whole again", limit, async || {
        let report = pool.report();
        if report.degraded.is_none() && report.leader.is_some() {
            Ok(())
        } else {
            Err(format!("{:?}, {}", report.degraded, report.leader_state))
        }
    })
    .await?;
    eprintln!("  whole again after {:.1} s", since.elapsed().as_secs_f64());
    Ok(())
}

/// Commits are acknowledged all through the next `span`.
async fn keeps_serving(account: &Account, span: Duration) -> anyhow::Result<()> {
    let until = Instant::now() + span;
    while Instant::now() < until {
        let asked = Instant::now();
        let (acked, _) = account.first_ack_after(asked).await?;
        ensure!(acked - asked < Duration::from_secs(2), "writes stopped for {:?}", acked - asked);
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Takes all of etcd away and gives it back: writes go on without it, and the pool says what it lacks.
async fn without_etcd(
    bed: &Bed,
    take_away: impl AsyncFnOnce() -> anyhow::Result<()>,
    give_back: impl AsyncFnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    with_failsafe(bed, async || {
        let pool = bed.pool().await?;
        let account = Account::open(&pool, 4);
        account.first_ack_after(Instant::now()).await?;
        take_away().await?;
        let result = async {
            degraded_within(&pool, Duration::from_secs(5)).await?;
            keeps_serving(&account, Duration::from_secs(8)).await
        }
        .await;
        give_back().await?;
        result?;
        whole_within(&pool, Duration::from_secs(5)).await?;
        // The leader's own session with etcd may take a moment more, and its key with it.
        bed.cluster.wait_healthy(Duration::from_secs(60)).await?;
        account.close(bed, false).await?;
        Ok(pool.close().await?)
    })
    .await
}

/// All members stop answering without closing anything.
pub async fn etcd_frozen(bed: &Bed) -> anyhow::Result<()> {
    let freeze = async || {
        for member in 0..3 {
            bed.cluster.freeze_etcd(member).await?;
        }
        Ok(())
    };
    let thaw = async || {
        for member in 0..3 {
            bed.cluster.thaw_etcd(member).await?;
        }
        Ok(())
    };
    without_etcd(bed, freeze, thaw).await
}

/// All members are shut down, and come back.
pub async fn etcd_stopped_and_started(bed: &Bed) -> anyhow::Result<()> {
    let stop = async || {
        for member in 0..3 {
            bed.cluster.kill_etcd(member).await?;
        }
        Ok(())
    };
    let start = async || {
        let starts = (0..3).map(|member| bed.cluster.start_etcd(member));
        for start in futures_util::future::join_all(starts).await {
            start?;
        }
        bed.cluster.wait_etcd(Duration::from_secs(20)).await
    };
    without_etcd(bed, stop, start).await
}

/// Two of three are enough: nobody notices, whichever is lost. (With the failsafe, since an election in
/// etcd may take longer than the primary's own patience at this timing.)
pub async fn one_of_three_etcd_members_lost(bed: &Bed) -> anyhow::Result<()> {
    with_failsafe(bed, async || {
        let pool = bed.pool().await?;
        let account = Account::open(&pool, 4);
        account.first_ack_after(Instant::now()).await?;
        for member in 0..3 {
            bed.cluster.kill_etcd(member).await?;
            keeps_serving(&account, Duration::from_secs(2)).await?;
            eventually("the watch goes on", Duration::from_secs(10), async || {
                let report = pool.report();
                match (&report.degraded, report.watch_age_ms) {
                    (None, Some(age)) if age < 2000 => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await?;
            bed.cluster.start_etcd(member).await?;
            bed.cluster.wait_etcd(Duration::from_secs(20)).await?;
        }
        account.close(bed, false).await?;
        Ok(pool.close().await?)
    })
    .await
}
