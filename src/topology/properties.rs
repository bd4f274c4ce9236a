//! Random histories against the [oracle](super::oracle).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use tokio::time::Instant;

use super::oracle::Oracle;
use super::*;
use crate::patroni::{
    ClusterSnapshot, LeaderKey, Lsn, Member, RejectedKey, ServerAddress, SystemId, Timeline,
};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const OURS: SystemId = SystemId(7);

/// One step of a history.
#[derive(Debug, Clone)]
enum Step {
    Wait(u64),
    Snapshot {
        source: SourceKind,
        /// The revision of the leader key; a revision names one member only, as in etcd.
        leader: Option<i64>,
        bad_leader: bool,
        /// One for each member.
        members: [Listed; 4],
        system_id: Option<SystemId>,
    },
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
    At { port: u16, timeline: Option<u32> },
    Garbage,
    Missing,
}

fn address(member: usize, port: u16) -> ServerAddress {
    ServerAddress { host: NAMES[member].into(), port }
}

fn any_listed() -> impl Strategy<Value = Listed> {
    let timeline = proptest::option::of(1..4_u32);
    prop_oneof![
        30 => timeline.clone().prop_map(|timeline| Listed::At { port: 1, timeline }),
        1 => timeline.prop_map(|timeline| Listed::At { port: 2, timeline }),
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
    )
        .prop_map(|(source, leader, bad_leader, members, system_id)| Step::Snapshot {
            source,
            leader: leader.filter(|_| !bad_leader && source != SourceKind::Fixed),
            bad_leader,
            members,
            system_id,
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
        8 => prop_oneof![20 => 0..5_u64, 1 => 0..200_000_u64].prop_map(Step::Wait),
        4 => snapshot,
        1 => any_source(main).prop_map(Step::Contact),
        1 => any_source(main).prop_map(Step::Lost),
        14 => report,
        2 => (0..4_usize, failure).prop_map(|(member, failure)| Step::Failure(member, failure)),
        2 => (0..4_usize, cause).prop_map(|(member, cause)| Step::Suspect(member, cause)),
    ]
}

fn snapshot_of(step: &Step) -> ClusterSnapshot {
    let Step::Snapshot { source, leader, bad_leader, members, system_id } = step else {
        unreachable!("only snapshots are asked for")
    };
    let reject = |key: String| RejectedKey { key, reason: "garbage".into() };
    let mut snapshot = ClusterSnapshot { system_id: *system_id, ..ClusterSnapshot::default() };
    snapshot.leader = leader.map(|revision| LeaderKey {
        name: NAMES[usize::try_from(revision).expect("small") % NAMES.len()].into(),
        revision: if *source == SourceKind::Etcd { revision } else { 0 },
    });
    if *bad_leader {
        snapshot.rejected.push(reject("leader".into()));
    }
    for (index, listed) in members.iter().enumerate() {
        match listed {
            Listed::At { port, timeline } => {
                let mut member = Member::at(&address(index, *port));
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
        Step::Wait(_) => return None,
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
}

fn run(main: SourceKind, steps: &[Step], seen: &mut Seen) -> Result<(), TestCaseError> {
    let config = TopologyConfig { main_source: main, ..TopologyConfig::default() };
    // Far enough from the clock's zero to subtract from.
    let mut now = Instant::now() + Duration::from_secs(3_600);
    let mut machine = Topology::new(config, now);
    let mut oracle = Oracle::new(config);
    for (index, step) in steps.iter().enumerate() {
        if let Step::Wait(millis) = step {
            now += Duration::from_millis(*millis);
        }
        let Some(event) = event_of(step, now) else { continue };
        let actions = machine.apply(event.clone(), now);
        if let Err(why) = oracle.check(&event, now, &actions, machine.view()) {
            return Err(TestCaseError::fail(format!("step {index}, {step:?}: {why}")));
        }
        for action in &actions {
            match action {
                Action::Admit { .. } => seen.admissions += 1,
                Action::Withdraw { .. } => seen.withdrawals += 1,
                Action::Fence { .. } => seen.fences += 1,
                _ => {}
            }
        }
    }
    seen.failovers += machine.view().failovers.len();
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
        let listed = Listed::At { port: 1, timeline: None };
        steps.push(Step::Snapshot {
            source: SourceKind::Etcd,
            leader: Some(revision),
            bad_leader: false,
            members: [listed; 4],
            system_id: Some(OURS),
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

/// A leader that writes and replicas that follow, with answers on their way: how much was written
/// at each millisecond, and how far each replica is behind.
#[derive(Debug, Clone)]
struct World {
    written: Vec<u64>,
    delays: Vec<[usize; 2]>,
    questions: Vec<Question>,
}

#[derive(Debug, Clone)]
struct Question {
    member: usize,
    arrives_at: usize,
    took: usize,
    read_after: usize,
}

const SPAN: usize = 200;

fn any_world() -> impl Strategy<Value = World> {
    let question = (0..3_usize, 20..SPAN, 0..20_usize, 0..20_usize).prop_map(
        |(member, arrives_at, took, read_after)| Question {
            member,
            arrives_at,
            took,
            read_after: read_after.min(took),
        },
    );
    (
        vec(prop_oneof![3 => Just(0_u64), 1 => 1..9_u64], SPAN),
        vec([0..60_usize, 0..60_usize], SPAN),
        vec(question, 1..60),
    )
        .prop_map(|(growth, delays, mut questions)| {
            let written = growth
                .iter()
                .scan(100, |position, step| {
                    *position += step;
                    Some(*position)
                })
                .collect();
            questions.sort_by_key(|question| question.arrives_at);
            World { written, delays, questions }
        })
}

impl World {
    /// Replay never goes back, however the delay jumps: the moment whose writes are replayed.
    fn replayed_moment(&self, replica: usize, at: usize) -> usize {
        (0..=at).map(|t| t.saturating_sub(self.delays[t][replica])).max().unwrap_or(0)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// A replica that is called fresh as of some moment holds all that was written by then.
    #[test]
    fn freshness_is_never_overstated(world in any_world()) {
        let start = Instant::now() + Duration::from_secs(3_600);
        let at = |millis: usize| start + Duration::from_millis(millis as u64);
        let mut machine = Topology::new(TopologyConfig::default(), start);
        let mut members = BTreeMap::new();
        for (index, name) in NAMES.iter().enumerate().take(3) {
            members.insert((*name).to_owned(), Member::at(&address(index, 1)));
        }
        let snapshot = Arc::new(ClusterSnapshot {
            system_id: Some(OURS),
            leader: Some(LeaderKey { name: "a".into(), revision: 5 }),
            members,
            ..ClusterSnapshot::default()
        });
        machine.apply(Event::Snapshot { source: SourceKind::Etcd, snapshot }, start);
        for question in &world.questions {
            let sent = question.arrives_at - question.took;
            let read = sent + question.read_after;
            let replica = question.member.checked_sub(1);
            let moment = replica.map_or(read, |replica| world.replayed_moment(replica, read));
            let position = world.written[moment];
            // The commit that was replayed last.
            let commit = world.written.partition_point(|written| *written < position);
            let step = Step::Report {
                member: question.member,
                port: 1,
                sent_ago: question.took as u64,
                system_id: OURS,
                in_recovery: replica.is_some(),
                timeline: 1,
                position,
            };
            let Some(Event::Probed { member, address, result: Ok(mut report) }) =
                event_of(&step, at(question.arrives_at))
            else {
                unreachable!("a report is a probe's")
            };
            report.replay_age = replica.map(|_| Duration::from_millis((read - commit) as u64));
            machine.apply(
                Event::Probed { member, address, result: Ok(report) },
                at(question.arrives_at),
            );
            for replica in 0..2 {
                let view = &machine.view().members[NAMES[replica + 1]];
                let Some(fresh_at) = view.fresh_at else { continue };
                let fresh = (fresh_at - start).as_millis() as usize;
                let holds = world.written[world.replayed_moment(replica, question.arrives_at)];
                prop_assert!(
                    world.written[fresh] <= holds,
                    "{} is called fresh as of {fresh} ms ({}) and holds {holds}",
                    view.name,
                    world.written[fresh]
                );
            }
        }
    }
}
