//! The cases: everything but a cluster that nobody leads.

use std::time::Duration;

use leaderpool::patroni::{Lsn, MemberRole, SystemId, Timeline};

use super::scene::*;
use super::{Case, case};
use crate::decide::*;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = must_not_write();
    cases.extend(handing_over());
    cases.extend(ends());
    cases.extend(paused());
    cases.extend(under_way());
    cases.extend(silence());
    cases.extend(no_data());
    cases.extend(dead_primary());
    cases.extend(down_standby());
    cases.extend(leading());
    cases
}

fn spent(seen: &mut Seen, seconds: u64) {
    seen.etcd = Etcd::Silent(ago(seconds * 1_000));
    seen.reign = Some(LeaseClock { sent: ago(seconds * 1_000), ttl: Duration::from_secs(30) });
    seen.session = seen.reign;
}

fn must_not_write() -> Vec<Case> {
    let absent = |taken| Leader::Absent {
        since: ago(5),
        last: Some("a".into()),
        verified: false,
        taken,
        over: Some(ago(400)),
    };
    vec![
        case(
            Row::FenceDue,
            "22 s into a lease of 30",
            leader(),
            |s| spent(s, 22),
            "Demote { kind: Offline, stop: Fast",
        ),
        case(
            Row::FenceDue,
            "24.6 s into it",
            leader(),
            |s| spent(s, 25),
            "Demote { kind: Offline, stop: Immediate",
        ),
        case(
            Row::FenceDue,
            "26 s into it",
            leader(),
            |s| spent(s, 26),
            "Demote { kind: Offline, stop: Kill",
        ),
        case(
            Row::FenceDue,
            "a primary found running, and nothing known after a tenth of the ttl",
            leader(),
            |s| {
                s.etcd = Etcd::Unknown;
                (s.session, s.reign) = (None, None);
                s.me.started = ago(3_000);
            },
            "Demote { kind: Offline",
        ),
        case(
            Row::FenceDue,
            "the lease was granted for less than the ttl of the configuration is now",
            leader(),
            |s| s.reign = Some(LeaseClock { sent: ago(8_000), ttl: Duration::from_secs(10) }),
            "Demote { kind: Offline, stop: Fast",
        ),
        case(
            Row::AnotherLeads,
            "a primary sees another's name in the key",
            leader(),
            |s| s.cluster.leader = Leader::Held { by: "c".into(), attached: false },
            "Demote { kind: ImmediateNoLock, stop: Immediate",
        ),
        case(
            Row::AnotherLeads,
            "and half a second later still runs",
            leader(),
            |s| {
                s.cluster.leader = Leader::Held { by: "c".into(), attached: false };
                s.postgres.server = Server::Stopping {
                    since: ago(600),
                    mode: StopMode::Immediate,
                    was_primary: true,
                };
            },
            "Demote { kind: ImmediateNoLock, stop: Kill",
        ),
        case(
            Row::AnotherHasLed,
            "the key is gone, and another had it meanwhile",
            leader(),
            |s| s.cluster.leader = absent(true),
            "Demote { kind: ImmediateNoLock",
        ),
        case(
            Row::PromotingWithoutKey,
            "the key is deleted during the promotion",
            winner(),
            |s| {
                s.cluster.leader = absent(false);
                s.doing = Some(Doing { work: Work::Promote, since: ago(100) });
            },
            "Demote { kind: ImmediateNoLock",
        ),
        case(
            Row::StoppingWithoutKey,
            "the key is deleted during a handing over",
            hands_over(),
            |s| s.cluster.leader = absent(false),
            "Demote { kind: ImmediateNoLock",
        ),
        case(
            Row::StartingWithoutKey,
            "the key is deleted while the server is restarted",
            leader(),
            |s| {
                s.cluster.leader = absent(false);
                s.postgres.server = Server::Starting { since: ago(100), as_primary: true };
            },
            "Demote { kind: ImmediateNoLock",
        ),
    ]
}

