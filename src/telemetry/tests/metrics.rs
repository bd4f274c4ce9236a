//! The facade is told what the table says.

use std::collections::{BTreeMap, BTreeSet};

use metrics_util::MetricKind as Kind;
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tokio::time::{Instant, sleep};

use super::*;
use crate::client::Role;
use crate::error::CheckoutError;
use crate::patroni::{Lsn, SystemId, Timeline};
use crate::retry::Cause;
use crate::telemetry::{METRICS, Meter, MetricKind, MetricUnit, Operation, Queue, Telemetry, Wait};
use crate::topology::BreakerState;
use crate::topology::{Epoch, TopologyEvent, WithdrawReason};

/// A metric's name with its labels, and its value.
fn values(snapshotter: &Snapshotter) -> BTreeMap<String, DebugValue> {
    let all = snapshotter.snapshot().into_vec();
    all.into_iter()
        .map(|(key, _, _, value)| {
            let labels: Vec<String> = key
                .key()
                .labels()
                .map(|label| format!("{}={}", label.key(), label.value()))
                .collect();
            (format!("{} {}", key.key().name(), labels.join(" ")), value)
        })
        .collect()
}

fn gauge(values: &BTreeMap<String, DebugValue>, key: &str) -> f64 {
    match values.get(key) {
        Some(DebugValue::Gauge(value)) => value.0,
        other => panic!("{key}: {other:?} in {:?}", values.keys()),
    }
}

fn counter(values: &BTreeMap<String, DebugValue>, key: &str) -> u64 {
    match values.get(key) {
        Some(DebugValue::Counter(value)) => *value,
        other => panic!("{key}: {other:?} in {:?}", values.keys()),
    }
}

#[tokio::test]
async fn every_metric_is_as_the_table_says() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _guard = ::metrics::set_default_local_recorder(&recorder);
    let pool = pool("orders");
    let meter = &pool.shared.meter;
    meter.ended(Operation::Transaction, "unknown");
    meter.retried(Cause::Cut);
    meter.budget_exhausted();
    meter.settled("committed");
    meter.failed_over(crate::telemetry::Kind::Failover, Duration::from_secs(1));
    meter.first_write(Duration::from_secs(2));
    meter.lost_writes(3);
    meter.cut("b", 4);
    meter.dropped(Queue::Supervisor);
    meter.breaker_changed("b", BreakerState::Closed, BreakerState::Open);
    pool.write().await.expect_err("no server");
    let seen = async {
        loop {
            let values = values(&snapshotter);
            if values.keys().any(|key| key.starts_with("leaderpool_node_latency_seconds")) {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), seen).await.expect("the member has gauges");

    let mut told = BTreeSet::new();
    for (key, unit, help, _) in snapshotter.snapshot().into_vec() {
        let name = key.key().name();
        let metric = METRICS.iter().find(|metric| metric.name == name).expect(name);
        let labels: Vec<&str> = key.key().labels().map(|label| label.key()).collect();
        assert_eq!(labels, metric.labels, "{name}");
        assert_eq!(key.key().labels().next().map(|label| label.value()), Some("orders"));
        let kind = match metric.kind {
            MetricKind::Counter => Kind::Counter,
            MetricKind::Gauge => Kind::Gauge,
            MetricKind::Histogram => Kind::Histogram,
        };
        assert_eq!(key.kind(), kind, "{name}");
        let expected = match metric.unit {
            MetricUnit::Count => ::metrics::Unit::Count,
            MetricUnit::Seconds => ::metrics::Unit::Seconds,
            MetricUnit::Bytes => ::metrics::Unit::Bytes,
        };
        assert_eq!((unit, help.as_deref()), (Some(expected), Some(metric.help)), "{name}");
        told.insert(name.to_owned());
    }
    let known: BTreeSet<String> = METRICS.iter().map(|metric| metric.name.to_owned()).collect();
    assert_eq!(told, known);
    pool.close().await.expect("nothing is out");
}

