//! One server process: started from a thread that never ends, logged to a file, reaped as soon as it ends.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};
use tokio::sync::watch;

use super::RunAs;
use crate::logs;

/// How a process is to be started.
#[derive(Debug, Clone)]
pub struct Launch {
    name: String,
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    cwd: PathBuf,
    log: PathBuf,
    run_as: RunAs,
}

impl Launch {
    /// `program`, to run in `cwd` (which decides whom it belongs to), writing to `log`.
    pub fn new(
        name: impl Into<String>,
        program: impl AsRef<OsStr>,
        cwd: impl Into<PathBuf>,
        log: impl Into<PathBuf>,
        run_as: &RunAs,
    ) -> Self {
        Self {
            name: name.into(),
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            cwd: cwd.into(),
            log: log.into(),
            run_as: run_as.clone(),
        }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// One environment variable.
    #[must_use]
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// When the program or its log file cannot be opened.
    pub fn spawn(self) -> Result<Process> {
        let Self { name, program, args, env, cwd, log, run_as } = self;
        let out = append_to(&log)?;
        let err = out.try_clone()?;
        // A session of its own: the terminal's Ctrl-C must reach only us, who then stop things in order, and a
        // process without a terminal cannot be mistaken for a person's shell (see `scan`).
        let mut command = Command::new("setsid");
        command.arg("setpriv").args(["--pdeathsig", "KILL"]).args(run_as.setpriv_args());
        command.arg("--").arg(&program).args(&args);
        run_as.set_environment(&mut command);
        command.envs(env).current_dir(&cwd).stdin(Stdio::null()).stdout(out).stderr(err);
        let child = spawn_on_the_lasting_thread(command)
            .with_context(|| format!("cannot start {name} ({})", program.to_string_lossy()))?;
        let pid = child.id();
        tracing::debug!(%name, pid, "started");
        Ok(Process { name, pid, log, exit: reap(child) })
    }
}

/// A running (or ended) process that we started.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: u32,
    log: PathBuf,
    exit: watch::Receiver<Option<ExitStatus>>,
}

impl Process {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Where it writes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How it ended, if it did.
    #[must_use]
    pub fn exit_status(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Whether it still runs (or is stopped by a signal).
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.exit_status().is_none()
    }

    /// Sends a signal, unless it has ended.
    pub fn signal(&self, signal: Signal) {
        if self.is_running()
            && let Some(pid) = Pid::from_raw(self.pid.cast_signed())
        {
            // It may end in between; that is what the caller wants anyway.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it is still there after `deadline`.
    pub async fn wait(&self, deadline: Duration) -> Result<ExitStatus> {
        let mut exit = self.exit.clone();
        match tokio::time::timeout(deadline, exit.wait_for(Option::is_some)).await {
            Ok(Ok(status)) => (*status).context("ended without a status"),
            Ok(Err(_)) => bail!("{} could not be waited for", self.name),
            Err(_) => bail!(
                "{} (process {}) had not ended after {deadline:?}\n{}",
                self.name,
                self.pid,
                logs::tail_of(&self.log)
            ),
        }
    }

    /// Waits for its end and demands that it was a good one.
    ///
    /// # Errors
    /// When it failed, or is still there after `deadline` (it is then killed).
    pub async fn wait_success(&self, deadline: Duration) -> Result<()> {
        match self.wait(deadline).await {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => {
                bail!("{} failed ({status})\n{}", self.name, logs::tail_of(&self.log))
            }
            Err(error) => {
                self.signal(Signal::KILL);
                Err(error)
            }
        }
    }

    /// SIGTERM, then SIGKILL when it has not gone by `grace`.
    pub async fn stop(&self, grace: Duration) {
        self.signal(Signal::TERM);
        self.signal(Signal::CONT);
        if self.wait(grace).await.is_err() {
            tracing::warn!(name = %self.name, pid = self.pid, "did not stop in {grace:?}: killed");
            self.kill().await;
        }
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill(&self) {
        self.signal(Signal::KILL);
        let _ = self.wait(Duration::from_secs(10)).await;
    }
}

fn append_to(log: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot open the log file {}", log.display()))
}

type Request = (Command, mpsc::SyncSender<std::io::Result<Child>>);

/// The parent-death signal fires when the *thread* that forked ends, and a runtime's threads come and go.
fn spawn_on_the_lasting_thread(command: Command) -> Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<Request>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, requests) = mpsc::channel::<Request>();
        std::thread::spawn(move || {
            for (mut command, reply) in requests {
                let _ = reply.send(command.spawn());
            }
        });
        sender
    });
    let (reply, answer) = mpsc::sync_channel(1);
    spawner.send((command, reply)).ok().context("the spawning thread is gone")?;
    Ok(answer.recv().context("the spawning thread is gone")??)
}

/// One waiting thread a process: independent of any runtime, so a process may outlive the test's runtime.
fn reap(mut child: Child) -> watch::Receiver<Option<ExitStatus>> {
    let (ended, exit) = watch::channel(None);
    std::thread::spawn(move || {
        if let Ok(status) = child.wait() {
            let _ = ended.send(Some(status));
        }
    });
    exit
}
