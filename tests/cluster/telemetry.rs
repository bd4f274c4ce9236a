//! What an operator sees of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use anyhow::{Context, ensure};
use leaderpool::telemetry::CHECKOUT_WAIT;
use leaderpool::{LeaderPool, TopologyEvent};
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::account::Account;
use crate::bed::{Bed, eventually};
use crate::capture::{Capture, Seen};

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::default);
static FAILOVERS: LazyLock<Capture> = LazyLock::new(Capture::default);

/// Everything that was recorded in this process. (`DebuggingRecorder` forgets what it has shown once.)
#[derive(Clone, Default)]
struct Metrics(Arc<Mutex<BTreeMap<Key, Arc<Value>>>>);

/// A count, what a gauge was last set to, or the sum of a histogram's values.
#[derive(Default)]
struct Value(Mutex<f64>);

impl Value {
    fn change(&self, change: impl FnOnce(f64) -> f64) {
        let mut value = self.0.lock().expect("not poisoned");
        *value = change(*value);
    }
}

impl CounterFn for Value {
    fn increment(&self, by: u64) {
        self.change(|value| value + by as f64);
    }

    fn absolute(&self, to: u64) {
        self.change(|value| value.max(to as f64));
    }
}

impl GaugeFn for Value {
    fn increment(&self, by: f64) {
        self.change(|value| value + by);
    }

    fn decrement(&self, by: f64) {
        self.change(|value| value - by);
    }

    fn set(&self, to: f64) {
        self.change(|_| to);
    }
}

impl HistogramFn for Value {
    fn record(&self, one: f64) {
        self.change(|value| value + one);
    }
}

impl Metrics {
    fn of(&self, key: &Key) -> Arc<Value> {
        let mut all = self.0.lock().expect("not poisoned");
        Arc::clone(all.entry(key.clone()).or_default())
    }
}

impl Recorder for Metrics {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.of(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.of(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.of(key))
    }
}

/// Installs a recorder for all pools of the process.
pub fn record_metrics() -> anyhow::Result<()> {
    metrics::set_global_recorder(METRICS.clone()).ok().context("there is a recorder already")
}

/// Remembers the spans of all failovers; those of calls would be too many.
pub fn capture_failovers<S>() -> impl Layer<S>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    FAILOVERS.clone().with_filter(LevelFilter::INFO)
}

/// The sum of a metric's values under these labels, whatever the others are.
fn metric(name: &str, labels: &[(&str, &str)]) -> anyhow::Result<f64> {
    let all = METRICS.0.lock().expect("not poisoned");
    let matching = all.iter().filter(|(key, _)| {
        let has = |(name, value): &(&str, &str)| {
            key.labels().any(|label| label.key() == *name && label.value() == *value)
        };
        key.name() == name && labels.iter().all(has)
    });
    let values: Vec<f64> =
        matching.map(|(_, value)| *value.0.lock().expect("not poisoned")).collect();
    ensure!(!values.is_empty(), "no {name} {labels:?}");
    Ok(values.iter().sum())
}

fn seconds(span: &Seen, field: &str) -> anyhow::Result<f64> {
    let value = span.field(field).with_context(|| format!("no {field} in {span:?}"))?;
    Ok(value.parse()?)
}

async fn pool_named(bed: &Bed, what: &str) -> anyhow::Result<(LeaderPool, String)> {
    let name = format!("{what}-{}", bed.manager);
    let mut config = bed.config()?;
    config.pool.name = Some(name.clone());
    Ok((LeaderPool::connect(config).await?, name))
}

/// A pool's failovers, once there are some and all have ended.
async fn ended_traces(pool: &str) -> anyhow::Result<Vec<Seen>> {
    eventually("the trace ends", Duration::from_secs(20), async || {
        let all = FAILOVERS.named("leaderpool.failover").into_iter();
        let traces: Vec<Seen> =
            all.filter(|span| span.field("leaderpool.pool") == Some(pool)).collect();
        let ended = traces.iter().all(|trace| trace.closed) && !traces.is_empty();
        if ended { Ok(traces) } else { Err(format!("{traces:?}")) }
    })
    .await
}

fn last_ended(traces: &[Seen]) -> Option<&str> {
    traces.last()?.field("leaderpool.failover.end")
}