#[tokio::test]
async fn a_pool_without_a_leader_says_so() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _guard = ::metrics::set_default_local_recorder(&recorder);
    let (pool, began) = (pool("p"), Instant::now());
    let error = pool.execute_write("SELECT 1", &[]).await.expect_err("no server");
    assert!(matches!(error.checkout_error(), Some(CheckoutError::NoLeader { .. })));
    pool.read().await.expect_err("no server");
    sleep(crate::telemetry::TICK).await;
    let before = began.elapsed();
    pool.close().await.expect("nothing is out");
    let values = values(&snapshotter);
    assert_eq!(gauge(&values, "leaderpool_leader_admitted pool=p"), 0.0);
    assert!(gauge(&values, "leaderpool_epoch_timeline pool=p").is_nan());
    let unavailable = gauge(&values, "leaderpool_write_unavailable_seconds pool=p");
    assert!(unavailable >= before.as_secs_f64(), "{unavailable} of {before:?}");
    assert!(unavailable <= began.elapsed().as_secs_f64());
    for role in ["write", "read"] {
        let key = format!("leaderpool_checkout_failures_total pool=p role={role} reason=no_leader");
        assert_eq!(counter(&values, &key), 1);
        let key = format!("leaderpool_checkout_wait_seconds pool=p role={role}");
        let Some(DebugValue::Histogram(waits)) = values.get(&key) else { panic!("no {key}") };
        assert!(waits.len() == 1 && waits[0].0 > 0.04, "{waits:?}");
    }
    let operations = |operation: &str, outcome: &str| {
        let labels = format!("pool=p operation={operation} outcome={outcome}");
        counter(&values, &format!("leaderpool_operations_total {labels}"))
    };
    assert_eq!(operations("execute_write", "not_sent"), 1);
    assert_eq!(operations("execute_write", "ok"), 0, "a counter begins with zero");
    // The member is gone with the pool, and leaves no gauges as they were.
    assert!(gauge(&values, "leaderpool_node_latency_seconds pool=p node=127.0.0.1:1").is_nan());
}

#[tokio::test]
async fn labels_stay_few() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    ::metrics::with_local_recorder(&recorder, || {
        let meter = Meter::new("p");
        for code in ["40001", "40P01", "57P01", "ZZ123", "YY999"] {
            meter.retried(Cause::Sqlstate(code.parse().expect("a code")));
        }
        meter.retried(Cause::Panic("53100".parse().expect("a code")));
        meter.retried(Cause::TimedOut);
        // Who did not wait leaves no trace.
        Wait::default().end(&meter, Role::Write);
    });
    let values = values(&snapshotter);
    let causes: Vec<(&str, u64)> = values
        .keys()
        .map(|key| (key.rsplit('=').next().unwrap_or_default(), counter(&values, key)))
        .collect();
    let expected = [
        ("panic", 1),
        ("sqlstate_40", 2),
        ("sqlstate_57", 1),
        ("sqlstate_other", 2),
        ("timeout", 1),
    ];
    assert_eq!(causes, expected);
}

#[tokio::test]
async fn what_the_supervisor_sees_is_counted() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let _guard = ::metrics::set_default_local_recorder(&recorder);
    let pool = pool("p");
    let (shared, start) = (&pool.shared, Instant::now());
    let admitted = |member: &str, timeline| TopologyEvent::Admitted {
        member: member.into(),
        epoch: Epoch { system_id: SystemId(1), timeline: Timeline(timeline), revision: 1 },
    };
    let lost = || TopologyEvent::LeaderLost {
        member: "a".into(),
        reason: WithdrawReason::KeyMoved { to: "b".into() },
    };
    let news = [
        (1000, admitted("a", 1)),
        (8000, lost()),
        (8005, admitted("a", 1)),
        (10_000, lost()),
        (12_500, admitted("b", 2)),
        (12_600, TopologyEvent::WritesLost { timeline: Timeline(1), switch_lsn: Lsn(9), count: 3 }),
    ];
    let mut telemetry = Telemetry::start(shared, start);
    let mut told = 0;
    for (at, event) in &news {
        telemetry.saw(event, shared, start + Duration::from_millis(*at), || told += 1);
    }
    assert_eq!(told, news.len());
    // The pool's own tasks have had no turn yet.
    let values = values(&snapshotter);
    assert_eq!(gauge(&values, "leaderpool_write_unavailable_seconds pool=p"), 3.505);
    assert_eq!(counter(&values, "leaderpool_lost_writes_total pool=p"), 3);
    for (kind, gap) in [("interruption", 0.005), ("failover", 2.5)] {
        let labels = format!("pool=p kind={kind}");
        assert_eq!(counter(&values, &format!("leaderpool_failovers_total {labels}")), 1);
        let gaps = values.get(&format!("leaderpool_failover_gap_seconds {labels}"));
        assert_eq!(gaps, Some(&DebugValue::Histogram(vec![gap.into()])));
    }
    pool.close().await.expect("nothing is out");
}
