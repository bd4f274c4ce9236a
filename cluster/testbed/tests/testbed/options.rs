//! What a cluster can be built with besides the plain: HAProxy, three members of etcd, TLS, users; nodes that come and go.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use leaderpool_testbed::{ClusterBuilder, Dynamic, EtcdSecurity, PostgresTls, postgres, wait};
use serde_json::json;

const MINUTE: Duration = Duration::from_secs(60);
const EVERY: Duration = Duration::from_millis(100);

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_leads_writes_and_reads_and_nodes_come_and_go() -> Result<()> {
    let cluster = ClusterBuilder::fast().nodes(2).haproxy(true).archive(true).start().await?;
    let (writes, reads) = (cluster.ports().haproxy_writes(), cluster.ports().haproxy_reads());
    let moment = Duration::from_secs(2);
    ensure!(!postgres::server_state(writes, moment).await?.in_recovery);
    ensure!(postgres::server_state(reads, moment).await?.in_recovery);

    let added = cluster.add_node().await?;
    ensure!(added == "patroni-replica2", "{added}");
    cluster.wait_healthy(MINUTE).await?;
    cluster.remove_node(&added).await?;
    cluster.wait_healthy(MINUTE).await?;

    cluster.patch_config(&json!({"ttl": 25})).await?;
    ensure!(cluster.get_key("config").await?.context("no config")?.value.contains("\"ttl\":25"));
    cluster.restart("patroni-replica1").await?;
    cluster.wait_healthy(MINUTE).await?;

    cluster.delete_leader_key().await?;
    cluster.wait_healthy(MINUTE).await?;

    let primary = cluster.primary().await?;
    let postmaster = cluster.node(&primary)?.postmaster()?.pid;
    cluster.kill_manager(&primary).await?;
    ensure!(cluster.node(&primary)?.postmaster()?.pid == postmaster, "PostgreSQL went too");
    cluster.start_node(&primary).await?;
    ensure!(cluster.wait_healthy(MINUTE).await? == primary);

    cluster.kill_haproxy().await?;
    cluster.start_haproxy().await?;
    cluster.wait_haproxy(MINUTE).await?;
    ensure!(!postgres::server_state(writes, moment).await?.in_recovery);
    cluster.shutdown().await
}

#[tokio::test(flavor = "multi_thread")]
async fn three_protected_members_of_etcd_lose_one_and_get_it_back() -> Result<()> {
    let security = EtcdSecurity { tls: true, client_certificates: true, users: true };
    let cluster = ClusterBuilder::fast()
        .nodes(2)
        .etcd_members(3)
        .etcd_security(security)
        .postgres_tls(PostgresTls::On)
        .pg_hba("hostssl all admin 127.0.0.1/32 cert")
        .dynamic(Dynamic { synchronous_mode: true, failsafe_mode: true, ..Dynamic::fast() })
        .tags("patroni-replica1", json!({"zone": "b"}))
        .start()
        .await?;
    let toml: toml::Table = cluster.client_toml().parse()?;
    ensure!(toml["etcd"]["endpoints"].as_array().is_some_and(|e| e.len() == 3));
    for file in ["ca_file", "cert_file", "key_file"] {
        let path = toml["etcd"][file].as_str().context(file)?;
        ensure!(std::path::Path::new(path).is_file(), "no {path}");
    }
    let client = cluster.connect(&cluster.primary().await?).await?;
    ensure!(client.query_one("show ssl", &[]).await?.get::<_, &str>(0) == "on");
    let member = cluster.get_key("members/patroni-replica1").await?.context("no member key")?;
    ensure!(member.value.contains("\"zone\":\"b\""), "{}", member.value);

    cluster.kill_etcd(0).await?;
    // It may have been their leader.
    cluster.wait_etcd(MINUTE).await?;
    cluster.put_key("test", "one").await?;
    cluster.start_etcd(0).await?;
    cluster.freeze_etcd(1).await?;
    wait::until("two of three members", MINUTE, EVERY, async || {
        cluster.put_key("test", "two").await
    })
    .await?;
    cluster.thaw_etcd(1).await?;
    ensure!(cluster.get_key("test").await?.context("no key")?.value == "two");
    ensure!(cluster.delete_key("test").await?);
    cluster.wait_healthy(MINUTE).await?;
    cluster.shutdown().await
}
