//! Random histories against the [oracle](super::oracle).

mod freshness;
mod requests;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use proptest::collection::vec;
use proptest::prelude::*;
use tokio::time::Instant;

use super::oracle::Oracle;
use super::*;
use crate::patroni::{
    ClusterSnapshot, FailoverRequest, LeaderKey, Lsn, Member, MemberState, RejectedKey,
    ServerAddress, SystemId, Timeline,
};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const OURS: SystemId = SystemId(7);

/// One step of a history.
#[derive(Debug, Clone)]
enum Step {
    Wait {
        millis: u64,
        /// Whether the machine is woken when it asked for it.
        woken: bool,
    },
    /// The clock on the wall is set: to so much more than the time since the start.
    Clock(u64),
    Tick,
    Snapshot {
        source: SourceKind,
        /// The revision of the leader key; a revision names one member only, as in etcd.
        leader: Option<i64>,
        bad_leader: bool,
        /// One for each member.
        members: [Listed; 4],
        system_id: Option<SystemId>,
        request: Option<Request>,
    },
    /// The main source's last snapshot once more, with another request; one without names asks its leader.
    Ask(Option<Request>),
    Contact(SourceKind),
    Lost(SourceKind),
    Report {
        member: usize,
        port: u16,
        sent_ago: u64,
        system_id: SystemId,
        in_recovery: bool,
        timeline: u32,
        position: u64,
    },
    Failure(usize, ProbeFailure),
    Suspect(usize, Suspicion),
}

#[derive(Debug, Clone, Copy)]
enum Listed {
    At { port: u16, timeline: Option<u32>, state: &'static str },
    Garbage,
    Missing,
}

/// A wish for another leader.
#[derive(Debug, Clone, Copy)]
struct Request {
    leader: Option<usize>,
    member: Option<usize>,
    scheduled: Option<Scheduled>,
}

#[derive(Debug, Clone, Copy)]
enum Scheduled {
    /// So many milliseconds after the start, by the clock on the wall.
    At(u64),
    Garbage,
}

/// What the clock on the wall shows at the start.
fn midnight() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(20_000 * 86_400)
}

impl Request {
    fn value(&self) -> FailoverRequest {
        let name = |index: Option<usize>| index.map(|index| NAMES[index].to_owned());
        FailoverRequest {
            leader: name(self.leader),
            member: name(self.member),
            scheduled_at: self.scheduled.map(|scheduled| match scheduled {
                Scheduled::At(millis) => {
                    let at = midnight() + Duration::from_millis(millis);
                    humantime::format_rfc3339_millis(at).to_string()
                }
                Scheduled::Garbage => "tomorrow".into(),
            }),
        }
    }
}

fn any_request() -> impl Strategy<Value = Request> {
    let name = || proptest::option::weighted(0.8, 0..NAMES.len());
    let scheduled = prop_oneof![
        6 => Just(None),
        3 => (0..2_000_u64).prop_map(|millis| Some(Scheduled::At(millis))),
        1 => (0..400_000_u64).prop_map(|millis| Some(Scheduled::At(millis))),
        1 => Just(Some(Scheduled::Garbage)),
    ];
    (name(), name(), scheduled).prop_map(|(leader, member, scheduled)| Request {
        leader,
        member,
        scheduled,
    })
}

fn address(member: usize, port: u16) -> ServerAddress {
    ServerAddress { host: NAMES[member].into(), port }
}

fn any_listed() -> impl Strategy<Value = Listed> {
    let timeline = proptest::option::of(1..4_u32);
    let state = prop_oneof![10 => Just("running"), 1 => Just("stopping"), 1 => Just("starting")];
    let port = prop_oneof![30 => Just(1), 1 => Just(2)];
    prop_oneof![
        31 => (port, timeline, state)
            .prop_map(|(port, timeline, state)| Listed::At { port, timeline, state }),
        1 => Just(Listed::Garbage),
        1 => Just(Listed::Missing),
    ]
}

