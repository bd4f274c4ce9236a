//! Patroni, from the distribution or from PyPI.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

use super::CommandLine;
use crate::process::{Launch, RunAs};

const VERSION: &str = "4.1.5";
const PYTHON: &str = "/usr/bin/python3";
const DISTRIBUTION: &str = "/usr/bin/patroni";

pub(super) fn distribution() -> Result<CommandLine> {
    let program = PathBuf::from(DISTRIBUTION);
    if !program.is_file() {
        bail!("there is no {DISTRIBUTION}: install the packages patroni and python3-etcd");
    }
    Ok(CommandLine { program, args: Vec::new() })
}

/// Installs it into the cache once; later calls find it there.
pub(super) async fn from_pypi() -> Result<CommandLine> {
    let run_as = RunAs::detect()?;
    let cache = cache_dir()?;
    std::fs::create_dir_all(&cache)
        .with_context(|| format!("cannot create the cache {}", cache.display()))?;
    run_as.check_can_reach(&cache)?;
    let venv = cache.join(format!("patroni-{VERSION}"));
    let python = venv.join("bin/python");
    let line = CommandLine { program: python.clone(), args: vec!["-m".into(), "patroni".into()] };
    if is_complete(&venv) {
        return Ok(line);
    }
    let _lock = lock(cache.join("lock")).await?;
    // Another process may have built it while we waited.
    if !is_complete(&venv) {
        build(&cache, &venv).await.context(
            "cannot install Patroni from PyPI (it needs the package python3-venv and PyPI, or a pip mirror)",
        )?;
    }
    Ok(line)
}

/// The marker is written last, so an interrupted installation is never taken for a whole one.
fn is_complete(venv: &Path) -> bool {
    venv.join("complete").is_file()
}

async fn build(cache: &Path, venv: &Path) -> Result<()> {
    if venv.exists() {
        std::fs::remove_dir_all(venv)?;
    }
    // As ourselves: the cache is ours, the servers only read it.
    let me = RunAs::ourselves();
    let log = cache.join("install.log");
    let minutes = Duration::from_secs(600);
    tracing::info!("installing Patroni {VERSION} into {}", venv.display());
    let make = Launch::new("python3 -m venv", PYTHON, cache, &log, &me).args(["-m", "venv"]);
    make.arg(venv).spawn()?.wait_success(minutes).await?;
    let install = Launch::new("pip install", venv.join("bin/python"), cache, &log, &me)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        .arg(format!("patroni[etcd3,psycopg3]=={VERSION}"));
    install.spawn()?.wait_success(minutes).await?;
    let readable = Launch::new("chmod", "chmod", cache, &log, &me).args(["-R", "a+rX"]).arg(venv);
    readable.spawn()?.wait_success(minutes).await?;
    std::fs::write(venv.join("complete"), VERSION)?;
    Ok(())
}

fn cache_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("TESTBED_CACHE") {
        return std::path::absolute(PathBuf::from(dir)).context("TESTBED_CACHE");
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/cache/leaderpool"));
    }
    let home = std::env::var_os("HOME").context("no HOME: set TESTBED_CACHE")?;
    Ok(PathBuf::from(home).join(".cache/leaderpool"))
}

async fn lock(path: PathBuf) -> Result<File> {
    let locked = tokio::task::spawn_blocking(move || -> Result<File> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    });
    locked.await?.context("cannot lock the cache")
}
