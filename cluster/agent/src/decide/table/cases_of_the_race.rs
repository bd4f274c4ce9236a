//! The cases of a cluster that nobody leads, and of the member that then does.

use std::time::Duration;

use leaderpool::patroni::{Lsn, Timeline};

use super::scene::*;
use super::{Case, case};
use crate::decide::*;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = primary();
    cases.extend(stands_back());
    cases.extend(race());
    cases.extend(won());
    cases
}

fn primary() -> Vec<Case> {
    vec![
        case(
            Row::KeyGone,
            "the watch says that the key was deleted",
            keyless(),
            |s| {
                s.cluster.leader = Leader::Absent {
                    since: ago(5),
                    last: Some("a".into()),
                    verified: false,
                    taken: false,
                    over: Some(ago(400)),
                };
            },
            "VerifyLeaderKey",
        ),
        case(
            Row::KeyPutAgain,
            "by hand: the lease is alive",
            keyless(),
            |_| (),
            "AcquireLeader { sync_revision: 0 }",
        ),
        case(
            Row::OldTimeline,
            "another has claimed a timeline since",
            keyless(),
            |s| s.cluster.claimed = Some(Timeline(3)),
            "Demote { kind: ImmediateNoLock",
        ),
        case(
            Row::OldTimeline,
            "a server found running is older than the history",
            keyless(),
            |s| {
                s.reign = None;
                s.me.started = ago(100);
                s.cluster.history = Some(Timeline(3));
            },
            "Demote { kind: ImmediateNoLock",
        ),
        case(
            Row::NotInSync,
            "`sync` names others",
            keyless(),
            |s| {
                synchronous(s, &["b"]);
                s.cluster.sync.as_mut().expect("sync").key.leader = Some("c".into());
            },
            "Demote { kind: ImmediateNoLock",
        ),
        case(
            Row::NoSession,
            "etcd took the lease: a new one is on its way",
            keyless(),
            |s| s.session = None,
            "Wait",
        ),
        case(
            Row::PeersAsked,
            "a server found running without a lease races like any other",
            keyless(),
            |s| {
                s.reign = None;
                s.me.started = ago(100);
            },
            r#"AskPeers(["b", "c"])"#,
        ),
    ]
}