fn handing_over() -> Vec<Case> {
    vec![
        case(
            Row::HandoverStops,
            "the order to stop was lost",
            leader(),
            |s| s.handover = hands_over().handover,
            "Demote { kind: Graceful, stop: Fast",
        ),
        case(Row::HandoverDrains, "sessions end and the WAL is sent", hands_over(), |_| (), "Wait"),
        case(
            Row::HandoverStuck,
            "a minute later it is still shutting down",
            hands_over(),
            |s| {
                s.postgres.server = Server::Stopping {
                    since: ago(61_000),
                    mode: StopMode::Fast,
                    was_primary: true,
                };
                s.handover.as_mut().expect("begun").since = ago(61_000);
            },
            "Demote { kind: Immediate, stop: Immediate",
        ),
        case(
            Row::HandoverWaits,
            "the candidate lacks the end",
            handed_down(),
            |_| (),
            r#"AskPeers(["b"])"#,
        ),
        case(
            Row::HandoverReleases,
            "the candidate has it all",
            handed_down(),
            |s| {
                answers(s, "b", 5040);
                s.peers.get_mut("b").expect("b").answer.as_mut().expect("answer").asked = ago(50);
            },
            r#"ReleaseLeader { to: Some("b"), optime: Some(0/13B0) }"#,
        ),
        case(
            Row::HandoverReleases,
            "its walsender says so, before the archiver is done",
            handed_down(),
            |s| {
                s.postgres.server =
                    Server::Stopping { since: ago(300), mode: StopMode::Fast, was_primary: true };
                s.postgres.standbys = vec![standby_row("b", 5040)];
            },
            r#"ReleaseLeader { to: Some("b")"#,
        ),
        case(
            Row::HandoverReleases,
            "the agent stops and no other member is fit",
            handed_down(),
            |s| {
                s.handover =
                    Some(Handover { to: None, why: HandoverWhy::Shutdown, since: ago(300) });
            },
            "ReleaseLeader { to: None",
        ),
        case(
            Row::HandoverReleases,
            "a server that was given up has ended",
            dead_leader(),
            |s| {
                s.handover = Some(Handover {
                    to: Some("b".into()),
                    why: HandoverWhy::GiveUp,
                    since: ago(300),
                });
            },
            r#"ReleaseLeader { to: Some("b"), optime: None }"#,
        ),
        case(
            Row::HandoverCalledOff,
            "three seconds later it still lacks it",
            handed_down(),
            |s| s.postgres.server = Server::Down { since: ago(3_100), start_failed: false },
            "StartAsPrimary",
        ),
        case(
            Row::HandoverCalledOff,
            "the server had to be stopped hard: what it had last may have reached nobody",
            handed_down(),
            |s| s.postgres.control = control(ControlState::InProduction),
            "StartAsPrimary",
        ),
    ]
}

fn ends() -> Vec<Case> {
    let asked = |s: &mut Seen| s.stopping = Some(ago(10));
    vec![
        case(
            Row::ExitPaused,
            "SIGTERM in pause",
            leader(),
            |s| {
                s.rules.pause = true;
                asked(s);
            },
            "Exit { code: 0 }",
        ),
        case(
            Row::ExitHandsOver,
            "SIGTERM to the leader",
            leader(),
            asked,
            r#"Demote { kind: Graceful, stop: Fast, hand_over: Some(HandOver { to: Some("b")"#,
        ),
        case(Row::ExitStopsServer, "SIGTERM to a standby", standby(), asked, "Stop(Fast)"),
        case(
            Row::ExitReleases,
            "the server was dead already",
            dead_leader(),
            asked,
            "ReleaseLeader",
        ),
        case(Row::Exit, "the server is down", down(), asked, "Exit { code: 0 }"),
        case(
            Row::Exit,
            "the key is ours, but etcd is silent: it runs out",
            dead_leader(),
            |s| {
                asked(s);
                s.etcd = Etcd::Silent(ago(9_000));
            },
            "Exit { code: 0 }",
        ),
    ]
}

