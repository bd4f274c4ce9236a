//! Read-your-writes between two processes, for long and under replicas that lag on purpose.
//!
//! One process writes, and hands each write's number and token to another one by a socket; that one reads by the token
//! from a pool of its own, and the row has to be there. Meanwhile one replica replays each commit 100 ms late
//! (`recovery_min_apply_delay`), and the other one's replay is paused and resumed again and again. Now and then a
//! row is looked for without its token as well: if that never missed one, the replicas would not lag enough for
//! this to prove anything.
//!
//! `cargo test --test soak` does some thousand pairs; `SOAK_PAIRS=100000`, which is `make soak`, as many.

// The modules of a test are nobody else's.
#![allow(unreachable_pub)]

mod account;
mod lag;
mod reader;
mod writer;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use leaderpool_testbed::ClusterBuilder;
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use account::Account;

/// What a run of itself is told which part it has.
const ROLE: &str = "SOAK_ROLE";
const PAIRS: &str = "SOAK_PAIRS";
/// Within the run directory, which is where the processes work.
const SOCKET: &str = "soak.sock";
const CONFIG: &str = "leaderpool.toml";
/// Pairs under way at once.
const WORKERS: usize = 48;
/// For `cargo test`: some seconds.
const FEW: usize = 3_000;
/// Several times what the long run takes on two idle cores.
const LIMIT: Duration = Duration::from_secs(1800);
/// What `recovery_min_apply_delay` is set to: twice the time that a read gives a replica by default.
const DELAY: &str = "100ms";

fn main() {
    let part = match std::env::var(ROLE).as_deref() {
        Ok("writer") => writer::run as fn() -> Result<()>,
        Ok("reader") => reader::run,
        _ => {
            let trial = Trial::test("no_read_is_older_than_its_token", || {
                let run = Runtime::new().map_err(Failed::from)?.block_on(soak());
                run.map_err(|error| Failed::from(format!("{error:#}")))
            });
            libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit();
        }
    };
    if let Err(error) = part() {
        eprintln!("{error:#}");
        std::process::exit(1);
    }
}

fn pairs() -> Result<usize> {
    match std::env::var(PAIRS) {
        Ok(text) => text.parse().with_context(|| format!("{PAIRS}={text}")),
        Err(_) => Ok(FEW),
    }
}

async fn soak() -> Result<()> {
    let pairs = pairs()?;
    let (late, paused) = ("patroni-replica1", "patroni-replica2");
    let cluster = ClusterBuilder::fast()
        .recovery(late, json!({"recovery_min_apply_delay": DELAY}))
        .start()
        .await?;
    let primary = cluster.primary().await?;
    ensure!(![late, paused].contains(&&*primary), "{primary} leads");
    let sql = cluster.connect(&primary).await?;
    sql.batch_execute("CREATE TABLE soak (id bigint PRIMARY KEY, worker bigint NOT NULL)").await?;
    let delay: String =
        cluster.connect(late).await?.query_one("SHOW recovery_min_apply_delay", &[]).await?.get(0);
    ensure!(delay == DELAY, "{late} replays with a delay of {delay}");
    cluster.write_client_toml()?;

    let started = tokio::time::Instant::now();
    let mut reader = start("reader", cluster.dir(), pairs)?;
    let mut writer = start("writer", cluster.dir(), pairs)?;
    let stop = CancellationToken::new();
    let work = async {
        let said = finished(&mut writer).await;
        stop.cancel();
        said.with_context(|| log_of("writer", cluster.dir()))
    };
    let both = async {
        let (lagged, said) = tokio::join!(lag::come_and_go(&cluster, paused, &stop), work);
        anyhow::Ok((said?, lagged?))
    };
    let (said, pauses) = tokio::select! {
        both = timeout(LIMIT, both) => both.context("not done in time")??,
        ended = reader.wait() => bail!("{}: {}", ended?, log_of("reader", cluster.dir())),
    };
    let _ = reader.kill().await;
    let account: Account = serde_json::from_str(&said).with_context(|| said.clone())?;
    eprintln!("{}", account.told(started.elapsed(), pauses));
    account.check(pairs)?;
    let stored: i64 = sql.query_one("SELECT count(*) FROM soak", &[]).await?.get(0);
    ensure!(stored == i64::try_from(pairs)?, "{stored} rows");
    cluster.shutdown().await
}

/// This program again, in the run directory: the testbed's guardian takes it down with the rest.
fn start(role: &str, dir: &Path, pairs: usize) -> Result<Child> {
    let log = std::fs::File::create(log_path(role, dir))?;
    Command::new(std::env::current_exe()?)
        .env(ROLE, role)
        .env(PAIRS, pairs.to_string())
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("starting the {role}"))
}

fn log_path(role: &str, dir: &Path) -> PathBuf {
    dir.join("logs").join(format!("{role}.log"))
}

/// For an error: the run directory goes with the cluster.
fn log_of(role: &str, dir: &Path) -> String {
    let text = std::fs::read_to_string(log_path(role, dir)).unwrap_or_default();
    format!("the {role}: {}", text.trim_end())
}

/// Its last line, if it ended well; those before tell how far it is.
async fn finished(child: &mut Child) -> Result<String> {
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let mut last = String::new();
    while let Some(line) = lines.next_line().await? {
        if !last.is_empty() {
            eprintln!("  {last}");
        }
        last = line;
    }
    let status = child.wait().await?;
    ensure!(status.success(), "{status}");
    Ok(last)
}
