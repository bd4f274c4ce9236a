//! Nothing outlives its parent, however the parent ends.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Result, ensure};
use leaderpool_testbed::process::scan;
use leaderpool_testbed::wait;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

const EVERY: Duration = Duration::from_millis(50);

/// Starts a cluster by the command line and waits for "ready".
async fn start(dir: &Path) -> Result<Child> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_leaderpool-testbed"))
        .args(["run", "--fast", "--nodes", "1", "--haproxy", "--dir"])
        .arg(dir)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    while let Some(line) = lines.next_line().await? {
        if line.starts_with("ready") {
            return Ok(child);
        }
    }
    anyhow::bail!("it ended without being ready: {}", child.wait().await?)
}

fn signal(child: &Child, signal: Signal) -> Result<()> {
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())).expect("it runs");
    Ok(kill_process(pid, signal)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_after_sigkill_or_sigterm() -> Result<()> {
    let dir = std::env::temp_dir().join(format!("leaderpool-guardian-{}", std::process::id()));
    let mut child = start(&dir).await?;
    let all = scan::under(&dir);
    for command in ["etcd", "postgres", "haproxy"] {
        ensure!(all.iter().any(|p| p.command.starts_with(command)), "no {command} in {all:?}");
    }

    signal(&child, Signal::KILL)?;
    child.wait().await?;
    wait::until("nothing left after SIGKILL", Duration::from_secs(10), EVERY, async || {
        let left = scan::under(&dir);
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await?;

    // The directory of a killed run can be used again, and an orderly end leaves nothing either.
    let mut child = start(&dir).await?;
    let second = start(&dir).await;
    ensure!(second.is_err(), "two clusters in one directory");
    signal(&child, Signal::TERM)?;
    ensure!(child.wait().await?.success());
    let left = scan::under(&dir);
    ensure!(left.is_empty(), "{left:?}");
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
