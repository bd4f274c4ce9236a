//! A failover without warning, as the callers of the service see it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leaderpool_testbed::{Cluster, wait};
use serde_json::json;
use tokio::process::Command;
use tokio::time::Instant;

use crate::app::{Answer, App, EVERY, LIMIT, TOKEN};

/// The leader's power goes, and with it the last commit. Writes wait, more than fit are refused, reads go on; the
/// token of the lost commit says so for ever after.
pub(crate) async fn failover(cluster: &Cluster, apps: &[App]) -> Result<()> {
    let old = cluster.wait_healthy(Duration::from_secs(60)).await?;
    let few =
        App::start(cluster, 8, &["--max-writes", "2", "--request-timeout", "50s"], &[]).await?;
    few.wait_ready().await?;
    let kept = few.post(&json!({"kind": "kept"})).await?;
    let kept_id = kept.json()?["id"].as_i64().context("no id")?;
    let kept = kept.token()?;
    // A replica has it; the next commit does not leave the machine.
    let sql = cluster.connect(&old).await?;
    let caught_up = async || {
        let behind = "select count(*) from pg_stat_replication \
                      where replay_lsn is distinct from pg_current_wal_lsn()";
        let behind: i64 = sql.query_one(behind, &[]).await?.get(0);
        ensure!(behind == 0, "{behind} behind");
        Ok(())
    };
    wait::until("the replicas have caught up", LIMIT, EVERY, caught_up).await?;
    let senders = sql.query("select pid::text from pg_stat_replication", &[]).await?;
    ensure!(senders.len() == 2, "{} senders", senders.len());
    let pids = senders.iter().map(|row| row.get::<_, String>(0));
    ensure!(Command::new("kill").arg("-STOP").args(pids).status().await?.success());
    let lost = few.post(&json!({"kind": "lost"})).await;
    cluster.kill_node(&old).await?;
    let lost = lost?.token()?;

    let held = async || few.get("/ready?for=writes").await?.is_error(503, "writes_held");
    wait::until("writes are held", LIMIT, EVERY, held).await?;
    let event = json!({"kind": "held"});
    let meanwhile = async {
        let waiting = async || {
            let report = few.get("/cluster").await?.json()?;
            ensure!(report["held"] == 2, "{report}");
            Ok(())
        };
        wait::until("both wait", LIMIT, EVERY, waiting).await?;
        // The lease is 20 s, and once its holder is known to be silent, most of it is left.
        let told = |answer: &Answer| {
            let wait = answer.retry_after()?;
            ensure!((5..=20).contains(&wait), "{answer:?}");
            Ok(())
        };
        let silent = async || told(&few.get("/ready?for=writes").await?);
        wait::until("its holder is silent", LIMIT, EVERY, silent).await?;
        let began = Instant::now();
        let refused = few.post(&event).await?;
        refused.is_error(503, "overloaded")?;
        told(&refused)?;
        let ready = few.get("/ready").await?;
        let body = ready.json()?;
        ensure!(ready.status == 200 && body["status"] == "reads_only", "{ready:?}");
        ensure!(body["writes"] == false && body["reads"] == true, "{ready:?}");
        ensure!(body["reason"].is_string() && body["leader"].is_null(), "{ready:?}");
        let held = few.get("/ready?for=writes").await?;
        held.is_error(503, "writes_held")?;
        told(&held)?;
        ensure!(few.get("/ready?for=reads").await?.status == 200);
        ensure!(few.get("/health").await?.status == 200);
        let page = few.get("/events?limit=1").await?;
        ensure!(page.status == 200 && page.header("x-served-by") != old, "{page:?}");
        ensure!(began.elapsed() < Duration::from_secs(3), "these do not wait for a leader");
        ensure!(body["retry_after"].as_u64().is_some_and(|wait| wait >= 5), "{body}");
        Ok(())
    };
    let (first, second, checked) = tokio::join!(few.post(&event), few.post(&event), meanwhile);
    checked?;
    let (first, second) = (first?, second?);
    ensure!(first.status == 201 && second.status == 201, "{first:?} {second:?}");
    let new = second.token()?;

    for app in apps.iter().chain([&few]) {
        app.wait_ready().await?;
        let path = format!("/events?limit=500&after={}", kept_id - 1);
        let (with_new, with_lost) = (format!("{kept},{new}"), format!("{lost},{new}"));
        for token in [&kept, &new, &with_new] {
            let page = app.send("GET", &path, &[(TOKEN, token)], "").await?;
            let page = page.json()?;
            ensure!(page["events"][0]["id"] == kept_id, "{page}");
        }
        // How the timelines hang together is known as soon as the new leader's history is.
        let refused = async || {
            let page = app.send("GET", "/events", &[(TOKEN, &with_lost)], "").await?;
            page.is_error(409, "token_lost")
        };
        wait::until("the loss is known", LIMIT, EVERY, refused).await?;
        for path in [&path, "/events/1", "/events?fresh=leader"] {
            let answer = app.send("GET", path, &[(TOKEN, &lost)], "").await?;
            answer.is_error(409, "token_lost")?;
            let message = answer.json()?["error"]["message"].to_string();
            ensure!(message.contains(&lost) && message.contains("lost in a failover"), "{message}");
        }
    }
    few.terminate().await?;
    cluster.start_node(&old).await?;
    cluster.wait_healthy(Duration::from_secs(60)).await?;
    Ok(())
}
