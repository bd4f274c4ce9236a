//! What holds for every decision, whatever is seen: random views, most of which no cluster would show.

use std::time::Duration;

use leaderpool::patroni::{Lsn, SystemId, Timeline};

use super::scene::{self, NOW};
use crate::decide::simulation::rng::Rng;
use crate::decide::*;

fn moment(rng: &mut Rng) -> Moment {
    scene::ago(
        rng.pick(&[0, 5, 100, 400, 900, 2_000, 8_000, 20_000, 24_000, 26_500, 60_000, 900_000]),
    )
}

fn lease(rng: &mut Rng) -> LeaseClock {
    LeaseClock { sent: moment(rng), ttl: Duration::from_secs(rng.pick(&[5, 30, 30])) }
}

fn maybe<T>(rng: &mut Rng, percent: u64, some: impl FnOnce(&mut Rng) -> T) -> Option<T> {
    rng.chance(percent).then(|| some(rng))
}

fn server(rng: &mut Rng) -> Server {
    let timeline = Timeline(rng.pick(&[1, 2, 2, 2, 3]));
    let since = moment(rng);
    let lsn = Lsn(rng.pick(&[4_000, 5_000, 6_000]));
    match rng.below(10) {
        0..=1 => Server::Down { since, start_failed: rng.chance(30) },
        2 => Server::Starting { since, as_primary: rng.chance(60) },
        3..=5 => Server::Primary { timeline, written: lsn },
        6..=8 => Server::Standby {
            timeline,
            received: lsn,
            upstream: match rng.below(3) {
                0 => Upstream::Nobody,
                1 => Upstream::Remote,
                _ => Upstream::Member(rng.pick(&["a", "c"]).into()),
            },
            stream_lost: maybe(rng, 50, moment),
        },
        _ => Server::Stopping {
            since,
            mode: rng.pick(&[StopMode::Fast, StopMode::Immediate, StopMode::Kill]),
            was_primary: rng.chance(70),
        },
    }
}

fn rules(rng: &mut Rng, rules: &mut Rules) {
    rules.synchronous_mode = rng.pick(&[SyncMode::Off, SyncMode::On, SyncMode::Quorum]);
    rules.synchronous_mode_strict = rng.chance(30);
    rules.failsafe_mode = rng.chance(30);
    rules.check_timeline = rng.chance(30);
    rules.pause = rng.chance(15);
    rules.standby_cluster = rng.chance(10);
    rules.use_pg_rewind = rng.chance(70);
    rules.remove_data_on_divergence = rng.chance(30);
    rules.remove_data_on_rewind_failure = rng.chance(30);
    if rng.chance(30) {
        rules.primary_start_timeout = Duration::ZERO;
    }
}

