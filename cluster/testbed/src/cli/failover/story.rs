//! The story: what is seen, put in order and into words.

use std::time::Duration;

use anyhow::{Result, bail};
use leaderpool_testbed::{Interval, WritablePoller};
use tokio::time::Instant;

use super::Kind;
use super::seen::{Ack, Seen, What};
use super::writers::{Account, Way};
use crate::cli::place::State;
use crate::cli::say;
use crate::cli::start::colours;
use crate::cli::table::{Ink, Line};

/// Lines wait so long to be printed, as an earlier one may still come from elsewhere.
const ORDER: Duration = Duration::from_millis(300);
/// An acknowledgement may be noticed sooner than the poller notices that the node is writable.
const BLUR: Duration = Duration::from_millis(50);

pub(super) struct Story {
    kind: Kind,
    old: String,
    ttl: u32,
    haproxy_port: u16,
    began: Instant,
    lines: Vec<(Instant, Ink, String)>,
    printed: usize,
    key_gone: bool,
    writable: Option<(String, Instant)>,
    lost: bool,
    acks: Vec<(Instant, Ack)>,
    by_backend: Option<Instant>,
    by_haproxy: Option<Instant>,
    returned: bool,
    healthy: bool,
}

impl Story {
    pub(super) fn begin(state: &State, kind: Kind, old: &str) -> Self {
        Self {
            kind,
            old: old.to_owned(),
            ttl: state.ttl,
            haproxy_port: state.haproxy.writes,
            began: Instant::now(),
            lines: Vec::new(),
            printed: 0,
            key_gone: false,
            writable: None,
            lost: false,
            acks: Vec::new(),
            by_backend: None,
            by_haproxy: None,
            returned: false,
            healthy: false,
        }
    }

    /// The moment from which everything is counted.
    pub(super) fn struck(&mut self, text: String) {
        self.began = Instant::now();
        self.add(self.began, Ink::Red, text);
    }

    fn add(&mut self, at: Instant, ink: Ink, text: String) {
        // Nothing precedes the fault, and a line that comes late goes after what stands already.
        let last = self.lines[..self.printed].last().map_or(self.began, |(last, ..)| *last);
        let at = at.max(last).max(self.began);
        let place = self.lines.partition_point(|(other, ..)| *other <= at);
        self.lines.insert(place, (at, ink, text));
    }

    pub(super) fn hear(&mut self, seen: Seen) -> Result<()> {
        if seen.at < self.began {
            return Ok(());
        }
        match seen.what {
            What::Key(None) => {
                self.key_gone = true;
                let lease = f64::from(self.ttl);
                let renewed = (lease - (seen.at - self.began).as_secs_f64()).max(0.0);
                let why = match self.kind {
                    Kind::Node => format!(
                        "the leader key is gone: its lease of {lease} s, last renewed {renewed:.1} s before, ran out"
                    ),
                    _ => "the leader key is free".to_owned(),
                };
                self.add(seen.at, Ink::Yellow, why);
            }
            What::Key(Some(holder)) if holder != self.old || self.key_gone => {
                self.add(seen.at, Ink::Plain, format!("{holder} holds the leader key"));
            }
            What::Key(Some(_)) => {}
            What::Acknowledged(ack) => {
                self.acks.push((seen.at, ack));
                self.weigh_acks();
            }
            What::Returned(timeline) => self.returned(seen.at, timeline),
            What::Healthy => {
                self.healthy = true;
                let text = "HAProxy agrees: the system is healthy again";
                self.add(seen.at, Ink::Green, text.to_owned());
            }
            What::Refused(why) => bail!(why),
        }
        Ok(())
    }

    /// What the servers say of themselves.
    pub(super) fn look_at(&mut self, intervals: &[Interval]) {
        let open = |node: &str| intervals.iter().any(|i| i.node == node && i.open);
        if !self.lost && !open(&self.old) {
            self.lost = true;
            let last = intervals.iter().rev().find(|i| i.node == self.old);
            if self.kind != Kind::Node {
                let at = last.map_or(self.began, |interval| interval.to.at);
                self.add(at, Ink::Plain, format!("{} accepts no more writes", self.old));
            }
        }
        if self.writable.is_some() {
            return;
        }
        let of_new_reign =
            |i: &&Interval| i.from.at > self.began && (i.node != self.old || self.lost);
        let new = intervals.iter().find(of_new_reign);
        if let Some(interval) = new {
            self.writable = Some((interval.node.clone(), interval.from.at));
            let again = if interval.node == self.old { " again" } else { "" };
            let text = format!("{} accepts writes{again}", interval.node);
            self.add(interval.from.at, Ink::Green, text);
            self.weigh_acks();
        }
    }

