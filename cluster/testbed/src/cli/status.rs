//! `status`: the system in a table.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::events::clock;
use super::look::{Health, Member, Role, look};
use super::place::{Place, State};
use super::start::colours;
use super::table::{Ink, Line};
use super::up::near;
use super::{Folder, say};

#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    folder: Folder,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) async fn run(self) -> Result<ExitCode> {
        let state = match Place::new(&self.folder.dir)?.running() {
            Ok(state) => state,
            Err(error) if self.json => {
                say(json!({"up": false, "healthy": false, "problems": [error.to_string()]}));
                return Ok(ExitCode::FAILURE);
            }
            Err(error) => return Err(error),
        };
        let health = look(&state).await;
        if self.json {
            let mut value = serde_json::to_value(&health)?;
            value["up"] = json!(true);
            value["system"] = serde_json::to_value(&state)?;
            say(format_args!("{value:#}"));
        } else {
            print(&table(&state, &health));
        }
        Ok(if health.healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

pub(super) fn print(lines: &[Line]) {
    let colours = colours();
    for line in lines {
        say(line.show(usize::MAX, colours));
    }
}

pub(super) fn table(state: &State, health: &Health) -> Vec<Line> {
    let mut lines = vec![
        Line::new()
            .add(Ink::Plain, format!("up since {} ", clock(state.since_unix)))
            .add(Ink::Dim, format!("(make {}, process {})", state.command, state.pid))
            .add(Ink::Plain, format!(", {}, ttl/loop_wait/retry_timeout ", state.manager))
            .add(Ink::Plain, state.timing()),
        Line::new(),
        Line::new()
            .left(Ink::Bold, "MEMBER", 17)
            .left(Ink::Bold, "ROLE", 12)
            .left(Ink::Bold, "STATE", 12)
            .right(Ink::Bold, "TIMELINE", 8)
            .right(Ink::Bold, "LAG", 9)
            .right(Ink::Bold, "POSTGRESQL", 10)
            .right(Ink::Bold, "REST", 5),
    ];
    lines.extend(health.members.iter().map(member));
    lines.push(Line::new());
    lines.extend(haproxy(state, health));
    lines.push(Line::new());
    lines.push(
        Line::new()
            .left(Ink::Bold, "BACKEND", 17)
            .left(Ink::Bold, "READY", 12)
            .left(Ink::Bold, "WRITES TO", 21)
            .right(Ink::Bold, "PORT", 9),
    );
    for backend in &health.backends {
        let (ink, ready) = if backend.ready { (Ink::Green, "yes") } else { (Ink::Red, "no") };
        let says = if backend.ready { backend.says.as_str() } else { "" };
        lines.push(
            Line::new()
                .left(Ink::Plain, &backend.name, 17)
                .left(ink, ready, 12)
                .left(Ink::Plain, says, 21)
                .right(Ink::Plain, backend.port.to_string(), 9),
        );
    }
    lines.push(Line::new());
    let key = match (&health.leader, health.leader_revision) {
        (Some(leader), Some(revision)) => format!("{leader}, since revision {revision}"),
        _ => "nobody".to_owned(),
    };
    lines.push(Line::of(Ink::Plain, format!("leader key in etcd (port {}): {key}", state.etcd)));
    lines.push(Line::of(Ink::Plain, format!("clients' configuration: {}", near(&state.config))));
    lines.push(Line::of(Ink::Plain, format!("logs: {}", near(&state.logs))));
    lines.push(Line::new());
    if health.healthy {
        lines.push(Line::of(Ink::Green, "healthy"));
    } else {
        lines.push(Line::of(Ink::Red, "NOT healthy:"));
        lines.extend(health.problems.iter().map(|p| Line::of(Ink::Red, format!("  {p}"))));
    }
    lines
}

pub(super) fn role_ink(role: Role) -> Ink {
    match role {
        Role::Leader => Ink::Green,
        Role::Replica => Ink::Cyan,
        Role::Unadmitted | Role::Unavailable => Ink::Red,
    }
}

fn member(member: &Member) -> Line {
    let timeline = member.timeline.map_or_else(String::new, |timeline| timeline.to_string());
    let lag = member.lag_bytes.map_or_else(String::new, bytes);
    Line::new()
        .left(Ink::Plain, &member.name, 17)
        .left(role_ink(member.role), member.role.name(), 12)
        .left(Ink::Plain, &member.state, 12)
        .right(Ink::Plain, timeline, 8)
        .right(Ink::Plain, lag, 9)
        .right(Ink::Plain, member.postgres.to_string(), 10)
        .right(Ink::Plain, member.rest.to_string(), 5)
}

/// A column for each node, so that who is up for what can be read down.
fn haproxy(state: &State, health: &Health) -> Vec<Line> {
    let ports = state.haproxy;
    let mut head = Line::new().left(Ink::Bold, "HAPROXY", 17);
    for node in &state.nodes {
        head = head.left(Ink::Bold, &node.name, 17);
    }
    let mut lines = vec![head];
    for (section, port) in [("writes", ports.writes), ("reads", ports.reads)] {
        let mut line = Line::new().left(Ink::Plain, format!("{section} on {port}"), 17);
        for node in &state.nodes {
            let server =
                health.haproxy.iter().find(|s| s.section == section && s.node == node.name);
            let status = server.map_or("?", |server| server.status.as_str());
            let ink = if status.starts_with("UP") { Ink::Green } else { Ink::Dim };
            line = line.left(ink, status, 17);
        }
        lines.push(line);
    }
    lines.push(Line::of(Ink::Dim, format!("http://127.0.0.1:{}/stats", ports.stats)));
    lines
}

/// For people: `0 B`, `16.0 MB`.
pub(super) fn bytes(count: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let count_f = count as f64;
    match count {
        0..1024 => format!("{count} B"),
        1024..1_048_576 => format!("{:.1} kB", count_f / 1024.0),
        _ => format!("{:.1} MB", count_f / 1_048_576.0),
    }
}