fn any_source(main: SourceKind) -> BoxedStrategy<SourceKind> {
    // REST never falls back to etcd, and a host list to nothing.
    match main {
        SourceKind::Etcd => prop_oneof![3 => Just(main), 1 => Just(SourceKind::Rest)].boxed(),
        SourceKind::Rest | SourceKind::Fixed => Just(main).boxed(),
    }
}

fn any_step(main: SourceKind) -> impl Strategy<Value = Step> {
    let system_id = prop_oneof![20 => Just(OURS), 1 => Just(SystemId(9))];
    let listed_id =
        prop_oneof![20 => Just(Some(OURS)), 3 => Just(None), 1 => Just(Some(SystemId(9)))];
    let snapshot = (
        any_source(main),
        prop_oneof![6 => (1..16_i64).prop_map(Some), 1 => Just(None)],
        proptest::bool::weighted(0.1),
        [any_listed(), any_listed(), any_listed(), any_listed()],
        if main == SourceKind::Fixed { Just(None).boxed() } else { listed_id.boxed() },
        proptest::option::of(any_request()),
    )
        .prop_map(|(source, leader, bad_leader, members, system_id, request)| Step::Snapshot {
            source,
            leader: leader.filter(|_| !bad_leader && source != SourceKind::Fixed),
            bad_leader,
            members,
            system_id,
            request: request.filter(|_| source != SourceKind::Fixed),
        });
    let report = (
        0..4_usize,
        prop_oneof![20 => Just(1_u16), 1 => Just(2)],
        prop_oneof![4 => Just(0_u64), 1 => 0..20_u64],
        system_id,
        proptest::bool::weighted(0.3),
        prop_oneof![6 => Just(1_u32), 3 => Just(2), 1 => Just(3)],
        0..50_u64,
    )
        .prop_map(|(member, port, sent_ago, system_id, in_recovery, timeline, position)| {
            Step::Report { member, port, sent_ago, system_id, in_recovery, timeline, position }
        });
    let failure = prop_oneof![
        3 => Just(ProbeFailure::TimedOut(Duration::from_millis(500))),
        1 => Just(ProbeFailure::Refused("connection refused".into())),
        1 => Just(ProbeFailure::Failed("wrong password".into())),
    ];
    let cause = prop_oneof![
        Just(Suspicion::ShuttingDown),
        Just(Suspicion::ReadOnly),
        Just(Suspicion::ConnectionLost)
    ];
    prop_oneof![
        8 => (
            prop_oneof![20 => 0..5_u64, 1 => 0..5_000_u64, 1 => 0..200_000_u64],
            proptest::bool::weighted(0.8),
        )
            .prop_map(|(millis, woken)| Step::Wait { millis, woken }),
        1 => prop_oneof![Just(0), 0..5_000_u64].prop_map(Step::Clock),
        1 => Just(Step::Tick),
        4 => snapshot,
        if main == SourceKind::Fixed { 0 } else { 5 } => proptest::option::weighted(
            0.7,
            prop_oneof![
                2 => Just(Request { leader: None, member: None, scheduled: None }),
                1 => any_request(),
            ],
        )
        .prop_map(Step::Ask),
        1 => any_source(main).prop_map(Step::Contact),
        1 => any_source(main).prop_map(Step::Lost),
        14 => report,
        2 => (0..4_usize, failure).prop_map(|(member, failure)| Step::Failure(member, failure)),
        2 => (0..4_usize, cause).prop_map(|(member, cause)| Step::Suspect(member, cause)),
    ]
}

fn snapshot_of(step: &Step) -> ClusterSnapshot {
    let Step::Snapshot { source, leader, bad_leader, members, system_id, request } = step else {
        unreachable!("only snapshots are asked for")
    };
    let reject = |key: String| RejectedKey { key, reason: "garbage".into() };
    let mut snapshot = ClusterSnapshot { system_id: *system_id, ..ClusterSnapshot::default() };
    snapshot.leader = leader.map(|revision| LeaderKey {
        name: NAMES[usize::try_from(revision).expect("small") % NAMES.len()].into(),
        revision: if *source == SourceKind::Etcd { revision } else { 0 },
    });
    snapshot.failover = request.map(|request| request.value());
    if *bad_leader {
        snapshot.rejected.push(reject("leader".into()));
    }
    for (index, listed) in members.iter().enumerate() {
        match listed {
            Listed::At { port, timeline, state } => {
                let mut member = Member::at(&address(index, *port));
                member.state = MemberState((*state).into());
                member.timeline = timeline.map(Timeline);
                snapshot.members.insert(NAMES[index].into(), member);
            }
            Listed::Garbage => snapshot.rejected.push(reject(format!("members/{}", NAMES[index]))),
            Listed::Missing => {}
        }
    }
    snapshot
}

