//! One node: a PostgreSQL server and its manager.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::http::Http;
use crate::manager::{CommandLine, Manager};
use crate::process::scan::{self, Found};
use crate::process::{Launch, Process, RunAs};

/// One node of the cluster.
#[derive(Debug)]
pub struct Node {
    pub(crate) name: String,
    pub(crate) dir: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) postgres_port: u16,
    pub(crate) rest_port: u16,
    pub(crate) run_as: RunAs,
    pub(crate) run: Mutex<Running>,
}

#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) manager: Manager,
    pub(crate) command: CommandLine,
    pub(crate) process: Option<Process>,
}

impl Node {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// PostgreSQL's port.
    #[must_use]
    pub fn postgres_port(&self) -> u16 {
        self.postgres_port
    }

    /// The REST API's port.
    #[must_use]
    pub fn rest_port(&self) -> u16 {
        self.rest_port
    }

    /// Where it lives.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// PostgreSQL's data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Its manager.
    #[must_use]
    pub fn manager(&self) -> Manager {
        self.run.lock().expect("not poisoned").manager.clone()
    }

    /// Its REST API.
    #[must_use]
    pub fn rest(&self) -> Http {
        Http::plain(self.rest_port)
    }

    /// Whether its manager has been started and has not ended.
    #[must_use]
    pub fn is_started(&self) -> bool {
        self.run.lock().expect("not poisoned").process.as_ref().is_some_and(Process::is_running)
    }

    /// Everything that belongs to it.
    #[must_use]
    pub fn processes(&self) -> Vec<Found> {
        scan::under(&self.dir)
    }

    /// The manager's process.
    ///
    /// # Errors
    /// When it does not run.
    pub fn manager_process(&self) -> Result<Found> {
        let pid = {
            let run = self.run.lock().expect("not poisoned");
            run.process.as_ref().filter(|p| p.is_running()).map(Process::pid)
        };
        let found = self.processes().into_iter().find(|p| Some(p.pid) == pid);
        found.with_context(|| format!("the manager of {} does not run", self.name))
    }

    /// The postmaster.
    ///
    /// # Errors
    /// When it does not run.
    pub fn postmaster(&self) -> Result<Found> {
        let file = self.data_dir().join("postmaster.pid");
        let pid = std::fs::read_to_string(&file)
            .ok()
            .and_then(|text| text.lines().next()?.trim().parse::<u32>().ok());
        // A leftover file may name an id that is another's by now: it must be one of ours.
        let found = self.server_processes().into_iter().find(|p| Some(p.pid) == pid);
        found.with_context(|| format!("PostgreSQL of {} does not run", self.name))
    }

    /// The postmaster and its children.
    pub(crate) fn server_processes(&self) -> Vec<Found> {
        scan::under(&self.data_dir())
    }

    pub(crate) fn start(&self) -> Result<()> {
        let mut run = self.run.lock().expect("not poisoned");
        if run.process.as_ref().is_some_and(Process::is_running) {
            bail!("{} is running already", self.name);
        }
        let config = self.dir.join("patroni.yml");
        let launch =
            Launch::new(&self.name, &run.command.program, &self.dir, &self.log, &self.run_as);
        run.process = Some(launch.args(run.command.with_config(&config)).spawn()?);
        Ok(())
    }

    /// SIGTERM to the manager, which stops PostgreSQL in order; whatever is left after `grace` is killed.
    pub(crate) async fn stop(&self, grace: Duration) -> Result<()> {
        scan::signal(&self.processes(), rustix::process::Signal::CONT);
        let process = self.run.lock().expect("not poisoned").process.take();
        if let Some(process) = process {
            process.stop(grace).await;
        }
        scan::kill_under(&self.dir).await
    }
}
