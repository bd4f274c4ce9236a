//! Runs the files in `scenarios/`, which `scenarios/README.md` explains.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::oracle::Oracle;
use super::*;
use crate::patroni::{
    ClusterSnapshot, DynamicConfig, FailoverRequest, LeaderKey, Lsn, Member, MemberRole,
    MemberState, RejectedKey, ServerAddress, SystemId, Timeline,
};

const OURS: u64 = 7;

/// One event of a file, and what must come of it.
#[derive(Default)]
struct Block<'a> {
    line: usize,
    event: &'a str,
    actions: Vec<&'a str>,
    tells: Option<Vec<&'a str>>,
    views: Vec<(usize, &'a str)>,
}

struct Run {
    start: Instant,
    now: Instant,
    /// How much more the clock on the wall shows than the time since the start.
    clock: Duration,
    machine: Topology,
    oracle: Oracle,
}

/// The `key=value` words and the bare ones of a line.
struct Words<'a> {
    bare: Vec<&'a str>,
    pairs: Vec<(&'a str, &'a str)>,
}

impl<'a> Words<'a> {
    fn of(text: &'a str) -> Self {
        let mut words = Self { bare: Vec::new(), pairs: Vec::new() };
        for word in text.split_whitespace() {
            match word.split_once('=') {
                Some(pair) => words.pairs.push(pair),
                None => words.bare.push(word),
            }
        }
        words
    }

    /// The value of `key`, taken out, so that what is left over is a typing error.
    fn take(&mut self, key: &str) -> Option<&'a str> {
        let index = self.pairs.iter().position(|(name, _)| *name == key)?;
        Some(self.pairs.remove(index).1)
    }

    fn number<T: std::str::FromStr>(&mut self, key: &str) -> Result<Option<T>, String> {
        self.take(key).map(|text| number(text)).transpose()
    }

    fn end(self) -> Result<(), String> {
        match self.pairs.first() {
            None => Ok(()),
            Some((key, _)) => Err(format!("unknown word {key}=")),
        }
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("not a number: {text}"))
}

fn millis(text: &str) -> Result<Duration, String> {
    let digits = text.strip_suffix("ms").ok_or_else(|| format!("not in ms: {text}"))?;
    number(digits).map(Duration::from_millis)
}

fn source(text: Option<&&str>) -> Result<SourceKind, String> {
    match text {
        Some(&"etcd") => Ok(SourceKind::Etcd),
        Some(&"rest") => Ok(SourceKind::Rest),
        Some(&"fixed") => Ok(SourceKind::Fixed),
        other => Err(format!("no such source: {other:?}")),
    }
}

fn address(name: &str, port: u16) -> ServerAddress {
    ServerAddress { host: name.into(), port }
}

/// What the clock on the wall shows at the start.
fn midnight() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(20_000 * 86_400)
}

/// `leader>member`, either of which may be missing.
fn request(text: &str) -> Result<FailoverRequest, String> {
    let (leader, member) = text.split_once('>').ok_or_else(|| format!("no > in {text}"))?;
    let given = |name: &str| (!name.is_empty()).then(|| name.to_owned());
    Ok(FailoverRequest { leader: given(leader), member: given(member), scheduled_at: None })
}

/// `name[:port][/role][@timeline][!state]`
fn member(text: &str) -> Result<(String, Member), String> {
    let (text, state) = match text.split_once('!') {
        Some((text, state)) => (text, Some(MemberState(state.into()))),
        None => (text, None),
    };
    let (text, timeline) = match text.split_once('@') {
        Some((text, timeline)) => (text, Some(Timeline(number(timeline)?))),
        None => (text, None),
    };
    let (text, role) = match text.split_once('/') {
        Some((text, "standby_leader")) => (text, Some(MemberRole::StandbyLeader)),
        Some((_, role)) => return Err(format!("no such role here: {role}")),
        None => (text, None),
    };
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => (name, number(port)?),
        None => (text, 5432),
    };
    let mut member = Member::at(&address(name, port));
    member.timeline = timeline;
    member.role = role.unwrap_or(MemberRole::Replica);
    member.state = state.unwrap_or(member.state);
    Ok((name.to_owned(), member))
}

