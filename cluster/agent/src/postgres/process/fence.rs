//! The fence: stopping the server for certain, from a plain thread, whatever state the rest of the agent is in.
//!
//! Nothing here allocates, awaits or takes a lock that is held for longer than an assignment. The thread that calls it
//! may have its memory locked, and then cannot be held up by a busy runtime or by paging.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process, pidfd_send_signal};
use rustix::time::{ClockId, clock_gettime};

use super::procfs::{FileId, Proc};

/// How the fence stops a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FenceSignal {
    /// SIGINT, the fast shutdown: transactions are rolled back, a checkpoint is written.
    Fast,
    /// SIGQUIT, the immediate shutdown: all processes end at once; the next start recovers.
    Immediate,
}

/// What came of a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fenced {
    /// It was sent.
    Sent,
    /// There is no server.
    Nothing,
    /// The system refused to send it.
    Refused,
}

/// What came of killing everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Killed {
    /// Whether anything was there to be killed.
    pub any: bool,
    /// Whether none of the server's processes was left when it was last looked. Where the agent may not look (it is
    /// neither root with all rights nor the server's own user), orphans of an earlier server are not seen.
    pub none_left: bool,
}

/// What stands between the agent and whatever server runs in one data directory. Clones are the same fence. It
/// follows the server across restarts: what starts or adopts one, sets it here.
#[derive(Debug, Clone, Default)]
pub struct Fence {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    target: Mutex<Target>,
    engaged: AtomicBool,
}

/// What the fence stops.
#[derive(Debug, Clone, Default)]
pub(super) struct Target {
    pub(super) server: Option<(Pid, Arc<OwnedFd>)>,
    /// Where the server works: orphans are known by that.
    pub(super) data_dir: Option<FileId>,
}

impl Fence {
    /// A fence around no server yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A handle for one thread.
    ///
    /// # Errors
    /// When `/proc` cannot be opened.
    pub fn handle(&self) -> std::io::Result<FenceHandle> {
        Ok(FenceHandle { fence: self.clone(), last: Target::default(), proc: Proc::open()? })
    }

    /// From now on no server is started. What is just being started is killed as soon as it comes up to the fence.
    pub fn engage(&self) {
        self.shared.engaged.store(true, Ordering::SeqCst);
    }

    /// Servers may be started again.
    pub fn release(&self) {
        self.shared.engaged.store(false, Ordering::SeqCst);
    }

    /// Whether servers must not be started.
    #[must_use]
    pub fn is_engaged(&self) -> bool {
        self.shared.engaged.load(Ordering::SeqCst)
    }

    pub(super) fn set(&self, target: Target) {
        let pidfd = target.server.as_ref().map(|(_, pidfd)| Arc::clone(pidfd));
        let old = std::mem::replace(&mut *self.target(), target);
        drop(old);
        if !self.is_engaged() {
            return;
        }
        match (self.handle(), pidfd) {
            (Ok(mut handle), _) => {
                handle.kill_everything();
            }
            (Err(_), Some(pidfd)) => {
                send(&pidfd, Signal::KILL);
            }
            (Err(_), None) => {}
        }
    }

    pub(super) fn clear(&self, pid: Pid) {
        let mut target = self.target();
        let is_it = target.server.as_ref().is_some_and(|(current, _)| *current == pid);
        let old = is_it.then(|| target.server.take());
        drop(target);
        drop(old);
    }

    fn target(&self) -> MutexGuard<'_, Target> {
        self.shared.target.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A fence in the hands of one thread.
#[derive(Debug)]
pub struct FenceHandle {
    fence: Fence,
    last: Target,
    proc: Proc,
}

impl FenceHandle {
    /// The fence itself.
    #[must_use]
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Whether a server runs.
    pub fn is_running(&mut self) -> bool {
        !self.wait_gone(Duration::ZERO)
    }

    /// Asks the server to stop. It is the postmaster that gets the signal, and tells its children.
    pub fn signal(&mut self, signal: FenceSignal) -> Fenced {
        let Some((_, pidfd)) = self.current().server else { return Fenced::Nothing };
        let signal = match signal {
            FenceSignal::Fast => Signal::INT,
            FenceSignal::Immediate => Signal::QUIT,
        };
        send(&pidfd, signal)
    }