fn cluster(rng: &mut Rng, cluster: &mut Cluster) {
    cluster.leader = match rng.below(10) {
        0..=3 => Leader::Held { by: "b".into(), attached: rng.chance(80) },
        4..=5 => Leader::Held { by: rng.pick(&["a", "c"]).into(), attached: false },
        _ => Leader::Absent {
            since: moment(rng),
            last: maybe(rng, 80, |rng| rng.pick(&["a", "b", "c"]).to_owned()),
            verified: rng.chance(60),
            taken: rng.chance(15),
            over: maybe(rng, 80, moment),
        },
    };
    if rng.chance(10) {
        let (mine, since) = (rng.chance(50), moment(rng));
        cluster.initialize = rng.pick(&[
            Initialize::Absent,
            Initialize::InProgress { mine, since, revision: 3 },
            Initialize::Done(SystemId(9)),
        ]);
    }
    cluster.members.retain(|_, _| rng.chance(85));
    for member in cluster.members.values_mut() {
        member.running = rng.chance(80);
        member.tags.nofailover = rng.chance(10);
        member.checkpointed = rng.chance(80);
        member.timeline = Some(Timeline(rng.pick(&[1, 2, 2, 2, 2, 3])));
    }
    cluster.history = maybe(rng, 90, |rng| Timeline(rng.pick(&[2, 2, 2, 3])));
    cluster.claimed = maybe(rng, 90, |rng| Timeline(rng.pick(&[2, 2, 2, 3])));
    cluster.sync = maybe(rng, 60, |rng| {
        let leader = maybe(rng, 90, |rng| rng.pick(&["a", "b", "c"]).to_owned());
        let standbys = ["a", "b", "c"].into_iter().filter(|_| rng.chance(40));
        let standbys = standbys.map(str::to_owned).collect();
        let quorum = rng.below(3) as usize;
        SyncSeen {
            key: SyncKey { leader, quorum, standbys },
            revision: 40,
            settled: rng.chance(80),
        }
    });
    cluster.failover = maybe(rng, 20, |rng| {
        let name = |rng: &mut Rng| maybe(rng, 70, |rng| rng.pick(&["a", "b", "c", "x"]).to_owned());
        let (leader, member) = (name(rng), name(rng));
        let at = moment(rng);
        let due = rng.pick(&[Due::Now, Due::Now, Due::At(at), Due::Unreadable]);
        let request = leaderpool::patroni::FailoverRequest { leader, member, scheduled_at: None };
        FailoverSeen { request, due, since: moment(rng), revision: 50 }
    });
    cluster.failsafe = maybe(rng, 50, |rng| {
        let names = ["a", "b", "c"].into_iter().filter(|_| rng.chance(85));
        names.map(|name| (name.to_owned(), String::new())).collect()
    });
}

fn postgres(rng: &mut Rng, postgres: &mut Postgres) {
    postgres.server = server(rng);
    postgres.data =
        if rng.chance(90) { Data::Present(scene::SYSTEM) } else { Data::Present(SystemId(8)) };
    if rng.chance(8) {
        postgres.data = Data::Empty;
        postgres.server = Server::Down { since: moment(rng), start_failed: false };
    }
    let state = rng.pick(&[
        ControlState::InProduction,
        ControlState::ShutDown,
        ControlState::InRecovery,
        ControlState::ShutDownInRecovery,
    ]);
    // Read when the server ends, or begins to.
    postgres.control = match postgres.server {
        Server::Down { .. } | Server::Stopping { .. } => scene::control(state),
        _ => None,
    };
    postgres.rewind = rng.pick(&[0, 1, 2, 3]).pipe(|kind| match kind {
        0 => Rewind::Unknown,
        1 => Rewind::NotNeeded,
        2 => Rewind::Needed,
        _ => Rewind::Failed("x".into()),
    });
    postgres.crashes = rng.pick(&[0, 0, 0, 3]);
    postgres.promote_failed = maybe(rng, 10, moment);
    let names = ["a", "c"].into_iter().filter(|_| rng.chance(70));
    postgres.standbys = names.map(|name| scene::standby_row(name, 5_000)).collect();
}

/// A value through a function, in a row.
trait Pipe: Sized {
    fn pipe<T>(self, with: impl FnOnce(Self) -> T) -> T {
        with(self)
    }
}
impl Pipe for u8 {}

