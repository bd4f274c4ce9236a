//! What the pool costs in the steady state: beside a bare `deadpool_postgres` pool to the same node, and
//! beside that bare pool through HAProxy. All three take turns in one run, so that the machine's moods
//! meet all of them; each figure is the median of the ratios of neighbouring rounds.
//!
//! `cargo bench --bench overhead`; `-- --rounds N` for more rounds than 400.

use std::hint::black_box;
use std::time::Duration;

use anyhow::Context;
use deadpool_postgres::{ManagerConfig, Pool, RecyclingMethod, Runtime};
use leaderpool::{Config, LeaderPool};
use leaderpool_testbed::ClusterBuilder;
use tokio::time::Instant;
use tokio_postgres::NoTls;

/// Operations in one round of one contender: some milliseconds, so that neighbours meet the same weather.
const PER_ROUND: usize = 240;
/// Callers at once in the concurrent part; the pools hold half as many connections.
const CALLERS: usize = 8;

fn bare(port: u16) -> anyhow::Result<Pool> {
    let mut config = tokio_postgres::Config::new();
    config
        .host("127.0.0.1")
        .port(port)
        .user("postgres")
        .password("postgres_password")
        .dbname("eda_backend")
        .ssl_mode(tokio_postgres::config::SslMode::Disable);
    let manager = deadpool_postgres::Manager::from_config(
        config,
        NoTls,
        ManagerConfig { recycling_method: RecyclingMethod::Fast },
    );
    Ok(Pool::builder(manager).max_size(CALLERS / 2).runtime(Runtime::Tokio1).build()?)
}

async fn bare_once(pool: &Pool) -> anyhow::Result<()> {
    let client = pool.get().await?;
    let statement = client.prepare_cached("SELECT 1").await?;
    black_box(client.query_one(&statement, &[]).await?);
    Ok(())
}

async fn ours_once(pool: &LeaderPool) -> anyhow::Result<()> {
    let client = pool.write().await?;
    let statement = client.prepare_cached("SELECT 1").await?;
    black_box(client.query_one(&statement, &[]).await?);
    Ok(())
}

/// The time that `PER_ROUND` operations take, `callers` at once.
async fn round<F>(
    callers: usize,
    once: impl Fn() -> F + Clone + Send + 'static,
) -> anyhow::Result<f64>
where
    F: Future<Output = anyhow::Result<()>> + Send,
{
    let started = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..callers {
        let once = once.clone();
        tasks.spawn(async move {
            for _ in 0..PER_ROUND / callers {
                once().await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(started.elapsed().as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn quartiles(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 4], values[values.len() * 3 / 4])
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--rounds").skip(1);
    let rounds = arguments.next().map_or(Ok(400), |rounds| rounds.parse())?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(rounds))
}

async fn run(rounds: usize) -> anyhow::Result<()> {
    let cluster = ClusterBuilder::fast().haproxy(true).start().await?;
    let primary = cluster.primary().await?;
    let direct = bare(cluster.node(&primary)?.postgres_port())?;
    let proxied = bare(cluster.ports().haproxy_writes())?;
    let mut config = Config::from_toml(&cluster.client_toml())?;
    config.pool.max_size = CALLERS / 2;
    config.postgres.sslmode = leaderpool::config::SslMode::Disable;
    let ours = LeaderPool::connect(config).await?;
    wait_for_proxy(&proxied).await?;

    for callers in [1, CALLERS] {
        let (mut cost, mut gain, mut bare_us) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..rounds + 3 {
            let run_bare = || {
                round(callers, {
                    let pool = direct.clone();
                    move || {
                        let pool = pool.clone();
                        async move { bare_once(&pool).await }
                    }
                })
            };
            let run_ours = || {
                round(callers, {
                    let pool = ours.clone();
                    move || {
                        let pool = pool.clone();
                        async move { ours_once(&pool).await }
                    }
                })
            };
            // Who goes first alternates, so that neither always meets the warmer machine.
            let (bare, mine) = if number % 2 == 0 {
                let bare = run_bare().await?;
                (bare, run_ours().await?)
            } else {
                let mine = run_ours().await?;
                (run_bare().await?, mine)
            };
            let through = round(callers, {
                let pool = proxied.clone();
                move || {
                    let pool = pool.clone();
                    async move { bare_once(&pool).await }
                }
            })
            .await?;
            if number >= 3 {
                cost.push(mine / bare);
                gain.push(through / mine);
                bare_us.push(bare / PER_ROUND as f64 * 1e6);
            }
        }
        let (low, high) = quartiles(cost.clone());
        println!(
            "write() + SELECT 1 + return, {callers} caller(s): {:+.2} % beside bare deadpool_postgres \
             (quartiles {:+.2} to {:+.2} %; bare takes {:.1} µs per operation); {:.2} x the throughput of \
             bare through HAProxy",
            (median(cost) - 1.0) * 100.0,
            (low - 1.0) * 100.0,
            (high - 1.0) * 100.0,
            median(bare_us),
            median(gain),
        );
    }
    checkout(&direct, &ours).await?;
    ours.close().await?;
    cluster.shutdown().await
}

/// A checkout and return alone, without a statement.
async fn checkout(direct: &Pool, ours: &LeaderPool) -> anyhow::Result<()> {
    const TIMES: u32 = 20_000;
    let (mut bare, mut mine) = (Vec::new(), Vec::new());
    for _ in 0..31 {
        let started = Instant::now();
        for _ in 0..TIMES {
            drop(black_box(direct.get().await?));
        }
        bare.push(started.elapsed().as_secs_f64() / f64::from(TIMES) * 1e9);
        let started = Instant::now();
        for _ in 0..TIMES {
            drop(black_box(ours.write().await?));
        }
        mine.push(started.elapsed().as_secs_f64() / f64::from(TIMES) * 1e9);
    }
    let added = median(mine.iter().zip(&bare).map(|(mine, bare)| mine - bare).collect());
    println!(
        "checkout and return alone: {:.0} ns, bare deadpool_postgres {:.0} ns: {added:+.0} ns",
        median(mine),
        median(bare),
    );
    Ok(())
}

/// HAProxy takes a few checks to find the primary.
async fn wait_for_proxy(pool: &Pool) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match bare_once(pool).await {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > deadline => {
                return Err(error).context("through HAProxy");
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}