    /// Waits, blocking, until the server's main process is gone; false where it is not after `patience`.
    pub fn wait_gone(&mut self, patience: Duration) -> bool {
        let Some((_, pidfd)) = self.current().server else { return true };
        wait_for_end(pidfd.as_fd(), patience)
    }

    /// Kills the server with all its processes, by SIGKILL. Blocks until they are gone: milliseconds, and three
    /// seconds at the very most.
    ///
    /// Killing the postmaster alone is not enough: a session that is busy goes on, and may still commit. Nor is its
    /// process group: each of its children has a session of its own. So the postmaster is first *stopped*, so that it
    /// can start no more children; then its children are killed; then itself; then orphans of an earlier server, known by
    /// working in the data directory and running the same program.
    pub fn kill_everything(&mut self) -> Killed {
        let target = self.current();
        let mut any = false;
        if let Some((pid, pidfd)) = &target.server {
            let number = pid.as_raw_nonzero().get();
            any = send(pidfd, Signal::STOP) == Fenced::Sent;
            let end = Bound::from_now();
            // Until it is seen to be stopped, a child may be born after the list was read.
            while let Some(stat) = self.proc.stat(number) {
                let halted = stat.is_stopped() || stat.is_zombie();
                let left = kill_where(&self.proc, |pid| {
                    self.proc.stat(pid).is_some_and(|s| s.parent == number && !s.is_zombie())
                });
                if (halted && left == 0) || end.has_passed() {
                    break;
                }
                pause();
            }
            send(pidfd, Signal::KILL);
        }
        let mut none_left = true;
        if let Some(dir) = target.data_dir {
            let end = Bound::from_now();
            loop {
                // What is already dead works nowhere any more.
                let left = kill_where(&self.proc, |pid| {
                    self.proc.cwd(pid) == Some(dir) && self.proc.runs_postgres(pid)
                });
                any |= left > 0;
                none_left = left == 0;
                if none_left || end.has_passed() {
                    break;
                }
                pause();
            }
        }
        Killed { any, none_left: none_left && self.wait_gone(Duration::from_secs(1)) }
    }

    /// The target; the one last seen, should a thread be frozen in the middle of setting it.
    fn current(&mut self) -> Target {
        for _ in 0..50 {
            match self.fence.shared.target.try_lock() {
                Ok(target) => {
                    self.last.clone_from(&target);
                    break;
                }
                Err(TryLockError::Poisoned(poisoned)) => {
                    self.last.clone_from(poisoned.get_ref());
                    break;
                }
                Err(TryLockError::WouldBlock) => pause(),
            }
        }
        self.last.clone()
    }
}

/// The end of what is done at most for a second.
struct Bound(Timespec);

impl Bound {
    fn from_now() -> Self {
        let now = clock_gettime(ClockId::Monotonic);
        Self(Timespec { tv_sec: now.tv_sec + 1, ..now })
    }

    fn has_passed(&self) -> bool {
        let now = clock_gettime(ClockId::Monotonic);
        (now.tv_sec, now.tv_nsec) >= (self.0.tv_sec, self.0.tv_nsec)
    }
}

/// Kills what matches, and says how many did: those killed are gone only a moment later.
fn kill_where(proc: &Proc, matches: impl Fn(i32) -> bool) -> u32 {
    let own = std::process::id();
    let mut left = 0;
    proc.for_each(|pid| {
        if pid > 1 && pid.cast_unsigned() != own && matches(pid) {
            left += 1;
            if let Some(pid) = Pid::from_raw(pid) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    });
    left
}

fn send(pidfd: &OwnedFd, signal: Signal) -> Fenced {
    match pidfd_send_signal(pidfd, signal) {
        Ok(()) => Fenced::Sent,
        Err(rustix::io::Errno::SRCH) => Fenced::Nothing,
        Err(_) => Fenced::Refused,
    }
}

/// Whether the process of a pidfd has ended, waiting for that up to `patience`.
pub(super) fn wait_for_end(pidfd: std::os::fd::BorrowedFd<'_>, patience: Duration) -> bool {
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    let timeout = Timespec::try_from(patience).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
    loop {
        match poll(&mut fds, Some(&timeout)) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

fn pause() {
    let millisecond = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    let _ = rustix::thread::nanosleep(&millisecond);
}
