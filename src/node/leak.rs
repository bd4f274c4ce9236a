//! Connections that are out for suspiciously long, and where they were taken.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::Span;

use crate::client::Role;

/// The connections of one member that are out; only where they are watched.
#[derive(Debug)]
pub(crate) struct Leaks {
    bound: Duration,
    next: AtomicU64,
    found: AtomicU64,
    out: Mutex<HashMap<u64, Lease>>,
}

#[derive(Debug)]
struct Lease {
    since: Instant,
    role: Role,
    /// Who took it. Kept open by this, in the eyes of subscribers that look for its end.
    span: Span,
    told: bool,
}

/// Names one connection that is out.
#[derive(Debug)]
pub(crate) struct LeaseId(u64);

impl Leaks {
    /// Watches for those held longer than `bound`; zero is not to watch.
    pub(super) fn after(bound: Duration) -> Option<Self> {
        let watched = !bound.is_zero();
        watched.then(|| Self {
            bound,
            next: AtomicU64::new(0),
            found: AtomicU64::new(0),
            out: Mutex::default(),
        })
    }

    /// A connection is handed out, within the caller's span.
    pub(crate) fn handed_out(&self, role: Role) -> LeaseId {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let lease = Lease { since: Instant::now(), role, span: Span::current(), told: false };
        self.out.lock().unwrap_or_else(PoisonError::into_inner).insert(id, lease);
        LeaseId(id)
    }

    /// It came back.
    pub(crate) fn came_back(&self, LeaseId(id): LeaseId) {
        let lease = self.out.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        // The end of a span runs a subscriber's code: not under the lock.
        drop(lease);
    }

    /// How many have been held for too long so far, those included that came back since.
    pub(crate) fn found(&self) -> u64 {
        self.found.load(Ordering::Relaxed)
    }

    /// Warns once of each that has been out for too long.
    pub(super) fn look(&self, node: &str, now: Instant) {
        let mut late = Vec::new();
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        for lease in out.values_mut() {
            let held = now.saturating_duration_since(lease.since);
            if held >= self.bound && !lease.told {
                lease.told = true;
                late.push((held, lease.role, lease.span.clone()));
            }
        }
        drop(out);
        for (held, role, span) in late {
            self.found.fetch_add(1, Ordering::Relaxed);
            let taken_in = span.metadata().map_or("no span", |metadata| metadata.name());
            span.in_scope(|| {
                tracing::warn!(
                    node,
                    ?held,
                    ?role,
                    taken_in,
                    "a connection is out for longer than pool.leak_after"
                );
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use tokio::time::advance;

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("lock").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_is_told_once_with_the_span_that_took_it() {
        let log = Log::default();
        let sink = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || sink.clone()).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let second = Duration::from_secs(1);
        let leaks = Leaks::after(2 * second).expect("on");
        assert!(Leaks::after(Duration::ZERO).is_none());
        let kept = tracing::info_span!("checkout_of_an_order", order = 7)
            .in_scope(|| leaks.handed_out(Role::Write));
        let returned = leaks.handed_out(Role::Read);
        advance(second).await;
        leaks.look("a", Instant::now());
        leaks.came_back(returned);
        let young = leaks.handed_out(Role::Read);
        for _ in 0..3 {
            advance(second).await;
            leaks.look("a", Instant::now());
        }
        let text = String::from_utf8(log.0.lock().expect("lock").clone()).expect("text");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines.len(), leaks.found()), (2, 2), "{text}");
        for part in ["WARN", "checkout_of_an_order{order=7}", "node=\"a\"", "held=2s", "role=Write"]
        {
            assert!(lines[0].contains(part), "{part}: {}", lines[0]);
        }
        assert!(lines[1].contains("taken_in=\"no span\""), "{}", lines[1]);
        leaks.came_back(kept);
        leaks.came_back(young);
        assert!(leaks.out.lock().expect("lock").is_empty());
    }
}
