//! The cases: no data, a server that is down, starting or stopping, data that may have diverged.

use std::time::Duration;

use leaderpool::patroni::{Lsn, MemberRole, SystemId, Timeline};

use super::scene::*;
use super::{Case, case};
use crate::decide::*;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = under_way();
    cases.extend(no_data());
    cases.extend(dead_primary());
    cases.extend(down_standby());
    cases
}

fn under_way() -> Vec<Case> {
    let starting = |s: &mut Seen, seconds: u64| {
        s.postgres.server = Server::Starting { since: ago(seconds * 1_000), as_primary: true };
    };
    vec![
        case(
            Row::UnderWay,
            "a copy is being made",
            down(),
            |s| {
                s.postgres.data = Data::Empty;
                s.doing = Some(Doing { work: Work::Clone, since: ago(60_000) });
            },
            "Wait",
        ),
        case(Row::StartsUp, "the primary recovers in place", leader(), |s| starting(s, 10), "Wait"),
        case(
            Row::StartsUp,
            "for ever, where nobody else is fit",
            leader(),
            |s| {
                starting(s, 1_000);
                s.postgres.standbys.clear();
            },
            "Wait",
        ),
        case(
            Row::StartTooSlow,
            "for longer than primary_start_timeout",
            leader(),
            |s| starting(s, 301),
            r#"Demote { kind: Immediate, stop: Immediate, hand_over: Some(HandOver { to: Some("b"), why: GiveUp })"#,
        ),
        case(
            Row::StoppingDown,
            "the fence has begun, and etcd is back",
            leader(),
            |s| {
                s.postgres.server =
                    Server::Stopping { since: ago(300), mode: StopMode::Fast, was_primary: true }
            },
            "Wait",
        ),
        case(
            Row::StopStuck,
            "an immediate stop takes a second",
            down(),
            |s| {
                s.postgres.server = Server::Stopping {
                    since: ago(1_100),
                    mode: StopMode::Immediate,
                    was_primary: false,
                }
            },
            "Stop(Kill)",
        ),
    ]
}

fn no_data() -> Vec<Case> {
    let empty = |initialize: Initialize| {
        move |s: &mut Seen| {
            s.postgres.data = Data::Empty;
            s.postgres.control = None;
            s.cluster.initialize = initialize;
            if initialize != Initialize::Done(SYSTEM) {
                s.cluster.members.clear();
                s.cluster.leader = Leader::Absent {
                    since: ago(9_000),
                    last: None,
                    verified: false,
                    taken: false,
                    over: Some(ago(400)),
                };
            }
        }
    };
    let by = |mine, millis| Initialize::InProgress { mine, since: ago(millis), revision: 3 };
    let made = |server: Server| {
        move |s: &mut Seen| {
            empty(by(true, 5_000))(s);
            s.postgres.data = Data::Present(SYSTEM);
            s.postgres.server = server;
        }
    };
    vec![
        case(
            Row::ForeignSystem,
            "a data directory from elsewhere",
            down(),
            |s| s.postgres.data = Data::Present(SystemId(8)),
            "Exit { code: 1 }",
        ),
        case(
            Row::EmptyReleases,
            "the leader's data directory is gone",
            dead_leader(),
            empty(Initialize::Done(SYSTEM)),
            "ReleaseLeader",
        ),
        case(
            Row::BootstrapRaces,
            "the first start of all",
            down(),
            empty(Initialize::Absent),
            "Bootstrap { replacing: None }",
        ),
        case(
            Row::BootstrapAwaited,
            "no bootstrap section here",
            down(),
            |s| {
                empty(Initialize::Absent)(s);
                s.me.may_bootstrap = false;
            },
            "Wait",
        ),
        case(Row::BootstrapAwaited, "another was first", down(), empty(by(false, 5_000)), "Wait"),
        case(
            Row::BootstrapAbandoned,
            "and is gone",
            down(),
            empty(by(false, 61_000)),
            "Bootstrap { replacing: Some(3) }",
        ),
        case(
            Row::BootstrapStarts,
            "initdb is done",
            down(),
            made(Server::Down { since: ago(5), start_failed: false }),
            "StartAsPrimary",
        ),
        case(
            Row::BootstrapEnds,
            "the new server runs",
            down(),
            made(Server::Primary { timeline: Timeline(1), written: Lsn(9) }),
            "FinishBootstrap",
        ),
        case(
            Row::BootstrapFails,
            "initdb failed",
            down(),
            empty(by(true, 5_000)),
            "AbandonBootstrap",
        ),
        case(
            Row::BootstrapFails,
            "the new server does not start",
            down(),
            made(Server::Down { since: ago(5), start_failed: true }),
            "AbandonBootstrap",
        ),
        case(
            Row::Clones,
            "a new member",
            down(),
            empty(Initialize::Done(SYSTEM)),
            r#"CloneFrom(Member("a"))"#,
        ),
        case(
            Row::Clones,
            "a replica offers itself",
            down(),
            |s| {
                empty(Initialize::Done(SYSTEM))(s);
                s.cluster.members.get_mut("c").expect("c").tags.clonefrom = true;
            },
            r#"CloneFrom(Member("c"))"#,
        ),
        case(
            Row::Clones,
            "no leader, but a backup",
            down(),
            |s| {
                empty(Initialize::Done(SYSTEM))(s);
                s.cluster.leader = nobody().cluster.leader;
                s.me.replica_without_leader = true;
            },
            "CloneFrom(Backup)",
        ),
        case(
            Row::LeaderAwaited,
            "no leader",
            down(),
            |s| {
                empty(Initialize::Done(SYSTEM))(s);
                s.cluster.leader = nobody().cluster.leader;
            },
            "Wait",
        ),
    ]
}

