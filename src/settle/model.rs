//! A small model of a cluster, and histories at random: no settlement may contradict it.
//!
//! A position in the WAL is the number of records before it.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::patroni::SystemId;

/// The transaction whose commit is in doubt.
const SUBJECT: u32 = 0;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Record {
    Write { xid: u64, who: u32 },
    Commit { xid: u64, who: u32 },
    Checkpoint,
}

struct Cluster {
    wal: Vec<Record>,
    /// What a crash leaves.
    flushed: usize,
    /// What the replica has: never more than is flushed.
    replicated: usize,
    running: BTreeMap<u64, u32>,
    next_xid: u64,
    /// One beyond the highest id that ended.
    xmax: u64,
    next_who: u32,
    epoch: Epoch,
    run: ServerRun,
    clock: i64,
    history: Vec<HistoryLine>,
    /// The end of the last recovery, while no checkpoint has overwritten it.
    recovered_to: Option<usize>,
    note: Option<CommitNote>,
    /// The first run after the note's.
    first_run: Option<ServerRun>,
    restart: Option<Restart>,
    /// The history of a promotion that failed: its timeline's number was skipped.
    rumour: Option<Vec<HistoryLine>>,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// Another transaction writes, and may commit.
    Other {
        commit: bool,
    },
    /// The subject writes, and the note is taken.
    Subject,
    /// The subject's COMMIT arrives.
    CommitSubject,
    /// The subject's backend gives up.
    AbortSubject,
    Flush(usize),
    Replicate(usize),
    Checkpoint,
    /// A crash in place, of the whole server or of a backend; the pool looks at once, or later.
    Crash {
        postmaster: bool,
        look: bool,
    },
    /// The statistics are reset by hand.
    ResetStatistics,
    /// The pool looks at the leader.
    Look,
    Promote {
        at: usize,
        failed_at: Option<usize>,
    },
}

impl Cluster {
    fn new() -> Self {
        Self {
            wal: vec![Record::Checkpoint],
            flushed: 1,
            replicated: 1,
            running: BTreeMap::new(),
            next_xid: 3,
            xmax: 3,
            next_who: SUBJECT + 1,
            epoch: Epoch { system_id: SystemId(7), timeline: Timeline(1), revision: 1 },
            run: ServerRun { started_at: 0, reset_at: 0 },
            clock: 0,
            history: Vec::new(),
            recovered_to: None,
            note: None,
            first_run: None,
            restart: None,
            rumour: None,
        }
    }

    fn write(&mut self, who: u32) -> u64 {
        let xid = self.next_xid;
        self.next_xid += 1;
        self.running.insert(xid, who);
        self.wal.push(Record::Write { xid, who });
        xid
    }

    fn end(&mut self, xid: u64) {
        self.running.remove(&xid);
        self.xmax = self.xmax.max(xid + 1);
    }

    fn commit(&mut self, xid: u64) {
        if let Some(who) = self.running.get(&xid).copied() {
            self.wal.push(Record::Commit { xid, who });
            self.end(xid);
        }
    }

    fn recover(&mut self, end: usize) {
        self.wal.truncate(end);
        self.running.clear();
        self.next_xid = self
            .wal
            .iter()
            .map(|record| match record {
                Record::Write { xid, .. } | Record::Commit { xid, .. } => xid + 1,
                Record::Checkpoint => 3,
            })
            .max()
            .unwrap_or(3);
        self.xmax = self.next_xid;
        self.wal.push(Record::Checkpoint);
        self.flushed = self.wal.len();
        self.replicated = self.replicated.min(end);
    }

    fn status(&self, xid: u64) -> XactStatus {
        let committed =
            |record: &Record| matches!(record, Record::Commit { xid: x, .. } if *x == xid);
        if xid >= self.next_xid {
            XactStatus::NotAssigned
        } else if self.running.contains_key(&xid) {
            XactStatus::InProgress
        } else if self.wal.iter().any(committed) {
            XactStatus::Committed
        } else {
            XactStatus::Aborted
        }
    }

    fn new_run(&mut self) {
        if let Some(note) = self.note
            && note.epoch.timeline == self.epoch.timeline
        {
            self.first_run.get_or_insert(self.run);
        }
    }

    /// What the pool is told to look at, as [`Restart`] describes it.
    fn look(&mut self) {
        let Some(note) = self.note else { return };
        if note.epoch.timeline != self.epoch.timeline || note.run == self.run {
            return;
        }
        let restart = self.restart.get_or_insert(Restart {
            run: self.run,
            lowest_xmax: None,
            recovered_to: None,
        });
        if restart.run != self.run || self.first_run != Some(self.run) {
            return;
        }
        let xmax = restart.lowest_xmax.map_or(self.xmax, |lowest| lowest.min(self.xmax));
        restart.lowest_xmax = Some(xmax);
        restart.recovered_to =
            restart.recovered_to.or(self.recovered_to.map(|end| Lsn(end as u64)));
    }

