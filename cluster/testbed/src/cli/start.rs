//! The options of a start, and the lines that tell of one.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use leaderpool_testbed::{ClusterBuilder, Dynamic, Manager, Ports, Progress};

use super::Folder;

#[derive(Debug, Clone, Args)]
pub(super) struct Options {
    #[command(flatten)]
    pub(super) folder: Folder,
    /// The fastest timing that Patroni allows (20/1/3), not the documented one (30/10/10).
    #[arg(long)]
    pub(super) fast: bool,
    /// The documented ports, or free ones.
    #[arg(long, value_enum, default_value_t = PortChoice::Seed)]
    pub(super) ports: PortChoice,
    /// What manages PostgreSQL: patroni-4, patroni-3, or the path of a program that takes a patroni.yml.
    #[arg(long, default_value = "patroni-4")]
    pub(super) manager: String,
    /// The sample service [default: examples/backend beside this program].
    #[arg(long)]
    pub(super) backend: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum PortChoice {
    Free,
    Seed,
}

impl From<PortChoice> for Ports {
    fn from(choice: PortChoice) -> Self {
        match choice {
            PortChoice::Free => Ports::Free,
            PortChoice::Seed => Ports::Seed,
        }
    }
}

pub(super) fn manager(text: &str) -> Result<Manager> {
    Ok(match text {
        "patroni-3" => Manager::Patroni3,
        "patroni-4" => Manager::Patroni4,
        path if path.contains('/') => Manager::Program(path.into()),
        other => anyhow::bail!("unknown manager {other}: patroni-4, patroni-3 or a path"),
    })
}

impl Options {
    pub(super) fn dynamic(&self) -> Dynamic {
        if self.fast { Dynamic::fast() } else { Dynamic::default() }
    }

    pub(super) fn builder(&self) -> Result<ClusterBuilder> {
        Ok(ClusterBuilder::new()
            .manager(manager(&self.manager)?)
            .dynamic(self.dynamic())
            .ports(self.ports.into())
            .haproxy(true)
            .archive(true))
    }

    /// The built sample service.
    pub(super) fn backend(&self) -> Result<PathBuf> {
        let path = match &self.backend {
            Some(path) => path.clone(),
            None => {
                let own = std::env::current_exe().context("where this program lies")?;
                own.with_file_name("examples").join("backend")
            }
        };
        let path = std::path::absolute(path)?;
        anyhow::ensure!(
            path.is_file(),
            "there is no sample service at {}: build it with `cargo build --example backend`",
            path.display()
        );
        Ok(path)
    }

    /// The same again, as arguments.
    pub(super) fn to_args(&self) -> Result<Vec<std::ffi::OsString>> {
        let ports = if self.ports == PortChoice::Free { "free" } else { "seed" };
        let mut args = vec!["--dir".into(), self.folder.dir.clone().into_os_string()];
        args.extend(["--ports", ports, "--manager", &self.manager, "--backend"].map(Into::into));
        args.push(self.backend()?.into_os_string());
        if self.fast {
            args.push("--fast".into());
        }
        Ok(args)
    }
}

static IN_A_LINE: AtomicBool = AtomicBool::new(false);

/// `  etcd on 2379 … ready in 0.4 s`, the second half when it is true.
pub(super) fn tell(progress: Progress<'_>) {
    IN_A_LINE.store(matches!(progress, Progress::Begins(_)), Ordering::Relaxed);
    let mut out = std::io::stdout();
    let _ = match progress {
        Progress::Begins(what) => write!(out, "  {what} … "),
        Progress::Done(took) => writeln!(out, "ready in {:.1} s", took.as_secs_f64()),
    };
    let _ = out.flush();
}

/// Prints what another process has told so.
pub(super) fn pass_on(text: &[u8]) {
    if let Some(last) = text.last() {
        IN_A_LINE.store(*last != b'\n', Ordering::Relaxed);
        let mut out = std::io::stdout();
        let _ = out.write_all(text).and_then(|()| out.flush());
    }
}

/// Ends a line that was begun, if one was.
pub(super) fn break_line() {
    if IN_A_LINE.swap(false, Ordering::Relaxed) {
        let _ = writeln!(std::io::stdout());
    }
}

/// Whether standard output is for eyes, and may have colours.
pub(super) fn colours() -> bool {
    std::io::stdout().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}
