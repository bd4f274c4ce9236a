//! The picture: what is known at the moment, as lines.

use std::time::Duration;

use serde_json::Value;

use super::board::{BackendShown, Shown};
use super::load::Figures;
use crate::cli::events::{Events, Tone, clock};
use crate::cli::place::NodeState;
use crate::cli::status::bytes;
use crate::cli::table::{Ink, Line};
use crate::cli::up::next_steps;

/// From so many rows on there are empty lines, and from so many all of the advice.
const AIRY: usize = 28;
const ROOMY: usize = 36;
const FAILOVERS: usize = 2;

pub(super) fn picture(
    shown: &Shown<'_>,
    events: &Events,
    width: usize,
    height: usize,
    unicode: bool,
) -> Vec<Line> {
    let air = if height >= AIRY { vec![Line::new()] } else { Vec::new() };
    let mut lines = vec![title(shown, width), leader(shown)];
    for part in [members(shown), backends(shown, width, unicode), failovers(shown)] {
        if !part.is_empty() {
            lines.extend(air.clone());
            lines.extend(part);
        }
    }
    let advice = advice(shown, height >= ROOMY);
    lines.extend(air.clone());
    lines.push(Line::of(Ink::Bold, "EVENTS"));
    let room = height.saturating_sub(lines.len() + air.len() + advice.len());
    let mut last: Vec<Line> = events.last(room).into_iter().map(event).collect();
    last.resize(room, Line::new());
    lines.extend(last);
    lines.extend(air);
    lines.extend(advice);
    lines
}

/// The same in one line.
pub(super) fn line(shown: &Shown<'_>) -> String {
    let all = sum(&shown.backends);
    let nodes = shown.report["nodes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let of_use = |node: &&Value| ["leader", "replica"].iter().any(|role| node["role"] == *role);
    let leader = shown.report["leader"].as_str().unwrap_or("nobody");
    format!(
        "{}  leader {leader}, epoch {}; {}/{} members; {:.0} requests/s, write {} ms, read {} ms; \
         held {}, retried {}, errors {}",
        minutes(shown.up),
        epoch(&shown.report),
        nodes.iter().filter(of_use).count(),
        shown.state.nodes.len(),
        all.per_second,
        both(all.write),
        both(all.read),
        all.held,
        all.retried,
        all.errors
    )
}

/// `timeline.revision`, as the library writes an epoch.
pub(super) fn epoch(report: &Value) -> String {
    let epoch = &report["epoch"];
    match (epoch["timeline"].as_i64(), epoch["revision"].as_i64()) {
        (Some(timeline), Some(revision)) => format!("{timeline}.{revision}"),
        _ => "none".to_owned(),
    }
}

pub(super) fn node<'a>(report: &'a Value, name: &str) -> Option<&'a Value> {
    report["nodes"].as_array()?.iter().find(|node| node["name"] == name)
}

fn title(shown: &Shown<'_>, width: usize) -> Line {
    let state = shown.state;
    let left = Line::new()
        .add(Ink::Bold, "leaderpool demo")
        .add(Ink::Plain, format!("   {}   lease {} s", state.manager, state.ttl))
        .add(Ink::Plain, format!("   up {}", minutes(shown.up)));
    let end = "Ctrl-C ends it";
    let gap = width.saturating_sub(left.width() + end.len());
    left.add(Ink::Plain, " ".repeat(gap)).add(Ink::Dim, end)
}