    fn step(&mut self, step: Step) {
        self.clock += 1;
        match step {
            Step::Other { commit } => {
                let who = self.next_who;
                self.next_who += 1;
                let xid = self.write(who);
                if commit {
                    self.commit(xid);
                }
            }
            Step::Subject if self.note.is_none() => {
                let xid = self.write(SUBJECT);
                let lsn = Lsn(self.wal.len() as u64);
                self.note = Some(CommitNote { xid, lsn, epoch: self.epoch, run: self.run });
            }
            Step::CommitSubject | Step::AbortSubject => {
                let xid = self.running.iter().find(|(_, who)| **who == SUBJECT).map(|(x, _)| *x);
                match (xid, step) {
                    (Some(xid), Step::CommitSubject) => self.commit(xid),
                    (Some(xid), _) => self.end(xid),
                    (None, _) => {}
                }
            }
            Step::Subject => {}
            Step::Flush(by) => self.flushed = (self.flushed + by).min(self.wal.len()),
            Step::Replicate(by) => self.replicated = (self.replicated + by).min(self.flushed),
            Step::Checkpoint => {
                self.wal.push(Record::Checkpoint);
                self.recovered_to = None;
            }
            Step::Crash { postmaster, look } => {
                self.run.reset_at = self.clock;
                if postmaster {
                    self.run.started_at = self.clock;
                }
                self.recovered_to = Some(self.flushed);
                self.recover(self.flushed);
                self.new_run();
                if look {
                    self.look();
                }
            }
            Step::ResetStatistics => {
                self.run.reset_at = self.clock;
                self.new_run();
                // Its time is after the checkpoint's, which therefore counts no more.
                self.recovered_to = None;
            }
            Step::Look => self.look(),
            Step::Promote { at, failed_at } => {
                // The pool saw at least that there was a restart before this.
                if let Some(run) = self.first_run {
                    let (lowest_xmax, recovered_to) = (None, None);
                    self.restart.get_or_insert(Restart { run, lowest_xmax, recovered_to });
                }
                let end = 1 + at % self.replicated;
                let left_at = |lsn: usize| HistoryLine {
                    timeline: self.epoch.timeline,
                    switch_lsn: Lsn(lsn as u64),
                    reason: String::new(),
                    at: None,
                    new_leader: None,
                };
                if let Some(failed) = failed_at {
                    let mut rumour = self.history.clone();
                    rumour.push(left_at(1 + failed % self.replicated));
                    self.rumour = Some(rumour);
                }
                self.history.push(left_at(end));
                self.epoch.timeline.0 += if failed_at.is_some() { 2 } else { 1 };
                self.epoch.revision += 1;
                self.run = ServerRun { started_at: -self.clock, reset_at: -self.clock };
                self.recovered_to = None;
                self.recover(end);
                self.replicated = self.replicated.max(1);
            }
        }
    }

    /// The settlement, with only so many lines of history written down yet.
    fn settle(&self, lines: usize, believe_rumour: bool) -> Option<Settlement> {
        let note = self.note.as_ref()?;
        let leader = LeaderNow { epoch: self.epoch, run: self.run };
        let lines = lines.min(self.history.len());
        let history = match &self.rumour {
            Some(rumour) if believe_rumour => rumour,
            Some(_) | None => &self.history[..lines],
        };
        match plan(note, leader, self.restart, history) {
            Plan::AskStatus(identity) => conclude(self.status(note.xid), identity),
            Plan::AskRestart | Plan::WaitForHistory => None,
            Plan::Answer(settlement) => Some(settlement),
        }
    }

    fn is_committed(&self) -> bool {
        self.wal.iter().any(|record| matches!(record, Record::Commit { who: SUBJECT, .. }))
    }
}

fn steps(informed: bool) -> impl Strategy<Value = Vec<Step>> {
    let crash = (any::<bool>(), any::<bool>())
        .prop_map(move |(postmaster, look)| Step::Crash { postmaster, look: look || informed });
    let by_hand = if informed { Step::Look } else { Step::ResetStatistics };
    let failed =
        (0_u8..10, any::<usize>()).prop_map(move |(die, at)| (die < 3 && !informed).then_some(at));
    let step = prop_oneof![
        6 => any::<bool>().prop_map(|commit| Step::Other { commit }),
        3 => Just(Step::Subject),
        3 => Just(Step::CommitSubject),
        1 => Just(Step::AbortSubject),
        4 => (1_usize..6).prop_map(Step::Flush),
        4 => (1_usize..6).prop_map(Step::Replicate),
        1 => Just(Step::Checkpoint),
        3 => crash,
        1 => Just(by_hand),
        3 => Just(Step::Look),
        2 => (any::<usize>(), failed).prop_map(|(at, failed_at)| Step::Promote { at, failed_at }),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_settlement_contradicts_the_history(
        steps in steps(false),
        lines in 0_usize..20,
        believe_rumour in any::<bool>(),
    ) {
        let mut cluster = Cluster::new();
        let mut refuted = false;
        for step in steps {
            cluster.step(step);
            match cluster.settle(lines, believe_rumour) {
                Some(Settlement::Committed) => prop_assert!(cluster.is_committed()),
                Some(Settlement::NotApplied { why }) => {
                    prop_assert!(!cluster.is_committed(), "{:?}", why);
                    refuted = true;
                }
                Some(Settlement::Unknown { .. }) | None => {}
            }
            prop_assert!(!refuted || !cluster.is_committed(), "it came back");
        }
    }

    #[test]
    fn whoever_looks_after_each_crash_settles_everything(steps in steps(true)) {
        let mut cluster = Cluster::new();
        for step in steps {
            cluster.step(step);
            let Some(note) = cluster.note else { continue };
            let expected = if cluster.is_committed() {
                Some(true)
            } else if cluster.running.get(&note.xid) == Some(&SUBJECT) {
                None
            } else {
                Some(false)
            };
            let found = match cluster.settle(usize::MAX, false) {
                Some(Settlement::Committed) => Some(true),
                Some(Settlement::NotApplied { .. }) => Some(false),
                Some(Settlement::Unknown { why }) => panic!("unknown: {why}"),
                None => None,
            };
            prop_assert_eq!(found, expected);
        }
    }
}
