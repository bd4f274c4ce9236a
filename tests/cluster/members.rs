//! Members come, go, and say strange things.

use std::time::Duration;

use anyhow::{Context, ensure};
use leaderpool::ReadPolicy;
use leaderpool_testbed::ClusterBuilder;
use tokio::time::Instant;

use crate::account::Account;
use crate::bed::{Bed, eventually};

/// A replica joins under load, is read from, and leaves again.
pub async fn replica_added_and_removed(bed: &Bed) -> anyhow::Result<()> {
    let pool = bed.pool().await?;
    let account = Account::open(&pool, 4);
    let name = bed.cluster.add_node().await?;
    eventually("the new replica is read from", Duration::from_secs(60), async || {
        let client = pool.read().await.map_err(|error| error.to_string())?;
        if client.node() == name { Ok(()) } else { Err(format!("read from {}", client.node())) }
    })
    .await?;
    bed.cluster.remove_node(&name).await?;
    eventually("the removed replica is gone", Duration::from_secs(60), async || {
        let report = pool.report();
        match report.nodes.iter().find(|node| node.name == name) {
            None => Ok(()),
            // Its key lives as long as its lease; it just must not be used.
            Some(node) if node.problem.is_some() => Ok(()),
            Some(node) => Err(format!("{node:?}")),
        }
    })
    .await?;
    for _ in 0..20 {
        let client = pool.read().await?;
        ensure!(client.node() != name, "a read went to the removed replica");
        client.simple_query("SELECT 1").await?;
    }
    account.close(bed, false).await?;
    Ok(pool.close().await?)
}

/// What was known of the member stands, the fault is named, and the others are not touched.
pub async fn member_whose_json_is_garbage(bed: &Bed) -> anyhow::Result<()> {
    let pool = bed.pool().await?;
    let account = Account::open(&pool, 4);
    let replica = bed.replica().await?;
    let node = bed.cluster.node(&replica)?;
    // Its manager would set the key right again.
    bed.cluster.freeze_manager(&replica).await?;
    bed.cluster.put_key(&format!("members/{replica}"), "{\"conn_url\": \u{1}garbage").await?;
    bed.cluster.put_key("members/nobody", "[]").await?;
    let result = async {
        let report = eventually("the keys are named", Duration::from_secs(5), async || {
            let report = pool.report();
            if report.rejected_keys.len() == 2 { Ok(report) } else { Err(format!("{report:?}")) }
        })
        .await?;
        let known = report.nodes.iter().find(|node| node.name == replica);
        let known = known.context("the member is forgotten")?;
        ensure!(known.address.port == node.postgres_port() && known.problem.is_none());
        ensure!(report.leader.is_some());
        account.first_ack_after(Instant::now()).await?;
        anyhow::Ok(())
    }
    .await;
    bed.cluster.delete_key("members/nobody").await?;
    bed.cluster.thaw_manager(&replica).await?;
    result?;
    eventually("all is well", Duration::from_secs(30), async || {
        let report = pool.report();
        if report.rejected_keys.is_empty() && report.nodes.len() == 3 {
            Ok(())
        } else {
            Err(format!("{report:?}"))
        }
    })
    .await?;
    account.close(bed, false).await?;
    Ok(pool.close().await?)
}

/// A member's address leads to a server of another cluster: it is told apart by its system identifier.
pub async fn foreign_address_in_conn_url(bed: &Bed) -> anyhow::Result<()> {
    let foreign = ClusterBuilder::fast().nodes(1).start().await?;
    let port = foreign.nodes()[0].postgres_port();
    let pool = bed.pool().await?;
    let account = Account::open(&pool, 4);
    let replica = bed.replica().await?;
    let key = format!("members/{replica}");
    let own = bed.cluster.get_key(&key).await?.context("no member key")?.value;
    let own_port = format!(":{}/", bed.cluster.node(&replica)?.postgres_port());
    ensure!(own.contains(&own_port), "{own}");
    bed.cluster.freeze_manager(&replica).await?;
    bed.cluster.put_key(&key, &own.replace(&own_port, &format!(":{port}/"))).await?;
    let result = async {
        let problem = eventually("the member is refused", Duration::from_secs(10), async || {
            let report = pool.report();
            let node = report.nodes.iter().find(|node| node.name == replica);
            match node.and_then(|node| node.problem.clone()) {
                Some(problem) if problem.contains("another cluster") => Ok(problem),
                other => Err(format!("{other:?}")),
            }
        })
        .await?;
        ensure!(problem.contains("system identifier"), "{problem}");
        for _ in 0..50 {
            let client = pool.read_with(ReadPolicy::any()).await?;
            ensure!(client.node() != replica, "a read went to the foreign server");
        }
        account.first_ack_after(Instant::now()).await?;
        anyhow::Ok(())
    }
    .await;
    bed.cluster.put_key(&key, &own).await?;
    bed.cluster.thaw_manager(&replica).await?;
    result?;
    eventually("the member is used again", Duration::from_secs(30), async || {
        let report = pool.report();
        let node = report.nodes.iter().find(|node| node.name == replica);
        match node.map(|node| &node.problem) {
            Some(None) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await?;
    account.close(bed, false).await?;
    foreign.shutdown().await?;
    Ok(pool.close().await?)
}
