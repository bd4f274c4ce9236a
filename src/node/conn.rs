//! A pooled connection: the driver's client, and what is known about it.

use std::ops::{Deref, DerefMut};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::ClientWrapper;
use futures_util::future::poll_fn;
use tokio::time::{sleep, timeout};
use tokio_postgres::{AsyncMessage, Connection};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::dial::Dialed;
use super::member::FenceLine;
use super::wire::{Wire, WireState};
use crate::error::with_causes;
use crate::topology::Suspicion;

/// How long a connection that is being closed may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// A connection of a member's pool. Derefs to [`ClientWrapper`], the client of `deadpool-postgres`, and
/// through it to [`tokio_postgres::Client`].
pub struct Conn {
    client: ClientWrapper,
    wire: Arc<WireState>,
    /// The reign under which it was last verified as the primary's; 0 for never.
    pub(crate) verified_reign: u64,
    closing: CancellationToken,
    line: Arc<FenceLine>,
}

impl std::fmt::Debug for Conn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conn")
            .field("wire", &self.wire)
            .field("verified_reign", &self.verified_reign)
            .finish_non_exhaustive()
    }
}

impl Conn {
    /// Starts to drive `dialed` on `tasks`. When `line` falls it ends at once, with work in flight failing.
    pub(super) fn start(
        dialed: Dialed,
        wire: Arc<WireState>,
        tasks: &TaskTracker,
        line: Arc<FenceLine>,
        lifetime: Duration,
    ) -> Self {
        let closing = CancellationToken::new();
        let driver = drive(
            dialed.connection,
            Arc::clone(&wire),
            Arc::clone(&line),
            closing.clone(),
            lifetime,
        );
        tasks.spawn(driver);
        Self {
            // The wrapper aborts the task it is given when it is dropped, before the driver could say
            // goodbye to the server; so it gets one that has nothing to do.
            client: ClientWrapper::new(dialed.client, tokio::spawn(async {})),
            wire,
            verified_reign: 0,
            closing,
            line,
        }
    }

    pub(crate) fn wire(&self) -> &Arc<WireState> {
        &self.wire
    }

    /// Whether the pool itself ended it, as its node was demoted.
    pub(crate) fn was_cut(&self) -> bool {
        self.line.has_fallen()
    }

    /// Whether it was cut, is over age, or the server is gone.
    pub(crate) fn is_dead(&self) -> bool {
        self.line.has_fallen() || self.wire.has_expired() || self.client.is_closed()
    }

    /// Why the connection ended, where that is known: the driver's own errors do not tell.
    #[must_use]
    pub fn end_cause(&self) -> Option<String> {
        self.wire.cause()
    }
}

impl Deref for Conn {
    type Target = ClientWrapper;

    fn deref(&self) -> &ClientWrapper {
        &self.client
    }
}

impl DerefMut for Conn {
    fn deref_mut(&mut self) -> &mut ClientWrapper {
        &mut self.client
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

/// Moves messages until the connection ends, and remembers why it did.
async fn drive(
    mut connection: Connection<Wire, Wire>,
    wire: Arc<WireState>,
    line: Arc<FenceLine>,
    closing: CancellationToken,
    lifetime: Duration,
) {
    let mut aged = pin!(sleep(lifetime));
    let ended = async {
        loop {
            match poll_fn(|cx| connection.poll_message(cx)).await {
                Some(Ok(AsyncMessage::Notice(notice))) => {
                    tracing::debug!(severity = notice.severity(), "{}", notice.message());
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    wire.set_cause(|| with_causes(&error));
                    break;
                }
                None => break,
            }
        }
    };
    let mut ended = pin!(ended);
    let closed_by_us = loop {
        tokio::select! {
            () = &mut ended => break closing.is_cancelled(),
            () = line.token.cancelled() => {
                wire.set_cause(|| "cut: the node is not this cluster's primary any more".into());
                break true;
            }
            () = closing.cancelled() => {
                let _ = timeout(GOODBYE, ended).await;
                break true;
            }
            // Whoever has it may finish; it is only not lent out again.
            () = &mut aged, if !wire.has_expired() => wire.expire(),
        }
    };
    if !closed_by_us {
        wire.set_cause(|| "the server closed the connection".into());
        wire.suspect(Suspicion::ConnectionLost);
    }
}