fn dead_primary() -> Vec<Case> {
    let failed = |s: &mut Seen, millis| {
        s.postgres.server = Server::Down { since: ago(millis), start_failed: true };
    };
    vec![
        case(
            Row::KeyReattached,
            "the agent was restarted within the lease",
            leader(),
            |s| {
                s.cluster.leader = Leader::Held { by: "a".into(), attached: false };
                s.reign = None;
                s.me.started = ago(100);
            },
            "ReattachLeader",
        ),
        case(
            Row::KeyReattached,
            "so was the whole machine",
            dead_leader(),
            |s| s.cluster.leader = Leader::Held { by: "a".into(), attached: false },
            "ReattachLeader",
        ),
        case(
            Row::DeadPrimaryRestarts,
            "the postmaster was killed",
            dead_leader(),
            |_| (),
            "StartAsPrimary",
        ),
        case(
            Row::DeadPrimaryReleases,
            "primary_start_timeout is zero",
            dead_leader(),
            |s| s.rules.primary_start_timeout = Duration::ZERO,
            r#"ReleaseLeader { to: Some("b")"#,
        ),
        case(
            Row::DeadPrimaryReleases,
            "in synchronous mode to the synchronous standby",
            dead_leader(),
            |s| {
                s.rules.primary_start_timeout = Duration::ZERO;
                synchronous(s, &["c"]);
            },
            r#"ReleaseLeader { to: Some("c")"#,
        ),
        case(
            Row::DeadPrimaryRestarts,
            "it is zero, but the others lag too far",
            dead_leader(),
            |s| {
                s.rules.primary_start_timeout = Duration::ZERO;
                s.rules.maximum_lag_on_failover = 100;
                s.postgres.standbys = vec![standby_row("b", 4_000), standby_row("c", 4_000)];
            },
            "StartAsPrimary",
        ),
        case(
            Row::StartFailedReleases,
            "the start failed, another is fit",
            dead_leader(),
            |s| failed(s, 10),
            r#"ReleaseLeader { to: Some("b")"#,
        ),
        case(
            Row::CrashLoopReleases,
            "the disk is full",
            dead_leader(),
            |s| s.postgres.crashes = 3,
            r#"ReleaseLeader { to: Some("b")"#,
        ),
        case(
            Row::StartFailedWaits,
            "nobody else is fit: again in two seconds",
            dead_leader(),
            |s| {
                failed(s, 10);
                s.postgres.standbys.clear();
            },
            "Wait",
        ),
        case(
            Row::LeaseTooShort,
            "20 s into a lease of 30",
            dead_leader(),
            |s| s.reign = Some(LeaseClock { sent: ago(20_000), ttl: Duration::from_secs(30) }),
            "Wait",
        ),
        case(
            Row::KeyHolderStarts,
            "another has led since these data were a primary's",
            dead_leader(),
            |s| s.cluster.history = Some(Timeline(3)),
            "StartAsStandby(Nobody)",
        ),
        case(
            Row::KeyHolderStarts,
            "the winner's server died before its promotion",
            dead_leader(),
            |s| s.postgres.control = control(ControlState::InRecovery),
            "StartAsStandby(Nobody)",
        ),
        case(
            Row::StandbyLeaderStarts,
            "a standby cluster",
            dead_leader(),
            |s| s.rules.standby_cluster = true,
            "StartAsStandby(Remote)",
        ),
        case(
            Row::WaitsForHeir,
            "it has just released the key",
            dead_leader(),
            |s| {
                s.cluster.leader = keyless().cluster.leader;
                s.reign = None;
            },
            "Wait",
        ),
    ]
}