/// A planned change of leader leaves one trace, whose gap is the report's, and by which the seconds without
/// a leader have grown. It ends with a commit too, and with its pool.
pub async fn a_switchover_is_one_trace(bed: &Bed) -> anyhow::Result<()> {
    let (pool, name) = pool_named(bed, "traced").await?;
    let (committing, commits) = pool_named(bed, "committing").await?;
    let (closing, closes) = pool_named(bed, "closing").await?;
    let mut news = closing.events();
    let closed = tokio::spawn(async move {
        while !matches!(news.recv().await, Ok(TopologyEvent::LeaderLost { .. }) | Err(_)) {}
        closing.close().await
    });
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let committed = tokio::spawn(async move {
        while !stopped.is_cancelled() {
            // The outcome is the business of other scenarios.
            let _ = committing.execute_write("UPDATE account SET id = id WHERE false", &[]).await;
            sleep(Duration::from_millis(5)).await;
        }
        committing.close().await
    });
    let labels = [("pool", name.as_str())];
    let unavailable = || metric("leaderpool_write_unavailable_seconds", &labels);
    let account = Account::open(&pool, 8);
    let (old, new) = (bed.cluster.primary().await?, bed.replica().await?);
    account.first_ack_after(Instant::now()).await?;
    let before = unavailable()?;
    let since = Instant::now();
    bed.cluster.switchover(&old, &new).await?;
    account.first_ack_elsewhere(since, &old).await?;

    let traces = ended_traces(&name).await?;
    // A server that goes down may seem to be back for a moment: an interruption of its own, if a write was
    // fast enough to meet it.
    let (trace, interruptions) = traces.split_last().context("no trace")?;
    let field = |name: &str| trace.field(name).unwrap_or_default();
    for interruption in interruptions {
        ensure!(
            interruption.field("leaderpool.failover.kind") == Some("interruption"),
            "{traces:?}"
        );
    }
    ensure!(field("leaderpool.failover.kind") == "failover" && trace.parent.is_none(), "{trace:?}");
    ensure!(field("leaderpool.leader.old") == old && field("leaderpool.leader.new") == new);
    ensure!(field("leaderpool.failover.end") == "first_write", "{trace:?}");
    let held: usize = field("leaderpool.failover.writers_held").parse()?;
    ensure!((1..=8).contains(&held), "{held} writers were held");
    ensure!(trace.events.iter().any(|event| event.ends_with("writes are held")), "{trace:?}");
    ensure!(trace.events.iter().any(|event| event == "leader admitted"), "{trace:?}");
    for phase in ["election", "promotion", "first_write"] {
        let spans = FAILOVERS.named(&format!("leaderpool.failover.{phase}"));
        let own = spans.iter().filter(|span| span.parent == Some(trace.number));
        ensure!(own.clone().all(|span| span.closed) && own.count() > 0, "no {phase}: {spans:?}");
    }

    // The report's gap begins with the last loss; a moment's return before it is no gap there.
    let report = pool.report();
    let last = report.failovers.first().context("no failover in the report")?;
    let (gap, after) = (
        seconds(trace, "leaderpool.failover.gap_seconds")?,
        seconds(trace, "leaderpool.failover.first_write_seconds")?,
    );
    let reported = last.gap_ms as f64 / 1000.0;
    ensure!(last.to == new && (gap - reported).abs() < 0.2, "{gap} s, {last:?}");
    let reported = last.first_write_ms.context("no first write in the report")? as f64 / 1000.0;
    ensure!(gap <= after && (after - reported).abs() < 0.2, "{after} s, {last:?}");
    let gaps: Result<Vec<f64>, _> =
        traces.iter().map(|trace| seconds(trace, "leaderpool.failover.gap_seconds")).collect();
    let gaps: f64 = gaps?.iter().sum();
    let grown = unavailable()? - before;
    eprintln!("  {gap:.3} s without a leader, the first write after {after:.3} s, {held} held");
    ensure!((grown - gaps).abs() < 0.001, "{grown} s unavailable, {gaps} s of gaps");
    let failover = [labels[0], ("kind", "failover")];
    ensure!(metric("leaderpool_failovers_total", &failover)? == 1.0);
    ensure!(metric("leaderpool_leader_admitted", &labels)? == 1.0);
    let traces = ended_traces(&commits).await?;
    ensure!(last_ended(&traces) == Some("first_write"), "{traces:?}");
    stop.cancel();
    committed.await??;
    closed.await??;
    let traces = ended_traces(&closes).await?;
    ensure!(last_ended(&traces) == Some("closed"), "{traces:?}");
    account.close(bed, false).await?;
    pool.close().await?;
    ensure!(metric("leaderpool_leader_admitted", &labels)? == 0.0, "a closed pool has no leader");
    Ok(())
}

/// Counts how often the facade is called: because somebody had to wait, and otherwise.
#[derive(Default)]
struct Calls {
    waits: AtomicU64,
    others: AtomicU64,
}

