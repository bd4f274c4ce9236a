//! Who is there: processes by working directory, read from `/proc`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use rustix::process::{Pid, Signal};

/// A process, as `/proc` tells of it.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its process id.
    pub pid: u32,
    /// Its parent's.
    pub parent: u32,
    /// The command's short name.
    pub command: String,
    /// Its working directory.
    pub cwd: PathBuf,
    /// Whether a signal has stopped it.
    pub stopped: bool,
    /// When it was started, in ticks since boot: what tells it from a later one with the same id.
    started: u64,
}

impl Found {
    fn read(pid: u32) -> Option<(Self, bool)> {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let cwd = fs::read_link(proc.join("cwd")).ok()?;
        let stat = fs::read_to_string(proc.join("stat")).ok()?;
        // The name, in brackets, may hold anything: the fixed fields follow the last bracket.
        let (head, tail) = stat.rsplit_once(')')?;
        let command = head.split_once('(')?.1.to_owned();
        let fields: Vec<&str> = tail.split_whitespace().collect();
        let state = *fields.first()?;
        let stopped = ["T", "t"].contains(&state);
        let parent = fields.get(1)?.parse().ok()?;
        let has_terminal = fields.get(4)? != &"0";
        let started = fields.get(19)?.parse().ok()?;
        let found = Self { pid, parent, command, cwd, stopped, started };
        (state != "Z").then_some((found, has_terminal))
    }

    /// Whether it has ended, or its id is another's by now.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        Self::read(self.pid).is_none_or(|(now, _)| now.started != self.started)
    }
}

/// Every process that works in or below `dir`, except ourselves and any that has a terminal: what we start has none,
/// and whoever looks at the logs from a shell does.
#[must_use]
pub fn under(dir: &Path) -> Vec<Found> {
    let own = std::process::id();
    pids()
        .filter(|pid| *pid != own)
        .filter_map(Found::read)
        .filter(|(found, has_terminal)| !has_terminal && lies_under(&found.cwd, dir))
        .map(|(found, _)| found)
        .collect()
}

fn pids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn lies_under(cwd: &Path, dir: &Path) -> bool {
    let deleted = format!("{} (deleted)", dir.display());
    cwd.starts_with(dir) || cwd == Path::new(&deleted)
}

/// Sends a signal to each.
pub fn signal(processes: &[Found], signal: Signal) {
    for found in processes {
        if let Some(pid) = Pid::from_raw(found.pid.cast_signed())
            && pid.as_raw_nonzero().get() > 1
            && !found.is_gone()
        {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

/// SIGSTOP to everything below `dir`, until also what was born meanwhile is stopped.
pub async fn freeze_under(dir: &Path) {
    for _ in 0..50 {
        let mut running = under(dir);
        running.retain(|found| !found.stopped);
        if running.is_empty() {
            return;
        }
        signal(&running, Signal::STOP);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Stops everything below `dir` at one moment, then kills it, until nothing is left.
///
/// # Errors
/// When something is left after ten seconds.
pub async fn kill_under(dir: &Path) -> Result<()> {
    // Stopped first, so that no survivor sees the others die and acts on it.
    signal(&under(dir), Signal::STOP);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let left = under(dir);
        if left.is_empty() {
            return Ok(());
        }
        signal(&left, Signal::KILL);
        if tokio::time::Instant::now() > deadline {
            let names: Vec<_> = left.iter().map(|p| format!("{} ({})", p.pid, p.command)).collect();
            bail!("cannot kill all below {}: {} left", dir.display(), names.join(", "));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The same for a destructor, which cannot await: a bounded number of sweeps.
pub fn kill_under_now(dir: &Path) {
    signal(&under(dir), Signal::STOP);
    for _ in 0..2000 {
        let left = under(dir);
        if left.is_empty() {
            return;
        }
        signal(&left, Signal::KILL);
        std::thread::yield_now();
    }
}

/// Who listens on a TCP port of this machine, as "process 1234 (postgres)", where `/proc` lets us see.
#[must_use]
pub fn listener(port: u16) -> Option<String> {
    let suffix = format!(":{port:04X}");
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| {
            let rows = table.lines().skip(1).map(str::split_whitespace).map(Iterator::collect);
            rows.filter(|row: &Vec<&str>| {
                // 0A is LISTEN.
                row.len() > 9 && row[1].ends_with(&suffix) && row[3] == "0A"
            })
            .map(|row| format!("socket:[{}]", row[9]))
            .collect::<Vec<_>>()
        })
        .collect();
    pids().find_map(|pid| {
        let sockets = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        let holds =
            sockets.flatten().filter_map(|fd| fs::read_link(fd.path()).ok()).any(|target| {
                inodes.iter().any(|inode| target.as_os_str().to_str() == Some(inode.as_str()))
            });
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        holds.then(|| format!("process {pid} ({})", name.trim()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sibling_with_a_longer_name_is_not_below() {
        let dir = Path::new("/tmp/run");
        assert!(lies_under(Path::new("/tmp/run/nodes/a"), dir));
        assert!(lies_under(Path::new("/tmp/run (deleted)"), dir));
        assert!(!lies_under(Path::new("/tmp/run2/nodes/a"), dir));
    }

    #[test]
    fn a_listener_is_named() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let name = listener(socket.local_addr().unwrap().port()).unwrap();
        assert!(name.contains(&format!("process {}", std::process::id())), "{name}");
    }
}