fn leader(shown: &Shown<'_>) -> Line {
    let report = &shown.report;
    if report.is_null() {
        return Line::of(Ink::Red, "no backend answers");
    }
    let age = Duration::from_millis(report["leader_state_ms"].as_u64().unwrap_or(0));
    let line = match report["leader"].as_str() {
        Some(name) => Line::new()
            .add(Ink::Plain, "LEADER ")
            .add(Ink::Green, name)
            .add(Ink::Plain, format!("   epoch {}   for {}", epoch(report), minutes(age))),
        None => {
            let why = plain(report["leader_state"].as_str().unwrap_or("no leader"));
            Line::of(Ink::Yellow, format!("WRITES WAIT {:.1} s: {why}", age.as_secs_f64()))
        }
    };
    match report["degraded"].as_str() {
        Some(why) => line.add(Ink::Yellow, format!("   degraded: {why}")),
        None => {
            let source = report["source"].as_str().unwrap_or_default().to_lowercase();
            line.add(Ink::Dim, format!("   by {source}"))
        }
    }
}

fn members(shown: &Shown<'_>) -> Vec<Line> {
    let head = Line::new()
        .left(Ink::Bold, "MEMBER", 16)
        .left(Ink::Bold, "ROLE", 11)
        .left(Ink::Bold, "STATE", 10)
        .right(Ink::Bold, "TL", 3)
        .right(Ink::Bold, "LAG", 8)
        .right(Ink::Bold, "RTT", 8)
        .right(Ink::Bold, "CONNS", 6)
        .right(Ink::Bold, "PORT", 6);
    let mut lines = vec![head];
    lines.extend(
        shown.state.nodes.iter().map(|known| member(known, node(&shown.report, &known.name))),
    );
    lines
}

fn member(known: &NodeState, node: Option<&Value>) -> Line {
    let line = Line::new().left(Ink::Plain, &known.name, 16);
    let Some(node) = node else {
        return line.left(Ink::Red, "gone", 11).add(Ink::Dim, "its key has run out");
    };
    let text = |field: &str| node[field].as_str().unwrap_or_default().to_owned();
    let role = text("role");
    let ink = match role.as_str() {
        "leader" => Ink::Green,
        "replica" => Ink::Cyan,
        _ => Ink::Red,
    };
    let line = line.left(ink, &role, 11);
    if let Some(problem) = node["problem"].as_str() {
        return line.add(Ink::Red, plain(problem));
    }
    let number = |field: &str| node[field].as_u64();
    let timeline = number("timeline").map_or_else(String::new, |tl| tl.to_string());
    let lag = number("lag_bytes").map_or_else(String::new, bytes);
    let rtt = number("latency_us").filter(|us| *us > 0);
    let rtt = rtt.map_or_else(String::new, |us| format!("{} ms", ms(Duration::from_micros(us))));
    let pool = &node["pool"];
    let conns = format!("{}/{}", pool["in_use"], pool["size"]);
    line.left(Ink::Plain, text("state"), 10)
        .right(Ink::Plain, timeline, 3)
        .right(Ink::Plain, lag, 8)
        .right(Ink::Plain, rtt, 8)
        .right(Ink::Plain, conns, 6)
        .right(Ink::Plain, known.postgres.to_string(), 6)
}

fn backends(shown: &Shown<'_>, width: usize, unicode: bool) -> Vec<Line> {
    let head = Line::new()
        .left(Ink::Bold, "BACKEND", 11)
        .left(Ink::Bold, "READY", 5)
        .right(Ink::Bold, "REQ/S", 6)
        .right(Ink::Bold, "WRITE 50/99 ms", 14)
        .right(Ink::Bold, "READ 50/99 ms", 14)
        .right(Ink::Bold, "HELD", 4)
        .right(Ink::Bold, "WAIT", 4)
        .right(Ink::Bold, "RETRIED", 7)
        .right(Ink::Bold, "ERRORS", 6);
    let mut lines = vec![head];
    for backend in &shown.backends {
        let (ink, ready) = match backend.ready {
            None => (Ink::Dim, "?"),
            Some(true) => (Ink::Green, "yes"),
            Some(false) => (Ink::Yellow, "no"),
        };
        let line = Line::new()
            .left(Ink::Plain, format!("{} :{}", backend.name, backend.port), 11)
            .left(ink, ready, 5);
        lines.push(figures(line, &backend.figures, backend.waiting));
    }
    let waiting = shown.backends.iter().filter_map(|backend| backend.waiting).sum();
    let all = Line::new().left(Ink::Dim, "all", 17);
    lines.push(figures(all, &sum(&shown.backends), Some(waiting)));
    lines.push(haproxy(shown));
    lines.push(history(shown, width, unicode));
    lines
}

