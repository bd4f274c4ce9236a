//! Which ports a cluster uses.

use std::fs::{File, OpenOptions};
use std::net::TcpListener;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

use crate::process::scan;

/// The most nodes a cluster can have.
pub const MAX_NODES: usize = 12;

/// The choice of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ports {
    /// Free ones, never the documented ones: for tests, which may run side by side.
    #[default]
    Free,
    /// The documented ones: etcd 2379/2380, PostgreSQL 5432…, REST 8008…, HAProxy 5000, 5001 and 7000.
    Seed,
}

/// A reservation of ports, held by a file lock: it ends with this value or with the process.
#[derive(Debug)]
pub struct PortBlock {
    layout: Layout,
    _lock: File,
}

#[derive(Debug, Clone, Copy)]
enum Layout {
    Seed,
    Block(u16),
}

// Below the range that the kernel takes outgoing connections' ports from.
const FIRST: u16 = 12_000;
const BLOCK: u16 = 64;
const BLOCKS: u16 = 312;

impl PortBlock {
    /// Reserves ports.
    ///
    /// # Errors
    /// When a documented port is taken (its holder is named), or no free block is left.
    pub fn reserve(ports: Ports) -> Result<Self> {
        match ports {
            Ports::Seed => Self::seed(),
            Ports::Free => Self::free(),
        }
    }

    fn seed() -> Result<Self> {
        let Some(lock) = try_lock("seed")? else {
            bail!("another cluster holds the documented ports: stop it or run `make down`");
        };
        Ok(Self { layout: Layout::Seed, _lock: lock })
    }

    fn free() -> Result<Self> {
        // Processes that start together begin at different places.
        let start = (std::process::id() % u32::from(BLOCKS)) as u16;
        for step in 0..BLOCKS {
            let base = FIRST + (start + step) % BLOCKS * BLOCK;
            let Some(lock) = try_lock(&base.to_string())? else { continue };
            if (base..base + BLOCK).all(|port| check_free(port).is_ok()) {
                return Ok(Self { layout: Layout::Block(base), _lock: lock });
            }
        }
        bail!("no block of {BLOCK} free ports between {FIRST} and 32000: stop what uses them")
    }

    /// The client port of etcd's member `i`.
    #[must_use]
    pub fn etcd_client(&self, i: usize) -> u16 {
        self.pick(2379 + 2 * small(i), small(i))
    }

    /// The peer port of etcd's member `i`.
    #[must_use]
    pub fn etcd_peer(&self, i: usize) -> u16 {
        self.pick(2380 + 2 * small(i), 4 + small(i))
    }

    /// PostgreSQL's port on node `i`.
    #[must_use]
    pub fn postgres(&self, i: usize) -> u16 {
        self.pick(5432 + small(i), 8 + small(i))
    }

    /// The REST API's port on node `i`.
    #[must_use]
    pub fn rest(&self, i: usize) -> u16 {
        self.pick(8008 + small(i), 8 + MAX_NODES as u16 + small(i))
    }

    /// HAProxy's port for writes.
    #[must_use]
    pub fn haproxy_writes(&self) -> u16 {
        self.pick(5000, 32)
    }

    /// HAProxy's port for reads.
    #[must_use]
    pub fn haproxy_reads(&self) -> u16 {
        self.pick(5001, 33)
    }

    /// HAProxy's page of statistics.
    #[must_use]
    pub fn haproxy_stats(&self) -> u16 {
        self.pick(7000, 34)
    }

    /// Ports for what stands before the cluster: the backends' 9084, 9085, 9086 and on (at most 24).
    #[must_use]
    pub fn backend(&self, i: usize) -> u16 {
        self.pick(9084 + small(i), 40 + small(i))
    }

    fn pick(&self, seed: u16, offset: u16) -> u16 {
        match self.layout {
            Layout::Seed => seed,
            Layout::Block(base) => base + offset % BLOCK,
        }
    }
}

fn small(i: usize) -> u16 {
    u16::try_from(i).unwrap_or(u16::MAX / 2) % 1000
}

/// Says who holds a port, if anyone does.
///
/// # Errors
/// When the port cannot be bound.
pub fn check_free(port: u16) -> Result<()> {
    if TcpListener::bind(("127.0.0.1", port)).is_ok() {
        return Ok(());
    }
    let holder = scan::listener(port).unwrap_or_else(|| "another process".to_owned());
    bail!("port {port} is in use by {holder}; stop it or run `make down`")
}

fn try_lock(name: &str) -> Result<Option<File>> {
    let user = rustix::process::geteuid().as_raw();
    let dir = std::env::temp_dir().join(format!("leaderpool-ports-{user}"));
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(dir.join(name))
        .with_context(|| format!("cannot open a lock file in {}", dir.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error).context("cannot lock a port block"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_reservations_never_share_a_port() {
        let (one, two) = (PortBlock::free().unwrap(), PortBlock::free().unwrap());
        assert_ne!(one.postgres(0), two.postgres(0));
        let mut ports: Vec<u16> =
            (0..MAX_NODES).flat_map(|i| [one.postgres(i), one.rest(i)]).collect();
        ports.extend((0..3).flat_map(|i| [one.etcd_client(i), one.etcd_peer(i)]));
        ports.extend([one.haproxy_writes(), one.haproxy_reads(), one.haproxy_stats()]);
        ports.extend((0..24).map(|i| one.backend(i)));
        let all = ports.len();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), all);
    }

    #[test]
    fn a_taken_port_names_its_holder() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = check_free(socket.local_addr().unwrap().port()).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
    }
}
