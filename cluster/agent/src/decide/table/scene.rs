//! Scenes that the cases begin from: a cluster of three, `a` leading on timeline 2, seen by this member.

use std::collections::BTreeMap;
use std::time::Duration;

use leaderpool::patroni::{FailoverRequest, Lsn, MemberRole, SystemId, Tags, Timeline};

use crate::decide::*;

/// When every case is decided.
pub(super) const NOW: Moment = Moment(Duration::from_secs(1_000));
pub(super) const SYSTEM: SystemId = SystemId(7);

pub(super) fn ago(millis: u64) -> Moment {
    NOW - Duration::from_millis(millis)
}

pub(super) fn standby_row(name: &str, flushed: u64) -> StandbyRow {
    StandbyRow { name: name.into(), streaming: true, counted: true, flushed: Lsn(flushed) }
}

pub(super) fn set(names: &[&str]) -> std::collections::BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn member(role: MemberRole) -> MemberSeen {
    MemberSeen {
        running: true,
        initializing: false,
        role,
        timeline: Some(Timeline(2)),
        lsn: Some(Lsn(5000)),
        tags: Tags::default(),
        checkpointed: true,
        api_url: Some("http://x".into()),
    }
}

fn scene(me: &str) -> Seen {
    let members =
        [("a", MemberRole::Primary), ("b", MemberRole::Replica), ("c", MemberRole::Replica)];
    let lease = LeaseClock { sent: ago(1_000), ttl: Duration::from_secs(30) };
    Seen {
        me: Me {
            name: me.into(),
            tags: Tags::default(),
            started: ago(900_000),
            may_bootstrap: true,
            replica_without_leader: false,
        },
        rules: Rules { use_pg_rewind: true, ..Rules::default() },
        etcd: Etcd::Answers,
        cluster: Cluster {
            initialize: Initialize::Done(SYSTEM),
            leader: Leader::Held { by: "a".into(), attached: me == "a" },
            members: members.map(|(name, role)| (name.to_owned(), member(role))).into(),
            optime: Some(Lsn(5000)),
            sync: None,
            failover: None,
            history: Some(Timeline(2)),
            claimed: Some(Timeline(2)),
            failsafe: None,
        },
        peers: BTreeMap::new(),
        postgres: Postgres {
            data: Data::Present(SYSTEM),
            server: Server::Down { since: ago(500), start_failed: false },
            control: None,
            rewind: Rewind::Unknown,
            rewind_tried: None,
            crashes: 0,
            promote_failed: None,
            standbys: Vec::new(),
            names: NamesInEffect::default(),
        },
        session: Some(lease),
        reign: None,
        failsafe: Failsafe::default(),
        watchdog: Watchdog::Off,
        doing: None,
        handover: None,
        claimed: None,
        status_written: Some(ago(1_000)),
        stopping: None,
    }
}

/// `a`, which leads.
pub(super) fn leader() -> Seen {
    let mut seen = scene("a");
    seen.postgres.server = Server::Primary { timeline: Timeline(2), written: Lsn(5000) };
    seen.postgres.standbys = vec![standby_row("b", 5000), standby_row("c", 5000)];
    seen.reign = seen.session;
    seen
}

/// `b`, which follows it.
pub(super) fn standby() -> Seen {
    let mut seen = scene("b");
    seen.postgres.server = Server::Standby {
        timeline: Timeline(2),
        received: Lsn(5000),
        upstream: Upstream::Member("a".into()),
        stream_lost: None,
    };
    seen
}

/// `a`, whose server has ended by itself.
pub(super) fn dead_leader() -> Seen {
    let mut seen = leader();
    seen.postgres.server = Server::Down { since: ago(5), start_failed: false };
    seen.postgres.control = control(ControlState::InProduction);
    seen
}

/// `b`, whose server is down; `a` leads.
pub(super) fn down() -> Seen {
    let mut seen = scene("b");
    seen.postgres.control = control(ControlState::InRecovery);
    seen
}

pub(super) fn control(state: ControlState) -> Option<Control> {
    let (timeline, checkpoint) = (Timeline(2), Lsn(5000));
    Some(Control { state, timeline, checkpoint, backup_label: false })
}