/// `waiting` is the pool's own count of callers that wait for a connection.
fn figures(line: Line, figures: &Figures, waiting: Option<u64>) -> Line {
    let warn = |count: u64, ink| if count > 0 { ink } else { Ink::Plain };
    line.right(Ink::Plain, format!("{:.0}", figures.per_second), 6)
        .right(Ink::Plain, both(figures.write), 14)
        .right(Ink::Plain, both(figures.read), 14)
        .right(warn(figures.held as u64, Ink::Yellow), figures.held.to_string(), 4)
        .right(Ink::Plain, waiting.map_or_else(|| "?".to_owned(), |n| n.to_string()), 4)
        .right(Ink::Plain, figures.retried.to_string(), 7)
        .right(warn(figures.errors, Ink::Red), figures.errors.to_string(), 6)
}

/// Counts are added up; of latencies the worst is shown.
fn sum(backends: &[BackendShown]) -> Figures {
    let mut sum = Figures::default();
    for backend in backends {
        let one = &backend.figures;
        sum.per_second += one.per_second;
        sum.write = sum.write.max(one.write);
        sum.read = sum.read.max(one.read);
        sum.held += one.held;
        sum.longest = sum.longest.max(one.longest);
        sum.retried += one.retried;
        sum.errors += one.errors;
    }
    sum
}

fn haproxy(shown: &Shown<'_>) -> Line {
    let ports = shown.state.haproxy;
    let names = |names: &[String]| match names {
        [] => (Ink::Yellow, "nobody".to_owned()),
        some => (Ink::Plain, some.join(" ")),
    };
    let (ink, writes) = names(&shown.writes_to);
    let line = Line::new()
        .left(Ink::Bold, "HAPROXY", 11)
        .add(Ink::Plain, format!(":{} > ", ports.writes))
        .add(ink, writes);
    let (ink, reads) = names(&shown.reads_from);
    line.add(Ink::Plain, format!("   :{} > ", ports.reads)).add(ink, reads)
}

/// Acknowledged writes per second, one column a second: a failover is the gap.
fn history(shown: &Shown<'_>, width: usize, unicode: bool) -> Line {
    let steps: Vec<char> = if unicode {
        " ▁▂▃▄▅▆▇█".chars().collect()
    } else {
        " .:-=+*#@".chars().collect()
    };
    let done = &shown.history[..shown.history.len().saturating_sub(1)];
    let last = done.last().copied().unwrap_or(0);
    let room = width.saturating_sub(20);
    let part = &done[done.len().saturating_sub(room)..];
    let top = part.iter().copied().max().unwrap_or(0).max(1) as usize;
    let bars: String = part
        .iter()
        .map(|count| {
            let count = *count as usize;
            // Whatever was acknowledged is seen.
            let step = (count * (steps.len() - 1)).div_ceil(top);
            steps[step.min(steps.len() - 1)]
        })
        .collect();
    Line::new()
        .left(Ink::Bold, "WRITES/S", 11)
        .right(Ink::Plain, last.to_string(), 4)
        .add(Ink::Cyan, format!(" {bars}"))
}

fn failovers(shown: &Shown<'_>) -> Vec<Line> {
    let list = shown.report["failovers"].as_array().map(Vec::as_slice).unwrap_or_default();
    // The first leader came after nobody: that is no failover.
    let list = list.iter().filter(|failover| !failover["from"].is_null()).take(FAILOVERS);
    let rows: Vec<Line> = list.map(failover).collect();
    if rows.is_empty() {
        return rows;
    }
    let head = Line::new()
        .left(Ink::Bold, "FAILOVER", 8)
        .left(Ink::Bold, "FROM", 16)
        .left(Ink::Bold, "TO", 16)
        .right(Ink::Bold, "GAP", 8)
        .right(Ink::Bold, "AFTER KEY", 9)
        .add(Ink::Bold, "BECAUSE");
    [head].into_iter().chain(rows).collect()
}