fn stands_back() -> Vec<Case> {
    let failsafe = |s: &mut Seen| {
        s.rules.failsafe_mode = true;
        s.cluster.failsafe =
            Some(["a", "b", "c"].map(|name| (name.to_owned(), "http://x".to_owned())).into());
    };
    vec![
        case(Row::NeverLeads, "nofailover", nobody(), |s| s.me.tags.nofailover = true, "Wait"),
        case(
            Row::NeverLeads,
            "failover_priority is zero",
            nobody(),
            |s| s.me.tags = tagged("failover_priority", 0),
            "Wait",
        ),
        case(
            Row::WatchdogMissing,
            "the watchdog is required and broken",
            nobody(),
            |s| s.watchdog = Watchdog::Missing,
            "Wait",
        ),
        case(
            Row::NotInFailsafe,
            "a member that the leader did not know yet",
            nobody(),
            |s| {
                failsafe(s);
                s.cluster.failsafe.as_mut().expect("list").remove("b");
            },
            "Wait",
        ),
        case(
            Row::PromotionFailed,
            "it has just failed to promote",
            nobody(),
            |s| s.postgres.promote_failed = Some(ago(2_000)),
            "Wait",
        ),
        case(
            Row::FailsafeHolds,
            "it accepted the old leader 20 s ago",
            nobody(),
            |s| {
                failsafe(s);
                s.failsafe.promised = Some(("a".into(), ago(20_000)));
            },
            "Wait",
        ),
        case(
            Row::FailsafeHolds,
            "33 s ago: a clock may be a tenth fast",
            nobody(),
            |s| {
                failsafe(s);
                s.failsafe.promised = Some(("a".into(), ago(33_000)));
            },
            "Wait",
        ),
        case(
            Row::Acquires,
            "34 s ago",
            nobody(),
            |s| {
                failsafe(s);
                s.failsafe.promised = Some(("a".into(), ago(34_000)));
            },
            "AcquireLeader",
        ),
        case(
            Row::FailsafeHolds,
            "the process is new and does not know what it had accepted",
            nobody(),
            |s| {
                failsafe(s);
                s.me.started = ago(1_000);
            },
            r#"AskPeers(["a"])"#,
        ),
        case(
            Row::StandsBack,
            "a switchover to another",
            nobody(),
            |s| requested(s, Some("a"), Some("c")),
            "Wait",
        ),
        case(
            Row::Acquires,
            "a switchover to another, which is down",
            nobody(),
            |s| {
                requested(s, Some("a"), Some("c"));
                s.peers.get_mut("c").expect("c").answer.as_mut().expect("answer").running = false;
            },
            "AcquireLeader",
        ),
        case(
            Row::Acquires,
            "a switchover to another, which did not come",
            nobody(),
            |s| {
                requested(s, Some("a"), Some("c"));
                s.cluster.failover.as_mut().expect("asked").since = ago(60_000);
                s.cluster.leader = Leader::Absent {
                    since: ago(11_000),
                    last: Some("a".into()),
                    verified: false,
                    taken: false,
                    over: Some(ago(11_000)),
                };
            },
            "AcquireLeader",
        ),
        case(
            Row::PrimaryLives,
            "a member says that it leads",
            nobody(),
            |s| says_it_leads(s, "a"),
            r#"AskPeers(["a"])"#,
        ),
        case(
            Row::PrimaryLives,
            "it said so before the key went, and is asked once more",
            nobody(),
            |s| {
                says_it_leads(s, "a");
                let peer = s.peers.get_mut("a").expect("a");
                peer.asked = Some(ago(450));
                peer.answer.as_mut().expect("answer").asked = ago(450);
            },
            r#"AskPeers(["a"])"#,
        ),
        case(
            Row::LastLeaderAsked,
            "the key was deleted by hand",
            nobody(),
            |s| {
                if let Leader::Absent { over, .. } = &mut s.cluster.leader {
                    *over = None;
                }
                s.cluster.members.insert("a".into(), standby().cluster.members["a"].clone());
                s.peers.remove("a");
            },
            r#"AskPeers(["a"])"#,
        ),
        case(
            Row::LastLeaderAsked,
            "it does not answer, and its lease is alive",
            nobody(),
            |s| {
                if let Leader::Absent { over, .. } = &mut s.cluster.leader {
                    *over = None;
                }
                s.cluster.members.insert("a".into(), standby().cluster.members["a"].clone());
                s.peers.insert("a".into(), Peer { asked: Some(ago(100)), ..Peer::default() });
            },
            "Wait",
        ),
        case(
            Row::LagsTooFar,
            "a megabyte and a byte behind",
            nobody(),
            |s| s.cluster.optime = Some(Lsn(5000 + (1 << 20) + 1)),
            "Wait",
        ),
        case(
            Row::OldTimeline,
            "check_timeline, and the history is newer",
            nobody(),
            |s| {
                s.rules.check_timeline = true;
                s.cluster.history = Some(Timeline(3));
            },
            "Wait",
        ),
        case(
            Row::NotInSync,
            "`sync` names another standby",
            nobody(),
            |s| synchronous(s, &["c"]),
            "Wait",
        ),
        case(
            Row::NoSession,
            "15 s since the lease was renewed",
            nobody(),
            |s| s.session = Some(LeaseClock { sent: ago(15_000), ttl: Duration::from_secs(30) }),
            "Wait",
        ),
    ]
}

fn quorum(s: &mut Seen, quorum: usize, standbys: &[&str]) {
    synchronous(s, standbys);
    s.rules.synchronous_mode = SyncMode::Quorum;
    s.cluster.sync.as_mut().expect("sync").key.quorum = quorum;
}