fn snapshot(words: &mut Words<'_>) -> Result<ClusterSnapshot, String> {
    let system_id = match words.take("sysid") {
        Some("none") => None,
        Some(text) => Some(SystemId(number(text)?)),
        None => Some(SystemId(OURS)),
    };
    let mut snapshot = ClusterSnapshot { system_id, ..ClusterSnapshot::default() };
    if let Some(leader) = words.take("leader") {
        let (name, revision) = leader.split_once('@').unwrap_or((leader, "0"));
        snapshot.leader = Some(LeaderKey { name: name.into(), revision: number(revision)? });
    }
    for text in words.take("members").into_iter().flat_map(|list| list.split(',')) {
        let (name, member) = member(text)?;
        snapshot.members.insert(name, member);
    }
    for key in words.take("bad").into_iter().flat_map(|list| list.split(',')) {
        snapshot.rejected.push(RejectedKey { key: key.into(), reason: "garbage".into() });
    }
    snapshot.failover = words.take("failover").map(request).transpose()?;
    if let (Some(request), Some(text)) = (&mut snapshot.failover, words.take("scheduled")) {
        request.scheduled_at = Some(match millis(text) {
            Ok(after) => humantime::format_rfc3339_millis(midnight() + after).to_string(),
            Err(_) => text.into(),
        });
    }
    snapshot.config =
        words.number("ttl")?.map(|ttl| DynamicConfig { ttl, ..DynamicConfig::default() });
    Ok(snapshot)
}

impl Run {
    fn new(main_source: SourceKind) -> Self {
        let config = TopologyConfig { main_source, ..TopologyConfig::default() };
        // Far enough from the clock's zero to subtract from.
        let start = Instant::now() + Duration::from_secs(3_600);
        let machine = Topology::new(config, start);
        let (clock, oracle) = (Duration::ZERO, Oracle::new(config));
        Self { start, now: start, clock, machine, oracle }
    }

    fn event(&self, text: &str) -> Result<Event, String> {
        let mut words = Words::of(text);
        let bare = std::mem::take(&mut words.bare);
        let event = match bare[..] {
            ["snapshot", ..] => Event::Snapshot {
                source: source(bare.get(1))?,
                snapshot: Arc::new(snapshot(&mut words)?),
            },
            ["contact", ..] => Event::Contact { source: source(bare.get(1))? },
            ["lost", ..] => {
                Event::SourceLost { source: source(bare.get(1))?, reason: bare[2..].join(" ") }
            }
            ["probe", name, ref rest @ ..] => {
                let port = words.number("port")?.unwrap_or(5432);
                let result = match rest {
                    ["timeout"] => Err(ProbeFailure::TimedOut(Duration::from_millis(500))),
                    ["refused"] => Err(ProbeFailure::Refused("connection refused".into())),
                    ["failed"] => Err(ProbeFailure::Failed("wrong password".into())),
                    ["primary"] => Ok(self.report(&mut words, false)?),
                    ["replica"] => Ok(self.report(&mut words, true)?),
                    other => return Err(format!("no such answer: {other:?}")),
                };
                Event::Probed { member: name.into(), address: address(name, port), result }
            }
            ["suspect", name, cause] => Event::Suspect {
                member: name.into(),
                cause: match cause {
                    "shutdown" => Suspicion::ShuttingDown,
                    "readonly" => Suspicion::ReadOnly,
                    "lost" => Suspicion::ConnectionLost,
                    other => return Err(format!("no such cause: {other}")),
                },
            },
            ["tick"] => Event::Tick,
            _ => return Err("no such event".into()),
        };
        words.end()?;
        Ok(event)
    }