fn failover(failover: &Value) -> Line {
    let at = failover["lost_at_unix_ms"].as_u64().unwrap_or(0) / 1000;
    let text = |field: &str| failover[field].as_str().unwrap_or_default().to_owned();
    let seconds = |field: &str| {
        let duration = Duration::from_millis(failover[field].as_u64().unwrap_or(0));
        format!("{:.2} s", duration.as_secs_f64())
    };
    Line::new()
        .left(Ink::Dim, clock(at), 8)
        .left(Ink::Plain, text("from"), 16)
        .left(Ink::Plain, text("to"), 16)
        .right(Ink::Yellow, seconds("gap_ms"), 8)
        .right(Ink::Plain, seconds("after_claim_ms"), 9)
        .add(Ink::Dim, plain(&text("reason")))
}

fn event(event: crate::cli::events::Event) -> Line {
    let ink = match event.tone {
        Tone::Plain => Ink::Plain,
        Tone::Good => Ink::Green,
        Tone::Bad => Ink::Red,
    };
    Line::new().add(Ink::Dim, format!("{} ", event.time)).add(ink, event.text)
}

fn advice(shown: &Shown<'_>, all: bool) -> Vec<Line> {
    if all {
        let mut lines = vec![Line::of(Ink::Bold, "TRY, in another terminal")];
        let steps = next_steps(shown.state).into_iter().filter(|step| !step.contains("make down"));
        lines.extend(steps.map(|step| Line::of(Ink::Dim, format!("  {step}"))));
        return lines;
    }
    let app = shown.state.backends.first().map_or(0, |backend| backend.port);
    let stats = shown.state.haproxy.stats;
    [
        ("TRY ", "make failover   make failover KIND=switchover   make status".to_owned()),
        ("    ", format!("curl 127.0.0.1:{app}/cluster   http://127.0.0.1:{stats}/stats")),
    ]
    .map(|(head, text)| Line::of(Ink::Bold, head).add(Ink::Dim, text))
    .into()
}

/// Without the number that follows each of the system's messages.
pub(super) fn plain(text: &str) -> String {
    match text.split_once(" (os error ") {
        Some((message, rest)) => {
            let after = rest.split_once(')').map_or("", |(_, after)| after);
            format!("{message}{after}")
        }
        None => text.to_owned(),
    }
}

fn both(latency: Option<(Duration, Duration)>) -> String {
    latency.map_or_else(|| "-".to_owned(), |(half, most)| format!("{}/{}", ms(half), ms(most)))
}

/// Three digits at most while that is possible.
fn ms(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1000.0;
    if ms < 9.95 { format!("{ms:.1}") } else { format!("{ms:.0}") }
}

fn minutes(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds / 3600 {
        0 => format!("{}:{:02}", seconds / 60, seconds % 60),
        hours => format!("{hours}:{:02}:{:02}", seconds / 60 % 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_fit_their_columns() {
        assert_eq!(ms(Duration::from_micros(1234)), "1.2");
        assert_eq!(ms(Duration::from_millis(1234)), "1234");
        assert_eq!(minutes(Duration::from_secs(65)), "1:05");
        assert_eq!(minutes(Duration::from_secs(3665)), "1:01:05");
        assert_eq!(plain("refused (os error 111); next"), "refused; next");
    }

    #[test]
    fn an_epoch_is_written_as_the_library_writes_it() {
        let report = serde_json::json!({"epoch": {"timeline": 2, "revision": 25}});
        assert_eq!((epoch(&report), epoch(&Value::Null)), ("2.25".to_owned(), "none".to_owned()));
    }
}
