//! Prometheus metrics: this service's own, and through the same recorder the pool's (`docs/telemetry.md`).

use std::time::Duration;

use metrics::{counter, describe_counter, describe_histogram, histogram};
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
    /// Installs it; needs a runtime, for its upkeep. To be done before the pool is made.
    pub(crate) fn install() -> anyhow::Result<Self> {
        let handle = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), BUCKETS)?
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
    pub(crate) fn render(&self) -> String {
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
}
