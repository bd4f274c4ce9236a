//! TLS, certificates and passwords, to etcd and to PostgreSQL, on a real cluster that demands them.

use std::time::Duration;

use anyhow::{Context, ensure};
use leaderpool::config::{Secret, SslMode};
use leaderpool::{Config, ConnectError, LeaderPool};
use leaderpool_testbed::process::RunAs;
use leaderpool_testbed::tls::Authority;
use leaderpool_testbed::{Cluster, ClusterBuilder, EtcdSecurity, PostgresTls};

async fn protected_cluster() -> anyhow::Result<Cluster> {
    ClusterBuilder::fast()
        .nodes(2)
        .etcd_security(EtcdSecurity { tls: true, client_certificates: true, users: true })
        .postgres_tls(PostgresTls::On)
        .pg_hba("hostssl all admin 127.0.0.1/32 cert")
        .start()
        .await
}

/// The refusal of a pool that cannot connect, in a short time.
#[track_caller]
fn refusal(config: Config) -> impl Future<Output = anyhow::Result<String>> {
    let caller = std::panic::Location::caller();
    async move { refused(config).await.with_context(|| format!("at {caller}")) }
}

async fn refused(mut config: Config) -> anyhow::Result<String> {
    config.pool.start_timeout = Duration::from_millis(2500);
    match LeaderPool::connect(config).await {
        Err(error @ ConnectError::Unreachable { .. }) => Ok(error.to_string()),
        Err(error) => anyhow::bail!("another error than expected: {error}"),
        Ok(_) => anyhow::bail!("it connected"),
    }
}

/// Whether the sessions to leader and replica are encrypted.
async fn encrypted(config: Config) -> anyhow::Result<bool> {
    let pool = LeaderPool::connect(config).await?;
    let question = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let write: bool = pool.write().await?.query_one(question, &[]).await?.get(0);
    let read: bool = pool.read().await?.query_one(question, &[]).await?.get(0);
    pool.close().await?;
    ensure!(write == read, "leader {write}, replica {read}");
    Ok(write)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_cluster_demands_is_given_and_what_it_lacks_is_named() -> anyhow::Result<()> {
    let cluster = protected_cluster().await?;
    let config = Config::from_toml(&cluster.client_toml())?;
    ensure!(config.postgres.sslmode == SslMode::VerifyFull);
    let folder = tempfile(&cluster)?;
    let stranger = Authority::create(&folder, &RunAs::ourselves()).await?;

    postgres_modes(&config, &stranger).await?;
    client_certificate(&cluster, &config).await?;
    abandoned_statement_over_tls(&config).await?;
    etcd_refusals(&config, &stranger).await?;
    cluster.shutdown().await
}

fn tempfile(cluster: &Cluster) -> anyhow::Result<std::path::PathBuf> {
    let folder = cluster.dir().join("stranger");
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

async fn postgres_modes(config: &Config, stranger: &Authority) -> anyhow::Result<()> {
    let with = |sslmode, root: Option<std::path::PathBuf>| {
        let mut config = config.clone();
        config.postgres.sslmode = sslmode;
        config.postgres.sslrootcert = root;
        config
    };
    let own = config.postgres.sslrootcert.clone();
    for mode in [SslMode::VerifyFull, SslMode::VerifyCa, SslMode::Require] {
        ensure!(encrypted(with(mode, own.clone())).await?, "{mode:?}");
    }
    ensure!(encrypted(with(SslMode::Require, None)).await?, "require without a root");
    ensure!(encrypted(with(SslMode::Prefer, None)).await?, "prefer takes what is offered");
    ensure!(!encrypted(with(SslMode::Disable, None)).await?, "disable");
    // The system's authorities have not signed these certificates, and neither has a stranger.
    for root in [None, Some(stranger.ca())] {
        for mode in [SslMode::VerifyFull, SslMode::VerifyCa] {
            let said = refusal(with(mode, root.clone())).await?;
            ensure!(said.contains("TLS to 127.0.0.1") && said.contains("certificate"), "{said}");
        }
    }
    let mut missing = with(SslMode::VerifyFull, Some("/nonexistent/ca.pem".into()));
    missing.postgres.password = Some(Secret::from("never shown"));
    let error = LeaderPool::connect(missing).await.expect_err("the file is missing").to_string();
    ensure!(
        error.contains("postgres.sslrootcert") && error.contains("/nonexistent/ca.pem"),
        "{error}"
    );
    ensure!(!error.contains("never shown"));

    let mut wrong = config.clone();
    wrong.postgres.password = Some(Secret::from("wrong"));
    let said = refusal(wrong).await?;
    ensure!(said.contains("28P01") && said.contains("patroni-master"), "{said}");
    ensure!(!said.contains("wrong\""), "{said}");
    Ok(())
}

/// A user who logs in by certificate instead of a password.
async fn client_certificate(cluster: &Cluster, config: &Config) -> anyhow::Result<()> {
    let authority = cluster.authority().context("the cluster has no authority")?;
    let identity = authority.client("admin").await?;
    let mut admin = config.clone();
    admin.postgres.user = "admin".into();
    admin.postgres.password = None;
    let said = refusal(admin.clone()).await?;
    ensure!(said.contains("certificate"), "{said}");
    admin.postgres.sslcert = Some(identity.cert.clone());
    admin.postgres.sslkey = Some(identity.key.clone());
    let pool = LeaderPool::connect(admin).await?;
    let user = pool.write().await?.query_one("SELECT current_user::text", &[]).await?;
    ensure!(user.get::<_, &str>(0) == "admin");
    pool.close().await?;
    Ok(())
}

/// A cancel request goes over TLS too.
async fn abandoned_statement_over_tls(config: &Config) -> anyhow::Result<()> {
    let pool = LeaderPool::connect(config.clone()).await?;
    let client = pool.write().await?;
    let asleep = client.batch_execute("SELECT pg_sleep(600)");
    ensure!(tokio::time::timeout(Duration::from_millis(100), asleep).await.is_err());
    drop(client);
    let asleep = "SELECT count(*) FROM pg_stat_activity \
                  WHERE query = 'SELECT pg_sleep(600)' AND state = 'active'";
    for _ in 0..100 {
        if pool.write().await?.query_one(asleep, &[]).await?.get::<_, i64>(0) == 0 {
            return Ok(pool.close().await?);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("the statement was not cancelled")
}

async fn etcd_refusals(config: &Config, stranger: &Authority) -> anyhow::Result<()> {
    let with = |change: &dyn Fn(&mut leaderpool::config::EtcdConfig)| {
        let mut config = config.clone();
        // Without it the members' REST API would stand in.
        config.rest = None;
        change(config.etcd.as_mut().expect("the cluster has etcd"));
        config
    };
    let said = refusal(with(&|etcd| etcd.password = Some(Secret::from("wrong")))).await?;
    ensure!(
        said.contains("authentication failed") && said.contains("https://127.0.0.1:"),
        "{said}"
    );
    let said = refusal(with(&|etcd| etcd.ca_file = Some(stranger.ca()))).await?;
    ensure!(said.contains("certificate"), "{said}");
    let said = refusal(with(&|etcd| (etcd.cert_file, etcd.key_file) = (None, None))).await?;
    ensure!(said.contains("https://127.0.0.1:"), "{said}");
    let said = refusal(with(&|etcd| (etcd.username, etcd.password) = (None, None))).await?;
    ensure!(said.contains("https://127.0.0.1:") && said.contains("permission denied"), "{said}");
    Ok(())
}
