//! Whom the servers run as: PostgreSQL refuses root.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The account that servers run as: `postgres` when we are root, ourselves otherwise.
#[derive(Debug, Clone)]
pub struct RunAs {
    account: Option<Account>,
}

#[derive(Debug, Clone)]
struct Account {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

impl RunAs {
    /// Finds the account.
    ///
    /// # Errors
    /// When we are root and there is no user `postgres`.
    pub fn detect() -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self { account: None });
        }
        let output = Command::new("getent").args(["passwd", "postgres"]).output();
        let line = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
        let line = line.context("cannot run getent")?;
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [name, _, uid, gid, _, home, ..] = fields[..] else {
            bail!(
                "running as root needs a user `postgres` (PostgreSQL refuses root), and there is none: \
                 install the package postgresql, or run as an ordinary user"
            );
        };
        Ok(Self {
            account: Some(Account {
                name: name.to_owned(),
                uid: uid.parse().context("the uid of postgres")?,
                gid: gid.parse().context("the gid of postgres")?,
                home: home.to_owned(),
            }),
        })
    }

    /// Whoever we are.
    #[must_use]
    pub fn ourselves() -> Self {
        Self { account: None }
    }

    pub(super) fn setpriv_args(&self) -> Vec<String> {
        let Some(account) = &self.account else { return Vec::new() };
        vec![
            "--reuid".to_owned(),
            account.uid.to_string(),
            "--regid".to_owned(),
            account.gid.to_string(),
            "--init-groups".to_owned(),
            "--inh-caps=-all".to_owned(),
        ]
    }

    /// The caller's environment may name a home, a Python or a PostgreSQL service that the servers must not take up.
    pub(super) fn set_environment(&self, command: &mut Command) {
        if let Some(account) = &self.account {
            command.env("HOME", &account.home).env("USER", &account.name);
        }
        for (key, _) in std::env::vars_os() {
            let name = key.to_string_lossy();
            if ["PG", "PATRONI", "ETCD", "PYTHON", "HAPROXY"].iter().any(|p| name.starts_with(p)) {
                command.env_remove(&key);
            }
        }
        command.env("LC_ALL", "C.UTF-8").env("PYTHONUNBUFFERED", "1");
    }

    /// Gives a file or directory to the account.
    ///
    /// # Errors
    /// When the owner cannot be changed.
    pub fn own(&self, path: &Path) -> Result<()> {
        if let Some(account) = &self.account {
            chown(path, Some(account.uid), Some(account.gid))
                .with_context(|| format!("cannot give {} to {}", path.display(), account.name))?;
        }
        Ok(())
    }

    /// Checks that the account can enter `path`, naming the directory that shuts it out.
    ///
    /// # Errors
    /// When it cannot.
    pub fn check_can_reach(&self, path: &Path) -> Result<()> {
        let Some(account) = &self.account else { return Ok(()) };
        for dir in path.ancestors() {
            let Ok(meta) = dir.metadata() else { continue };
            let (mode, uid, gid) = (meta.mode(), meta.uid(), meta.gid());
            let may = if uid == account.uid {
                mode & 0o100
            } else if gid == account.gid {
                mode & 0o010
            } else {
                mode & 0o001
            };
            if may == 0 {
                bail!(
                    "the user {} cannot enter {}, which {} lies under: choose another place (TMPDIR, --dir or \
                     TESTBED_CACHE), or `chmod o+x` it",
                    account.name,
                    dir.display(),
                    path.display()
                );
            }
        }
        Ok(())
    }
}
