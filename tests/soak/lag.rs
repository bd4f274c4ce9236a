//! A replica that stops replaying, and goes on again.

use std::time::Duration;

use anyhow::Result;
use leaderpool_testbed::Cluster;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// How long replay is paused, and how long it goes on in between.
const PAUSED: Duration = Duration::from_millis(150);
const GOING: Duration = Duration::from_millis(250);
/// The manager would resume the replay, so it is frozen meanwhile: for less than its key in etcd lives.
const FROZEN: Duration = Duration::from_secs(6);
/// Then it may look after its server.
const THAWED: Duration = Duration::from_secs(2);

/// Pauses the replay of `node` again and again until told to stop; how often it did.
pub async fn come_and_go(cluster: &Cluster, node: &str, stop: &CancellationToken) -> Result<usize> {
    let session = cluster.connect(node).await?;
    let mut pauses = 0;
    while !stop.is_cancelled() {
        cluster.freeze_manager(node).await?;
        let until = Instant::now() + FROZEN;
        while Instant::now() < until && !stop.is_cancelled() {
            session.batch_execute("SELECT pg_wal_replay_pause()").await?;
            sleep(PAUSED).await;
            session.batch_execute("SELECT pg_wal_replay_resume()").await?;
            pauses += 1;
            sleep(GOING).await;
        }
        cluster.thaw_manager(node).await?;
        let _ = tokio::time::timeout(THAWED, stop.cancelled()).await;
    }
    Ok(pauses)
}
