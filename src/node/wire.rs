//! What the protocol itself tells of a connection, read beside the driver.
//!
//! A dropped future does not cancel its query, and the driver keeps neither the transaction's state nor
//! the cause of a lost connection where a caller could see it. Both pass by on the wire: requests that
//! await a `ReadyForQuery`, the transaction status in it, and the SQLSTATE of each error. This stream
//! looks at message headers on their way through and copies none of the bodies.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_postgres::tls::{ChannelBinding, TlsStream};

use super::dial::Socket;
use crate::topology::Suspicion;

/// Bytes of an error message that are looked at: its code stands at the front.
const ERROR_PREFIX: usize = 128;

/// What is known of one connection from its wire.
pub(crate) struct WireState {
    /// Requests sent that have not been answered to the end.
    pending: AtomicI32,
    /// `I` idle, `T` in a transaction, `E` in a failed one; 0 before the first answer.
    status: AtomicU8,
    /// Requests answered to the end so far.
    answers: AtomicU64,
    /// Whether the server said that it ends the session (FATAL or PANIC).
    dismissed: AtomicBool,
    /// Bytes written so far: tells whether an attempt sent anything.
    written: AtomicU64,
    last_was_sync: AtomicBool,
    /// Why the connection ended.
    cause: Mutex<Option<String>>,
    suspect: OnceLock<Box<dyn Fn(Suspicion) + Send + Sync>>,
    answered: Notify,
    /// Whether somebody waits for `answered`: mostly nobody does, and telling nobody takes a lock.
    awaited: AtomicBool,
    expired: AtomicBool,
    closing: AtomicBool,
    /// Whether the driver was woken and has not looked yet what for: a request may wait for it.
    woken: AtomicBool,
}

impl std::fmt::Debug for WireState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WireState")
            .field("pending", &self.pending())
            .field("status", &self.status.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}

impl WireState {
    pub(crate) fn new() -> Self {
        Self {
            pending: AtomicI32::new(0),
            status: AtomicU8::new(0),
            answers: AtomicU64::new(0),
            dismissed: AtomicBool::new(false),
            written: AtomicU64::new(0),
            last_was_sync: AtomicBool::new(false),
            cause: Mutex::new(None),
            suspect: OnceLock::new(),
            answered: Notify::new(),
            awaited: AtomicBool::new(false),
            expired: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            woken: AtomicBool::new(false),
        }
    }

    /// Calls `report` when the server says that it is going away or read-only.
    pub(crate) fn report_to(&self, report: Box<dyn Fn(Suspicion) + Send + Sync>) {
        let _ = self.suspect.set(report);
    }

    /// Requests in flight.
    pub(crate) fn pending(&self) -> i32 {
        self.pending.load(Ordering::Acquire)
    }

