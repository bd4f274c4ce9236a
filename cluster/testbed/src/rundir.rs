//! The run directory: everything of one cluster lies in it, and every process of the cluster works in it.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use tokio::time::{Instant, sleep};

use crate::process::{Guardian, RunAs, scan};

/// Marks a directory as ours, to be emptied and swept: nothing else is ever touched.
const MARKER: &str = ".leaderpool-testbed";

#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    temporary: bool,
    guardian: Option<Guardian>,
    _lock: File,
}

impl RunDir {
    /// A fresh directory under the system's place for temporary files; removed at the end unless TESTBED_KEEP is set.
    pub(crate) async fn fresh(run_as: &RunAs) -> Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let place = std::env::temp_dir();
        run_as.check_can_reach(&place)?;
        loop {
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            let path = place.join(format!("leaderpool-{}-{number}", std::process::id()));
            match std::fs::create_dir(&path) {
                Ok(()) => {
                    let path = path.canonicalize()?;
                    let temporary = std::env::var_os("TESTBED_KEEP").is_none();
                    return Self::prepare(&path, lock(&path).await?, temporary, run_as);
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error).context(format!("cannot create {}", path.display()));
                }
            }
        }
    }

    /// A directory of the caller's choice, kept at the end. What an earlier run left in it is removed.
    pub(crate) async fn at(path: &Path, run_as: &RunAs) -> Result<Self> {
        std::fs::create_dir_all(path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        let path = path.canonicalize()?;
        run_as.check_can_reach(&path)?;
        let is_empty = std::fs::read_dir(&path)?.next().is_none();
        if !is_empty && !path.join(MARKER).is_file() {
            bail!(
                "{} is not empty and not a run directory of the testbed: choose another one",
                path.display()
            );
        }
        let lock = lock(&path).await?;
        for entry in std::fs::read_dir(&path)? {
            let entry = entry?.path();
            if entry.ends_with(MARKER) {
                continue;
            }
            let removed = if entry.is_dir() {
                std::fs::remove_dir_all(&entry)
            } else {
                std::fs::remove_file(&entry)
            };
            removed.with_context(|| format!("cannot remove {}", entry.display()))?;
        }
        Self::prepare(&path, lock, false, run_as)
    }

    fn prepare(path: &Path, lock: File, temporary: bool, run_as: &RunAs) -> Result<Self> {
        let guardian = Some(Guardian::set_on(path, temporary, &lock)?);
        let dir = Self { path: path.to_owned(), temporary, guardian, _lock: lock };
        set_mode(&dir.path, 0o755)?;
        run_as.own(&dir.path)?;
        for sub in ["logs", "nodes"] {
            dir.subdir(sub, run_as)?;
        }
        Ok(dir)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    /// Makes a directory below, owned by the servers' account.
    pub(crate) fn subdir(&self, name: &str, run_as: &RunAs) -> Result<PathBuf> {
        let path = self.path.join(name);
        std::fs::create_dir_all(&path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        run_as.own(&path)?;
        Ok(path)
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        scan::kill_under_now(&self.path);
        // Before the directory goes: the guardian finds nothing left and is dismissed.
        drop(self.guardian.take());
        if self.temporary {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// Takes the directory. An earlier run's guardian may hold it still, to sweep: it is waited for; a running cluster is not.
async fn lock(path: &Path) -> Result<File> {
    if path.components().count() < 3 {
        bail!("{} is too near the root for a run directory", path.display());
    }
    let marker = path.join(MARKER);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&marker);
    let mut file = file.with_context(|| format!("cannot write {}", marker.display()))?;
    let end = Instant::now() + Duration::from_secs(10);
    while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let holder = std::fs::read_to_string(&marker)?;
        // A process that has ended, though its parent has not looked yet, has no executable.
        if std::fs::read_link(format!("/proc/{}/exe", holder.trim())).is_ok() {
            bail!(
                "a cluster runs in {}, started by process {}; run `make down` or stop that process",
                path.display(),
                holder.trim()
            );
        }
        if Instant::now() > end {
            bail!("the end of an earlier run in {} is still being swept", path.display());
        }
        sleep(Duration::from_millis(50)).await;
    }
    if let Some(first) = scan::under(path).first() {
        bail!(
            "processes are left in {}: the first is {} ({}); run `make down`, or stop them",
            path.display(),
            first.pid,
            first.command
        );
    }
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}

/// Writes a file that only its owner, the servers' account, may read: configurations hold passwords.
pub(crate) fn write_private(path: &Path, text: &str, run_as: &RunAs) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    set_mode(path, 0o600)?;
    run_as.own(path)
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))
}
