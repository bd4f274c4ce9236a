//! The end, in order: no new connections, the requests in flight finished, then the pool.

use std::io;
use std::time::Duration;

use leaderpool::LeaderPool;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How long the last answers may take once the pool is closed.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// SIGTERM and Ctrl-C.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on they do not end the process by themselves.
    pub(crate) fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "Ctrl-C",
        }
    }
}

/// Serves until a signal, then lets `server` finish for at most `limit`, or until a second signal. What
/// still waits then (for a leader, most likely) is refused with an answer, as the pool is closed.
pub(crate) async fn serve_until(
    server: impl Future<Output = io::Result<()>>,
    signals: &mut Signals,
    stop: &CancellationToken,
    pool: &LeaderPool,
    limit: Duration,
) -> anyhow::Result<()> {
    tokio::pin!(server);
    tokio::select! {
        result = &mut server => return Ok(result?),
        name = signals.next() => tracing::info!("{name}: finishing the requests in flight"),
    }
    stop.cancel();
    let finished = tokio::select! {
        result = &mut server => { result?; true }
        () = sleep(limit) => false,
        _ = signals.next() => false,
    };
    if !finished {
        tracing::warn!("requests are still in flight: refusing those that wait");
    }
    let closed = pool.close().await;
    if !finished {
        // They run on tasks of their own; this waits for what they send.
        let _ = timeout(LAST_ANSWERS, &mut server).await;
    }
    closed?;
    tracing::info!("ended");
    Ok(())
}