    /// Whether the session is outside any transaction, with nothing in flight.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.pending() == 0
            && self.status.load(Ordering::Acquire) == b'I'
            && !self.woken.load(Ordering::SeqCst)
    }

    /// Waits until nothing is in flight. Dropped statements and transactions leave a Close or a ROLLBACK
    /// behind, which are answered in no time.
    pub(crate) async fn all_answered(&self) {
        self.awaited.store(true, Ordering::SeqCst);
        loop {
            let answered = self.answered.notified();
            if self.pending() == 0 && !self.woken.load(Ordering::SeqCst) {
                break;
            }
            // The driver's own moves are told by nobody.
            let _ = timeout(Duration::from_millis(1), answered).await;
        }
        self.awaited.store(false, Ordering::SeqCst);
    }

    /// Whether the connection is too old to be lent out again.
    pub(crate) fn has_expired(&self) -> bool {
        self.expired.load(Ordering::Acquire)
    }

    pub(super) fn mark_woken(&self, woken: bool) {
        self.woken.store(woken, Ordering::SeqCst);
    }

    /// The pool itself ends the connection: its end is no news of the server.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    pub(super) fn expire(&self) {
        self.expired.store(true, Ordering::Release);
    }

    /// Bytes written so far.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Acquire)
    }

    /// Requests answered to the end so far.
    pub(crate) fn answers(&self) -> u64 {
        self.answers.load(Ordering::Acquire)
    }

    /// Whether the server itself said that it ends the session. Its answers come in order: what it had not
    /// answered by then it has not done.
    pub(crate) fn was_dismissed(&self) -> bool {
        self.dismissed.load(Ordering::Acquire)
    }

    /// Whether the open transaction has failed: a COMMIT would roll it back, and say so to nobody.
    pub(crate) fn in_failed_transaction(&self) -> bool {
        self.status.load(Ordering::Acquire) == b'E'
    }

    /// Whether a transaction is open, failed or not.
    pub(crate) fn in_transaction(&self) -> bool {
        matches!(self.status.load(Ordering::Acquire), b'T' | b'E')
    }

    /// Why the connection ended, where that is known.
    pub(crate) fn cause(&self) -> Option<String> {
        self.cause.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Keeps the first cause: what follows it is mostly "connection closed".
    pub(crate) fn set_cause(&self, cause: impl FnOnce() -> String) {
        self.cause
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .get_or_insert_with(cause);
    }

    pub(crate) fn suspect(&self, suspicion: Suspicion) {
        if let Some(report) = self.suspect.get() {
            report(suspicion);
        }
    }

    fn sent(&self, kind: u8) {
        match kind {
            // Query and FunctionCall are answered by one ReadyForQuery each, as is Sync.
            b'Q' | b'F' | b'S' => {
                self.pending.fetch_add(1, Ordering::AcqRel);
                self.last_was_sync.store(kind == b'S', Ordering::Relaxed);
            }
            _ => {}
        }
    }

    fn received(&self, kind: u8, body: &[u8]) {
        match kind {
            b'Z' => {
                // First the status: whoever sees nothing pending must see it too.
                self.status.store(body.first().copied().unwrap_or(0), Ordering::Release);
                self.answers.fetch_add(1, Ordering::AcqRel);
                // The one at the end of the handshake answers no request.
                let _ = self.pending.fetch_update(Ordering::AcqRel, Ordering::Acquire, |pending| {
                    (pending > 0).then(|| pending - 1)
                });
                if self.awaited.load(Ordering::SeqCst) {
                    self.answered.notify_waiters();
                }
            }
            // While copying in, the server passes over the Sync that was sent with the request.
            b'G' if self.last_was_sync.load(Ordering::Relaxed) => {
                self.pending.fetch_sub(1, Ordering::AcqRel);
            }
            b'E' => {
                if fields(body)
                    .any(|(kind, text)| kind == b'V' && matches!(text, b"FATAL" | b"PANIC"))
                {
                    self.dismissed.store(true, Ordering::Release);
                }
                let Some(code) = sqlstate(body) else { return };
                match code {
                    // admin_shutdown, crash_shutdown, cannot_connect_now
                    b"57P01" | b"57P02" | b"57P03" => {
                        self.set_cause(|| message(body));
                        self.suspect(Suspicion::ShuttingDown);
                    }
                    b"25006" => self.suspect(Suspicion::ReadOnly),
                    _ => {}
                }
            }
            _ => {}
        }
    }
}

/// The fields of an ErrorResponse: a letter, then text up to a zero byte.
fn fields(body: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    body.split(|byte| *byte == 0).filter_map(|field| Some((*field.first()?, &field[1..])))
}

fn sqlstate(body: &[u8]) -> Option<&[u8; 5]> {
    fields(body).find(|(kind, _)| *kind == b'C').and_then(|(_, code)| code.try_into().ok())
}

fn message(body: &[u8]) -> String {
    let text = |wanted: u8| {
        fields(body)
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, text)| String::from_utf8_lossy(text).into_owned())
            .unwrap_or_default()
    };
    format!("{}: {} ({})", text(b'S'), text(b'M'), text(b'C'))
}

/// Finds message boundaries in a stream of bytes that arrives in pieces.
#[derive(Debug)]
struct Scanner {
    header: [u8; 5],
    have: usize,
    /// Bytes of the current body still to come.
    left: usize,
    /// The body's first bytes, of the kinds that are looked at.
    body: Vec<u8>,
    /// Whether the next message is the start-up packet, which has no kind.
    startup: bool,
}

impl Scanner {
    fn frontend() -> Self {
        Self { header: [0; 5], have: 1, left: 0, body: Vec::new(), startup: true }
    }

    fn backend() -> Self {
        Self { header: [0; 5], have: 0, left: 0, body: Vec::new(), startup: false }
    }