/// A view of `b`.
fn any_view(seed: u64) -> Seen {
    let mut rng = Rng::new(seed);
    let rng = &mut rng;
    let mut seen = scene::standby();
    rules(rng, &mut seen.rules);
    cluster(rng, &mut seen.cluster);
    postgres(rng, &mut seen.postgres);
    seen.me.started = moment(rng);
    seen.me.tags.nofailover = rng.chance(10);
    seen.etcd =
        rng.pick(&[Etcd::Answers, Etcd::Answers, Etcd::Answers, Etcd::Answers, Etcd::Unknown]);
    if rng.chance(20) {
        seen.etcd = Etcd::Silent(moment(rng));
    }
    seen.session = maybe(rng, 85, lease);
    seen.reign =
        maybe(rng, 60, |rng| seen.session.filter(|_| rng.chance(80)).unwrap_or_else(|| lease(rng)));
    for name in ["a", "c"] {
        if rng.chance(70) {
            scene::answers(&mut seen, name, rng.pick(&[4_000, 5_000, 5_000, 6_000]));
            let peer = seen.peers.get_mut(name).expect("just put");
            peer.asked = Some(moment(rng));
            peer.failed = maybe(rng, 20, moment);
            let answer = peer.answer.as_mut().expect("just put");
            answer.asked = moment(rng);
            answer.running = rng.chance(85);
            answer.leads = rng.chance(15);
            answer.primary = answer.leads && answer.running;
        }
    }
    seen.failsafe.accepted = maybe(rng, 20, moment);
    seen.failsafe.asked = maybe(rng, 30, moment);
    seen.failsafe.promised = maybe(rng, 20, |rng| (rng.pick(&["a", "c"]).to_owned(), moment(rng)));
    seen.watchdog = rng.pick(&[Watchdog::Off, Watchdog::Ready, Watchdog::Missing]);
    seen.doing = maybe(rng, 10, |rng| Doing {
        work: rng.pick(&[Work::Promote, Work::Rewind, Work::Restart, Work::CrashRecover]),
        since: moment(rng),
    });
    seen.handover = maybe(rng, 10, |rng| Handover {
        to: maybe(rng, 80, |rng| rng.pick(&["a", "c"]).to_owned()),
        why: rng.pick(&[HandoverWhy::Switchover, HandoverWhy::Shutdown, HandoverWhy::GiveUp]),
        since: moment(rng),
    });
    seen.claimed = maybe(rng, 30, |rng| Timeline(rng.pick(&[3, 4])));
    seen.stopping = maybe(rng, 5, moment);
    seen
}

