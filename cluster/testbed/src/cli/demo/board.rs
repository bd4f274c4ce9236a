//! What the demo knows at the moment, kept up to date, and the changes in it as events.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::join_all;
use leaderpool_testbed::haproxy::{self, READS, WRITES};
use leaderpool_testbed::http::Http;
use serde_json::Value;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::load::{Figures, Load};
use super::view::{epoch, node, plain};
use crate::cli::events::{Events, Tone};
use crate::cli::place::State;

const LOOK: Duration = Duration::from_millis(250);
const PATIENCE: Duration = Duration::from_millis(900);

pub(super) struct Board {
    state: State,
    load: Load,
    events: Events,
    began: Instant,
    known: Mutex<Known>,
}

#[derive(Debug, Clone, Default)]
struct Known {
    /// `GET /cluster` of each backend.
    reports: BTreeMap<String, Value>,
    ready: BTreeMap<String, bool>,
    writes_to: Vec<String>,
    reads_from: Vec<String>,
}

/// All of it, for the picture.
pub(super) struct Shown<'a> {
    pub(super) state: &'a State,
    pub(super) up: Duration,
    /// The report of a backend that answers.
    pub(super) report: Value,
    pub(super) backends: Vec<BackendShown>,
    pub(super) writes_to: Vec<String>,
    pub(super) reads_from: Vec<String>,
    pub(super) history: Vec<u32>,
}

pub(super) struct BackendShown {
    pub(super) name: String,
    pub(super) port: u16,
    pub(super) ready: Option<bool>,
    pub(super) waiting: Option<u64>,
    pub(super) figures: Figures,
}

impl Board {
    pub(super) fn new(state: &State, load: Load, events: Events) -> Self {
        let known = Mutex::default();
        Self { state: state.clone(), load, events, began: Instant::now(), known }
    }

    /// Until dropped.
    pub(super) async fn keep_looking(&self) {
        let backends = join_all(self.load.apps.iter().map(|app| self.watch(&app.name, app.port)));
        tokio::join!(backends, self.watch_haproxy(), self.watch_leader());
    }

    async fn watch(&self, name: &str, port: u16) {
        let http = Http::plain(port);
        let mut ticks = every(LOOK);
        loop {
            ticks.tick().await;
            let (report, ready) = tokio::join!(
                http.get("/cluster", PATIENCE),
                http.get("/ready?for=writes", PATIENCE)
            );
            let ready = ready.is_ok_and(|answer| answer.status == 200);
            let mut known = self.known.lock().expect("not poisoned");
            match report.and_then(|answer| answer.json()) {
                Ok(report) => known.reports.insert(name.to_owned(), report),
                Err(_) => known.reports.remove(name),
            };
            known.ready.insert(name.to_owned(), ready);
        }
    }

    async fn watch_haproxy(&self) {
        let mut ticks = every(2 * LOOK);
        loop {
            ticks.tick().await;
            let servers = haproxy::servers(self.state.haproxy.stats).await.unwrap_or_default();
            let up = |section| {
                let up = servers.iter().filter(|s| s.section == section && s.is_up());
                up.map(|server| server.node.clone()).collect::<Vec<_>>()
            };
            let (writes, reads) = (up(WRITES), up(READS));
            let mut known = self.known.lock().expect("not poisoned");
            if known.writes_to != writes && !known.writes_to.is_empty() | !writes.is_empty() {
                let text = match writes.is_empty() {
                    true => "HAProxy has no server for writes".to_owned(),
                    false => format!("HAProxy sends writes to {}", writes.join(" and ")),
                };
                self.events.add(if writes.len() == 1 { Tone::Good } else { Tone::Bad }, text);
            }
            (known.writes_to, known.reads_from) = (writes, reads);
        }
    }

    /// The changes that the pools themselves report.
    async fn watch_leader(&self) {
        let mut ticks = every(LOOK);
        let mut before = Value::Null;
        loop {
            ticks.tick().await;
            let report = self.known.lock().expect("not poisoned").report();
            if report.is_null() {
                continue;
            }
            if !before.is_null() {
                self.tell_changes(&before, &report);
            }
            before = report;
        }
    }

    fn tell_changes(&self, before: &Value, now: &Value) {
        let leader = |report: &Value| report["leader"].as_str().map(str::to_owned);
        if leader(before) != leader(now) {
            match leader(now) {
                None => {
                    let why = plain(now["leader_state"].as_str().unwrap_or_default());
                    self.events.add(Tone::Bad, format!("writes wait: {why}"));
                }
                Some(name) => {
                    let text = format!("{name} is admitted as the leader, epoch {}", epoch(now));
                    self.events.add(Tone::Good, text);
                }
            }
        }
        if before["degraded"] != now["degraded"] {
            match now["degraded"].as_str() {
                Some(why) => self.events.add(Tone::Bad, format!("degraded: {why}")),
                None => self.events.add(Tone::Good, "no longer degraded"),
            }
        }
        let role = |report: &Value, name: &str| {
            node(report, name).map(|node| node["role"].as_str().unwrap_or_default().to_owned())
        };
        for node in &self.state.nodes {
            let (was, is) = (role(before, &node.name), role(now, &node.name));
            // The leader's coming and going is told already.
            let leads = |role: &Option<String>| role.as_deref() == Some("leader");
            if was == is || leads(&was) || leads(&is) {
                continue;
            }
            let word = |role: Option<String>| role.unwrap_or_else(|| "not registered".to_owned());
            let tone = match is.as_deref() {
                Some("leader" | "replica") => Tone::Good,
                _ => Tone::Bad,
            };
            let text = format!("{}: {}, was {}", node.name, word(is), word(was));
            self.events.add(tone, text);
        }
    }

    pub(super) fn shown(&self) -> Shown<'_> {
        let known = self.known.lock().expect("not poisoned").clone();
        let backends = self.load.apps.iter().map(|app| BackendShown {
            name: app.name.clone(),
            port: app.port,
            ready: known.ready.get(&app.name).copied(),
            waiting: known.reports.get(&app.name).and_then(|report| report["waiting"].as_u64()),
            figures: app.figures(),
        });
        Shown {
            state: &self.state,
            up: self.began.elapsed(),
            report: known.report(),
            backends: backends.collect(),
            writes_to: known.writes_to.clone(),
            reads_from: known.reads_from.clone(),
            history: self.load.history(),
        }
    }
}

impl Known {
    fn report(&self) -> Value {
        self.reports.values().next().cloned().unwrap_or_default()
    }
}

fn every(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