    fn report(&self, words: &mut Words<'_>, in_recovery: bool) -> Result<ProbeReport, String> {
        Ok(ProbeReport {
            sent_at: match words.take("sent") {
                Some(text) => self.start + millis(text)?,
                None => self.now,
            },
            round_trip: Duration::from_millis(1),
            system_id: SystemId(words.number("sysid")?.unwrap_or(OURS)),
            in_recovery,
            timeline: Timeline(words.number("tl")?.ok_or("tl= is missing")?),
            written: words.number("lsn")?.map(Lsn),
            received: None,
            replayed: words.number("replayed")?.map(Lsn),
            replay_age: words.take("age").map(millis).transpose()?,
            started_at: 0,
            server_version: 170_000,
        })
    }

    fn step(&mut self, block: &Block<'_>, failures: &mut Failures<'_>) {
        let event = match self.event(block.event) {
            Ok(event) => event,
            Err(why) => return failures.add(block.line, &why),
        };
        let wall = midnight() + (self.now - self.start) + self.clock;
        let actions = self.machine.apply(event.clone(), self.now, wall);
        if let Err(why) = self.oracle.check(&event, self.now, wall, &actions, &self.machine) {
            failures.add(block.line, &why);
        }
        let (tells, acts): (Vec<&Action>, Vec<&Action>) =
            actions.iter().partition(|action| matches!(action, Action::Tell(_)));
        let acts: Vec<String> = acts.into_iter().map(show_action).collect();
        failures.compare(block.line, block.event, &block.actions.join(" ; "), &acts.join(" ; "));
        if let Some(expected) = &block.tells {
            let tells: Vec<String> = tells.into_iter().map(show_action).collect();
            failures.compare(block.line, block.event, &expected.join(" ; "), &tells.join(" ; "));
        }
        for (line, text) in &block.views {
            match self.look(text) {
                Ok((expected, found)) => failures.compare(*line, text, &expected, &found),
                Err(why) => failures.add(*line, &why),
            }
        }
    }

    /// What a `=` line expects, and what the view holds there.
    fn look(&self, text: &str) -> Result<(String, String), String> {
        let view = self.machine.view();
        let mut words = text.split_whitespace();
        let what = words.next().unwrap_or_default();
        let option = |text: Option<String>| text.unwrap_or_else(|| "none".into());
        let found = match what {
            "leader" => match &view.leader {
                LeaderState::Unknown { .. } => "unknown".into(),
                LeaderState::Claimed { member, .. } => format!("claimed {member}"),
                LeaderState::Admitted { member, .. } => format!("admitted {member}"),
            },
            "since" => self.moment(view.leader.since()),
            "epoch" => option(view.epoch.map(|epoch| epoch.to_string())),
            "reign" => view.reign.to_string(),
            "sysid" => option(view.system_id.map(|id| id.to_string())),
            "source" => show_source(view.source).into(),
            "degraded" => option(view.degraded.as_ref().map(|(_, why)| why.clone())),
            "contact" => option(view.contact_at.map(|at| self.moment(at))),
            "lease" => format!("{}s", view.lease.as_secs()),
            "refused" => option(view.refused.as_ref().map(|why| show_refusal(why).into())),
            "members" => view.members.keys().cloned().collect::<Vec<_>>().join(" "),
            "rejected" => {
                let keys: Vec<&str> = view.rejected.iter().map(|(key, _)| key.as_str()).collect();
                keys.join(" ")
            }
            "hold" => option(view.hold.as_ref().map(|hold| {
                let to = hold.to.as_deref().unwrap_or("any");
                format!("{} -> {to} until {}", hold.leader, self.moment(hold.until))
            })),
            "wake" => option(self.machine.wake_at().map(|at| self.moment(at))),
            "failovers" => {
                let shown = view.failovers.iter().map(|record| {
                    let from = record.from.as_deref().unwrap_or("none");
                    format!("{from} -> {} {}", record.to, show_reason(&record.reason))
                });
                shown.collect::<Vec<_>>().join(" ; ")
            }
            "health" | "fresh" | "lag" | "address" => {
                let name = words.next().unwrap_or_default();
                let member = view.members.get(name).ok_or_else(|| format!("no member {name}"))?;
                match what {
                    "health" => show_health(&member.health),
                    "fresh" => option(member.fresh_at.map(|at| self.moment(at))),
                    "lag" => option(member.lag_bytes.map(|bytes| bytes.to_string())),
                    _ => member.address.to_string(),
                }
            }
            other => return Err(format!("no such thing in the view: {other}")),
        };
        Ok((words.collect::<Vec<_>>().join(" "), found))
    }

