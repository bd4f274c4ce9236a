//! The cases: a server that must not write, handing over, stopping, pause, silence, leading.

use std::time::Duration;

use leaderpool::patroni::{Lsn, SystemId, Timeline};

use super::scene::*;

use super::{Case, case};

use crate::decide::*;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = must_not_write();
    cases.extend(handing_over());
    cases.extend(ends());
    cases.extend(paused());
    cases.extend(silence());
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
