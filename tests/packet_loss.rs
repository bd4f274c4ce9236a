//! Packets that vanish, as behind a cable that was pulled: no answer, no refusal, no end of a connection.
//!
//! The whole system, pool included, runs in a network namespace of its own, where a packet filter drops
//! what goes to or from the port of one PostgreSQL. Where the kernel grants no such namespace (it takes
//! root, or user namespaces) the tests are skipped, and say so.

use std::future::Future;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use leaderpool::topology::BreakerState;
use leaderpool::{Client, Config, LeaderPool, ReadPolicy, TopologyEvent, TxOptions};
use leaderpool_testbed::{Cluster, ClusterBuilder};
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::time::{Instant, sleep, timeout};

/// Set for the process inside of the namespace: the name of its test.
const INSIDE: &str = "LEADERPOOL_TEST_IN_NAMESPACE";

const TESTS: [&str; 2] = ["work_ends_by_its_bound_and_goes_on", "the_kernel_alone_ends_it_too"];

/// Ways to get a namespace: as root, and as anybody.
const WAYS: [&[&str]; 2] = [&["--net"], &["--user", "--map-current-user", "--keep-caps", "--net"]];

fn main() -> ExitCode {
    if let Ok(name) = std::env::var(INSIDE) {
        return match inside(&name) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let mut arguments = Arguments::from_args();
    // Each has a cluster of its own.
    arguments.test_threads.get_or_insert(1);
    let way = find_way();
    if let Err(why) = &way
        && !arguments.list
    {
        eprintln!("SKIPPED, as packets cannot be dropped here: {why}");
    }
    let trials = TESTS.map(|name| {
        let way = way.as_ref().ok().copied();
        let run = move || match way {
            Some(way) => in_a_namespace(way, name).map_err(|error| Failed::from(error.to_string())),
            None => Err("not possible here".into()),
        };
        Trial::test(name, run).with_ignored_flag(way.is_none())
    });
    libtest_mimic::run(&arguments, trials.into()).exit_code()
}

/// The tools lie where an ordinary user's shell does not look.
fn command(program: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(program);
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

fn find_way() -> Result<&'static [&'static str], String> {
    let mut reasons = Vec::new();
    for way in WAYS {
        let check = "ip link set lo up && nft add table inet lost";
        let output = command("unshare").args(way).args(["sh", "-c", check]).output();
        match output {
            Ok(output) if output.status.success() => return Ok(way),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
                reasons.push(format!("unshare {}: {said}", way.join(" ")));
            }
            Err(error) => reasons.push(format!("unshare: {error}")),
        }
    }
    Err(reasons.join("; "))
}

fn in_a_namespace(way: &[&str], name: &str) -> anyhow::Result<()> {
    let own = std::env::current_exe()?;
    let status = command("unshare").args(way).arg(own).env(INSIDE, name).status()?;
    ensure!(status.success(), "it failed in its namespace; see above");
    Ok(())
}

fn inside(name: &str) -> anyhow::Result<()> {
    ensure!(command("ip").args(["link", "set", "lo", "up"]).status()?.success());
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let started = Instant::now();
        let cluster = ClusterBuilder::fast().start().await?;
        let result = match name {
            "work_ends_by_its_bound_and_goes_on" => work_ends_by_its_bound(&cluster).await,
            "the_kernel_alone_ends_it_too" => the_kernel_alone_ends_it(&cluster).await,
            other => bail!("no test {other}"),
        };
        eprintln!("{name}: {:.1} s", started.elapsed().as_secs_f64());
        let result = result.with_context(|| format!("logs are below {}", cluster.dir().display()));
        heal()?;
        cluster.shutdown().await?;
        result
    })
}

fn nft(rules: &str) -> anyhow::Result<()> {
    use std::io::Write;
    let mut child = command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn()?;
    child.stdin.take().context("a pipe")?.write_all(rules.as_bytes())?;
    ensure!(child.wait()?.success(), "nft refuses {rules}");
    Ok(())
}

/// From now on what goes to or from this port is lost. At the receiver, so that no sender hears of it.
fn lose(port: u16) -> anyhow::Result<()> {
    eprintln!("  packets of port {port} are lost");
    nft(&format!(
        "table inet lost {{\n chain input {{\n type filter hook input priority 0;\n\
         tcp dport {port} drop\n tcp sport {port} drop\n }}\n}}\n"
    ))
}

fn heal() -> anyhow::Result<()> {
    nft("add table inet lost\ndelete table inet lost\n")
}

fn config(cluster: &Cluster) -> anyhow::Result<Config> {
    let mut config = Config::from_toml(&cluster.client_toml())?;
    config.probe.interval = Duration::from_millis(200);
    config.probe.watchful_interval = Duration::from_millis(100);
    config.probe.timeout = Duration::from_millis(300);
    config.postgres.connect_timeout = Duration::from_millis(500);
    config.breaker.open_at_most = Duration::from_secs(2);
    Ok(config)
}

