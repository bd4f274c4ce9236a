use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll, Wake, Waker};

use futures_util::future::poll_fn;
use tokio::task::yield_now;
use tokio::time::sleep;

use super::*;

const LONG: Duration = Duration::from_secs(3_600);

/// How often it was woken.
#[derive(Debug, Default)]
struct Alarm(AtomicUsize);

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Alarm {
    fn rings(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// One who stands in line, as a task that is polled by hand.
struct Caller {
    line: Line<Arc<Gate>>,
    alarm: Arc<Alarm>,
}

impl Caller {
    fn at(gate: &Arc<Gate>) -> Self {
        Self { line: Line::new(Arc::clone(gate)), alarm: Arc::default() }
    }

    fn poll(&mut self) -> Poll<Result<(), HoldError>> {
        let waker = Waker::from(Arc::clone(&self.alarm));
        self.line.poll(&mut Context::from_waker(&waker))
    }

    fn is_ready(&mut self) -> bool {
        self.poll() == Poll::Ready(Ok(()))
    }
}

fn gate(max_waiting: usize) -> Arc<Gate> {
    Arc::new(Gate::new(max_waiting, STEP))
}

fn drive(gate: &Arc<Gate>) {
    let gate = Arc::clone(gate);
    tokio::spawn(async move { gate.drive().await });
}

#[tokio::test(start_paused = true)]
async fn an_open_gate_needs_no_place() {
    let gate = gate(1);
    gate.open();
    let mut caller = Caller::at(&gate);
    assert!(caller.is_ready() && caller.is_ready());
    assert!(caller.line.take().is_none());
    assert_eq!((gate.waiting(), gate.peak()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn it_is_woken_in_its_turn_and_keeps_it_for_one_call() {
    let gate = gate(10);
    let mut callers: Vec<Caller> = (0..4).map(|_| Caller::at(&gate)).collect();
    for caller in &mut callers {
        assert!(caller.poll().is_pending() && caller.poll().is_pending());
    }
    assert_eq!(gate.waiting(), 4, "one place each, however often they ask");
    gate.open();
    let rings = |callers: &[Caller]| callers.iter().map(|c| c.alarm.rings()).collect::<Vec<_>>();
    assert_eq!(rings(&callers), [1, 0, 0, 0]);
    assert!(callers[1].poll().is_pending(), "it is not its turn");
    assert!(callers[0].is_ready() && callers[0].is_ready());
    // Ready is not done: the ramp goes on with the call, or its end.
    let permit = callers[0].line.take().expect("its turn");
    assert_eq!(rings(&callers), [1, 0, 0, 0]);
    assert!(callers[0].poll().is_pending(), "one turn, one call: it queues again");
    drop(permit);
    assert_eq!(rings(&callers), [1, 1, 1, 0]);
    assert!(callers[1].is_ready() && callers[2].is_ready());
    // A turn that is not used goes with its owner.
    callers.drain(1..3);
    assert_eq!(rings(&callers), [2, 1]);
    assert!(callers.iter_mut().all(Caller::is_ready));
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_nobody_takes_holds_up_nobody() {
    let gate = gate(10);
    drive(&gate);
    let mut idle = Caller::at(&gate);
    let mut next = Caller::at(&gate);
    assert!(idle.poll().is_pending() && next.poll().is_pending());
    gate.open();
    sleep(STEP + MS).await;
    assert_eq!(next.alarm.rings(), 1);
    assert!(next.is_ready() && gate.is_open());
    assert!(idle.is_ready(), "its turn is still its own");
}

#[tokio::test(start_paused = true)]
async fn a_turn_is_worth_nothing_without_a_leader() {
    let gate = gate(10);
    let mut caller = Caller::at(&gate);
    assert!(caller.poll().is_pending());
    gate.open();
    assert!(caller.is_ready());
    gate.close();
    assert!(caller.poll().is_pending(), "the leader is gone");
    assert_eq!(gate.waiting(), 1);
    gate.open();
    assert_eq!(caller.alarm.rings(), 2);
    assert!(caller.is_ready());
}

#[tokio::test(start_paused = true)]
async fn it_waits_for_its_last_task_only() {
    let gate = gate(10);
    let mut caller = Caller::at(&gate);
    assert!(caller.poll().is_pending());
    let former = std::mem::take(&mut caller.alarm);
    assert!(caller.poll().is_pending());
    gate.open();
    assert_eq!((former.rings(), caller.alarm.rings()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn clones_have_their_own_place_and_drops_leave_none() {
    let gate = gate(10);
    let mut caller = Caller::at(&gate);
    assert!(caller.poll().is_pending());
    let mut twin = Caller { line: caller.line.clone(), alarm: Arc::default() };
    assert_eq!(gate.waiting(), 1, "a clone does not wait before it is asked");
    assert!(twin.poll().is_pending());
    assert_eq!(gate.waiting(), 2);
    drop(caller);
    assert_eq!(gate.waiting(), 1);
    // A call without a turn gives its place up, rather than let it stand there for nobody.
    assert!(twin.line.take().is_none());
    assert_eq!(gate.waiting(), 0);
    gate.open();
    assert!(twin.is_ready() && twin.alarm.rings() == 0);
}

#[tokio::test(start_paused = true)]
async fn where_writers_are_refused_it_stands_behind_them() {
    let gate = gate(1);
    let mut writer = Box::pin(gate.pass(Instant::now() + LONG));
    assert!(futures_util::poll!(writer.as_mut()).is_pending());
    let refused = gate.pass(Instant::now() + LONG).await.map(drop);
    assert_eq!(refused, Err(HoldError::TooMany { limit: 1 }));
    let (mut second, mut third) = (Caller::at(&gate), Caller::at(&gate));
    assert!(second.poll().is_pending());
    // Its call is refused at once.
    assert!(third.is_ready() && third.line.take().is_none());
    gate.open();
    drop(writer.await.expect("let go first"));
    assert_eq!(second.alarm.rings(), 1);
    assert!(second.is_ready());
}

#[tokio::test(start_paused = true)]
async fn shut_it_tells_all_of_them() {
    let gate = gate(10);
    let mut waiting = Caller::at(&gate);
    assert!(waiting.poll().is_pending());
    gate.shut();
    assert_eq!(waiting.alarm.rings(), 1);
    let mut late = Caller::at(&gate);
    for caller in [&mut waiting, &mut late] {
        assert_eq!(caller.poll(), Poll::Ready(Err(HoldError::Closed)));
        assert_eq!(caller.poll(), Poll::Ready(Err(HoldError::Closed)));
    }
}

#[derive(Debug, Clone)]
enum Move {
    New,
    /// Polls it; by number, of those there are.
    Poll(usize),
    /// Polls it with another waker.
    Migrate(usize),
    /// Calls, if it was ready, and ends the call after so many milliseconds.
    Call(usize, u64),
    Drop(usize),
    Clone(usize),
    /// A plain writer comes, and gives up after so many milliseconds.
    Writer(u64),
    Open,
    Close,
    Sleep(u64),
}

fn any_move() -> impl Strategy<Value = Move> {
    prop_oneof![
        4 => Just(Move::New),
        8 => any::<usize>().prop_map(Move::Poll),
        2 => any::<usize>().prop_map(Move::Migrate),
        6 => (any::<usize>(), 0..120_u64).prop_map(|(which, busy)| Move::Call(which, busy)),
        2 => any::<usize>().prop_map(Move::Drop),
        2 => any::<usize>().prop_map(Move::Clone),
        3 => (0..200_u64).prop_map(Move::Writer),
        3 => Just(Move::Open),
        2 => Just(Move::Close),
        3 => (0..80_u64).prop_map(Move::Sleep),
    ]
}

/// What is known of a caller since it was last polled.
struct Known {
    caller: Caller,
    /// The alarm's rings when it was last found pending; none where it was ready, or never asked.
    pending_since: Option<usize>,
    is_ready: bool,
}

async fn play(max: usize, moves: &[Move]) -> Result<(), TestCaseError> {
    let gate = gate(max);
    drive(&gate);
    let mut callers: Vec<Known> = Vec::new();
    let mut admitted = false;
    let mut tasks = tokio::task::JoinSet::new();
    let known = |caller| Known { caller, pending_since: None, is_ready: false };
    for step in moves {
        match step {
            Move::New => callers.push(known(Caller::at(&gate))),
            Move::Poll(which) | Move::Migrate(which) if !callers.is_empty() => {
                let index = which % callers.len();
                let it = &mut callers[index];
                if matches!(step, Move::Migrate(_)) {
                    it.caller.alarm = Arc::default();
                }
                it.is_ready = it.caller.is_ready();
                it.pending_since = (!it.is_ready).then(|| it.caller.alarm.rings());
                let full = gate.waiting() >= 2 * max;
                prop_assert!(!it.is_ready || admitted || full, "ready without a leader");
                prop_assert!(it.is_ready || !gate.is_open(), "pending before an open gate");
            }
            Move::Call(which, busy) if !callers.is_empty() => {
                let index = which % callers.len();
                let it = &mut callers[index];
                if std::mem::take(&mut it.is_ready) {
                    let (permit, busy) = (it.caller.line.take(), Duration::from_millis(*busy));
                    tasks.spawn(async move {
                        sleep(busy).await;
                        drop(permit);
                    });
                }
            }
            Move::Drop(which) if !callers.is_empty() => {
                callers.swap_remove(which % callers.len());
            }
            Move::Clone(which) if !callers.is_empty() => {
                let line = callers[which % callers.len()].caller.line.clone();
                callers.push(known(Caller { line, alarm: Arc::default() }));
            }
            Move::Writer(patience) => {
                let gate = Arc::clone(&gate);
                let deadline = Instant::now() + Duration::from_millis(*patience);
                tasks.spawn(async move {
                    let _ = gate.pass(deadline).await.map(drop);
                });
            }
            Move::Open => {
                gate.open();
                admitted = true;
            }
            Move::Close => {
                gate.close();
                admitted = false;
            }
            Move::Sleep(millis) => sleep(Duration::from_millis(*millis)).await,
            Move::Poll(_) | Move::Migrate(_) | Move::Call(..) | Move::Drop(_) | Move::Clone(_) => {}
        }
        for _ in 0..4 {
            yield_now().await;
        }
        prop_assert!(gate.waiting() <= 2 * max);
        // Nobody who was pending would be ready now without having been woken.
        for it in &mut callers {
            if let Some(before) = it.pending_since
                && it.caller.alarm.rings() == before
            {
                prop_assert!(it.caller.poll().is_pending(), "a lost wake");
            }
        }
    }
    // With a leader who stays, everybody is woken within the ramp's steps, polled or not.
    gate.open();
    sleep(Duration::from_secs(2)).await;
    prop_assert!(gate.is_open() && gate.waiting() == 0);
    for it in &mut callers {
        if let Some(before) = it.pending_since {
            let woken = it.caller.alarm.rings() > before;
            prop_assert!(woken, "never woken");
        }
        prop_assert!(it.caller.is_ready());
    }
    drop(callers);
    gate.close();
    while tasks.join_next().await.is_some() {}
    prop_assert_eq!(gate.waiting(), 0, "a place was left behind");
    let sleepers = gate.with(|inner| (inner.sleepers.len(), Vec::new()));
    prop_assert_eq!(sleepers, 0, "a waker was left behind");
    Ok(())
}

#[test]
fn no_wake_is_lost() {
    let asked_for = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok());
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: asked_for.unwrap_or(300),
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let histories = (1..6_usize, vec(any_move(), 1..120));
    let result = runner.run(&histories, |(max, moves)| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(play(max, &moves))
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn all_get_their_turn_while_it_opens_and_closes() {
    let gate = gate(8);
    drive(&gate);
    let tasks: Vec<_> = (0..64_u64)
        .map(|number| {
            let mut line = Line::new(Arc::clone(&gate));
            tokio::spawn(async move {
                for round in 0..100 {
                    poll_fn(|cx| line.poll(cx)).await.expect("it is not shut");
                    if (number + round) % 3 > 0 {
                        let turn = line.take();
                        yield_now().await;
                        drop(turn);
                    } else {
                        line = line.clone();
                    }
                }
            })
        })
        .collect();
    let limit = Instant::now() + Duration::from_secs(60);
    while !tasks.iter().all(tokio::task::JoinHandle::is_finished) {
        assert!(Instant::now() < limit, "somebody is stuck");
        gate.open();
        sleep(MS).await;
        gate.close();
        sleep(MS).await;
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(gate.waiting(), 0);
}

/// Asks the gate something as it is woken: no lock may be held by then.
struct Reentrant(Arc<Gate>);

impl Wake for Reentrant {
    fn wake(self: Arc<Self>) {
        assert_eq!(self.0.waiting(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_waker_may_ask_the_gate() {
    let gate = gate(10);
    let waker = Waker::from(Arc::new(Reentrant(Arc::clone(&gate))));
    let mut line = Line::new(Arc::clone(&gate));
    assert!(line.poll(&mut Context::from_waker(&waker)).is_pending());
    gate.open();
    assert!(line.poll(&mut Context::from_waker(&waker)).is_ready());
    gate.close();
    drop(line.take());
    assert!(line.poll(&mut Context::from_waker(&waker)).is_pending());
    drop(line);
    gate.shut();
}
