//! Who will most likely lead next.

use std::cmp::Reverse;

use crate::patroni::Lsn;
use crate::topology::{ClusterView, MemberView};

/// Replicas this close to the furthest one count as equally far: positions are as old as the probes, and
/// the choice must not change with each. It is Patroni's own default for a lag that still allows a failover.
const CLOSE: u64 = 1 << 20;

/// The member that would most likely lead next, for connections that are kept ready: the one that a planned
/// change names; otherwise a synchronous standby where commits wait for one; otherwise the replica that is
/// furthest ahead. `before` is the last answer, which stays while it is as good as any.
pub(crate) fn successor<'a>(view: &'a ClusterView, before: Option<&str>) -> Option<&'a str> {
    let mut candidates: Vec<(&MemberView, Lsn)> = view
        .members
        .values()
        .filter(|member| may_follow(view, member))
        .map(|member| (member, position(member)))
        .collect();
    let named = view.switchover.as_ref().and_then(|request| request.member.as_deref());
    if let Some((member, _)) = candidates.iter().find(|(member, _)| named == Some(&member.name)) {
        return Some(&member.name);
    }
    let in_sync = |member: &MemberView| view.sync_standbys.contains(&member.name);
    if view.synchronous && candidates.iter().any(|(member, _)| in_sync(member)) {
        candidates.retain(|(member, _)| in_sync(member));
    }
    let furthest = candidates.iter().map(|(_, position)| *position).max()?;
    if let Some((member, _)) = candidates.iter().find(|(member, position)| {
        before == Some(&member.name) && furthest.bytes_since(*position) <= CLOSE
    }) {
        return Some(&member.name);
    }
    let best = candidates
        .iter()
        .max_by_key(|(member, position)| (*position, priority(member), Reverse(&member.name)));
    best.map(|(member, _)| &*member.name)
}

fn may_follow(view: &ClusterView, member: &MemberView) -> bool {
    let Some(report) = member.report() else { return false };
    let same_history = view.epoch.is_none_or(|epoch| member.timeline() == Some(epoch.timeline));
    report.in_recovery
        && same_history
        && view.leader.named() != Some(&member.name)
        && !member.tags.nofailover
        && priority(member) > 0
}

/// What it has of the WAL, replayed or not.
fn position(member: &MemberView) -> Lsn {
    let report = member.report();
    report.and_then(|report| report.received.max(report.replayed)).unwrap_or(Lsn(0))
}

/// Patroni's tag `failover_priority`, which decides among equals; 0 is `nofailover` by another name.
fn priority(member: &MemberView) -> i64 {
    member.tags.other.get("failover_priority").and_then(serde_json::Value::as_i64).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::patroni::{FailoverRequest, SystemId, Timeline};
    use crate::routing::tests::{cluster, primary, replica};
    use crate::topology::{Epoch, MemberHealth};

    const FAR: u64 = 10 * CLOSE;

    fn view() -> ClusterView {
        cluster([primary("a"), replica("b", FAR), replica("c", FAR)])
    }

    type Change = fn(&mut ClusterView);

    fn member<'a>(view: &'a mut ClusterView, name: &str) -> &'a mut MemberView {
        view.members.get_mut(name).expect("a member")
    }

    fn at(view: &mut ClusterView, name: &str, position: u64) {
        *member(view, name) = replica(name, position);
    }

    /// What is so; who was the answer before; who is it now.
    const TABLE: &[(&str, Change, Option<&str>, Option<&str>)] = &[
        ("equals: by name", |_| {}, None, Some("b")),
        ("equals: the one from before stays", |_| {}, Some("c"), Some("c")),
        ("furthest ahead", |v| at(v, "c", FAR + 1), None, Some("c")),
        (
            "a little behind is no reason to change",
            |v| at(v, "c", FAR + CLOSE),
            Some("b"),
            Some("b"),
        ),
        ("far behind is", |v| at(v, "c", FAR + CLOSE + 1), Some("b"), Some("c")),
        (
            "received, not yet replayed",
            |v| {
                if let MemberHealth::Up(report) = &mut member(v, "c").health {
                    report.received = Some(Lsn(FAR + 1));
                }
            },
            None,
            Some("c"),
        ),
        (
            "from the archive, so never received",
            |v| {
                if let MemberHealth::Up(report) = &mut member(v, "c").health {
                    (report.received, report.replayed) = (None, Some(Lsn(FAR + 1)));
                }
            },
            None,
            Some("c"),
        ),
        ("nofailover", |v| member(v, "b").tags.nofailover = true, Some("b"), Some("c")),
        (
            "priority 0 is the same",
            |v| {
                member(v, "b").tags.other.insert("failover_priority".into(), json!(0));
            },
            Some("b"),
            Some("c"),
        ),
        (
            "priority decides among equals",
            |v| {
                member(v, "c").tags.other.insert("failover_priority".into(), json!(2));
            },
            None,
            Some("c"),
        ),
        (
            "but not against the position",
            |v| {
                at(v, "b", FAR + 1);
                member(v, "c").tags.other.insert("failover_priority".into(), json!(2));
            },
            None,
            Some("b"),
        ),
        (
            "a synchronous standby, though behind",
            |v| {
                at(v, "b", 2 * FAR);
                (v.synchronous, v.sync_standbys) = (true, vec!["c".into()]);
            },
            Some("b"),
            Some("c"),
        ),
        (
            "only while commits wait for it",
            |v| {
                at(v, "b", 2 * FAR);
                v.sync_standbys = vec!["c".into()];
            },
            None,
            Some("b"),
        ),
        (
            "no synchronous standby answers",
            |v| {
                (v.synchronous, v.sync_standbys) = (true, vec!["c".into()]);
                member(v, "c").health = MemberHealth::Unknown;
            },
            None,
            Some("b"),
        ),
        (
            "a planned change names it",
            |v| {
                v.switchover =
                    Some(FailoverRequest { member: Some("c".into()), ..Default::default() });
            },
            Some("b"),
            Some("c"),
        ),
        (
            "a planned change names one that cannot",
            |v| {
                v.switchover =
                    Some(FailoverRequest { member: Some("a".into()), ..Default::default() });
            },
            None,
            Some("b"),
        ),
        ("down", |v| member(v, "b").health = MemberHealth::Unknown, Some("b"), Some("c")),
        (
            "on another timeline",
            |v| {
                let (system_id, timeline) = (SystemId(1), Timeline(2));
                v.epoch = Some(Epoch { system_id, timeline, revision: 1 });
                member(v, "c").listed_timeline = Some(timeline);
            },
            Some("b"),
            Some("c"),
        ),
        ("out of recovery", |v| *member(v, "b") = primary("b"), None, Some("c")),
        ("nobody", |v| v.members.retain(|name, _| name == "a"), Some("b"), None),
    ];

    #[test]
    fn the_likeliest_successor() {
        for (what, change, before, expected) in TABLE {
            let mut view = view();
            change(&mut view);
            assert_eq!(successor(&view, *before), *expected, "{what}");
        }
    }
}