fn race() -> Vec<Case> {
    vec![
        case(
            Row::Acquires,
            "the lease ran out, and who else is ahead was known before",
            nobody(),
            |_| (),
            "AcquireLeader { sync_revision: 0 }",
        ),
        case(
            Row::Acquires,
            "the leader was shut down and released the key to this member",
            nobody(),
            |s| {
                requested(s, Some("a"), Some("b"));
                let mut a = standby().cluster.members["a"].clone();
                (a.running, a.role) = (false, leaderpool::patroni::MemberRole::Demoted);
                s.cluster.members.insert("a".into(), a);
                s.peers.clear();
            },
            "AcquireLeader",
        ),
        case(
            Row::Acquires,
            "a synchronous standby",
            nobody(),
            |s| synchronous(s, &["b"]),
            "AcquireLeader { sync_revision: 40 }",
        ),
        case(
            Row::Acquires,
            "an operator fails over to a standby that is not synchronous",
            nobody(),
            |s| {
                synchronous(s, &["c"]);
                requested(s, None, Some("b"));
            },
            "AcquireLeader",
        ),
        case(
            Row::Acquires,
            "whoever is ahead did not come",
            nobody(),
            |s| {
                answers(s, "c", 6000);
                s.cluster.leader = Leader::Absent {
                    since: ago(11_000),
                    last: Some("a".into()),
                    verified: false,
                    taken: false,
                    over: Some(ago(11_000)),
                };
            },
            "AcquireLeader",
        ),
        case(
            Row::Acquires,
            "a member that may be ahead was asked 300 ms ago, in vain",
            nobody(),
            |s| {
                s.peers.insert("c".into(), Peer { asked: Some(ago(300)), ..Peer::default() });
            },
            "AcquireLeader",
        ),
        case(
            Row::PeersAsked,
            "299 ms ago",
            nobody(),
            |s| {
                s.peers.insert("c".into(), Peer { asked: Some(ago(299)), ..Peer::default() });
            },
            "Wait",
        ),
        case(
            Row::Acquires,
            "it refuses connections",
            nobody(),
            |s| {
                let peer = Peer { asked: Some(ago(9)), failed: Some(ago(9)), ..Peer::default() };
                s.peers.insert("c".into(), peer);
            },
            "AcquireLeader",
        ),
        case(
            Row::PeersAsked,
            "nobody has been asked",
            nobody(),
            |s| s.peers.clear(),
            r#"AskPeers(["c", "a"])"#,
        ),
        case(
            Row::PeerGoesFirst,
            "another has received more",
            nobody(),
            |s| answers(s, "c", 5001),
            "Wait",
        ),
        case(
            Row::PeerGoesFirst,
            "another is on a newer timeline, though at a lower position",
            nobody(),
            |s| {
                answers(s, "c", 100);
                s.peers.get_mut("c").expect("c").answer.as_mut().expect("answer").timeline =
                    Timeline(3);
            },
            "Wait",
        ),
        case(
            Row::PeerGoesFirst,
            "another is as far, and of higher priority",
            nobody(),
            |s| {
                s.cluster.members.get_mut("c").expect("c").tags = tagged("failover_priority", 2);
            },
            "Wait",
        ),
        case(
            Row::Acquires,
            "another is ahead and never leads",
            nobody(),
            |s| {
                answers(s, "c", 9000);
                s.cluster.members.get_mut("c").expect("c").tags.nofailover = true;
            },
            "AcquireLeader",
        ),
        case(
            Row::Acquires,
            "another is ahead and not synchronous",
            nobody(),
            |s| {
                synchronous(s, &["b"]);
                answers(s, "c", 9000);
            },
            "AcquireLeader",
        ),
        case(
            Row::VotesLack,
            "quorum: the only voter is ahead and limited",
            nobody(),
            |s| {
                quorum(s, 1, &["b", "c"]);
                answers(s, "c", 9000);
                s.peers.get_mut("c").expect("c").answer.as_mut().expect("answer").limitation =
                    Some("x".into());
            },
            "AskPeers",
        ),
        case(
            Row::VotesLack,
            "quorum: the vote is missing, however long",
            nobody(),
            |s| {
                quorum(s, 1, &["b", "c"]);
                s.peers.insert("c".into(), Peer { asked: Some(ago(350)), ..Peer::default() });
            },
            r#"AskPeers(["c""#,
        ),
        case(
            Row::PeersAsked,
            "quorum: it answered before the lease was over",
            nobody(),
            |s| {
                quorum(s, 1, &["b", "c"]);
                if let Leader::Absent { over, .. } = &mut s.cluster.leader {
                    *over = Some(ago(200));
                }
            },
            r#"AskPeers(["c"])"#,
        ),
        case(
            Row::Acquires,
            "quorum: a voter with the vote that it needs",
            nobody(),
            |s| quorum(s, 1, &["b", "c"]),
            "AcquireLeader",
        ),
        case(
            Row::VotesLack,
            "quorum: not a voter, and one vote is not enough",
            nobody(),
            |s| quorum(s, 1, &["c", "d"]),
            "AskPeers",
        ),
        case(
            Row::Acquires,
            "quorum: not a voter, with one vote more",
            nobody(),
            |s| quorum(s, 0, &["c"]),
            "AcquireLeader",
        ),
    ]
}