impl Recorder for Calls {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        self.others.fetch_add(1, Ordering::Relaxed);
        Counter::noop()
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        self.others.fetch_add(1, Ordering::Relaxed);
        Gauge::noop()
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        let is_wait = key.name() == CHECKOUT_WAIT.name;
        let count = if is_wait { &self.waits } else { &self.others };
        count.fetch_add(1, Ordering::Relaxed);
        Histogram::noop()
    }
}

/// Work that need not wait and does not fail calls no recorder on its way, and is counted all the same; its
/// spans say where it went.
pub async fn the_steady_state_calls_no_recorder(bed: &Bed) -> anyhow::Result<()> {
    const WARM_UP: u64 = 10;
    const ROUNDS: u64 = 50;
    let (pool, name) = pool_named(bed, "steady").await?;
    let round = async || {
        pool.write().await?.query_one("SELECT 1", &[]).await?;
        pool.read().await?.query_one("SELECT 1", &[]).await?;
        pool.execute_write("INSERT INTO account VALUES ($1, 0)", &[&1_i64]).await?;
        let rows = pool.transaction(|tx| async move { tx.query("SELECT 1", &[]).await }).await?;
        ensure!(rows.len() == 1 && pool.query_read("SELECT 1", &[]).await?.len() == 1);
        anyhow::Ok(())
    };
    // Connections to every member, each of them verified.
    for _ in 0..WARM_UP {
        round().await?;
    }
    let calls = Calls::default();
    {
        // Of this thread alone, which is the one that this scenario runs on; the pool's tasks have theirs.
        let _here = metrics::set_default_local_recorder(&calls);
        for _ in 0..ROUNDS {
            round().await?;
        }
    }
    // A connection may come back too late to be lent at once, and its successor is waited for.
    let (waits, others) = (calls.waits.into_inner(), calls.others.into_inner());
    eprintln!("  {others} calls of the recorder in {} checkouts, {waits} waits", ROUNDS * 5);
    ensure!(others == 0 && waits < ROUNDS, "{others} calls of the recorder, {waits} waits");

    let rounds = (WARM_UP + ROUNDS) as f64;
    let sum = |metric_name: &str, label: (&str, &str)| {
        metric(metric_name, &[("pool", name.as_str()), label]).map_err(|error| error.to_string())
    };
    eventually("all of it was counted", Duration::from_secs(5), async || {
        let checkouts = "leaderpool_checkouts_total";
        let counts = (
            (sum(checkouts, ("role", "write"))?, sum(checkouts, ("role", "read"))?),
            sum("leaderpool_operations_total", ("outcome", "ok"))?,
        );
        let expected = ((3.0 * rounds, 2.0 * rounds), 3.0 * rounds);
        if counts == expected { Ok(()) } else { Err(format!("{counts:?}, not {expected:?}")) }
    })
    .await?;

    let capture = Capture::default();
    {
        let subscriber = tracing_subscriber::registry().with(capture.clone());
        let _here = tracing::subscriber::set_default(subscriber);
        round().await?;
        let failing = pool.execute_write("SELECT $1::int4 / 0", &[&1_i32]).await;
        failing.expect_err("nothing is divided by zero");
        let undone = pool.transaction(|_| async { Err::<(), _>("no") }).await;
        undone.expect_err("it was not to be");
    }
    let primary = bed.cluster.primary().await?;
    let span = |name: &str| capture.named(name).into_iter().next().context("no span");
    let write = span("leaderpool.execute_write")?;
    let port = bed.cluster.node(&primary)?.postgres_port().to_string();
    let epoch = pool.report().epoch.context("an epoch")?.to_string();
    for (name, value) in [
        ("leaderpool.outcome", "ok"),
        ("leaderpool.attempt", "1"),
        ("leaderpool.node", &primary),
        ("leaderpool.epoch", &epoch),
        ("network.peer.port", &port),
        ("db.query.text", "INSERT INTO account VALUES ($1, 0)"),
    ] {
        ensure!(write.field(name) == Some(value), "{name}: {write:?}");
    }
    ensure!(write.closed && write.field("error.type").is_none(), "{write:?}");
    ensure!(span("leaderpool.query_read")?.field("leaderpool.node") != Some(primary.as_str()));
    let failed = capture.named("leaderpool.execute_write").pop().context("no span")?;
    ensure!(failed.field("db.response.status_code") == Some("22012"), "{failed:?}");
    ensure!(failed.field("leaderpool.outcome") == Some("not_applied"), "{failed:?}");
    let undone = capture.named("leaderpool.transaction").pop().context("no span")?;
    ensure!(undone.field("leaderpool.outcome") == Some("rolled_back"), "{undone:?}");
    Ok(pool.close().await?)
}
