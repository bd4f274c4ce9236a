//! The run directory: everything of one cluster lies in it, and every process of the cluster works in it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

use crate::process::{Guardian, RunAs, scan};

/// Marks a directory as ours, to be emptied and swept: nothing else is ever touched.
const MARKER: &str = ".leaderpool-testbed";

#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    temporary: bool,
    guardian: Option<Guardian>,
}

impl RunDir {
    /// A fresh directory under the system's place for temporary files; removed at the end unless LEADERPOOL_KEEP is set.
    pub(crate) fn fresh(run_as: &RunAs) -> Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let place = std::env::temp_dir();
        run_as.check_can_reach(&place)?;
        loop {
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            let path = place.join(format!("leaderpool-{}-{number}", std::process::id()));
            match std::fs::create_dir(&path) {
                Ok(()) => {
                    let temporary = std::env::var_os("LEADERPOOL_KEEP").is_none();
                    return Self::prepare(&path, temporary, run_as);
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error).context(format!("cannot create {}", path.display()));
                }
            }
        }
    }

    /// A directory of the caller's choice, kept at the end. What an earlier run left in it is removed.
    pub(crate) fn at(path: &Path, run_as: &RunAs) -> Result<Self> {
        std::fs::create_dir_all(path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        let path = path.canonicalize()?;
        run_as.check_can_reach(&path)?;
        let mut entries = std::fs::read_dir(&path)?.peekable();
        if entries.peek().is_some() && !path.join(MARKER).is_file() {
            bail!(
                "{} is not empty and not a run directory of the testbed: choose another one",
                path.display()
            );
        }
        let living = scan::under(&path);
        if let Some(first) = living.first() {
            bail!(
                "a cluster still runs in {}: {} processes, the first is {} ({}); run `make down`, or stop them",
                path.display(),
                living.len(),
                first.pid,
                first.command
            );
        }
        for entry in entries {
            let entry = entry?.path();
            let removed = if entry.is_dir() {
                std::fs::remove_dir_all(&entry)
            } else {
                std::fs::remove_file(&entry)
            };
            removed.with_context(|| format!("cannot remove {}", entry.display()))?;
        }
        Self::prepare(&path, false, run_as)
    }

    fn prepare(path: &Path, temporary: bool, run_as: &RunAs) -> Result<Self> {
        let path = path.canonicalize()?;
        if path.components().count() < 3 {
            bail!("{} is too near the root for a run directory", path.display());
        }
        std::fs::write(path.join(MARKER), format!("{}\n", std::process::id()))?;
        let guardian = Some(Guardian::set_on(&path, temporary)?);
        let dir = Self { path, temporary, guardian };
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
