//! Synchronous state: a leader plans and carries out steps, which arrive late, are lost, or are cut short by a
//! crash. At every moment whoever may take over has every acknowledged commit.

use std::collections::{BTreeMap, BTreeSet};

use leaderpool::patroni::{Lsn, MemberRole, Tags, Timeline};

use crate::decide::simulation::rng::Rng;
use crate::decide::*;

const STANDBYS: [&str; 4] = ["b", "c", "d", "e"];

#[derive(Debug, Clone)]
struct Standby {
    flushed: u64,
    connected: bool,
    fit: bool,
}

/// A leader `a`, what etcd holds of it, and its standbys.
#[derive(Debug, Clone)]
struct World {
    mode: SyncMode,
    strict: bool,
    count: usize,
    max_lag: Option<u64>,
    written: u64,
    acked: u64,
    standbys: BTreeMap<&'static str, Standby>,
    /// The key in etcd.
    key: Option<(SyncKey, i64)>,
    revision: i64,
    /// The key as the leader sees it, which may be old.
    view: Option<(SyncKey, i64)>,
    /// Writes on their way: the value, the revision it needs, the process and the number of the write.
    sent: Vec<(SyncKey, i64, u32, u32)>,
    process: u32,
    write: u32,
    unanswered: bool,
    settled: Option<i64>,
    names: SyncNames,
    set: SyncNames,
    since: Option<u64>,
    /// Without the care for writes that may arrive late.
    careless: bool,
}

impl World {
    fn new(rng: &mut Rng) -> Self {
        let standby =
            |rng: &mut Rng| Standby { flushed: 100, connected: rng.chance(70), fit: true };
        Self {
            mode: rng.pick(&[SyncMode::On, SyncMode::Quorum]),
            strict: rng.chance(30),
            count: rng.pick(&[1, 1, 2, 3]),
            max_lag: rng.chance(30).then_some(40),
            written: 100,
            acked: 0,
            standbys: STANDBYS.into_iter().map(|name| (name, standby(rng))).collect(),
            key: None,
            revision: 10,
            view: None,
            sent: Vec::new(),
            process: 0,
            write: 0,
            unanswered: false,
            settled: None,
            names: SyncNames::Nobody,
            set: SyncNames::Nobody,
            since: None,
            careless: false,
        }
    }

    fn flushed(&self, name: &str) -> u64 {
        self.standbys.get(name).filter(|standby| standby.connected).map_or(0, |s| s.flushed)
    }

    /// What PostgreSQL acknowledges now.
    fn acknowledge(&mut self) {
        let reached = |count: usize, names: Vec<u64>| {
            let mut names = names;
            names.sort_unstable_by(|a, b| b.cmp(a));
            if count == 0 { self.written } else { names.get(count - 1).copied().unwrap_or(0) }
        };
        let of = |names: &BTreeSet<String>| names.iter().map(|name| self.flushed(name)).collect();
        let acked = match &self.names {
            SyncNames::Nobody | SyncNames::Foreign => self.written,
            SyncNames::Anyone => reached(1, STANDBYS.iter().map(|n| self.flushed(n)).collect()),
            SyncNames::All(names) => reached(names.len(), of(names)),
            SyncNames::Some(count, names) => reached(*count, of(names)),
        };
        // Nothing is promised before the key is there.
        if self.key.is_some() {
            self.acked = self.acked.max(acked.min(self.written));
        }
    }

    fn plan(&self) -> SyncStep {
        let member = |standby: &Standby| MemberSeen {
            running: true,
            initializing: false,
            role: MemberRole::Replica,
            timeline: Some(Timeline(1)),
            lsn: None,
            tags: Tags { nosync: !standby.fit, ..Tags::default() },
            checkpointed: true,
            api_url: None,
        };
        let members =
            self.standbys.iter().map(|(name, s)| ((*name).to_owned(), member(s))).collect();
        let counted = |name: &str| match &self.names {
            SyncNames::Nobody | SyncNames::Foreign => false,
            SyncNames::Anyone => true,
            SyncNames::All(names) | SyncNames::Some(_, names) => names.contains(name),
        };
        let rows: Vec<StandbyRow> = self
            .standbys
            .iter()
            .filter(|(_, standby)| standby.connected)
            .map(|(name, standby)| StandbyRow {
                name: (*name).to_owned(),
                streaming: true,
                counted: counted(name),
                flushed: Lsn(standby.flushed),
            })
            .collect();
        let settled = !self.unanswered && self.view.as_ref().map(|(_, r)| *r) == self.settled;
        plan_sync(&SyncView {
            mode: self.mode,
            strict: self.strict,
            count: self.count,
            max_lag: self.max_lag,
            me: "a",
            key: self.view.as_ref().map(|(key, _)| key),
            settled: settled || self.careless,
            names: &NamesInEffect {
                names: self.names.clone(),
                set: (self.set != self.names && !self.careless).then(|| self.set.clone()),
                since: self.since.map(Lsn),
            },
            standbys: &rows,
            members: &members,
            flushed: Lsn(self.written),
        })
    }

    fn carry_out(&mut self, step: SyncStep) {
        match step {
            SyncStep::Done | SyncStep::Confirm => {}
            SyncStep::SetNames(names) => self.set = names,
            SyncStep::WriteKey(key) => {
                // One that was answered is seen before the next is sent.
                let seen = self.view.as_ref().map_or(0, |(_, revision)| *revision);
                if self.settled.is_none_or(|settled| seen >= settled) {
                    self.write += 1;
                    self.unanswered = true;
                    self.sent.push((key, seen, self.process, self.write));
                }
            }
            SyncStep::DeleteKey => unreachable!("the mode is never off"),
        }
    }

