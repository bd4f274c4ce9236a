//! Spans say what the conventions ask for, and nothing where nobody listens.

use tracing::Level;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;

use super::capture::{Capture, Seen};
use super::*;
use crate::OperationError;
use crate::patroni::{SystemId, Timeline};
use crate::retry::{Cause, Outcome};
use crate::telemetry::failover::{Failover, News};
use crate::telemetry::trace::FailoverSpans;
use crate::telemetry::{Call, Failed, Operation, Settling};
use crate::topology::Epoch;

fn listen(level: Level) -> (Capture, DefaultGuard) {
    let capture = Capture::default();
    let subscriber =
        tracing_subscriber::registry().with(LevelFilter::from_level(level)).with(capture.clone());
    (capture, tracing::subscriber::set_default(subscriber))
}

/// One span of each kind, with what it is declared to have.
pub(super) async fn one_of_each() -> Vec<Seen> {
    let (capture, _guard) = listen(Level::DEBUG);
    let pool = pool("orders");
    let shared = &pool.shared;
    for operation in Operation::ALL {
        Call::begin(operation, Some("SELECT $1"), &shared.database, &shared.meter).ended(None);
    }
    Settling::begin(&shared.database, &shared.meter).ended("committed");
    failover();
    capture.all().into_iter().filter(|seen| seen.name.starts_with("leaderpool.")).collect()
}

/// A leader is lost, and another one acknowledges a write.
fn failover() {
    let now = tokio::time::Instant::now();
    let after = |ms| now + Duration::from_millis(ms);
    let epoch =
        |timeline| Epoch { system_id: SystemId(1), timeline: Timeline(timeline), revision: 5 };
    let (mut failover, mut spans) = (Failover::default(), FailoverSpans::new("orders".into()));
    let (leader, reason) = ("a".to_owned(), "the leader key is gone".to_owned());
    let news = [
        (0, News::Admitted { leader: leader.clone(), epoch: epoch(1) }, 0),
        (1000, News::Lost { leader, reason, moved_to: None }, 0),
        (1500, News::Candidate("b".into()), 3),
        (2500, News::Admitted { leader: "b".into(), epoch: epoch(2) }, 8),
        (2750, News::FirstWrite { at: after(2750) }, 2),
    ];
    for (at, news, held) in news {
        for step in failover.apply(news, after(at)) {
            spans.carry_out(&step, held);
        }
        spans.root().in_scope(|| tracing::info!("news"));
    }
}

#[test]
fn a_failover_is_one_trace() {
    let (capture, _guard) = listen(Level::INFO);
    // Whoever happens to be around is no part of it.
    tracing::info_span!("around").in_scope(failover);
    let root = &capture.named("leaderpool.failover")[0];
    let expected = [
        ("leaderpool.epoch.new", "2.5"),
        ("leaderpool.epoch.old", "1.5"),
        ("leaderpool.failover.end", "first_write"),
        ("leaderpool.failover.first_write_seconds", "1.75"),
        ("leaderpool.failover.gap_seconds", "1.5"),
        ("leaderpool.failover.kind", "failover"),
        ("leaderpool.failover.reason", "the leader key is gone"),
        ("leaderpool.failover.writers_held", "8"),
        ("leaderpool.leader.new", "b"),
        ("leaderpool.leader.old", "a"),
        ("leaderpool.pool", "orders"),
        ("otel.kind", "internal"),
    ];
    let fields: Vec<(&str, &str)> =
        root.fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(fields, expected);
    assert_eq!((root.parent, root.closed, root.events.len()), (None, true, 3));
    for phase in ["election", "promotion", "first_write"] {
        let spans = capture.named(&format!("leaderpool.failover.{phase}"));
        assert_eq!(spans.len(), 1, "{phase}");
        assert_eq!((spans[0].parent, spans[0].closed), (Some(root.number), true));
        assert_eq!(spans[0].field("leaderpool.node"), (phase == "promotion").then_some("b"));
    }
}

#[tokio::test]
async fn a_call_says_where_it_went_and_what_became_of_it() {
    let (capture, _guard) = listen(Level::DEBUG);
    let pool = pool("orders");
    let error = pool.execute_write("UPDATE t SET a = $1", &[&1_i32]).await;
    assert_eq!(error.expect_err("no server").outcome(), Outcome::NotSent);
    let work = |_| async { Ok::<_, OperationError>(()) };
    pool.transaction(work).await.expect_err("no server");
    pool.query_read("SELECT 'secret'", &[]).await.expect_err("no server");
    pool.close().await.expect("nothing is out");
    let write = &capture.named("leaderpool.execute_write")[0];
    let expected = [
        ("db.namespace", "shop"),
        ("db.operation.name", "execute_write"),
        ("db.query.text", "UPDATE t SET a = $1"),
        ("db.system.name", "postgresql"),
        ("error.type", "no_leader"),
        ("leaderpool.outcome", "not_sent"),
        ("leaderpool.pool", "orders"),
        ("otel.kind", "client"),
        ("otel.name", "execute_write shop"),
        ("otel.status_code", "ERROR"),
        ("server.address", "127.0.0.1"),
        ("server.port", "1"),
    ];
    let fields: Vec<(&str, &str)> =
        write.fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(fields, expected);
    for name in ["leaderpool.transaction", "leaderpool.query_read"] {
        let span = &capture.named(name)[0];
        assert!(span.closed && span.field("db.query.text").is_none(), "{span:?}");
    }
}

#[tokio::test]
async fn failures_are_told_by_their_codes() {
    let (capture, _guard) = listen(Level::DEBUG);
    let pool = pool("p");
    let shared = &pool.shared;
    let deadlock = Cause::Sqlstate("40P01".parse().expect("a code"));
    let cases = [
        (None, ["ok", "", "", ""]),
        (Some(Failed::RolledBack), ["rolled_back", "", "", ""]),
        (Some(Failed::Checkout("exhausted")), ["not_sent", "exhausted", "", "ERROR"]),
        (
            Some(Failed::By(deadlock, Outcome::NotApplied)),
            ["not_applied", "40P01", "40P01", "ERROR"],
        ),
        (
            Some(Failed::By(Cause::ConnectionLost, Outcome::Unknown)),
            ["unknown", "connection_lost", "", "ERROR"],
        ),
    ];
    let names = ["leaderpool.outcome", "error.type", "db.response.status_code", "otel.status_code"];
    for (failed, expected) in cases {
        Call::begin(Operation::Transaction, None, &shared.database, &shared.meter).ended(failed);
        let spans = capture.named("leaderpool.transaction");
        let span = spans.last().expect("a span");
        assert_eq!(names.map(|name| span.field(name).unwrap_or_default()), expected);
    }
}

#[tokio::test]
async fn calls_make_no_spans_above_debug() {
    let (capture, _guard) = listen(Level::INFO);
    let pool = pool("p");
    pool.execute_write("SELECT 1", &[]).await.expect_err("no server");
    pool.close().await.expect("nothing is out");
    assert_eq!(capture.named("leaderpool.execute_write").len(), 0);
}