    /// The first acknowledged writes of the new reign.
    fn weigh_acks(&mut self) {
        let Some((node, since)) = self.writable.clone() else { return };
        let first = |acks: &[(Instant, Ack)], by_haproxy: bool| {
            let mut new = acks.iter().filter(|(at, ack)| {
                ack.by_haproxy == by_haproxy && ack.node == node && *at + BLUR >= since
            });
            new.next().cloned()
        };
        if self.by_backend.is_none()
            && let Some((at, ack)) = first(&self.acks, false)
        {
            let at = at.max(since);
            self.by_backend = Some(at);
            let text = format!(
                "first write through the backends acknowledged, {} ({}, held {:.1} s)",
                after(at, since),
                ack.by,
                ack.took.as_secs_f64()
            );
            self.add(at, Ink::Green, text);
        }
        if self.by_haproxy.is_none()
            && let Some((at, _)) = first(&self.acks, true)
        {
            let at = at.max(since);
            self.by_haproxy = Some(at);
            let text = format!(
                "first write through HAProxy :{} acknowledged, {}",
                self.haproxy_port,
                after(at, since)
            );
            self.add(at, Ink::Green, text);
        }
    }

    pub(super) fn writes_are_back(&self) -> bool {
        self.by_backend.is_some() && self.by_haproxy.is_some()
    }

    pub(super) fn started_again(&mut self) {
        self.add(Instant::now(), Ink::Plain, format!("{} is started again", self.old));
    }

    fn returned(&mut self, at: Instant, timeline: i32) {
        self.returned = true;
        let leads = self.writable.as_ref().is_some_and(|(node, _)| *node == self.old);
        let role = if leads { "leads" } else { "follows as a replica" };
        self.add(at, Ink::Green, format!("{} {role}, on timeline {timeline}", self.old));
    }

    pub(super) fn is_over(&self) -> bool {
        self.writes_are_back() && self.returned && self.healthy
    }

    /// What the story still waits for.
    pub(super) fn missing(&self) -> &'static str {
        match (&self.writable, self.by_backend, self.by_haproxy) {
            (None, ..) => "no node accepts writes",
            (_, None, _) => "no write through a backend was acknowledged",
            (.., None) => "no write through HAProxy was acknowledged",
            _ if !self.returned => "the old leader is not back",
            _ => "HAProxy does not agree",
        }
    }

    /// Prints what nothing earlier can precede any more.
    pub(super) fn print(&mut self) {
        self.print_until(Instant::now().checked_sub(ORDER).unwrap_or(self.began));
    }

    pub(super) fn print_all(&mut self) {
        self.print_until(Instant::now());
    }

    fn print_until(&mut self, until: Instant) {
        while let Some((at, ink, text)) = self.lines.get(self.printed).filter(|l| l.0 <= until) {
            let since = (*at - self.began).as_secs_f64();
            let line =
                Line::new().left(Ink::Dim, format!("  T+{since:.2} s"), 13).add(*ink, text.clone());
            say(line.show(usize::MAX, colours()));
            self.printed += 1;
        }
    }

    /// The end: figures of both ways.
    pub(super) fn sum_up(&self, account: &Account, poller: &WritablePoller) -> Vec<String> {
        let mut lines = vec![format!(
            "{:<16} {:>12} {:>8} {:>6} {:>9}  {}",
            "WRITES THROUGH", "ACKNOWLEDGED", "GAP", "HELD", "LONGEST", "ERRORS"
        )];
        let row = |name: &str, way: &Way, holds: bool| {
            let errors: Vec<_> =
                way.errors.iter().map(|(code, count)| format!("{count} {code}")).collect();
            let errors = if errors.is_empty() { "none".to_owned() } else { errors.join(", ") };
            let held = if holds { way.held.to_string() } else { "-".to_owned() };
            format!(
                "{name:<16} {:>12} {:>6.2} s {held:>6} {:>7.2} s  {errors}",
                way.acknowledged,
                way.gap.as_secs_f64(),
                way.longest.as_secs_f64(),
            )
        };
        lines.push(row("the backends", &account.backends(), true));
        lines.push(row("HAProxy", &account.haproxy(), false));
        lines.push(match poller.overlaps().len() {
            0 => "no two nodes were writable at the same time".to_owned(),
            n => format!("{n} times two nodes were writable at the same time"),
        });
        lines
    }
}

fn after(at: Instant, since: Instant) -> String {
    match at.saturating_duration_since(since) {
        Duration::ZERO => "at once".to_owned(),
        later if later < Duration::from_secs(1) => format!("{} ms later", later.as_millis()),
        later => format!("{:.1} s later", later.as_secs_f64()),
    }
}