    fn arrives(&mut self, rng: &mut Rng) {
        if self.sent.is_empty() {
            return;
        }
        let at = rng.below(self.sent.len() as u64) as usize;
        let (key, needed, process, write) = self.sent.swap_remove(at);
        if rng.chance(10) {
            return;
        }
        if self.key.as_ref().map_or(0, |(_, revision)| *revision) != needed {
            return;
        }
        self.revision += 1;
        self.key = Some((key, self.revision));
        // Its answer may be lost.
        if rng.chance(80) && process == self.process {
            self.settled = Some(self.revision);
            if write == self.write {
                self.unanswered = false;
            }
        }
    }

    fn happens(&mut self, rng: &mut Rng) {
        let name = rng.pick(&STANDBYS);
        match rng.below(100) {
            0..=14 => self.written += rng.range(1, 30),
            15..=34 => {
                let written = self.written;
                let standby = self.standbys.get_mut(name).expect("there");
                if standby.connected {
                    standby.flushed += rng.below(written - standby.flushed + 1);
                }
            }
            35..=41 => {
                let standby = self.standbys.get_mut(name).expect("there");
                standby.connected = !standby.connected;
            }
            42..=62 => {
                let step = self.plan();
                self.carry_out(step);
            }
            63..=75 => self.arrives(rng),
            76..=83 => self.view.clone_from(&self.key),
            84..=89 => {
                if self.names != self.set {
                    self.names = self.set.clone();
                    self.since = None;
                }
            }
            90..=94 => self.since = self.since.or(Some(self.written)),
            95 => {
                // The agent is killed and begins anew; what it sent is on its way still.
                self.process += 1;
                (self.unanswered, self.settled) = (false, None);
            }
            96 => {
                // So is the server: it reads its configuration, and nobody is connected.
                self.names = self.set.clone();
                self.since = None;
                for standby in self.standbys.values_mut() {
                    standby.connected = false;
                }
            }
            97 => self.count = rng.pick(&[1, 2, 3]),
            98 => {
                self.mode = rng.pick(&[SyncMode::On, SyncMode::Quorum]);
                self.strict = rng.chance(30);
            }
            _ => {
                let standby = self.standbys.get_mut(name).expect("there");
                standby.fit = !standby.fit;
            }
        }
        self.acknowledge();
    }

    /// Who may take over though it lacks an acknowledged commit, were the leader to die now.
    fn loses(&self) -> Option<&'static str> {
        let (key, _) = self.key.as_ref()?;
        STANDBYS.into_iter().find(|candidate| {
            let has = self.standbys[candidate].flushed;
            if has >= self.acked {
                return false;
            }
            let votes = STANDBYS
                .iter()
                .filter(|other| *other != candidate && key.standbys.contains(**other))
                .filter(|other| self.standbys[**other].flushed <= has)
                .count();
            if key.standbys.contains(*candidate) {
                votes >= key.quorum
            } else {
                // As in quorum mode, which a member may believe in longer than the leader does.
                votes > key.quorum
            }
        })
    }
}

fn run(seed: u64, careless: bool) -> Option<String> {
    let mut rng = Rng::new(seed);
    let mut world = World::new(&mut rng);
    world.careless = careless;
    for step in 0..400 {
        let before = world.clone();
        world.happens(&mut rng);
        if let Some(candidate) = world.loses() {
            return Some(format!(
                "seed {seed}, step {step}: {candidate} may take over and lacks commits\n{before:#?}\n{world:#?}"
            ));
        }
    }
    None
}

#[test]
fn whoever_may_take_over_has_every_acknowledged_commit() {
    for seed in 0..4_000 {
        if let Some(wrong) = run(seed, false) {
            panic!("{wrong}");
        }
    }
}

#[test]
fn without_care_for_late_writes_commits_are_lost() {
    assert!((0..4_000).any(|seed| run(seed, true).is_some()), "the test has no teeth");
}

/// Left alone, the plan gets to where it wants to be, and stays there.
#[test]
fn the_plan_comes_to_its_end() {
    for seed in 0..2_000 {
        let mut rng = Rng::new(seed);
        let mut world = World::new(&mut rng);
        for _ in 0..rng.below(300) {
            world.happens(&mut rng);
        }
        let mut done = false;
        for _ in 0..60 {
            // Everything arrives, and everyone who is connected catches up.
            while !world.sent.is_empty() {
                world.arrives(&mut rng);
            }
            world.view.clone_from(&world.key);
            world.names = world.set.clone();
            world.since = Some(world.written);
            for standby in world.standbys.values_mut().filter(|standby| standby.connected) {
                standby.flushed = world.written;
            }
            let step = world.plan();
            done = step == SyncStep::Done;
            world.carry_out(step);
        }
        assert!(done, "seed {seed}: {:?} next, in {world:#?}", world.plan());
        let fit = world.standbys.values().filter(|s| s.connected && s.fit).count();
        let (key, _) = world.key.expect("written");
        let wanted = if world.mode == SyncMode::On { fit.min(world.count) } else { fit };
        assert_eq!(key.standbys.len(), wanted, "seed {seed}");
    }
}

#[test]
fn names_read_back() {
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    for names in [
        SyncNames::Nobody,
        SyncNames::Anyone,
        SyncNames::All(set(&["pg-1", "pg\"2"])),
        SyncNames::Some(1, set(&["a", "b"])),
    ] {
        assert_eq!(SyncNames::parse(&names.to_string()), names);
    }
    assert_eq!(SyncNames::parse("FIRST 1 (a, b)"), SyncNames::Foreign, "not all of them");
    assert_eq!(SyncNames::parse("a, b"), SyncNames::Foreign);
    assert_eq!(SyncNames::parse("any 2 (\"x\", y)"), SyncNames::Some(2, set(&["x", "y"])));
}
