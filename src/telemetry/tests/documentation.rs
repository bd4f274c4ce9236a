//! `docs/telemetry.md` says what the code does.

use std::collections::BTreeSet;

use super::spans::one_of_each;
use crate::telemetry::{METRICS, MetricKind, MetricUnit};

/// A line of one of the tables, by what it begins with.
fn rows(of: &str) -> Vec<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/telemetry.md");
    let text = std::fs::read_to_string(path).expect("docs/telemetry.md");
    let section = text.split("\n## ").find(|section| section.starts_with(of)).expect(of);
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(str::to_owned).collect()
}

fn cells(row: &str) -> Vec<String> {
    row.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect()
}

/// What stands in backquotes.
fn names(cell: &str) -> BTreeSet<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn metrics() {
    let expected: Vec<String> = METRICS
        .iter()
        .map(|metric| {
            let kind = match metric.kind {
                MetricKind::Counter => "counter",
                MetricKind::Gauge => "gauge",
                MetricKind::Histogram => "histogram",
            };
            let unit = match metric.unit {
                MetricUnit::Count => "",
                MetricUnit::Seconds => ", seconds",
                MetricUnit::Bytes => ", bytes",
            };
            let labels: Vec<String> =
                metric.labels.iter().map(|label| format!("`{label}`")).collect();
            let (name, labels) = (metric.name, labels.join(", "));
            format!("| `{name}` | {kind}{unit} | {labels} | {} |", metric.help)
        })
        .collect();
    let written = rows("Metrics");
    let missing: Vec<&String> = expected.iter().filter(|row| !written.contains(row)).collect();
    assert!(missing.is_empty(), "not in docs/telemetry.md:\n{missing:#?}");
    assert_eq!(written, expected, "others, or in another order");
    for metric in METRICS {
        assert!(metric.name.starts_with("leaderpool_") && metric.labels[0] == "pool");
        assert_eq!(metric.kind == MetricKind::Counter, metric.name.ends_with("_total"));
        assert_eq!(metric.unit == MetricUnit::Seconds, metric.name.ends_with("_seconds"));
        assert_eq!(metric.unit == MetricUnit::Bytes, metric.name.ends_with("_bytes"));
    }
}

#[tokio::test]
async fn spans_and_their_fields() {
    let seen = one_of_each().await;
    let spans: Vec<String> = rows("Spans");
    let written: BTreeSet<String> =
        spans.iter().map(|row| names(&cells(row)[0]).into_iter().collect()).collect();
    let made: BTreeSet<String> = seen.iter().map(|span| span.name.to_owned()).collect();
    assert_eq!(written, made, "the spans");

    let (mut documented, mut made) = (BTreeSet::new(), BTreeSet::new());
    for row in rows("Fields") {
        let cells = cells(&row);
        for field in names(&cells[0]) {
            for span in names(&cells[1]) {
                let all = span == "*";
                let spans = seen.iter().filter(|seen| {
                    let call = !seen.name.starts_with("leaderpool.failover");
                    if all { call } else { seen.name == span }
                });
                documented.extend(spans.map(|seen| format!("{} {field}", seen.name)));
            }
        }
    }
    for span in &seen {
        made.extend(span.declared.iter().map(|field| format!("{} {field}", span.name)));
    }
    let wrong: Vec<&String> = documented.symmetric_difference(&made).collect();
    assert!(wrong.is_empty(), "documented or made, and not both: {wrong:#?}");
}
