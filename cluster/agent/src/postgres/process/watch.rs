//! Being told that something changed in a directory, instead of looking again and again.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

/// How often to look where the kernel does not tell: the limit of watches is reached, or the file system has none.
const LOOK: Duration = Duration::from_millis(5);
/// How often to look even so, should an event be lost.
const LOOK_ANYWAY: Duration = Duration::from_millis(200);

/// Has the runtime tell when a descriptor can be read.
///
/// tokio deprecates this for types that may answer with another descriptor each time they are asked, and wants `unsafe` for
/// the rest. An `OwnedFd` always answers with the one it owns.
#[allow(deprecated, reason = "sound for an OwnedFd, and without `unsafe` there is no other way")]
pub(super) fn wait_readable(fd: Arc<OwnedFd>) -> std::io::Result<AsyncFd<Arc<OwnedFd>>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

/// Watches directories (not what lies in their subdirectories).
#[derive(Debug)]
pub(crate) struct DirWatch {
    events: Option<AsyncFd<Arc<OwnedFd>>>,
}

impl DirWatch {
    /// Watches `dirs`. Never fails: where the kernel cannot tell, it is looked often.
    pub(crate) fn on(dirs: &[&Path]) -> Self {
        let watch = || -> std::io::Result<AsyncFd<Arc<OwnedFd>>> {
            let fd = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
            let events = WatchFlags::CREATE
                | WatchFlags::MODIFY
                | WatchFlags::CLOSE_WRITE
                | WatchFlags::MOVED_TO
                | WatchFlags::DELETE;
            for dir in dirs {
                add_watch(&fd, *dir, events)?;
            }
            wait_readable(Arc::new(fd))
        };
        let events = watch();
        if let Err(error) = &events {
            tracing::debug!(%error, ?dirs, "no change events; looking every {LOOK:?}");
        }
        Self { events: events.ok() }
    }

    /// Returns when something may have changed since the last call. Cancel-safe.
    pub(crate) async fn changed(&mut self) {
        let Some(events) = &self.events else { return sleep(LOOK).await };
        tokio::select! {
            ready = events.readable() => {
                let Ok(mut ready) = ready else { return sleep(LOOK).await };
                // What changed is looked up by the caller; here the queue is only emptied.
                let mut buffer = [0; 4096];
                while let Ok(Ok(1..)) =
                    ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut buffer)?))
                {}
            }
            () = sleep(LOOK_ANYWAY) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, timeout};

    use super::*;

    #[tokio::test]
    async fn a_write_wakes_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = DirWatch::on(&[dir.path()]);
        for round in 0..3 {
            let path = dir.path().join("file");
            let writer = tokio::spawn(async move {
                sleep(Duration::from_millis(20)).await;
                std::fs::write(path, format!("{round}")).unwrap();
            });
            let deadline = Instant::now() + Duration::from_secs(10);
            let wanted = round.to_string();
            while std::fs::read_to_string(dir.path().join("file")).ok() != Some(wanted.clone()) {
                timeout(deadline - Instant::now(), watch.changed()).await.unwrap();
            }
            writer.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_directory_that_is_not_there_is_looked_at_often() {
        let mut watch = DirWatch::on(&[Path::new("/no/such/directory")]);
        timeout(Duration::from_secs(5), watch.changed()).await.unwrap();
    }
}
