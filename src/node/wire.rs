//! What the protocol itself tells of a connection, read beside the driver.
//!
//! A dropped future does not cancel its query, and the driver keeps neither the transaction's state nor
//! the cause of a lost connection where a caller could see it. Both pass by on the wire: requests that
//! await a `ReadyForQuery`, the transaction status in it, and the SQLSTATE of each error. This stream
//! looks at message headers on their way through and copies none of the bodies.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
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

/// The driver has nothing to do.
const RESTING: u8 = 0;
/// It was woken, and has not looked yet what for: a request may wait for it.
const WOKEN: u8 = 1;
/// It is looking.
const MOVING: u8 = 2;

/// Looks at a driver that moves before it is left to others: some hundred nanoseconds, as long as a move.
const GLANCES: usize = 100;

/// What is known of one connection from its wire.
///
/// Only the driver's task writes the counters, so that plain loads and stores do.
pub(crate) struct WireState {
    /// Requests sent that have not been answered to the end.
    pending: AtomicU32,
    /// `I` idle, `T` in a transaction, `E` in a failed one; 0 before the first answer.
    status: AtomicU8,
    /// Requests answered to the end so far.
    answers: AtomicU64,
    /// Whether the server said that it ends the session (FATAL or PANIC).
    dismissed: AtomicBool,
    /// Bytes written so far: tells whether an attempt sent anything.
    written: AtomicU64,
    /// Whether a request is on the wire in part: the socket takes no more, or its Sync is still to come.
    partial: AtomicBool,
    /// Why the connection ended.
    cause: Mutex<Option<String>>,
    suspect: OnceLock<Box<dyn Fn(Suspicion) + Send + Sync>>,
    answered: Notify,
    /// Whether somebody waits for `answered`: mostly nobody does, and telling nobody takes a lock.
    awaited: AtomicBool,
    expired: AtomicBool,
    closing: AtomicBool,
    /// What the driver is at: one of the three above.
    driver: AtomicU8,
}

impl std::fmt::Debug for WireState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WireState")
            .field("pending", &self.pending.load(Ordering::Relaxed))
            .field("status", &self.status.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}

impl WireState {
    pub(crate) fn new() -> Self {
        Self {
            pending: AtomicU32::new(0),
            status: AtomicU8::new(0),
            answers: AtomicU64::new(0),
            dismissed: AtomicBool::new(false),
            written: AtomicU64::new(0),
            partial: AtomicBool::new(false),
            cause: Mutex::new(None),
            suspect: OnceLock::new(),
            answered: Notify::new(),
            awaited: AtomicBool::new(false),
            expired: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            driver: AtomicU8::new(RESTING),
        }
    }

    /// Calls `report` when the server says that it is going away or read-only.
    pub(crate) fn report_to(&self, report: Box<dyn Fn(Suspicion) + Send + Sync>) {
        let _ = self.suspect.set(report);
    }

    /// Whether nothing is in flight: no request that the driver has not taken up yet, none on the wire in
    /// part, none without its answer.
    pub(super) fn is_quiet(&self) -> bool {
        // First the driver, who says last that it rests: what it has taken up shows in the others then.
        self.driver.load(Ordering::Acquire) == RESTING
            && self.pending.load(Ordering::Acquire) == 0
            && !self.partial.load(Ordering::Acquire)
    }

    /// Whether the session is outside any transaction, with nothing in flight.
    pub(crate) fn is_at_rest(&self) -> bool {
        // Whoever was woken by the driver may be here before the driver has finished its move.
        for _ in 0..GLANCES {
            if self.driver.load(Ordering::Acquire) != MOVING {
                break;
            }
            std::hint::spin_loop();
        }
        self.is_quiet() && self.status.load(Ordering::Acquire) == b'I'
    }

