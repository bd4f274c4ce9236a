//! Views made by hand, and what is chosen in them.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::policy::{ReadChoice, choose_read};
use super::{Freshness, ReadPolicy};
use crate::patroni::{Lsn, MemberRole, MemberState, ServerAddress, SystemId, Tags, Timeline};
use crate::topology::{
    Cadence, ClusterView, LeaderState, MemberHealth, MemberView, ProbeReport, Topology,
    TopologyConfig,
};

/// A replica that answers, at `position`.
pub(crate) fn replica(name: &str, position: u64) -> MemberView {
    let now = Instant::now();
    MemberView {
        name: name.to_owned(),
        address: ServerAddress { host: name.to_owned(), port: 5432 },
        role: MemberRole::Replica,
        state: MemberState("streaming".into()),
        listed_timeline: Some(Timeline(1)),
        tags: Tags::default(),
        api_url: None,
        health: MemberHealth::Up(ProbeReport {
            sent_at: now,
            round_trip: Duration::from_millis(1),
            system_id: SystemId(1),
            in_recovery: true,
            timeline: Timeline(1),
            written: None,
            received: Some(Lsn(position)),
            replayed: Some(Lsn(position)),
            replay_age: None,
            started_at: 0,
            server_version: 150_000,
        }),
        fresh_at: Some(now),
        lag_bytes: Some(0),
        cadence: Cadence::Normal,
    }
}

/// The server out of recovery.
pub(crate) fn primary(name: &str) -> MemberView {
    let mut member = replica(name, 0);
    member.role = MemberRole::Primary;
    if let MemberHealth::Up(report) = &mut member.health {
        report.in_recovery = false;
        report.written = report.replayed.take();
    }
    member
}

/// A cluster of these, led by the one that is out of recovery.
pub(crate) fn cluster(members: impl IntoIterator<Item = MemberView>) -> ClusterView {
    let now = Instant::now();
    let mut view = Topology::new(TopologyConfig::default(), now).view().clone();
    view.members = members.into_iter().map(|member| (member.name.clone(), member)).collect();
    let leader = view.members.values().find(|member| member.role == MemberRole::Primary);
    if let Some(leader) = leader {
        view.leader = LeaderState::Admitted { member: leader.name.clone(), since: now };
    }
    view
}

/// Where a read goes while these breakers refuse.
fn chosen(view: &ClusterView, policy: &ReadPolicy, avoid: &[&str], refusing: &[&str]) -> String {
    let avoid: Vec<String> = avoid.iter().map(|&name| name.to_owned()).collect();
    let passes = |name: &str| !refusing.contains(&name);
    match choose_read(view, policy, &avoid, passes, Instant::now()) {
        ReadChoice::Replicas { members, last_resort } => {
            let names: Vec<&str> = members.iter().map(|member| &*member.name).collect();
            let last = if last_resort { " as the last resort" } else { "" };
            names.join(" or ") + last
        }
        ReadChoice::Leader => "the leader".into(),
        ReadChoice::Wait(_) => "wait".into(),
        ReadChoice::Refuse(_) => "refuse".into(),
    }
}

#[test]
fn open_breakers_are_passed_over_while_there_is_another_way() {
    let led = cluster([primary("a"), replica("b", 9), replica("c", 9)]);
    let leaderless = cluster([replica("b", 9), replica("c", 9)]);
    let any = ReadPolicy::any();
    let or_wait = ReadPolicy::any().or_wait();
    let or_error = ReadPolicy::any().or_error();
    type Row<'a> = (&'a ClusterView, &'a ReadPolicy, &'a [&'a str], &'a [&'a str], &'a str);
    let table: &[Row<'_>] = &[
        (&led, &any, &[], &[], "b or c"),
        (&led, &any, &[], &["b"], "c"),
        // What the leader's own breaker says is nothing to reads that go to it.
        (&led, &any, &[], &["a", "b", "c"], "the leader"),
        (&led, &or_wait, &[], &["b", "c"], "b or c as the last resort"),
        (&led, &or_error, &[], &["b", "c"], "b or c as the last resort"),
        (&leaderless, &any, &[], &["b", "c"], "b or c as the last resort"),
        (&led, &any, &["c"], &[], "b"),
        // Failed a moment ago, against open: it is tried once more.
        (&led, &any, &["c"], &["b"], "c"),
        (&leaderless, &any, &["c"], &["b", "c"], "b as the last resort"),
    ];
    for (view, policy, avoid, refusing, expected) in table {
        let found = chosen(view, policy, avoid, refusing);
        assert_eq!(found, *expected, "{policy:?}, avoiding {avoid:?}, refused by {refusing:?}");
    }
}

#[test]
fn a_preferred_member_with_an_open_breaker_is_no_preference() {
    let mut near = replica("b", 9);
    near.tags.other.insert("zone".into(), json!("here"));
    let view = cluster([primary("a"), near, replica("c", 9)]);
    let policy = ReadPolicy::any().prefer_tag("zone", "here");
    assert_eq!(chosen(&view, &policy, &[], &[]), "b");
    assert_eq!(chosen(&view, &policy, &[], &["b"]), "c");
    let leader = ReadPolicy { freshness: Freshness::Leader, ..policy };
    assert_eq!(chosen(&view, &leader, &[], &["a"]), "the leader");
}
