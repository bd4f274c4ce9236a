//! What keeps a PostgreSQL server a member of the cluster.
//!
//! A manager is a program that is given a `patroni.yml` and from then on owns one PostgreSQL server: it creates or
//! clones it, starts it as a child, follows the leader key, answers the REST API, and stops the server when it is told
//! SIGTERM. Whatever does that on Patroni's key layout can stand here; nodes of one cluster may differ.

mod config;
mod patroni;
mod yaml;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Result;

pub(crate) use config::NodeConfig;

/// The choice of manager.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Manager {
    /// The distribution's Patroni 3 (`/usr/bin/patroni`).
    Patroni3,
    /// PyPI's Patroni 4.1.5, in a cached virtual environment.
    #[default]
    Patroni4,
    /// A program that is started as `PROGRAM patroni.yml` and does what Patroni does.
    Program(PathBuf),
}

impl Manager {
    /// Its name in logs and reports.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Patroni3 => "patroni-3".to_owned(),
            Self::Patroni4 => "patroni-4".to_owned(),
            Self::Program(path) => {
                path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned())
            }
        }
    }

    /// Installs it, where that is ours to do and not done yet.
    ///
    /// # Errors
    /// When it is not there and cannot be installed.
    pub async fn install(&self) -> Result<()> {
        self.prepare().await.map(|_| ())
    }

    /// Makes sure that it can be started, installing it where that is ours to do; the command line to start it with.
    pub(crate) async fn prepare(&self) -> Result<CommandLine> {
        match self {
            Self::Patroni3 => patroni::distribution(),
            Self::Patroni4 => patroni::from_pypi().await,
            Self::Program(path) => {
                anyhow::ensure!(path.is_file(), "there is no program {}: build it", path.display());
                Ok(CommandLine { program: path.canonicalize()?, args: Vec::new() })
            }
        }
    }
}

/// How a manager is started; the configuration file comes last.
#[derive(Debug, Clone)]
pub(crate) struct CommandLine {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
}

impl CommandLine {
    pub(crate) fn with_config(&self, config: &Path) -> Vec<OsString> {
        let mut args = self.args.clone();
        args.push(config.into());
        args
    }
}