fn won() -> Vec<Case> {
    let claimed = |s: &mut Seen| {
        s.claimed = Some(Timeline(3));
        s.cluster.claimed = Some(Timeline(3));
    };
    vec![
        case(
            Row::ClaimsTimeline,
            "first the timeline",
            winner(),
            |_| (),
            "ClaimTimeline(Timeline(3))",
        ),
        case(
            Row::ClaimsTimeline,
            "one that nobody else has claimed",
            winner(),
            |s| s.cluster.claimed = Some(Timeline(7)),
            "ClaimTimeline(Timeline(8))",
        ),
        case(
            Row::Promotes,
            "then the promotion",
            winner(),
            claimed,
            "Promote { above: Timeline(2) }",
        ),
        case(
            Row::SyncBeforePromotion,
            "in synchronous mode first of all `sync`",
            winner(),
            |s| synchronous(s, &["b"]),
            "WriteSync { key: SyncKey { leader: Some(\"b\"), quorum: 0, standbys: {} }, revision: 40 }",
        ),
        case(
            Row::SyncBeforePromotion,
            "then what commits wait for",
            winner(),
            |s| {
                synchronous(s, &[]);
                s.cluster.sync.as_mut().expect("sync").key.leader = Some("b".into());
                s.postgres.names.names = SyncNames::All(set(&["a"]));
            },
            "SetSyncNames(Nobody)",
        ),
        case(
            Row::SyncBeforePromotion,
            "which in strict mode is anyone",
            winner(),
            |s| {
                synchronous(s, &[]);
                s.rules.synchronous_mode_strict = true;
                s.cluster.sync.as_mut().expect("sync").key.leader = Some("b".into());
            },
            "SetSyncNames(Anyone)",
        ),
        case(
            Row::SyncBeforePromotion,
            "an earlier write of `sync` may still arrive",
            winner(),
            |s| {
                synchronous(s, &[]);
                let sync = s.cluster.sync.as_mut().expect("sync");
                (sync.key.leader, sync.settled) = (Some("b".into()), false);
            },
            "WriteSync",
        ),
        case(
            Row::LeaseTooShort,
            "22 s into the lease: it is renewed before the promotion",
            winner(),
            |s| s.reign = Some(LeaseClock { sent: ago(22_000), ttl: Duration::from_secs(30) }),
            "Wait",
        ),
        case(
            Row::KeyGivenBack,
            "a primary was accepted in failsafe mode while the key was being won",
            winner(),
            |s| {
                s.rules.failsafe_mode = true;
                s.failsafe.promised = Some(("a".into(), ago(20)));
            },
            "ReleaseLeader",
        ),
        case(
            Row::KeyGivenBack,
            "the promotion failed",
            winner(),
            |s| s.postgres.promote_failed = Some(ago(20)),
            "ReleaseLeader",
        ),
        case(
            Row::StandbyLeaderFollows,
            "a standby cluster has a new leader",
            winner(),
            |s| s.rules.standby_cluster = true,
            "Follow(Remote)",
        ),
        case(
            Row::StandbyLeads,
            "the leader of a standby cluster",
            winner(),
            |s| {
                s.rules.standby_cluster = true;
                if let Server::Standby { upstream, .. } = &mut s.postgres.server {
                    *upstream = Upstream::Remote;
                }
            },
            "KeepLeading",
        ),
    ]
}
