//! Starting: with nothing there, with the wrong thing there, and before anything is there.

use std::net::TcpListener;
use std::time::Duration;

use anyhow::ensure;
use leaderpool::{CheckoutError, Config, ConnectError, LeaderPool, ReadPolicy};
use leaderpool_testbed::ClusterBuilder;
use tokio::time::Instant;

/// A port on which nobody listens.
fn closed_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}

fn config(etcd: &[String]) -> Config {
    Config::builder()
        .etcd(etcd.iter().cloned())
        .scope("postgres-cluster")
        .namespace("/db/")
        .user("postgres")
        .configure(|config| config.pool.start_timeout = Duration::from_secs(2))
        .build()
        .expect("a valid configuration")
}

async fn refused(config: Config) -> String {
    let limit = config.pool.start_timeout;
    let started = Instant::now();
    let error = LeaderPool::connect(config).await.expect_err("nothing is there");
    assert!(started.elapsed() < limit + Duration::from_secs(2), "took {:?}", started.elapsed());
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error}");
    error.to_string()
}

#[tokio::test]
async fn with_nothing_there_every_endpoint_is_named_with_its_reason() {
    let endpoints: Vec<String> =
        (0..3).map(|_| format!("http://127.0.0.1:{}", closed_port())).collect();
    let said = refused(config(&endpoints)).await;
    for endpoint in &endpoints {
        assert!(said.contains(endpoint), "{endpoint} is not named: {said}");
    }
    assert!(said.contains("refused") && said.contains("start_timeout"), "{said}");
}

#[tokio::test]
async fn a_store_that_never_answers_is_given_up_in_time() {
    // It takes connections, and that is all.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = format!("http://{}", silent.local_addr().expect("an address"));
    let said = refused(config(std::slice::from_ref(&endpoint))).await;
    assert!(said.contains(&endpoint) && said.contains("no answer"), "{said}");
}

#[tokio::test]
async fn a_fixed_list_and_rest_name_their_endpoints_too() {
    let host = format!("127.0.0.1:{}", closed_port());
    let fixed = Config::builder()
        .fixed([host.clone()])
        .user("postgres")
        .configure(|config| config.pool.start_timeout = Duration::from_secs(1))
        .build()
        .expect("valid");
    let said = refused(fixed).await;
    assert!(said.contains(&host) && said.contains("cannot reach"), "{said}");

    let endpoint = format!("http://127.0.0.1:{}", closed_port());
    let rest = Config::builder()
        .rest([endpoint.clone()])
        .user("postgres")
        .configure(|config| config.pool.start_timeout = Duration::from_secs(1))
        .build()
        .expect("valid");
    let said = refused(rest).await;
    assert!(said.contains(&endpoint) && said.contains("refused"), "{said}");
}

#[tokio::test]
async fn lazily_it_starts_degraded_and_calls_keep_their_deadlines() -> anyhow::Result<()> {
    let mut config = config(&[format!("http://127.0.0.1:{}", closed_port())]);
    config.pool.read_timeout = Duration::from_secs(2);
    config.pool.max_waiting = 2;
    let pool = LeaderPool::connect_lazy(config)?;
    let limit = Duration::from_millis(300);
    let started = Instant::now();
    let error = pool.write_within(limit).await.expect_err("there is no leader");
    ensure!(started.elapsed() >= limit && started.elapsed() < limit * 4);
    ensure!(matches!(error, CheckoutError::NoLeader { .. }), "{error}");
    ensure!(error.to_string().contains("leader key"), "{error}");
    let error = pool.read_with(ReadPolicy::any().or_error()).await.expect_err("no replica");
    ensure!(matches!(error, CheckoutError::NoReplica { .. }), "{error}");

    // As many may wait as were allowed, and one more is refused at once.
    let waiters: Vec<_> = (0..2)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { pool.write_within(Duration::from_secs(1)).await.map(drop) })
        })
        .collect();
    while pool.report().waiting < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let error = pool.write().await.expect_err("the queue is full");
    ensure!(matches!(error, CheckoutError::TooManyWaiting { limit: 2 }), "{error}");
    for waiter in waiters {
        ensure!(waiter.await?.is_err());
    }
    ensure!(pool.report().waiting == 0 && pool.report().degraded.is_some());

    // Closing wakes those who wait.
    let waiter = tokio::spawn({
        let pool = pool.clone();
        async move { pool.write_within(Duration::from_secs(30)).await.map(drop) }
    });
    while pool.report().waiting < 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    pool.close().await?;
    ensure!(matches!(waiter.await?, Err(CheckoutError::Closed)));
    Ok(pool.close().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_comes_later_is_found_and_a_wrong_name_is_told() -> anyhow::Result<()> {
    let cluster = ClusterBuilder::fast().nodes(1).start().await?;
    let own = Config::from_toml(&cluster.client_toml())?;

    let mut misspelt = own.clone();
    misspelt.cluster.scope = "postgres-clutser".into();
    misspelt.rest = None;
    misspelt.pool.start_timeout = Duration::from_secs(1);
    let said = refused(misspelt).await;
    ensure!(said.contains("postgres-clutser") && said.contains("cluster.scope"), "{said}");

    let mut nameless = own.clone();
    nameless.postgres.dbname = Some("no_such_database".into());
    nameless.pool.start_timeout = Duration::from_secs(1);
    let said = refused(nameless).await;
    ensure!(said.contains("no_such_database") && said.contains("3D000"), "{said}");

    // Started while everything is down; used as soon as it is up.
    cluster.kill_node("patroni-master").await?;
    cluster.kill_etcd(0).await?;
    let pool = LeaderPool::connect_lazy(own)?;
    let writer = tokio::spawn({
        let pool = pool.clone();
        async move {
            pool.write_within(Duration::from_secs(60)).await.map(|client| client.node().to_owned())
        }
    });
    cluster.start_etcd(0).await?;
    cluster.start_node("patroni-master").await?;
    ensure!(writer.await?? == "patroni-master");
    pool.close().await?;
    cluster.shutdown().await
}
