//! What `/proc` tells of a process, read without allocating: the fence reads it too, from a thread that must not.

use std::ffi::CStr;
use std::io::Write as _;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, openat, readlinkat_raw, statat};

/// Ticks of the clock that `/proc` counts in: fixed by the kernel's interface.
const TICKS_PER_SECOND: u64 = 100;

/// A file or directory, whatever its name is by now.
pub(crate) type FileId = (u64, u64);

/// A line of `/proc/PID/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) pid: i32,
    pub(crate) state: u8,
    pub(crate) parent: i32,
    /// When it was started, in ticks since boot: tells it from a later process with the same id.
    pub(crate) started: u64,
}

impl Stat {
    /// Whether it has ended and only waits to be reaped.
    pub(crate) fn is_zombie(self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }

    /// Whether a signal has stopped it.
    pub(crate) fn is_stopped(self) -> bool {
        matches!(self.state, b'T' | b't')
    }

    fn parse(line: &[u8]) -> Option<Self> {
        // The name, in brackets, may hold anything: the fixed fields follow the last bracket.
        let open = line.iter().position(|b| *b == b'(')?;
        let close = line.iter().rposition(|b| *b == b')')?;
        let pid = number(line.get(..open)?)?;
        let mut fields = line.get(close + 1..)?.split(|b| *b == b' ').filter(|f| !f.is_empty());
        let state = *fields.next()?.first()?;
        let parent = number(fields.next()?)?;
        let started = number(fields.nth(17)?)?;
        Some(Self {
            pid: i32::try_from(pid).ok()?,
            state,
            parent: i32::try_from(parent).ok()?,
            started,
        })
    }
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

/// `/proc`, held open.
#[derive(Debug)]
pub(crate) struct Proc(OwnedFd);

impl Proc {
    pub(crate) fn open() -> rustix::io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, c"/proc", flags, Mode::empty()).map(Self)
    }

    pub(crate) fn stat(&self, pid: i32) -> Option<Stat> {
        let mut path = [0; 32];
        let file = openat(
            &self.0,
            join(&mut path, pid, "stat")?,
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let mut line = [0; 512];
        // One read gives the whole line, or nothing: the process is gone.
        let n = rustix::io::read(file.ok()?, &mut line).ok()?;
        Stat::parse(line.get(..n)?)
    }

    /// The working directory of a process, where we may see it.
    pub(crate) fn cwd(&self, pid: i32) -> Option<FileId> {
        self.id_of(pid, "cwd")
    }

    /// Whether the program of a process is PostgreSQL's server, where we may see it. By its name: after an upgrade what runs
    /// is no longer the file of that name.
    pub(crate) fn runs_postgres(&self, pid: i32) -> bool {
        let (mut path, mut target) = ([0; 32], [0; 4096]);
        let Some(link) = join(&mut path, pid, "exe") else { return false };
        let Ok(length) = readlinkat_raw(&self.0, link, &mut target[..]) else { return false };
        let name = target[..length].rsplit(|b| *b == b'/').next().unwrap_or_default();
        matches!(name.strip_suffix(b" (deleted)").unwrap_or(name), b"postgres" | b"postmaster")
    }

    fn id_of(&self, pid: i32, link: &str) -> Option<FileId> {
        let mut path = [0; 32];
        let stat = statat(&self.0, join(&mut path, pid, link)?, AtFlags::empty()).ok()?;
        Some((stat.st_dev, stat.st_ino))
    }

    /// Calls `each` for every process. False where the list could not be read to its end.
    pub(crate) fn for_each(&self, mut each: impl FnMut(i32)) -> bool {
        if rustix::fs::seek(&self.0, rustix::fs::SeekFrom::Start(0)).is_err() {
            return false;
        }
        let mut buffer = [std::mem::MaybeUninit::uninit(); 8192];
        let mut entries = RawDir::new(&self.0, &mut buffer);
        while let Some(entry) = entries.next() {
            let Ok(entry) = entry else { return false };
            if let Some(pid) = number(entry.file_name().to_bytes()) {
                i32::try_from(pid).into_iter().for_each(&mut each);
            }
        }
        true
    }

    /// When a process was started, in seconds since the epoch, as well as the clock allows to say.
    pub(crate) fn started_at(&self, pid: i32) -> Option<u64> {
        let text = std::fs::read_to_string("/proc/stat").ok()?;
        let boot: u64 = text.lines().find_map(|l| l.strip_prefix("btime "))?.trim().parse().ok()?;
        Some(boot + self.stat(pid)?.started / TICKS_PER_SECOND)
    }
}

/// `PID/name` in a buffer on the stack.
fn join<'a>(buffer: &'a mut [u8; 32], pid: i32, name: &str) -> Option<&'a CStr> {
    let mut rest = &mut buffer[..31];
    write!(rest, "{pid}/{name}").ok()?;
    CStr::from_bytes_until_nul(buffer).ok()
}

/// The id of a file or directory by its name.
pub(crate) fn file_id(path: &std::path::Path) -> Option<FileId> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.dev(), meta.ino()))
}

/// How many processes are attached to a System V shared memory segment; `None` where there is no such segment, or
/// the kernel does not say.
pub(crate) fn attached_to(shmem: u64) -> Option<u64> {
    let table = std::fs::read_to_string("/proc/sysvipc/shm").ok()?;
    let mut lines = table.lines();
    let columns: Vec<&str> = lines.next()?.split_whitespace().collect();
    let id = columns.iter().position(|c| *c == "shmid")?;
    let attached = columns.iter().position(|c| *c == "nattch")?;
    lines
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find(|row| row.get(id).and_then(|f| f.parse().ok()) == Some(shmem))
        .and_then(|row| row.get(attached)?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_blanks() {
        let line =
            b"4321 (a) (b c) S 77 4321 4321 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 998877 1 2";
        let stat = Stat::parse(line).unwrap();
        assert_eq!((stat.pid, stat.state, stat.parent, stat.started), (4321, b'S', 77, 998_877));
        assert_eq!(Stat::parse(b"12 (x"), None);
    }

    #[test]
    fn we_are_among_the_processes() {
        let proc = Proc::open().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        for _ in 0..2 {
            let mut seen = false;
            assert!(proc.for_each(|pid| seen |= pid == own));
            assert!(seen);
        }
        let stat = proc.stat(own).unwrap();
        assert!(!stat.is_zombie() && stat.parent > 0);
        let here = std::env::current_dir().unwrap();
        assert_eq!(proc.cwd(own), file_id(&here));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        assert!(now.as_secs().abs_diff(proc.started_at(own).unwrap()) < 3600);
    }
}
