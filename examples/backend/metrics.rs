//! Prometheus metrics: counted where things happen, gauges taken from the pool's report when scraped.

use std::time::Duration;

use leaderpool::Report;
use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_util::MetricKindMask;
use tokio::time::interval;

const UPKEEP: Duration = Duration::from_secs(5);
/// After this the gauges of a member that left are dropped.
const FORGET: Duration = Duration::from_secs(300);
/// In seconds; up to a write that was held for all of a failover.
const BUCKETS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0];

/// The recorder of this process.
#[derive(Clone)]
pub(crate) struct Metrics(PrometheusHandle);

impl Metrics {
    /// Installs it; needs a runtime, for its upkeep.
    pub(crate) fn install() -> anyhow::Result<Self> {
        let duration = Matcher::Full("http_request_duration_seconds".into());
        let handle = PrometheusBuilder::new()
            .set_buckets_for_metric(duration, BUCKETS)?
            .idle_timeout(MetricKindMask::GAUGE, Some(FORGET))
            .install_recorder()?;
        describe();
        let upkeep = handle.clone();
        tokio::spawn(async move {
            // Without it, what histograms gather grows until somebody scrapes.
            let mut ticks = interval(UPKEEP);
            loop {
                ticks.tick().await;
                upkeep.run_upkeep();
            }
        });
        Ok(Self(handle))
    }

    /// All of them, in Prometheus' text format.
    pub(crate) fn render(&self, report: &Report) -> String {
        set_gauges(report);
        self.0.render()
    }
}

/// A request was answered.
pub(crate) fn request(route: String, method: &'static str, status: u16, took: Duration) {
    histogram!("http_request_duration_seconds", "route" => route.clone(), "method" => method)
        .record(took);
    let status = status.to_string();
    counter!("http_requests_total", "route" => route, "method" => method, "status" => status)
        .increment(1);
}

/// An event was stored.
pub(crate) fn event_written() {
    counter!("events_written_total").increment(1);
}

fn describe() {
    describe_counter!("http_requests_total", "Requests answered.");
    describe_histogram!("http_request_duration_seconds", "From the request's head to its answer.");
    describe_counter!("events_written_total", "Events stored by this instance.");
    counter!("events_written_total").absolute(0);
    describe_gauge!("leaderpool_leader_admitted", "1 where writes go to a leader, 0 while held.");
    describe_gauge!("leaderpool_epoch_timeline", "Timeline of the last admitted leader.");
    describe_gauge!("leaderpool_watch_age_seconds", "Since the source of the topology answered.");
    describe_gauge!("leaderpool_degraded", "1 while the source of the topology is away.");
    describe_gauge!("leaderpool_waiting_callers", "Callers that want a connection now.");
    describe_gauge!("leaderpool_lent_connections", "Connections that are out with callers.");
    describe_gauge!("leaderpool_node_lag_bytes", "WAL that a replica is behind; NaN if unknown.");
    describe_gauge!(
        "leaderpool_node_staleness_seconds",
        "Age of its data at most; NaN if unknown."
    );
    describe_gauge!("leaderpool_node_connections_in_use", "Connections out, by member.");
    describe_gauge!("leaderpool_node_connections_idle", "Connections idle, by member.");
}

// Sizes and ages: a float holds them exactly up to 2^53.
#[allow(clippy::cast_precision_loss)]
fn set_gauges(report: &Report) {
    let seconds = |ms: Option<u64>| ms.map_or(f64::NAN, |ms| ms as f64 / 1000.0);
    let flag = |on: bool| if on { 1.0 } else { 0.0 };
    gauge!("leaderpool_leader_admitted").set(flag(report.leader.is_some()));
    let timeline = report.epoch.map_or(f64::NAN, |epoch| f64::from(epoch.timeline.0));
    gauge!("leaderpool_epoch_timeline").set(timeline);
    gauge!("leaderpool_watch_age_seconds").set(seconds(report.watch_age_ms));
    gauge!("leaderpool_degraded").set(flag(report.degraded.is_some()));
    gauge!("leaderpool_waiting_callers").set(report.waiting as f64);
    gauge!("leaderpool_lent_connections").set(report.lent as f64);
    for node in &report.nodes {
        let name = || node.name.clone();
        // NaN rather than the last value: a replica that was promoted has no lag.
        let lag = node.lag_bytes.map_or(f64::NAN, |bytes| bytes as f64);
        gauge!("leaderpool_node_lag_bytes", "node" => name()).set(lag);
        gauge!("leaderpool_node_staleness_seconds", "node" => name())
            .set(seconds(node.staleness_ms));
        gauge!("leaderpool_node_connections_in_use", "node" => name()).set(node.pool.in_use as f64);
        gauge!("leaderpool_node_connections_idle", "node" => name()).set(node.pool.idle as f64);
    }
}
