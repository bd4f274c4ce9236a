//! `postmaster.pid`: what a server says about itself before anyone can connect.

use std::io;
use std::path::Path;

/// The name of the file in the data directory.
pub const NAME: &str = "postmaster.pid";

/// How far a server has come, by its own account in the last line of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PostmasterStatus {
    /// It recovers, and takes no connections yet.
    Starting,
    /// It is in recovery and takes no connections, being configured so (`hot_standby` is off).
    Standby,
    /// It takes connections: as a primary, or as a standby for reading.
    Ready,
    /// It shuts down.
    Stopping,
}

impl PostmasterStatus {
    /// Whether it has come as far as it is configured to.
    #[must_use]
    pub fn is_up(self) -> bool {
        matches!(self, Self::Standby | Self::Ready)
    }

    fn parse(line: &str) -> Option<Self> {
        match line.trim() {
            "starting" => Some(Self::Starting),
            "standby" => Some(Self::Standby),
            "ready" => Some(Self::Ready),
            "stopping" => Some(Self::Stopping),
            _ => None,
        }
    }
}

/// The content of `postmaster.pid`. The server writes it line by line, so later fields come later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PidFile {
    /// The process id. A single-user server writes it negated.
    pub pid: i32,
    /// The data directory as the server was told it.
    pub data_dir: String,
    /// When it was started, in seconds since the epoch.
    pub started: Option<u64>,
    /// The port.
    pub port: Option<u16>,
    /// The first directory with a Unix socket, as configured (it may be relative to the data directory).
    pub socket_dir: Option<String>,
    /// The first TCP address it listens on; `*` for all.
    pub address: Option<String>,
    /// The id of its System V shared memory segment, by which a later server sees that children are left.
    pub shmem: Option<u64>,
    /// How far it has come.
    pub status: Option<PostmasterStatus>,
}

impl PidFile {
    /// Reads the file's text; `None` where not even its first line is complete.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        // A half-written number would name another process.
        let (pid, rest) = text.split_once('\n')?;
        let pid = pid.trim().parse().ok()?;
        let mut lines = rest.split('\n');
        let data_dir = lines.next()?.to_owned();
        let started = lines.next().and_then(|line| line.trim().parse().ok());
        let port = lines.next().and_then(|line| line.trim().parse().ok());
        let text =
            |line: Option<&str>| line.map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned);
        let socket_dir = text(lines.next());
        let address = text(lines.next());
        let shmem = lines.next().and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        let status = lines.next().and_then(PostmasterStatus::parse);
        Some(Self { pid, data_dir, started, port, socket_dir, address, shmem, status })
    }

    /// Reads the file of a data directory; `None` where there is none, or it has not been written yet.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn read(data_dir: &Path) -> io::Result<Option<Self>> {
        match std::fs::read_to_string(data_dir.join(NAME)) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether a single-user server wrote it.
    #[must_use]
    pub fn is_single_user(&self) -> bool {
        self.pid < 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Of a PostgreSQL 15.
    const FULL: &str = "19079\n/var/lib/postgresql/data\n1795551972\n5433\n/run/postgresql\n127.0.0.1\n 10149379    196608\nready   \n";

    #[test]
    fn a_complete_file() {
        let file = PidFile::parse(FULL).unwrap();
        assert_eq!((file.pid, file.started, file.port), (19079, Some(1_795_551_972), Some(5433)));
        assert_eq!(file.socket_dir.as_deref(), Some("/run/postgresql"));
        assert_eq!(file.shmem, Some(196_608));
        assert_eq!(file.status, Some(PostmasterStatus::Ready));
        assert!(!file.is_single_user());
    }

    #[test]
    fn every_prefix_of_it_is_taken_as_far_as_it_goes() {
        for end in 0..FULL.len() {
            let Some(file) = PidFile::parse(&FULL[..end]) else { continue };
            assert_eq!(file.pid, 19079);
            assert!(file.status.is_none() || end >= FULL.len() - 4, "{end}");
        }
        assert_eq!(PidFile::parse(""), None);
        assert!(PidFile::parse("-77\n/data\n").unwrap().is_single_user());
    }
}