/// The event of a step, at `now`; `None` where only time passes.
fn event_of(step: &Step, now: Instant) -> Option<Event> {
    Some(match step {
        Step::Wait { .. } | Step::Clock(_) | Step::Ask(_) => return None,
        Step::Tick => Event::Tick,
        Step::Snapshot { source, .. } => {
            Event::Snapshot { source: *source, snapshot: Arc::new(snapshot_of(step)) }
        }
        Step::Contact(source) => Event::Contact { source: *source },
        Step::Lost(source) => Event::SourceLost { source: *source, reason: "cut off".into() },
        Step::Report { member, port, sent_ago, system_id, in_recovery, timeline, position } => {
            Event::Probed {
                member: NAMES[*member].into(),
                address: address(*member, *port),
                result: Ok(ProbeReport {
                    sent_at: now - Duration::from_millis(*sent_ago),
                    round_trip: Duration::from_millis(*sent_ago),
                    system_id: *system_id,
                    in_recovery: *in_recovery,
                    timeline: Timeline(*timeline),
                    written: (!in_recovery).then_some(Lsn(*position)),
                    received: in_recovery.then_some(Lsn(*position)),
                    replayed: in_recovery.then_some(Lsn(*position)),
                    replay_age: in_recovery.then_some(Duration::from_millis(*position)),
                    started_at: 0,
                    server_version: 170_000,
                }),
            }
        }
        Step::Failure(member, failure) => Event::Probed {
            member: NAMES[*member].into(),
            address: address(*member, 1),
            result: Err(failure.clone()),
        },
        Step::Suspect(member, cause) => {
            Event::Suspect { member: NAMES[*member].into(), cause: *cause }
        }
    })
}

/// How often what was interesting happened, so that the properties cannot hold for want of it.
#[derive(Debug, Default)]
struct Seen {
    admissions: usize,
    withdrawals: usize,
    fences: usize,
    failovers: usize,
    holds: usize,
}

/// A machine and its oracle, side by side.
struct Pair {
    start: Instant,
    now: Instant,
    clock: Duration,
    machine: Topology,
    oracle: Oracle,
    /// The main source's last snapshot.
    last: Option<ClusterSnapshot>,
}

impl Pair {
    fn new(config: TopologyConfig) -> Self {
        // Far enough from the clock's zero to subtract from.
        let start = Instant::now() + Duration::from_secs(3_600);
        let machine = Topology::new(config, start);
        let (clock, oracle) = (Duration::ZERO, Oracle::new(config));
        Self { start, now: start, clock, machine, oracle, last: None }
    }

    fn apply(&mut self, event: &Event) -> Result<Vec<Action>, String> {
        if let Event::Snapshot { source, snapshot } = event
            && *source == self.machine.config.main_source
        {
            self.last = Some(ClusterSnapshot::clone(snapshot));
        }
        let wall = midnight() + (self.now - self.start) + self.clock;
        let actions = self.machine.apply(event.clone(), self.now, wall);
        self.oracle.check(event, self.now, wall, &actions, &self.machine)?;
        Ok(actions)
    }

    fn ask(&mut self, request: Option<Request>) -> Result<Vec<Action>, String> {
        let Some(mut snapshot) = self.last.clone() else { return Ok(Vec::new()) };
        snapshot.failover = request.map(|request| match request {
            Request { leader: None, member: None, scheduled: None } => FailoverRequest {
                leader: snapshot.leader.as_ref().map(|leader| leader.name.clone()),
                ..FailoverRequest::default()
            },
            other => other.value(),
        });
        let (source, snapshot) = (self.machine.config.main_source, Arc::new(snapshot));
        self.apply(&Event::Snapshot { source, snapshot })
    }