/// What a call does within its own limit, be it success or failure.
async fn by<T>(
    what: &str,
    limit: Duration,
    call: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<Option<T>> {
    let started = Instant::now();
    let result = timeout(limit + Duration::from_secs(2), call).await;
    let result = result.with_context(|| format!("{what}: not done within {limit:?}"))?;
    if let Err(error) = &result {
        eprintln!("  {what}: {:.1} s, {error:#}", started.elapsed().as_secs_f64());
    }
    Ok(result.ok())
}

/// A plain query that nobody set a limit for: why it failed.
async fn lost(client: Client, sql: &str) -> anyhow::Result<String> {
    let started = Instant::now();
    let ended = timeout(Duration::from_secs(60), client.query(sql, &[])).await;
    let error = ended.context("it hangs for ever")?.err().context("it was answered")?;
    ensure!(error.is_closed() || error.as_db_error().is_none(), "another error: {error}");
    let cause = client.end_cause().context("no cause")?;
    eprintln!("  {sql}: {:.1} s, {cause}", started.elapsed().as_secs_f64());
    Ok(cause)
}

async fn table(pool: &LeaderPool) -> anyhow::Result<()> {
    pool.write().await?.batch_execute("CREATE TABLE IF NOT EXISTS lost (id int)").await?;
    Ok(())
}

async fn work_ends_by_its_bound(cluster: &Cluster) -> anyhow::Result<()> {
    let pool = LeaderPool::connect(config(cluster)?).await?;
    table(&pool).await?;
    let primary = cluster.primary().await?;

    let (running, next) = (pool.write().await?, pool.write().await?);
    let running = tokio::spawn(lost(running, "SELECT pg_sleep(600)"));
    sleep(Duration::from_millis(300)).await;
    lose(cluster.node(&primary)?.postgres_port())?;
    let since = Instant::now();
    let next = tokio::spawn(lost(next, "INSERT INTO lost VALUES (1)"));
    // Each call that has a limit keeps it, from the first moment on.
    for _ in 0..4 {
        let limit = Duration::from_millis(700);
        let write = by("write", limit, async { Ok(pool.write_within(limit).await?) });
        let leader = by("read of the leader", limit, async {
            Ok(pool.read_within(ReadPolicy::leader(), limit).await?)
        });
        let closure = by("closure", limit, async {
            let options = TxOptions::new().within(limit);
            let insert = "INSERT INTO lost VALUES (2)";
            Ok(pool.execute_write_with(&options, insert, &[]).await?)
        });
        let read = by("read", limit, async { Ok(pool.query_read("SELECT 1", &[]).await?) });
        let (write, leader, closure, read) = tokio::join!(write, leader, closure, read);
        drop((write?, leader?));
        ensure!(closure?.is_none(), "a commit was acknowledged");
        ensure!(read?.is_some(), "the replicas are well, and a read failed");
    }
    for task in [running, next] {
        let cause = task.await??;
        ensure!(cause.contains("the node has been down for"), "{cause}");
    }
    ensure!(since.elapsed() < Duration::from_secs(15), "cut after {:?}", since.elapsed());
    heal()?;
    let client = pool.write_within(Duration::from_secs(60)).await?;
    client.batch_execute("INSERT INTO lost VALUES (3)").await?;
    drop(client);
    let primary = cluster.wait_healthy(Duration::from_secs(60)).await?;

    replica_is_cut_off(cluster, &pool, &primary).await?;
    Ok(pool.close().await?)
}

/// Reads by the pool see no error, not even those that were under way; and they come back.
async fn replica_is_cut_off(
    cluster: &Cluster,
    pool: &LeaderPool,
    primary: &str,
) -> anyhow::Result<()> {
    let nodes = cluster.nodes();
    let replica = nodes.iter().find(|node| node.name() != primary).context("no replica")?;
    let mut events = pool.events();
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let pool = pool.clone();
        readers.spawn(async move {
            let until = Instant::now() + Duration::from_secs(8);
            while Instant::now() < until {
                pool.query_read("SELECT pg_sleep(0.02)", &[]).await?;
            }
            anyhow::Ok(())
        });
    }
    sleep(Duration::from_secs(1)).await;
    lose(replica.postgres_port())?;
    while let Some(reader) = readers.join_next().await {
        reader?.context("a read failed")?;
    }
    heal()?;
    let mut changes = Vec::new();
    let back = Instant::now() + Duration::from_secs(30);
    loop {
        while let Ok(event) = events.try_recv() {
            if let TopologyEvent::BreakerChanged { member, to, .. } = event {
                ensure!(member == replica.name(), "the breaker of {member} turned {to}");
                changes.push(to);
            }
        }
        let closed = changes.last() == Some(&BreakerState::Closed);
        if closed && pool.read().await?.node() == replica.name() {
            break;
        }
        ensure!(Instant::now() < back, "{} is not read from: {changes:?}", replica.name());
        sleep(Duration::from_millis(20)).await;
    }
    ensure!(changes.first() == Some(&BreakerState::Open), "{changes:?}");
    cluster.wait_healthy(Duration::from_secs(60)).await?;
    Ok(())
}

/// With the pool's own bound off, the kernel gives up what is not acknowledged, and what is silent for long.
async fn the_kernel_alone_ends_it(cluster: &Cluster) -> anyhow::Result<()> {
    let mut config = config(cluster)?;
    config.pool.cut_dead_after = Some(Duration::ZERO);
    config.postgres.tcp_user_timeout = Duration::from_secs(3);
    config.postgres.keepalive_idle = Duration::from_secs(2);
    config.postgres.keepalive_interval = Duration::from_secs(1);
    let pool = LeaderPool::connect(config).await?;
    table(&pool).await?;
    let primary = cluster.primary().await?;
    let (waiting, sending) = (pool.write().await?, pool.write().await?);
    let waiting = tokio::spawn(lost(waiting, "SELECT pg_sleep(600)"));
    sleep(Duration::from_millis(300)).await;
    lose(cluster.node(&primary)?.postgres_port())?;
    let sending = tokio::spawn(lost(sending, "INSERT INTO lost VALUES (1)"));
    for task in [waiting, sending] {
        let cause = timeout(Duration::from_secs(15), task).await.context("it hangs")???;
        ensure!(cause.contains("timed out"), "{cause}");
    }
    heal()?;
    let client = pool.write_within(Duration::from_secs(60)).await?;
    client.batch_execute("INSERT INTO lost VALUES (2)").await?;
    drop(client);
    Ok(pool.close().await?)
}