/// `b`; the lease of `a` ran out 400 ms ago, and `c` has said since that it is as far.
pub(super) fn nobody() -> Seen {
    let mut seen = standby();
    seen.cluster.leader = Leader::Absent {
        since: ago(400),
        last: Some("a".into()),
        verified: false,
        taken: false,
        over: Some(ago(400)),
    };
    seen.cluster.members.remove("a");
    stream_lost(&mut seen, 5_000);
    answers(&mut seen, "c", 5000);
    seen.peers.insert("a".into(), Peer { asked: Some(ago(390)), ..Peer::default() });
    seen
}

/// `b`, which has just won the key.
pub(super) fn winner() -> Seen {
    let mut seen = nobody();
    seen.cluster.leader = Leader::Held { by: "b".into(), attached: true };
    seen.reign = seen.session;
    seen
}

/// `a`, a primary whose key is gone.
pub(super) fn keyless() -> Seen {
    let mut seen = leader();
    seen.cluster.leader = Leader::Absent {
        since: ago(20),
        last: Some("a".into()),
        verified: true,
        taken: false,
        over: None,
    };
    seen
}

/// `a`, shutting down for a switchover to `b`.
pub(super) fn hands_over() -> Seen {
    let mut seen = leader();
    seen.postgres.server =
        Server::Stopping { since: ago(200), mode: StopMode::Fast, was_primary: true };
    seen.handover =
        Some(Handover { to: Some("b".into()), why: HandoverWhy::Switchover, since: ago(210) });
    seen
}

/// `a`, shut down for a switchover to `b`, at 5040.
pub(super) fn handed_down() -> Seen {
    let mut seen = hands_over();
    seen.postgres.server = Server::Down { since: ago(100), start_failed: false };
    seen.postgres.control = control(ControlState::ShutDown);
    if let Some(control) = &mut seen.postgres.control {
        control.checkpoint = Lsn(5040);
    }
    seen
}

pub(super) fn stream_lost(seen: &mut Seen, millis: u64) {
    if let Server::Standby { stream_lost, .. } = &mut seen.postgres.server {
        *stream_lost = Some(ago(millis));
    }
}

/// Another member has answered just now.
pub(super) fn answers(seen: &mut Seen, name: &str, lsn: u64) {
    let answer = Answer {
        asked: ago(300),
        running: true,
        primary: false,
        leads: false,
        timeline: Timeline(2),
        lsn: Lsn(lsn),
        limitation: None,
    };
    let peer = Peer {
        asked: Some(ago(300)),
        failed: None,
        answer: Some(answer),
        running_since: Some(ago(90_000)),
        denies_since: Some(ago(90_000)),
    };
    seen.peers.insert(name.into(), peer);
}

/// Another member has answered just now that it leads.
pub(super) fn says_it_leads(seen: &mut Seen, name: &str) {
    answers(seen, name, 5000);
    if let Some(answer) = seen.peers.get_mut(name).and_then(|peer| peer.answer.as_mut()) {
        (answer.primary, answer.leads) = (true, true);
    }
}

/// `sync` names these standbys of `a`.
pub(super) fn synchronous(seen: &mut Seen, standbys: &[&str]) {
    seen.rules.synchronous_mode = SyncMode::On;
    let key = SyncKey { leader: Some("a".into()), quorum: 0, standbys: set(standbys) };
    seen.cluster.sync = Some(SyncSeen { key, revision: 40, settled: true });
}

pub(super) fn requested(seen: &mut Seen, leader: Option<&str>, member: Option<&str>) {
    let request = FailoverRequest {
        leader: leader.map(str::to_owned),
        member: member.map(str::to_owned),
        scheduled_at: None,
    };
    seen.cluster.failover =
        Some(FailoverSeen { request, due: Due::Now, since: ago(500), revision: 50 });
}

pub(super) fn tagged(name: &str, value: i64) -> Tags {
    Tags { other: [(name.to_owned(), value.into())].into(), ..Tags::default() }
}