    /// Waits until nothing is in flight. Dropped statements and transactions leave a Close or a ROLLBACK
    /// behind, which are answered in no time.
    pub(crate) async fn all_answered(&self) {
        self.awaited.store(true, Ordering::SeqCst);
        loop {
            let answered = self.answered.notified();
            if self.is_quiet() {
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

    /// Somebody wakes the driver.
    pub(super) fn woken(&self) {
        self.driver.store(WOKEN, Ordering::Release);
    }

    /// The driver begins to look what there is to do.
    pub(super) fn moves(&self) {
        self.driver.swap(MOVING, Ordering::AcqRel);
    }

    /// It has done all there was, unless it was woken again meanwhile.
    pub(super) fn moved(&self) {
        let _ = self.driver.compare_exchange(MOVING, RESTING, Ordering::AcqRel, Ordering::Relaxed);
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

    fn add_pending(&self, requests: u32) {
        let pending = self.pending.load(Ordering::Relaxed);
        self.pending.store(pending.saturating_add(requests), Ordering::Release);
    }

    fn one_less_pending(&self) {
        let pending = self.pending.load(Ordering::Relaxed);
        // The ReadyForQuery at the end of the handshake answers no request.
        self.pending.store(pending.saturating_sub(1), Ordering::Release);
    }

    fn received(&self, kind: u8, body: &[u8], last_was_sync: bool) {
        match kind {
            b'Z' => {
                // First the status: whoever sees nothing pending must see it too.
                self.status.store(body.first().copied().unwrap_or(0), Ordering::Release);
                let answers = self.answers.load(Ordering::Relaxed);
                self.answers.store(answers + 1, Ordering::Release);
                self.one_less_pending();
                // Missing somebody who comes at this very moment costs him a millisecond.
                if self.awaited.load(Ordering::Relaxed) {
                    self.answered.notify_waiters();
                }
            }
            // While copying in, the server passes over the Sync that was sent with the request.
            b'G' if last_was_sync => self.one_less_pending(),
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
}

/// The kinds whose body is looked at: ReadyForQuery and ErrorResponse, both from the server.
fn is_looked_into(kind: u8) -> bool {
    matches!(kind, b'Z' | b'E')
}

/// The length of the body that follows a message's header.
fn body_length(header: [u8; 4]) -> usize {
    (u32::from_be_bytes(header) as usize).saturating_sub(4)
}

impl Scanner {
    fn new() -> Self {
        Self { header: [0; 5], have: 0, left: 0, body: Vec::new() }
    }

    /// Expects the start-up packet, which has no kind.
    fn before_startup() -> Self {
        Self { have: 1, ..Self::new() }
    }

    /// Whether a message has begun and not ended.
    fn is_within(&self) -> bool {
        self.have > 0
    }

    #[inline]
    fn scan(&mut self, mut bytes: &[u8], mut each: impl FnMut(u8, &[u8])) {
        // Most messages come whole: nothing of them has to be kept.
        if self.have == 0 {
            while let [kind, a, b, c, d, rest @ ..] = bytes {
                let length = body_length([*a, *b, *c, *d]);
                let Some(body) = rest.get(..length) else { break };
                each(*kind, if is_looked_into(*kind) { body } else { &[] });
                bytes = &rest[length..];
            }
        }
        if !bytes.is_empty() {
            self.scan_pieces(bytes, each);
        }
    }

    #[cold]
    fn scan_pieces(&mut self, mut bytes: &[u8], mut each: impl FnMut(u8, &[u8])) {
        while !bytes.is_empty() {
            if self.have < 5 {
                let take = bytes.len().min(5 - self.have);
                self.header[self.have..self.have + take].copy_from_slice(&bytes[..take]);
                self.have += take;
                bytes = &bytes[take..];
                if self.have < 5 {
                    return;
                }
                let [_, a, b, c, d] = self.header;
                self.left = body_length([a, b, c, d]);
                self.body.clear();
            }
            let take = bytes.len().min(self.left);
            if is_looked_into(self.header[0]) && self.body.len() < ERROR_PREFIX {
                let keep = take.min(ERROR_PREFIX - self.body.len());
                self.body.extend_from_slice(&bytes[..keep]);
            }
            self.left -= take;
            bytes = &bytes[take..];
            if self.left == 0 {
                each(self.header[0], &self.body);
                self.have = 0;
            }
        }
    }
}

/// Looks at what goes by, and writes down what it means.
struct Lookout {
    state: std::sync::Arc<WireState>,
    outgoing: Scanner,
    incoming: Scanner,
    last_was_sync: bool,
    /// Whether messages went out that await their Sync.
    unsynced: bool,
    /// What was last said of that.
    partial: bool,
}

impl Lookout {
    fn new(state: std::sync::Arc<WireState>) -> Self {
        Self {
            state,
            outgoing: Scanner::before_startup(),
            incoming: Scanner::new(),
            last_was_sync: false,
            unsynced: false,
            partial: false,
        }
    }

    #[inline]
    fn receive(&mut self, bytes: &[u8]) {
        let (state, last_was_sync) = (&*self.state, self.last_was_sync);
        self.incoming.scan(bytes, |kind, body| state.received(kind, body, last_was_sync));
    }

    #[inline]
    fn send(&mut self, bytes: &[u8]) {
        let mut requests = 0;
        let (last_was_sync, unsynced) = (&mut self.last_was_sync, &mut self.unsynced);
        self.outgoing.scan(bytes, |kind, _| match kind {
            // Query and FunctionCall are answered by one ReadyForQuery each, as is Sync.
            b'Q' | b'F' | b'S' => {
                requests += 1;
                *last_was_sync = kind == b'S';
                *unsynced = false;
            }
            // Of the extended protocol, and of COPY: a Sync is to follow.
            b'P' | b'B' | b'D' | b'E' | b'C' | b'H' | b'd' | b'c' | b'f' => *unsynced = true,
            // The start-up packet, what belongs to the handshake, and Terminate.
            _ => {}
        });
        if requests > 0 {
            self.state.add_pending(requests);
        }
        let partial = self.unsynced || self.outgoing.is_within();
        self.say_partial(partial);
        let written = self.state.written.load(Ordering::Relaxed);
        self.state.written.store(written + bytes.len() as u64, Ordering::Release);
    }

    fn say_partial(&mut self, partial: bool) {
        if self.partial != partial {
            self.partial = partial;
            self.state.partial.store(partial, Ordering::Release);
        }
    }
}

/// A socket with its wire looked at.
pub(crate) struct Wire {
    socket: Socket,
    lookout: Lookout,
}

impl Wire {
    pub(crate) fn new(socket: Socket, state: std::sync::Arc<WireState>) -> Self {
        Self { socket, lookout: Lookout::new(state) }
    }
}

impl AsyncRead for Wire {
    #[inline]
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let result = Pin::new(&mut this.socket).poll_read(cx, buf);
        this.lookout.receive(&buf.filled()[before..]);
        result
    }
}

impl AsyncWrite for Wire {
    #[inline]
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.socket).poll_write(cx, buf);
        match &result {
            Poll::Ready(Ok(sent)) => this.lookout.send(&buf[..*sent]),
            // The rest of it waits in the driver's buffer.
            Poll::Pending => this.lookout.say_partial(true),
            Poll::Ready(Err(_)) => {}
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

    fn lookout() -> (Arc<WireState>, Lookout) {
        let state = Arc::new(WireState::new());
        let mut lookout = Lookout::new(Arc::clone(&state));
        let mut startup = 8_u32.to_be_bytes().to_vec();
        startup.extend_from_slice(&[0, 3, 0, 0]);
        lookout.send(&startup);
        lookout.receive(&message_bytes(b'Z', b"I"));
        (state, lookout)
    }

    #[test]
    fn a_query_is_pending_until_ready_for_query() {
        let (state, mut lookout) = lookout();
        assert!(state.is_at_rest());
        lookout.send(&message_bytes(b'Q', b"BEGIN\0"));
        assert!(!state.is_quiet());
        lookout.receive(&message_bytes(b'C', b"BEGIN\0"));
        lookout.receive(&message_bytes(b'Z', b"T"));
        assert!(state.is_quiet());
        assert!(!state.is_at_rest(), "a transaction is open");
    }

    #[test]
    fn a_request_in_part_is_no_rest() {
        let (state, mut lookout) = lookout();
        let mut request = message_bytes(b'B', &[0; 8]);
        request.extend(message_bytes(b'E', &[0; 5]));
        lookout.send(&request[..9]);
        assert!(!state.is_at_rest(), "within a message");
        lookout.send(&request[9..]);
        assert!(!state.is_at_rest(), "before the Sync");
        lookout.send(&message_bytes(b'S', b""));
        assert!(!state.is_at_rest(), "before the answer");
        lookout.receive(&message_bytes(b'Z', b"I"));
        assert!(state.is_at_rest());
        lookout.say_partial(true);
        assert!(!state.is_at_rest(), "the socket took nothing of the next one");
    }

    #[test]
    fn copying_in_is_no_rest() {
        let (state, mut lookout) = lookout();
        let mut request = message_bytes(b'E', &[0; 5]);
        request.extend(message_bytes(b'S', b""));
        lookout.send(&request);
        lookout.receive(&message_bytes(b'G', &[0; 3]));
        lookout.send(&message_bytes(b'd', b"1\n"));
        assert!(!state.is_at_rest());
        let mut end = message_bytes(b'c', b"");
        end.extend(message_bytes(b'S', b""));
        lookout.send(&end);
        assert!(!state.is_at_rest());
        lookout.receive(&message_bytes(b'Z', b"I"));
        assert!(state.is_at_rest());
    }

    #[test]
    fn a_driver_that_was_woken_is_no_rest_until_it_has_moved() {
        let (state, _lookout) = lookout();
        state.woken();
        assert!(!state.is_at_rest());
        state.moves();
        assert!(!state.is_at_rest());
        state.woken();
        state.moved();
        assert!(!state.is_at_rest(), "woken while it moved");
        state.moves();
        state.moved();
        assert!(state.is_at_rest());
    }

    #[test]
    fn a_shutdown_is_reported_with_its_cause() {
        let (state, mut lookout) = lookout();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        state.report_to(Box::new(move |what| sink.lock().expect("lock").push(what)));
        let body =
            b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0";
        lookout.receive(&message_bytes(b'E', body));
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
            let mut scanner = Scanner::new();
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
            Lookout::new(Arc::new(WireState::new())).receive(&bytes);
        }
    }
}
