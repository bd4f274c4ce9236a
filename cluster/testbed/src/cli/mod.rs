//! The command line.

mod demo;
mod down;
mod events;
mod failover;
mod look;
mod place;
mod run;
mod start;
mod status;
mod supervise;
mod system;
mod table;
mod up;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use leaderpool_testbed::Manager;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Starts and breaks real PostgreSQL clusters on this machine.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Starts the whole system (etcd, three nodes, HAProxy, three backends) and shows it live; Ctrl-C takes it down.
    Demo(demo::Demo),
    /// Starts the whole system in the background; returns when it is healthy.
    Up(up::Up),
    /// Shows the system: members, HAProxy, backends. Succeeds only if it is healthy.
    Status(status::Status),
    /// Takes the leader away and tells what happens, with times.
    Failover(failover::Failover),
    /// Stops the system.
    Down(down::Down),
    /// Starts a bare cluster in the foreground; Ctrl-C or SIGTERM takes all of it down.
    Run(run::Run),
    /// Installs what the testbed installs itself: Patroni 4, in its cache.
    Prepare,
    /// What `up` leaves running.
    #[command(hide = true)]
    Supervise(up::Supervise),
}

/// The folder of a system.
#[derive(Debug, Clone, Args)]
struct Folder {
    /// The folder of the system: its state, its logs and the clients' configuration.
    #[arg(long, default_value = ".demo")]
    dir: PathBuf,
}

pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = start_logging(&cli.command).and_then(|()| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(execute(cli.command))
    });
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn execute(command: Command) -> Result<ExitCode> {
    match command {
        Command::Demo(demo) => demo.run().await?,
        Command::Up(up) => up.run().await?,
        Command::Status(status) => return status.run().await,
        Command::Failover(failover) => failover.run().await?,
        Command::Down(down) => down.run().await?,
        Command::Run(run) => run.run().await?,
        Command::Prepare => Manager::Patroni4.install().await?,
        Command::Supervise(supervise) => supervise.run().await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// To standard error; for `demo`, whose terminal is a picture, to a file.
fn start_logging(command: &Command) -> Result<()> {
    // What `up` leaves running tells its steps itself.
    let usual = match command {
        Command::Supervise(_) => "leaderpool_testbed=warn",
        _ => "leaderpool_testbed=info",
    };
    let filter =
        tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| usual.into());
    let logging = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    match command {
        Command::Demo(demo) => {
            let log = demo.open_log()?;
            logging.with_ansi(false).with_writer(Mutex::new(log)).init();
        }
        _ => logging.with_ansi(false).with_writer(std::io::stderr).init(),
    }
    Ok(())
}

/// Prints a line. A reader that has gone is no reason to die: the cluster is still to be taken down in order.
fn say(line: impl std::fmt::Display) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// The signals that end a command: Ctrl-C, SIGTERM, and the terminal's end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn install() -> Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