    fn scan(&mut self, mut bytes: &[u8], mut each: impl FnMut(u8, &[u8])) {
        while !bytes.is_empty() {
            if self.have < 5 {
                let take = bytes.len().min(5 - self.have);
                self.header[self.have..self.have + take].copy_from_slice(&bytes[..take]);
                self.have += take;
                bytes = &bytes[take..];
                if self.have < 5 {
                    return;
                }
                let length = u32::from_be_bytes([
                    self.header[1],
                    self.header[2],
                    self.header[3],
                    self.header[4],
                ]);
                self.left = (length as usize).saturating_sub(4);
                self.body.clear();
            }
            let take = bytes.len().min(self.left);
            if matches!(self.header[0], b'Z' | b'E') && self.body.len() < ERROR_PREFIX {
                let keep = take.min(ERROR_PREFIX - self.body.len());
                self.body.extend_from_slice(&bytes[..keep]);
            }
            self.left -= take;
            bytes = &bytes[take..];
            if self.left == 0 {
                if self.startup {
                    self.startup = false;
                } else {
                    each(self.header[0], &self.body);
                }
                self.have = 0;
            }
        }
    }
}

/// A socket with its wire looked at.
pub(crate) struct Wire {
    socket: Socket,
    state: std::sync::Arc<WireState>,
    outgoing: Scanner,
    incoming: Scanner,
}

impl Wire {
    pub(crate) fn new(socket: Socket, state: std::sync::Arc<WireState>) -> Self {
        Self { socket, state, outgoing: Scanner::frontend(), incoming: Scanner::backend() }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let result = Pin::new(&mut this.socket).poll_read(cx, buf);
        let state = &this.state;
        this.incoming.scan(&buf.filled()[before..], |kind, body| state.received(kind, body));
        result
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.socket).poll_write(cx, buf);
        if let Poll::Ready(Ok(sent)) = &result {
            let state = &this.state;
            state.written.fetch_add(*sent as u64, Ordering::AcqRel);
            this.outgoing.scan(&buf[..*sent], |kind, _| state.sent(kind));
        }
        result
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

impl TlsStream for Wire {
    fn channel_binding(&self) -> ChannelBinding {
        match &self.socket {
            Socket::Tls(stream) => stream.channel_binding(),
            Socket::Tcp(_) | Socket::Unix(_) => ChannelBinding::none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    fn message_bytes(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    fn feed(state: &WireState, scanner: &mut Scanner, bytes: &[u8]) {
        scanner.scan(bytes, |kind, body| state.received(kind, body));
    }

    #[test]
    fn a_query_is_pending_until_ready_for_query() {
        let state = WireState::new();
        let (mut outgoing, mut incoming) = (Scanner::frontend(), Scanner::backend());
        let mut startup = 8_u32.to_be_bytes().to_vec();
        startup.extend_from_slice(&[0, 3, 0, 0]);
        outgoing.scan(&startup, |kind, _| state.sent(kind));
        feed(&state, &mut incoming, &message_bytes(b'Z', b"I"));
        assert!(state.is_at_rest());
        outgoing.scan(&message_bytes(b'Q', b"BEGIN\0"), |kind, _| state.sent(kind));
        assert_eq!(state.pending(), 1);
        feed(&state, &mut incoming, &message_bytes(b'C', b"BEGIN\0"));
        feed(&state, &mut incoming, &message_bytes(b'Z', b"T"));
        assert_eq!(state.pending(), 0);
        assert!(!state.is_at_rest(), "a transaction is open");
    }

    #[test]
    fn a_shutdown_is_reported_with_its_cause() {
        let state = WireState::new();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        state.report_to(Box::new(move |what| sink.lock().expect("lock").push(what)));
        let body =
            b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0";
        feed(&state, &mut Scanner::backend(), &message_bytes(b'E', body));
        assert_eq!(*seen.lock().expect("lock"), [Suspicion::ShuttingDown]);
        let cause = state.cause().expect("a cause");
        assert_eq!(cause, "FATAL: terminating connection due to administrator command (57P01)");
    }

    proptest! {
        #[test]
        fn messages_are_found_however_they_are_cut(
            messages in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..300)), 1..20),
            cuts in proptest::collection::vec(1_usize..40, 1..200),
        ) {
            let bytes: Vec<u8> =
                messages.iter().flat_map(|(kind, body)| message_bytes(*kind, body)).collect();
            let mut found = Vec::new();
            let mut scanner = Scanner::backend();
            let (mut rest, mut cuts) = (bytes.as_slice(), cuts.iter().cycle());
            while !rest.is_empty() {
                let cut = (*cuts.next().expect("endless")).min(rest.len());
                scanner.scan(&rest[..cut], |kind, _| found.push(kind));
                rest = &rest[cut..];
            }
            let expected: Vec<u8> = messages.iter().map(|(kind, _)| *kind).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn garbage_from_the_server_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            feed(&WireState::new(), &mut Scanner::backend(), &bytes);
        }
    }
}
