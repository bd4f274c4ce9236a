//! A replica is never called fresher than it is.

use std::collections::BTreeMap;

use super::*;

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
        machine.apply(Event::Snapshot { source: SourceKind::Etcd, snapshot }, start, midnight());
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
                midnight(),
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