    /// Lets time pass, and wakes the machine when it asked for it.
    fn wait(&mut self, span: Duration) -> Result<Vec<Action>, String> {
        let until = self.now + span;
        let mut actions = Vec::new();
        while let Some(at) = self.machine.wake_at().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            actions.extend(self.apply(&Event::Tick)?);
        }
        self.now = until;
        Ok(actions)
    }
}

fn run(main: SourceKind, steps: &[Step], seen: &mut Seen) -> Result<(), TestCaseError> {
    let config = TopologyConfig { main_source: main, ..TopologyConfig::default() };
    let mut pair = Pair::new(config);
    for (index, step) in steps.iter().enumerate() {
        let result = match step {
            Step::Wait { millis, woken: true } => pair.wait(Duration::from_millis(*millis)),
            Step::Wait { millis, woken: false } => {
                pair.now += Duration::from_millis(*millis);
                Ok(Vec::new())
            }
            Step::Clock(ahead) => {
                pair.clock = Duration::from_millis(*ahead);
                Ok(Vec::new())
            }
            Step::Ask(request) => pair.ask(*request),
            other => pair.apply(&event_of(other, pair.now).expect("an event")),
        };
        let actions =
            result.map_err(|why| TestCaseError::fail(format!("step {index}, {step:?}: {why}")))?;
        for action in &actions {
            match action {
                Action::Admit { .. } => seen.admissions += 1,
                Action::Withdraw { reason, .. } => {
                    seen.withdrawals += 1;
                    seen.holds += usize::from(matches!(reason, WithdrawReason::Switchover { .. }));
                }
                Action::Fence { .. } => seen.fences += 1,
                _ => {}
            }
        }
    }
    seen.failovers += pair.machine.view().failovers.len();
    Ok(())
}

fn check_histories(main: SourceKind, cases: u32) {
    let asked_for = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok());
    let cases = asked_for.unwrap_or(cases);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    });
    let seen = std::cell::RefCell::new(Seen::default());
    let result =
        runner.run(&vec(any_step(main), 1..120), |steps| run(main, &steps, &mut seen.borrow_mut()));
    if let Err(error) = result {
        panic!("{error}");
    }
    let seen = seen.into_inner();
    // A failover comes of about every third history, by chance: far below that, so that chance cannot fail
    // this, and far above nothing.
    let floor = usize::try_from(cases).expect("small") / 10;
    assert!(
        [seen.admissions, seen.withdrawals, seen.fences, seen.failovers]
            .iter()
            .all(|times| *times > floor),
        "too little happened in {cases} histories: {seen:?}"
    );
    assert!(main == SourceKind::Fixed || seen.holds > floor / 4, "hardly any holds: {seen:?}");
}

#[test]
fn any_history_told_by_etcd() {
    check_histories(SourceKind::Etcd, 200);
}

#[test]
fn any_history_told_by_rest() {
    check_histories(SourceKind::Rest, 100);
}

#[test]
fn any_history_told_by_the_servers_alone() {
    check_histories(SourceKind::Fixed, 100);
}

#[test]
fn only_the_last_changes_of_leader_are_kept() {
    let mut steps = Vec::new();
    for revision in 1..40 {
        let listed = Listed::At { port: 1, timeline: None, state: "running" };
        steps.push(Step::Snapshot {
            source: SourceKind::Etcd,
            leader: Some(revision),
            bad_leader: false,
            members: [listed; 4],
            system_id: Some(OURS),
            request: None,
        });
        steps.push(Step::Report {
            member: usize::try_from(revision).unwrap() % NAMES.len(),
            port: 1,
            sent_ago: 0,
            system_id: OURS,
            in_recovery: false,
            timeline: u32::try_from(revision).unwrap(),
            position: 1,
        });
    }
    let mut seen = Seen::default();
    run(SourceKind::Etcd, &steps, &mut seen).unwrap();
    assert_eq!((seen.admissions, seen.failovers), (39, 16));
}