fn down_standby() -> Vec<Case> {
    let was_primary = |s: &mut Seen| s.postgres.control = control(ControlState::InProduction);
    let needs = |s: &mut Seen| {
        s.postgres.control = control(ControlState::ShutDown);
        s.postgres.rewind = Rewind::Needed;
    };
    let failed = |s: &mut Seen| s.postgres.rewind = Rewind::Failed("no common point".into());
    vec![
        case(
            Row::StartsWithoutLeader,
            "nobody leads",
            down(),
            |s| s.cluster.leader = nobody().cluster.leader,
            "StartAsStandby(Nobody)",
        ),
        case(
            Row::StartsAsStandby,
            "a standby that crashed",
            down(),
            |_| (),
            r#"StartAsStandby(Member("a"))"#,
        ),
        case(
            Row::StartsAsStandby,
            "an old primary whose data can follow",
            down(),
            |s| {
                was_primary(s);
                s.postgres.rewind = Rewind::NotNeeded;
            },
            r#"StartAsStandby(Member("a"))"#,
        ),
        case(
            Row::RewindChecked,
            "an old primary comes back",
            down(),
            was_primary,
            r#"CheckRewind { from: "a" }"#,
        ),
        case(
            Row::RewindChecked,
            "a standby whose stream does not begin",
            standby(),
            |s| stream_lost(s, 2_000),
            r#"CheckRewind { from: "a" }"#,
        ),
        case(
            Row::RewindChecked,
            "the leader could not be reached a moment ago",
            down(),
            |s| {
                was_primary(s);
                s.postgres.rewind_tried = Some(ago(400));
            },
            "Wait",
        ),
        case(
            Row::LeaderNotReady,
            "the new leader is not promoted yet",
            down(),
            |s| {
                was_primary(s);
                s.cluster.members.get_mut("a").expect("a").role = MemberRole::Replica;
            },
            "Wait",
        ),
        case(
            Row::LeaderNotCheckpointed,
            "its control file still shows the old timeline",
            down(),
            |s| {
                needs(s);
                s.cluster.members.get_mut("a").expect("a").checkpointed = false;
            },
            "Wait",
        ),
        case(
            Row::StopsToRewind,
            "the standby runs",
            standby(),
            |s| {
                stream_lost(s, 2_000);
                s.postgres.rewind = Rewind::Needed;
            },
            "Stop(Fast)",
        ),
        case(
            Row::RecoversAlone,
            "it had crashed",
            down(),
            |s| {
                needs(s);
                was_primary(s);
            },
            "CrashRecover",
        ),
        case(Row::Rewinds, "it was shut down", down(), needs, r#"Rewind { from: "a" }"#),
        case(
            Row::ClonesAgain,
            "rewinding failed, and the configuration allows a copy",
            down(),
            |s| {
                failed(s);
                s.rules.remove_data_on_rewind_failure = true;
            },
            "Reclone",
        ),
        case(
            Row::ClonesAgain,
            "use_pg_rewind is off, and the configuration allows a copy",
            standby(),
            |s| {
                stream_lost(s, 2_000);
                s.postgres.rewind = Rewind::Needed;
                s.rules.use_pg_rewind = false;
                s.rules.remove_data_on_divergence = true;
            },
            "Reclone",
        ),
        case(Row::Diverged, "rewinding failed", down(), failed, "Wait"),
        case(Row::Following, "all is well", standby(), |_| (), "Wait"),
        case(
            Row::Follows,
            "another leads now",
            standby(),
            |s| s.cluster.leader = Leader::Held { by: "c".into(), attached: false },
            r#"Follow(Member("c"))"#,
        ),
        case(
            Row::Follows,
            "replicatefrom names a running member",
            standby(),
            |s| {
                s.me.tags.other.insert("replicatefrom".into(), "c".into());
            },
            r#"Follow(Member("c"))"#,
        ),
        case(
            Row::StreamLost,
            "the leader has just died",
            standby(),
            |s| stream_lost(s, 5),
            r#"AskPeers(["a", "c"])"#,
        ),
    ]
}