fn wrong_with(seen: &Seen, decision: &Decision) -> Option<&'static str> {
    let action = &decision.action;
    let making = matches!(seen.cluster.initialize, Initialize::InProgress { mine: true, .. });
    let foreign = matches!((seen.postgres.data, seen.cluster.initialize),
        (Data::Present(system), Initialize::Done(cluster)) if system != cluster);
    let fast = seen.reign.map(|reign| {
        let failsafe = seen.failsafe.accepted.filter(|_| seen.rules.failsafe_mode);
        let until = reign
            .deadline()
            .max(failsafe.map_or(Moment::default(), |at| at + held(seen.rules.ttl)));
        FencePlan::new(until, reign.ttl).fast
    });
    let leads = seen.holds_key() && fast.is_some_and(|fast| NOW < fast);
    let down = matches!(seen.postgres.server, Server::Down { .. });
    let standby = matches!(seen.postgres.server, Server::Standby { .. });
    let manual = seen.cluster.failover.as_ref().is_some_and(|failover| {
        failover.request.leader.is_none() && failover.request.member.as_deref() == Some("b")
    });
    let in_sync = seen.cluster.sync.as_ref().is_none_or(|sync| {
        let key = &sync.key;
        key.standbys.contains("b")
            || key.leader.as_deref() == Some("b")
            || (key.leader.is_none() && key.standbys.is_empty())
    });
    let checks = [
        (decision.look_again > NOW, "it looks again in the past"),
        (decision.look_again <= NOW + seen.rules.loop_wait, "it looks again too late"),
        (
            decision
                .renew_until
                .is_none_or(|until| until <= NOW + seen.rules.loop_wait + seen.rules.ttl / 5),
            "the lease is renewed for too long",
        ),
        (
            decision.renew_until.is_some() || (seen.holds_key() && !standby),
            "the lease of a member that does not lead is not renewed",
        ),
        (
            decision.fence.is_some() == (seen.could_write() && !seen.rules.pause && !making),
            "a fence where nothing can be written, or none where it can",
        ),
        (
            decision.fence.is_none_or(|fence| NOW < fence.deadline)
                || matches!(action, Action::Demote { stop: StopMode::Kill, .. }),
            "a server that writes beyond its lease is not killed",
        ),
        (
            decision.fence.is_none()
                || seen.other_leader().is_none()
                || seen.etcd == Etcd::Unknown
                || matches!(
                    action,
                    Action::Demote { kind: DemoteKind::ImmediateNoLock | DemoteKind::Offline, .. }
                ),
            "a server that could write is left beside another leader",
        ),
        (
            !matches!(action, Action::Promote { .. })
                || (leads
                    && standby
                    && !seen.me.tags.nofailover
                    && seen.etcd == Etcd::Answers
                    && seen.watchdog != Watchdog::Missing
                    && seen.claimed.is_some()),
            "it promotes and may not",
        ),
        (
            !matches!(action, Action::Promote { .. })
                || seen.rules.synchronous_mode == SyncMode::Off
                || seen
                    .cluster
                    .sync
                    .as_ref()
                    .is_some_and(|sync| sync.key == SyncKey::only("b") && sync.settled),
            "it promotes before `sync` says that it alone may",
        ),
        (
            !matches!(action, Action::StartAsPrimary) || (down && (leads || making)),
            "it starts a primary without a lease",
        ),
        (
            !matches!(action, Action::AcquireLeader { .. })
                || (matches!(seen.cluster.leader, Leader::Absent { .. })
                    && seen.etcd == Etcd::Answers
                    && !foreign
                    && (seen.rules.pause || seen.session.is_some())),
            "it takes a key that is not free, or without a lease",
        ),
        (
            !matches!(action, Action::AcquireLeader { .. })
                || seen.rules.pause
                || seen.rules.synchronous_mode != SyncMode::On
                || in_sync
                || manual,
            "it takes the key and may lack acknowledged commits",
        ),
        (
            !matches!(action, Action::ReleaseLeader { .. })
                || (seen.holds_key() && (!seen.could_write() || foreign)),
            "it gives up the key and could write",
        ),
        (
            !matches!(action, Action::Reclone)
                || seen.rules.remove_data_on_divergence
                || seen.rules.remove_data_on_rewind_failure,
            "it throws data away",
        ),
        (
            !matches!(
                action,
                Action::StartAsStandby(_) | Action::CrashRecover | Action::Rewind { .. }
            ) || down,
            "it starts or changes what runs",
        ),
        (
            !matches!(action, Action::Follow(_)) || standby,
            "it points at another what is no standby",
        ),
        (
            !seen.rules.pause
                || seen.handover.is_some()
                || seen.stopping.is_some()
                || match action {
                    Action::StartAsPrimary | Action::StartAsStandby(_) | Action::Stop(_) => false,
                    Action::Demote { hand_over, .. } => hand_over.is_some(),
                    Action::Promote { .. } => {
                        let named = seen.cluster.failover.as_ref();
                        named.is_some_and(|f| f.request.member.as_deref() == Some("b"))
                    }
                    _ => true,
                },
            "paused, it starts, stops, promotes or demotes",
        ),
        (!decision.reason.is_empty(), "it does not say why"),
    ];
    checks.into_iter().find(|(holds, _)| !holds).map(|(_, what)| what)
}

#[test]
fn every_decision_keeps_the_rules() {
    let mut rows = std::collections::BTreeSet::new();
    for seed in 0..200_000 {
        let seen = any_view(seed);
        let decision = decide(&seen, NOW);
        rows.insert(decision.row);
        if let Some(what) = wrong_with(&seen, &decision) {
            panic!("seed {seed}: {what}\n{decision:#?}\n{seen:#?}");
        }
    }
    // The views are random, but not idle.
    let missed: Vec<&Row> = Row::ALL.iter().filter(|row| !rows.contains(row)).collect();
    assert!(missed.len() < 12, "rows that no random view leads to: {missed:?}");
}