    fn moment(&self, at: Instant) -> String {
        format!("{}ms", (at - self.start).as_millis())
    }
}

fn show_source(source: SourceKind) -> &'static str {
    match source {
        SourceKind::Etcd => "etcd",
        SourceKind::Rest => "rest",
        SourceKind::Fixed => "fixed",
    }
}

fn show_refusal(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::ForeignServer { .. } => "foreign server",
        Refusal::OldTimeline { .. } => "old timeline",
        Refusal::OldClaim { .. } => "old claim",
        Refusal::ClusterReplaced { .. } => "cluster replaced",
    }
}

fn show_reason(reason: &WithdrawReason) -> String {
    match reason {
        WithdrawReason::KeyGone => "(key gone)".into(),
        WithdrawReason::KeyMoved { to } => format!("(key names {to})"),
        WithdrawReason::InRecovery => "(in recovery)".into(),
        WithdrawReason::Unreachable { .. } => "(unreachable)".into(),
        WithdrawReason::ShuttingDown => "(shutting down)".into(),
        WithdrawReason::Switchover { to } => {
            format!("(switchover to {})", to.as_deref().unwrap_or("any"))
        }
        WithdrawReason::Refused(refusal) => format!("({})", show_refusal(refusal)),
        WithdrawReason::Removed => "(removed)".into(),
    }
}

fn show_health(health: &MemberHealth) -> String {
    match health {
        MemberHealth::Unknown => "unknown".into(),
        MemberHealth::Up(report) if report.in_recovery => "replica".into(),
        MemberHealth::Up(_) => "primary".into(),
        MemberHealth::Down { failures, .. } => format!("down {failures}"),
        MemberHealth::Refused(refusal) => format!("refused: {}", show_refusal(refusal)),
    }
}

fn show_action(action: &Action) -> String {
    match action {
        Action::AddMember(spec) => format!("add {}", spec.name),
        Action::RemoveMember(name) => format!("remove {name}"),
        Action::SetCadence(name, cadence) => {
            let cadence = match cadence {
                Cadence::Normal => "normal",
                Cadence::Watchful => "watchful",
                Cadence::Urgent => "urgent",
            };
            format!("cadence {name} {cadence}")
        }
        Action::ProbeNow(name) => format!("probe {name}"),
        Action::Admit { member, epoch, reign } => format!("admit {member} {epoch} reign={reign}"),
        Action::Withdraw { member, reason } => format!("withdraw {member} {}", show_reason(reason)),
        Action::Fence { member, reason } => format!("fence {member} {}", show_reason(reason)),
        Action::StartFallback => "start fallback".into(),
        Action::StopFallback => "stop fallback".into(),
        Action::Tell(event) => match event {
            TopologyEvent::LeaderLost { member, reason } => {
                format!("lost {member} {}", show_reason(reason))
            }
            TopologyEvent::Candidate { member } => format!("candidate {member}"),
            TopologyEvent::Admitted { member, epoch } => format!("admitted {member} {epoch}"),
            TopologyEvent::Degraded { source, .. } => format!("degraded {}", show_source(*source)),
            TopologyEvent::Restored { source } => format!("restored {}", show_source(*source)),
            TopologyEvent::MemberRefused { member, refusal } => {
                format!("refused {member} ({})", show_refusal(refusal))
            }
            TopologyEvent::ClusterRefused { refusal } => {
                format!("refused cluster ({})", show_refusal(refusal))
            }
            TopologyEvent::MemberAdded { member, .. } => format!("added {member}"),
            TopologyEvent::MemberRemoved { member } => format!("removed {member}"),
            TopologyEvent::KeyRejected { key, .. } => format!("rejected {key}"),
            TopologyEvent::WritesLost { .. } => "writes lost".into(),
            TopologyEvent::BreakerChanged { member, to, .. } => format!("breaker {member} {to}"),
        },
    }
}