fn paused() -> Vec<Case> {
    let pause = |s: &mut Seen| s.rules.pause = true;
    vec![
        case(Row::PausedLeads, "the leader", leader(), pause, "KeepLeading"),
        case(
            Row::PausedReleases,
            "the leader's server is down: nobody starts it",
            dead_leader(),
            pause,
            "ReleaseLeader",
        ),
        case(
            Row::PausedReleases,
            "the data are another cluster's",
            leader(),
            |s| {
                pause(s);
                s.postgres.data = Data::Present(SystemId(8));
            },
            "ReleaseLeader",
        ),
        case(
            Row::PausedTakesKey,
            "an operator has started a primary",
            keyless(),
            |s| {
                pause(s);
                s.reign = None;
            },
            "AcquireLeader",
        ),
        case(
            Row::PausedIdle,
            "a primary beside another leader is left alone",
            leader(),
            |s| {
                pause(s);
                s.cluster.leader = Leader::Held { by: "c".into(), attached: false };
            },
            "Wait",
        ),
        case(Row::PausedIdle, "nobody leads: no failover", nobody(), pause, "Wait"),
        case(
            Row::PausedIdle,
            "etcd is silent: the primary runs on",
            leader(),
            |s| {
                pause(s);
                spent(s, 100);
            },
            "Wait",
        ),
        case(
            Row::Acquires,
            "paused, but an operator names this member",
            nobody(),
            |s| {
                pause(s);
                requested(s, None, Some("b"));
            },
            "AcquireLeader",
        ),
    ]
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

fn silence() -> Vec<Case> {
    let silent = |s: &mut Seen| spent(s, 7);
    let failsafe = |s: &mut Seen| {
        spent(s, 7);
        s.rules.failsafe_mode = true;
        s.cluster.failsafe =
            Some(["a", "b", "c"].map(|name| (name.to_owned(), "http://x".to_owned())).into());
    };
    vec![
        case(
            Row::EtcdUnknown,
            "an agent without a server has just begun",
            down(),
            |s| s.etcd = Etcd::Unknown,
            "Wait",
        ),
        case(
            Row::SilentStandby,
            "a standby",
            standby(),
            |s| s.etcd = Etcd::Silent(ago(99_000)),
            "Wait",
        ),
        case(
            Row::SilentStarts,
            "a standby that is down",
            down(),
            |s| s.etcd = Etcd::Silent(ago(99_000)),
            "StartAsStandby(Nobody)",
        ),
        case(
            Row::SilentStarts,
            "a primary that the fence has stopped",
            dead_leader(),
            |s| spent(s, 40),
            "StartAsStandby(Nobody)",
        ),
        case(
            Row::DeadPrimaryRestarts,
            "in silence, while the lease is good",
            dead_leader(),
            silent,
            "StartAsPrimary",
        ),
        case(Row::SilentLeader, "7 s into a lease of 30", leader(), silent, "Wait"),
        case(Row::FailsafeAsks, "the same, in failsafe mode", leader(), failsafe, "PingFailsafe"),
        case(
            Row::SilentLeader,
            "asked, and not everyone has accepted",
            leader(),
            |s| {
                failsafe(s);
                s.failsafe.asked = Some(ago(500));
            },
            "Wait",
        ),
        case(
            Row::FailsafeLeads,
            "a minute without etcd, everyone accepts",
            leader(),
            |s| {
                failsafe(s);
                spent(s, 60);
                s.failsafe.asked = Some(ago(500));
                s.failsafe.accepted = Some(ago(500));
            },
            "Wait",
        ),
        case(
            Row::FenceDue,
            "and 22 s after they last did",
            leader(),
            |s| {
                failsafe(s);
                spent(s, 60);
                s.failsafe.asked = Some(ago(500));
                s.failsafe.accepted = Some(ago(22_000));
            },
            "Demote { kind: Offline, stop: Fast",
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

fn leading() -> Vec<Case> {
    let scheduled = |s: &mut Seen, due| {
        requested(s, Some("a"), Some("b"));
        s.cluster.failover.as_mut().expect("asked").due = due;
    };
    vec![
        case(Row::Leads, "all is well", leader(), |_| (), "KeepLeading([])"),
        case(
            Row::Leads,
            "the position is to be written",
            leader(),
            |s| {
                s.status_written = Some(ago(10_000));
                s.cluster.optime = Some(Lsn(4_000));
            },
            "KeepLeading([WriteStatus(0/1388)])",
        ),
        case(
            Row::Leads,
            "after a promotion",
            leader(),
            |s| {
                s.cluster.history = None;
                s.cluster.members.get_mut("a").expect("a").checkpointed = false;
            },
            "KeepLeading([WriteHistory, Checkpoint])",
        ),
        case(
            Row::Leads,
            "synchronous mode was switched on",
            leader(),
            |s| s.rules.synchronous_mode = SyncMode::On,
            "KeepLeading([Sync(WriteKey(SyncKey { leader: Some(\"a\"), quorum: 0, standbys: {} }))])",
        ),
        case(
            Row::Leads,
            "synchronous mode was switched off",
            leader(),
            |s| {
                synchronous(s, &["b"]);
                s.rules.synchronous_mode = SyncMode::Off;
            },
            "KeepLeading([Sync(DeleteKey)])",
        ),
        case(
            Row::Leads,
            "failsafe mode was switched on",
            leader(),
            |s| s.rules.failsafe_mode = true,
            "KeepLeading([WriteFailsafe(",
        ),
        case(
            Row::Leads,
            "a switchover is asked for in a minute",
            leader(),
            |s| scheduled(s, Due::At(NOW + Duration::from_secs(60))),
            "KeepLeading([])",
        ),
        case(
            Row::SwitchoverBegins,
            "to a standby that has just answered",
            leader(),
            |s| {
                requested(s, Some("a"), Some("b"));
                answers(s, "b", 5000);
            },
            r#"Demote { kind: Graceful, stop: Fast, hand_over: Some(HandOver { to: Some("b"), why: Switchover }) }"#,
        ),
        case(
            Row::SwitchoverBegins,
            "at its time",
            leader(),
            |s| {
                scheduled(s, Due::At(ago(2_000)));
                answers(s, "b", 5000);
            },
            "Demote { kind: Graceful",
        ),
        case(
            Row::SwitchoverBegins,
            "an operator's failover to a standby that is not synchronous",
            leader(),
            |s| {
                synchronous(s, &["c"]);
                requested(s, None, Some("b"));
                answers(s, "b", 5000);
            },
            "Demote { kind: Graceful",
        ),
        case(
            Row::CandidateAsked,
            "to a standby that has not",
            leader(),
            |s| requested(s, Some("a"), Some("b")),
            r#"AskPeers(["b"])"#,
        ),
        case(
            Row::NameCandidate,
            "to anyone",
            leader(),
            |s| requested(s, Some("a"), None),
            r#"KeepLeading([NameCandidate { revision: 50, to: "b" }])"#,
        ),
        case(
            Row::RequestRefused,
            "to a member that is not there",
            leader(),
            |s| requested(s, Some("a"), Some("x")),
            "KeepLeading([ClearFailover",
        ),
        case(
            Row::RequestRefused,
            "of a leader that is another",
            leader(),
            |s| requested(s, Some("c"), Some("b")),
            "KeepLeading([ClearFailover",
        ),
        case(
            Row::RequestRefused,
            "to the leader itself",
            leader(),
            |s| requested(s, None, Some("a")),
            "KeepLeading([ClearFailover",
        ),
        case(
            Row::RequestRefused,
            "half a minute too late",
            leader(),
            |s| scheduled(s, Due::At(ago(30_000))),
            "KeepLeading([ClearFailover",
        ),
        case(
            Row::RequestRefused,
            "a switchover to a standby that is not synchronous",
            leader(),
            |s| {
                synchronous(s, &["c"]);
                requested(s, Some("a"), Some("b"));
                answers(s, "b", 5000);
            },
            "KeepLeading([ClearFailover",
        ),
        case(
            Row::RequestRefused,
            "to a standby that does not answer",
            leader(),
            |s| {
                requested(s, Some("a"), Some("b"));
                s.cluster.failover.as_mut().expect("asked").since = ago(4_000);
            },
            "KeepLeading([ClearFailover",
        ),
        case(
            Row::BecomesStandbyCluster,
            "demote-cluster",
            leader(),
            |s| s.rules.standby_cluster = true,
            "Demote { kind: ToStandbyCluster, stop: Fast",
        ),
        case(
            Row::OldTimeline,
            "a member is on a newer timeline than the leader",
            leader(),
            |s| s.cluster.members.get_mut("c").expect("c").timeline = Some(Timeline(3)),
            "Demote { kind: Immediate",
        ),
    ]
}
