use super::*;
use crate::lineage::history;
use crate::patroni::SystemId;

const RUN: ServerRun = ServerRun { started_at: 1, reset_at: 1 };
/// A backend was killed: the postmaster lives on.
const REINITIALISED: ServerRun = ServerRun { started_at: 1, reset_at: 2 };
const RESTARTED: ServerRun = ServerRun { started_at: 2, reset_at: 2 };

fn epoch(system_id: u64, timeline: u32) -> Epoch {
    Epoch {
        system_id: SystemId(system_id),
        timeline: Timeline(timeline),
        revision: i64::from(timeline),
    }
}

fn lost_at(timeline: u32, switch_lsn: u64) -> Plan {
    let why =
        NotApplied::BeyondSwitch { timeline: Timeline(timeline), switch_lsn: Lsn(switch_lsn) };
    Plan::Answer(Settlement::NotApplied { why })
}

const LOST_IN_CRASH: Plan = Plan::Answer(Settlement::NotApplied { why: NotApplied::LostInCrash });
const OURS: Plan = Plan::AskStatus(Identity::Ours);
const PERHAPS: Plan = Plan::AskStatus(Identity::PerhapsReused);

#[test]
fn plans() {
    let note = CommitNote { xid: 700, lsn: Lsn(150), epoch: epoch(7, 2), run: RUN };
    let seen = |run, lowest_xmax, recovered_to: Option<u64>| {
        Some(Restart { run, lowest_xmax, recovered_to: recovered_to.map(Lsn) })
    };
    let (kept, lost): (&[_], &[_]) = (&[(1, 100), (2, 150)], &[(1, 100), (2, 149)]);
    let unknown = |why| Plan::Answer(Settlement::Unknown { why });
    let cases = [
        // What happened, the leader's epoch and run, what was seen of a restart, history, the plan.
        ("nothing", epoch(7, 2), RUN, None, kept, OURS),
        ("another cluster", epoch(8, 2), RUN, None, kept, unknown(Unsettled::OtherCluster)),
        ("an older leader", epoch(7, 1), RUN, None, kept, unknown(Unsettled::OlderLeader)),
        ("a restart, unseen", epoch(7, 2), RESTARTED, None, kept, Plan::AskRestart),
        ("a crash of a backend, unseen", epoch(7, 2), REINITIALISED, None, kept, Plan::AskRestart),
        (
            "a restart that lost the id",
            epoch(7, 2),
            RESTARTED,
            seen(RESTARTED, Some(700), None),
            kept,
            LOST_IN_CRASH,
        ),
        (
            "a restart, seen too late",
            epoch(7, 2),
            RESTARTED,
            seen(RESTARTED, Some(701), None),
            kept,
            PERHAPS,
        ),
        (
            "a restart that kept the note",
            epoch(7, 2),
            RESTARTED,
            seen(RESTARTED, Some(701), Some(150)),
            kept,
            OURS,
        ),
        (
            "a restart that lost the note",
            epoch(7, 2),
            RESTARTED,
            seen(RESTARTED, Some(701), Some(149)),
            kept,
            LOST_IN_CRASH,
        ),
        (
            "a backend's crash that lost the id",
            epoch(7, 2),
            REINITIALISED,
            seen(REINITIALISED, Some(700), Some(160)),
            kept,
            LOST_IN_CRASH,
        ),
        (
            "statistics reset by hand while it runs",
            epoch(7, 2),
            REINITIALISED,
            seen(REINITIALISED, Some(700), None),
            kept,
            PERHAPS,
        ),
        ("a promotion after it", epoch(7, 3), RUN, None, kept, OURS),
        ("a promotion before it", epoch(7, 3), RUN, None, lost, lost_at(2, 149)),
        ("a promotion, unwritten", epoch(7, 3), RUN, None, &kept[..1], Plan::WaitForHistory),
        (
            "a second promotion, left earlier",
            epoch(7, 4),
            RUN,
            None,
            &[(2, 150), (3, 120)],
            lost_at(3, 120),
        ),
        (
            "a crash in place, then a promotion",
            epoch(7, 3),
            RUN,
            seen(RESTARTED, None, Some(140)),
            kept,
            LOST_IN_CRASH,
        ),
    ];
    for (what, epoch, run, restart, lines, expected) in cases {
        let found = plan(&note, LeaderNow { epoch, run }, restart, &history(lines));
        assert_eq!(found, expected, "{what}");
    }
}

#[test]
fn conclusions() {
    use Identity::{Ours, PerhapsReused};
    let rolled_back = Some(Settlement::NotApplied { why: NotApplied::RolledBack });
    let unknown = |why| Some(Settlement::Unknown { why });
    let cases = [
        (XactStatus::Committed, Ours, Some(Settlement::Committed)),
        (XactStatus::Committed, PerhapsReused, unknown(Unsettled::IdReused)),
        (XactStatus::Aborted, Ours, rolled_back),
        (XactStatus::Aborted, PerhapsReused, rolled_back),
        (XactStatus::NotAssigned, Ours, rolled_back),
        (XactStatus::NotAssigned, PerhapsReused, rolled_back),
        (XactStatus::InProgress, Ours, None),
        (XactStatus::InProgress, PerhapsReused, None),
        (XactStatus::Unavailable, Ours, unknown(Unsettled::StatusGone)),
        (XactStatus::Unavailable, PerhapsReused, unknown(Unsettled::StatusGone)),
    ];
    for (status, identity, expected) in cases {
        assert_eq!(conclude(status, identity), expected, "{status:?} {identity:?}");
    }
}
