//! The folder of a system: who holds it, and what the other commands need to know of it.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use leaderpool_testbed::process::{RunAs, scan};
use leaderpool_testbed::wait;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

/// What runs, for the commands that look at it or break it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct State {
    /// The process that holds it.
    pub(super) pid: u32,
    /// `up` or `demo`.
    pub(super) command: String,
    pub(super) since_unix: u64,
    pub(super) manager: String,
    /// What the cluster's keys begin with.
    pub(super) prefix: String,
    pub(super) ttl: u32,
    pub(super) loop_wait: u32,
    pub(super) retry_timeout: u32,
    pub(super) etcd: u16,
    pub(super) nodes: Vec<NodeState>,
    pub(super) haproxy: HaProxyState,
    pub(super) backends: Vec<BackendState>,
    pub(super) config: PathBuf,
    pub(super) logs: PathBuf,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct NodeState {
    pub(super) name: String,
    pub(super) postgres: u16,
    pub(super) rest: u16,
    pub(super) dir: PathBuf,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct HaProxyState {
    pub(super) writes: u16,
    pub(super) reads: u16,
    pub(super) stats: u16,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct BackendState {
    pub(super) name: String,
    pub(super) port: u16,
}

impl State {
    pub(super) fn node(&self, name: &str) -> Result<&NodeState> {
        self.nodes.iter().find(|n| n.name == name).with_context(|| format!("no node {name}"))
    }

    pub(super) fn timing(&self) -> String {
        format!("{}/{}/{}", self.ttl, self.loop_wait, self.retry_timeout)
    }
}

/// The folder.
#[derive(Debug, Clone)]
pub(super) struct Place {
    dir: PathBuf,
    /// As the user named it, for messages.
    named: PathBuf,
}

/// The folder, taken: until this is dropped, or the process ends in whatever way.
#[derive(Debug)]
pub(super) struct Taken(#[expect(dead_code, reason = "held for its lock")] File);

impl Place {
    pub(super) fn new(dir: &Path) -> Result<Self> {
        let absolute = std::path::absolute(dir).context("--dir")?;
        Ok(Self { dir: absolute, named: dir.to_owned() })
    }

    pub(super) fn create(&self) -> Result<()> {
        std::fs::create_dir_all(&self.dir)
            .with_context(|| format!("cannot create {}", self.named.display()))
    }

    /// As the user named it.
    pub(super) fn name(&self) -> std::path::Display<'_> {
        self.named.display()
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("testbed.log")
    }

    pub(super) fn config(&self) -> PathBuf {
        self.dir.join("leaderpool.toml")
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join("pid")
    }

    fn state_file(&self) -> PathBuf {
        self.dir.join("state.json")
    }

    fn cluster_link(&self) -> PathBuf {
        self.dir.join("cluster")
    }

    /// Takes the folder for this process.
    pub(super) async fn take(&self) -> Result<Taken> {
        self.create()?;
        let path = self.pid_file();
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let mut file = file.with_context(|| format!("cannot write {}", path.display()))?;
        let locked = || flock(&file, FlockOperation::NonBlockingLockExclusive).context("");
        // Whoever only looks whether it is held holds it himself for a moment.
        let every = Duration::from_millis(10);
        if wait::until("the lock", 20 * every, every, async || locked()).await.is_err() {
            let holder = self.holder()?.map_or_else(String::new, |pid| format!(" (process {pid})"));
            bail!(
                "a system is up already in {}{holder}: `make status` shows it, `make down` ends it",
                self.name()
            );
        }
        file.set_len(0)?;
        writeln!(file, "{}", std::process::id())?;
        self.remove_state()?;
        Ok(Taken(file))
    }

    /// The process that holds the folder.
    pub(super) fn holder(&self) -> Result<Option<u32>> {
        let Ok(file) = File::open(self.pid_file()) else { return Ok(None) };
        if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(self.pid_file())?;
        // Between its lock and its word there is a moment.
        Ok(Some(text.trim().parse().unwrap_or(0)))
    }

    /// What was written when the system was ready; it is left there when its process is killed.
    pub(super) fn state(&self) -> Result<Option<State>> {
        let path = self.state_file();
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .with_context(|| format!("{} is not as it was written", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    pub(super) fn write_state(&self, state: &State) -> Result<()> {
        let path = self.state_file();
        let new = path.with_extension("new");
        std::fs::write(&new, serde_json::to_vec_pretty(state)?)
            .and_then(|()| std::fs::rename(&new, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    pub(super) fn remove_state(&self) -> Result<()> {
        for path in [self.state_file(), self.config()] {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The clients' configuration: it holds a password.
    pub(super) fn write_config(&self, text: &str) -> Result<()> {
        let path = self.config();
        let open =
            OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&path);
        open.and_then(|mut file| file.write_all(text.as_bytes()))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// The running system.
    pub(super) fn running(&self) -> Result<State> {
        match (self.holder()?, self.state()?) {
            (Some(_), Some(state)) => Ok(state),
            (Some(pid), None) => {
                bail!("the system in {} is still starting (process {pid})", self.name())
            }
            (None, Some(state)) => bail!(
                "the system in {} is gone: its process {} was killed; `make down` clears it away",
                self.name(),
                state.pid
            ),
            (None, None) => {
                bail!("nothing is up in {}: start it by `make up` or `make demo`", self.name())
            }
        }
    }

    /// Where the servers are to live: in the folder, or, where their account cannot enter it (a checkout in root's
    /// home), among the temporary files, with a link to there.
    pub(super) async fn cluster_dir(&self) -> Result<PathBuf> {
        let link = self.cluster_link();
        if let Ok(target) = std::fs::read_link(&link) {
            kill_left_below(&target).await?;
            let _ = std::fs::remove_dir_all(&target);
            std::fs::remove_file(&link)?;
        }
        if RunAs::detect()?.check_can_reach(&self.dir).is_err() {
            let place =
                std::env::temp_dir().join(format!("leaderpool-demo-{}", std::process::id()));
            std::fs::create_dir(&place)
                .with_context(|| format!("cannot create {}", place.display()))?;
            std::os::unix::fs::symlink(&place, &link)
                .with_context(|| format!("cannot make the link {}", link.display()))?;
        }
        Ok(link)
    }

    /// Removes data that nothing uses any more: beside us, as some disks take many seconds for it.
    pub(super) fn discard_data(&self, state: &State) {
        let paths = state
            .nodes
            .iter()
            .flat_map(|node| ["data", "wal_archive"].map(|name| node.dir.join(name)));
        let old = self.dir.join(format!("old-{}", std::process::id()));
        let _ = std::fs::create_dir(&old);
        for (n, path) in paths.enumerate() {
            // Whatever cannot be moved is removed by the next start.
            let _ = std::fs::rename(path, old.join(n.to_string()));
        }
        let all = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let olds = all.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"old-"));
        let mut remove = Command::new("setsid");
        remove.args(["rm", "-rf", "--"]).args(olds.map(|entry| entry.path())).current_dir("/");
        let _ = remove.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    }

    /// Kills what a killed run has left; how many processes that were.
    pub(super) async fn sweep(&self) -> Result<usize> {
        match self.cluster_link().canonicalize() {
            Ok(dir) => kill_left_below(&dir).await,
            Err(_) => Ok(0),
        }
    }
}

async fn kill_left_below(dir: &Path) -> Result<usize> {
    let left = scan::under(dir).len();
    scan::kill_under(dir).await?;
    Ok(left)
}

/// The mark that keeps a node down: the supervising process starts no manager while whoever wrote it lives.
#[derive(Debug)]
pub(super) struct Hold(PathBuf);

impl Hold {
    pub(super) fn on(node: &NodeState) -> Result<Self> {
        let path = hold_file(&node.dir);
        std::fs::write(&path, std::process::id().to_string())
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self(path))
    }

    /// Whether one is set on a node's directory.
    pub(super) fn is_on(node_dir: &Path) -> bool {
        let Ok(text) = std::fs::read_to_string(hold_file(node_dir)) else { return false };
        text.trim().parse::<u32>().is_ok_and(|pid| Path::new(&format!("/proc/{pid}")).exists())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn hold_file(node_dir: &Path) -> PathBuf {
    node_dir.join("hold")
}

/// One at a time may break the system.
pub(super) fn only_one_failover(place: &Place) -> Result<File> {
    let path = place.dir().join("failover.lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("cannot write {}", path.display()))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        bail!("another `make failover` is under way: wait for its end");
    }
    Ok(file)
}

/// How long the process of a system may take to end after SIGTERM.
pub(super) const END: Duration = Duration::from_secs(45);
