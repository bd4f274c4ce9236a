mod gate;
mod line;

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
const STEP: Duration = STEP_LIMIT;
const NOBODY: [Id; 0] = [];

fn queued(queue: &mut HoldQueue, count: usize) -> Vec<Id> {
    (0..count)
        .map(|_| match queue.arrive() {
            Arrival::Queued(id) => id,
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn it_starts_closed_and_refuses_more_than_may_wait() {
    let now = Instant::now();
    let mut queue = HoldQueue::new(2, STEP);
    let ids = queued(&mut queue, 2);
    assert_eq!(queue.arrive(), Arrival::Full);
    assert!(queue.leave(ids[0]));
    assert!(!queue.leave(ids[0]), "gone already");
    assert!(matches!(queue.arrive(), Arrival::Queued(_)));
    assert_eq!((queue.len(), queue.peak()), (2, 2));
    assert_eq!(queue.open(now).len(), 1);
}

#[test]
fn who_lines_up_stands_behind_those_who_wait() {
    let now = Instant::now();
    let mut queue = HoldQueue::new(2, STEP);
    let ids = queued(&mut queue, 2);
    let Arrival::Queued(third) = queue.line_up() else { panic!("no room behind the queue") };
    assert_eq!(queue.arrive(), Arrival::Full);
    assert!(matches!(queue.line_up(), Arrival::Queued(_)));
    assert_eq!(queue.line_up(), Arrival::Full, "as many again, and no more");
    assert!(queue.leave(ids[1]));
    assert_eq!(queue.open(now), ids[..1]);
    assert_eq!(queue.done(ids[0], now)[0], third, "in the order of arrival");
    assert_eq!(queue.line_up(), Arrival::Passed);
}

#[test]
fn the_peak_of_a_gap_begins_with_those_who_wait_already() {
    let now = Instant::now();
    let mut queue = HoldQueue::new(100, STEP);
    let ids = queued(&mut queue, 5);
    queue.close();
    assert_eq!(queue.gap_peak(), 5, "it was closed already");
    assert_eq!(queue.open(now), ids[..1]);
    queued(&mut queue, 2);
    assert_eq!((queue.gap_peak(), queue.peak()), (6, 6), "who comes during the ramp waits too");
    assert_eq!(queue.tick(now + STEP), ids[1..3]);
    queue.close();
    assert_eq!((queue.gap_peak(), queue.peak()), (4, 6), "another gap, with those left over");
    queued(&mut queue, 1);
    assert_eq!((queue.gap_peak(), queue.peak()), (5, 6));
}

#[test]
fn it_opens_at_once_where_nobody_waits() {
    let mut queue = HoldQueue::new(2, STEP);
    assert_eq!(queue.open(Instant::now()), NOBODY);
    assert_eq!(queue.arrive(), Arrival::Passed);
    queue.close();
    assert!(matches!(queue.arrive(), Arrival::Queued(_)));
}

#[test]
fn the_ramp_doubles_as_batches_report() {
    let now = Instant::now();
    let mut queue = HoldQueue::new(100, STEP);
    let ids = queued(&mut queue, 20);
    assert_eq!(queue.open(now), ids[..1]);
    assert_eq!(queue.open(now), NOBODY, "it ramps already");
    assert_eq!(queue.done(ids[5], now), NOBODY, "it was not let go");
    assert_eq!(queue.done(ids[0], now), ids[1..3]);
    assert_eq!(queue.done(ids[1], now), NOBODY, "one is still busy");
    let late = queued(&mut queue, 1);
    assert_eq!(queue.done(ids[2], now), ids[3..7]);
    assert_eq!(queue.tick(now + STEP - MS), NOBODY);
    assert_eq!(queue.tick(now + STEP), ids[7..15]);
    assert_eq!(queue.done(ids[3], now), NOBODY, "its batch was given up");
    assert_eq!(queue.step_ends(), Some(now + 2 * STEP));
    assert!(!queue.is_open());
    let mut rest = ids[15..].to_vec();
    rest.extend(late);
    assert_eq!(queue.tick(now + 5 * STEP), rest);
    assert!(queue.is_open(), "nobody waits any more");
    assert_eq!(queue.step_ends(), None);
}

#[test]
fn when_the_last_who_wait_leave_it_is_open() {
    let now = Instant::now();
    let mut queue = HoldQueue::new(100, STEP);
    let ids = queued(&mut queue, 2);
    assert_eq!(queue.open(now), ids[..1]);
    assert!(queue.leave(ids[1]));
    assert_eq!(queue.arrive(), Arrival::Passed);
}

#[test]
fn closed_again_it_lets_nobody_go_and_then_starts_with_one() {
    let now = Instant::now();
    let mut queue = HoldQueue::new(100, STEP);
    let ids = queued(&mut queue, 10);
    queue.open(now);
    assert_eq!(queue.done(ids[0], now), ids[1..3]);
    queue.close();
    assert_eq!(queue.done(ids[1], now), NOBODY);
    assert_eq!(queue.done(ids[2], now), NOBODY);
    assert_eq!(queue.tick(now + 10 * STEP), NOBODY);
    assert_eq!(queue.open(now), ids[3..4]);
}

#[derive(Debug, Clone)]
enum Step {
    Arrive,
    LineUp,
    /// One of those who wait.
    Leave(usize),
    /// One of those who were let go.
    Done(usize),
    Open,
    Close,
    Wait(u64),
    Tick,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        9 => Just(Step::Arrive),
        4 => Just(Step::LineUp),
        2 => any::<usize>().prop_map(Step::Leave),
        8 => any::<usize>().prop_map(Step::Done),
        2 => Just(Step::Open),
        1 => Just(Step::Close),
        2 => (0..40_u64).prop_map(Step::Wait),
        2 => Just(Step::Tick),
    ]
}

/// The queue as seen from outside.
struct Watched {
    queue: HoldQueue,
    max: usize,
    waiting: Vec<Id>,
    let_go: Vec<Id>,
    gone: usize,
    arrived: usize,
    /// The next batch's width, who is still busy of the last one, and when that was let go.
    ramp: Option<(usize, BTreeSet<Id>, Instant)>,
    admitted: bool,
    widest: usize,
}

impl Watched {
    /// Checks a batch, which must come if `due`.
    fn batch(&mut self, ids: &[Id], due: bool, now: Instant) -> Result<(), TestCaseError> {
        if !due {
            prop_assert_eq!(ids, NOBODY, "let go out of turn");
            return Ok(());
        }
        let width = self.ramp.as_ref().map_or(1, |(width, ..)| *width);
        let expected: Vec<Id> = self.waiting.iter().copied().take(width).collect();
        prop_assert_eq!(ids, &expected[..], "the first {} in order of arrival", width);
        self.widest = self.widest.max(ids.len());
        self.waiting.drain(..ids.len());
        self.let_go.extend(ids);
        self.ramp = Some((width * 2, ids.iter().copied().collect(), now));
        self.check_ramp_over();
        Ok(())
    }

    fn arrival(&mut self, arrival: Arrival, most: usize) -> Result<(), TestCaseError> {
        let passes = self.admitted && self.waiting.is_empty();
        match arrival {
            Arrival::Passed => prop_assert!(passes, "overtook the others"),
            Arrival::Full => prop_assert!(!passes && self.waiting.len() >= most),
            Arrival::Queued(id) => {
                prop_assert!(!passes && self.waiting.len() < most);
                self.waiting.push(id);
                self.arrived += 1;
            }
        }
        Ok(())
    }

    fn check_ramp_over(&mut self) {
        if self.waiting.is_empty() {
            self.ramp = None;
        }
    }

    fn step(&mut self, step: &Step, now: &mut Instant) -> Result<(), TestCaseError> {
        match step {
            Step::Arrive => {
                let arrival = self.queue.arrive();
                self.arrival(arrival, self.max)?;
            }
            Step::LineUp => {
                let arrival = self.queue.line_up();
                self.arrival(arrival, 2 * self.max)?;
            }
            Step::Leave(which) if !self.waiting.is_empty() => {
                let id = self.waiting.remove(which % self.waiting.len());
                prop_assert!(self.queue.leave(id));
                self.gone += 1;
                self.check_ramp_over();
            }
            Step::Done(which) if !self.let_go.is_empty() => {
                let id = self.let_go.swap_remove(which % self.let_go.len());
                self.gone += 1;
                let due = self
                    .ramp
                    .as_mut()
                    .is_some_and(|(_, busy, _)| busy.remove(&id) && busy.is_empty());
                prop_assert!(!self.queue.leave(id));
                let ids = self.queue.done(id, *now);
                self.batch(&ids, due, *now)?;
            }
            Step::Leave(_) | Step::Done(_) => {}
            Step::Open => {
                let ids = self.queue.open(*now);
                let due = !self.admitted;
                self.admitted = true;
                self.batch(&ids, due, *now)?;
            }
            Step::Close => {
                self.queue.close();
                self.admitted = false;
                self.ramp = None;
            }
            Step::Wait(millis) => *now += Duration::from_millis(*millis),
            Step::Tick => {
                let ids = self.queue.tick(*now);
                let due = self.ramp.as_ref().is_some_and(|(.., since)| *now >= *since + STEP);
                self.batch(&ids, due, *now)?;
            }
        }
        prop_assert_eq!(self.queue.len(), self.waiting.len());
        prop_assert!(self.queue.len() <= 2 * self.max);
        prop_assert_eq!(self.queue.is_open(), self.admitted && self.waiting.is_empty());
        prop_assert_eq!(self.queue.step_ends(), self.ramp.as_ref().map(|(.., at)| *at + STEP));
        prop_assert_eq!(self.arrived, self.waiting.len() + self.let_go.len() + self.gone);
        Ok(())
    }
}

fn run(max: usize, steps: &[Step]) -> Result<usize, TestCaseError> {
    let mut now = Instant::now();
    let mut watched = Watched {
        queue: HoldQueue::new(max, STEP),
        max,
        waiting: Vec::new(),
        let_go: Vec::new(),
        gone: 0,
        arrived: 0,
        ramp: None,
        admitted: false,
        widest: 0,
    };
    for step in steps {
        watched.step(step, &mut now)?;
    }
    // However it stands: with a leader, and everybody done, it empties without a tick.
    watched.step(&Step::Open, &mut now)?;
    while !watched.let_go.is_empty() {
        watched.step(&Step::Done(0), &mut now)?;
    }
    prop_assert!(watched.queue.is_open());
    prop_assert_eq!(watched.gone, watched.arrived);
    Ok(watched.widest)
}

#[test]
fn any_history() {
    let asked_for = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok());
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: asked_for.unwrap_or(400),
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let widest = std::cell::Cell::new(0);
    let histories = (1..40_usize, vec(any_step(), 1..200));
    let result = runner.run(&histories, |(max, steps)| {
        widest.set(widest.get().max(run(max, &steps)?));
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    assert!(widest.get() >= 8, "no ramp got far: {}", widest.get());
}