struct Failures<'a> {
    file: &'a str,
    text: &'a mut String,
}

impl Failures<'_> {
    fn add(&mut self, line: usize, why: &str) {
        let _ = writeln!(self.text, "{}:{line}: {why}", self.file);
    }

    fn compare(&mut self, line: usize, what: &str, expected: &str, found: &str) {
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        if words(expected) != words(found) {
            self.add(line, &format!("{what}\n    expected: {expected}\n    found:    {found}"));
        }
    }
}

fn run_file(file: &str, text: &str, failures: &mut String) {
    let mut failures = Failures { file, text: failures };
    let mut run = Run::new(SourceKind::Etcd);
    let mut open: Option<Block<'_>> = None;
    let finish = |run: &mut Run, open: &mut Option<Block<'_>>, failures: &mut Failures<'_>| {
        if let Some(block) = open.take() {
            run.step(&block, failures);
        }
    };
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let line = line.trim();
        let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
        match (first, &mut open) {
            ("" | "#", _) => {}
            ("=>", Some(block)) => block.actions.push(rest),
            ("!", Some(block)) => {
                let tells = block.tells.get_or_insert_default();
                tells.extend((rest != "nothing").then_some(rest));
            }
            ("=", Some(block)) => block.views.push((number, rest)),
            ("main", None) => match source(Some(&rest)) {
                Ok(source) => run = Run::new(source),
                Err(why) => failures.add(number, &why),
            },
            ("clock", open) => {
                finish(&mut run, open, &mut failures);
                match millis(rest) {
                    Ok(clock) => run.clock = clock,
                    Err(why) => failures.add(number, &why),
                }
            }
            ("at", open) => {
                finish(&mut run, open, &mut failures);
                match millis(rest) {
                    Ok(after) if run.start + after >= run.now => run.now = run.start + after,
                    Ok(_) => failures.add(number, "time goes back"),
                    Err(why) => failures.add(number, &why),
                }
            }
            (_, open) => {
                finish(&mut run, open, &mut failures);
                *open = Some(Block { line: number, event: line, ..Block::default() });
            }
        }
    }
    finish(&mut run, &mut open, &mut failures);
}

#[test]
fn every_scenario_runs_as_written() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src/topology/scenarios"));
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "scenario"))
        .collect();
    files.sort();
    assert!(files.len() > 20, "the scenarios are missing from {folder:?}");
    let mut failures = String::new();
    for path in files {
        let name = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().display().to_string();
        run_file(&name, &std::fs::read_to_string(&path).unwrap(), &mut failures);
    }
    assert!(failures.is_empty(), "\n{failures}");
}

#[test]
fn a_scenario_that_is_wrong_is_named_by_file_and_line() {
    let wrong = "at 5ms\nsnapshot etcd members=a\n=> add b\n= leader admitted a\nprobe a primary tl=1 lns=3\nat 1ms\n= epoch 1\nshrug\n";
    let mut failures = String::new();
    run_file("x", wrong, &mut failures);
    for expected in ["x:2: ", "x:4: ", "x:5: unknown word lns=", "x:6: time goes back", "x:8: "] {
        assert!(failures.contains(expected), "{expected:?} is missing in:\n{failures}");
    }
}
