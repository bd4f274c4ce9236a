use futures_util::FutureExt;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::sleep;

use super::*;

const LONG: Duration = Duration::from_secs(3_600);

/// When each got through, in milliseconds since the start, in the order in which they did.
type Log = Arc<Mutex<Vec<(usize, u128)>>>;

struct Writers {
    gate: Arc<Gate>,
    log: Log,
    tasks: Vec<JoinHandle<Result<(), HoldError>>>,
    started: Instant,
}

impl Writers {
    /// A gate with its driver.
    fn new(max_waiting: usize) -> Self {
        let gate = Arc::new(Gate::new(max_waiting, STEP));
        let driven = Arc::clone(&gate);
        tokio::spawn(async move { driven.drive().await });
        let (log, tasks) = (Log::default(), Vec::new());
        Self { gate, log, tasks, started: Instant::now() }
    }

    /// Those who wait for at most `limit`, and then take `busy` to get their connection.
    async fn queue_up(&mut self, count: usize, limit: Duration, busy: Duration) {
        for _ in 0..count {
            let (gate, log, number) =
                (Arc::clone(&self.gate), Arc::clone(&self.log), self.tasks.len());
            let (started, deadline) = (self.started, Instant::now() + limit);
            self.tasks.push(tokio::spawn(async move {
                let permit = gate.pass(deadline).await?;
                assert!(permit.was_held());
                log.lock().unwrap().push((number, started.elapsed().as_millis()));
                sleep(busy).await;
                Ok(())
            }));
        }
        settle().await;
    }

    fn order(&self) -> Vec<usize> {
        self.log.lock().unwrap().iter().map(|(number, _)| *number).collect()
    }

    /// How many got through at each moment.
    fn batches(&self) -> Vec<(u128, usize)> {
        let mut batches: Vec<(u128, usize)> = Vec::new();
        for (_, at) in self.log.lock().unwrap().iter() {
            match batches.last_mut() {
                Some((last, count)) if last == at => *count += 1,
                _ => batches.push((*at, 1)),
            }
        }
        batches
    }
}

/// Lets every task run until it waits, without time going on.
async fn settle() {
    for _ in 0..10 {
        yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_ramp_follows_the_batches() {
    let mut writers = Writers::new(100);
    writers.queue_up(64, LONG, 5 * MS).await;
    assert_eq!((writers.gate.waiting(), writers.gate.peak()), (64, 64));
    writers.gate.open();
    sleep(100 * MS).await;
    assert_eq!(writers.order(), (0..64).collect::<Vec<_>>());
    assert_eq!(writers.batches(), [(0, 1), (5, 2), (10, 4), (15, 8), (20, 16), (25, 32), (30, 1)]);
    assert_eq!((writers.gate.waiting(), writers.gate.peak()), (0, 64));
    let passed = writers.gate.pass(Instant::now()).await.expect("it is open");
    assert!(!passed.was_held());
}

#[tokio::test(start_paused = true)]
async fn a_slow_batch_is_waited_for_only_so_long() {
    let mut writers = Writers::new(100);
    writers.queue_up(10, LONG, LONG).await;
    writers.gate.open();
    sleep(300 * MS).await;
    assert_eq!(writers.batches(), [(0, 1), (50, 2), (100, 4), (150, 3)]);
}

#[tokio::test(start_paused = true)]
async fn a_future_that_nobody_polls_holds_up_nobody_else() {
    let mut writers = Writers::new(100);
    let gate = Arc::clone(&writers.gate);
    let mut idle: Vec<_> = (0..3).map(|_| Box::pin(gate.pass(Instant::now() + LONG))).collect();
    for future in &mut idle {
        assert!(future.as_mut().now_or_never().is_none());
    }
    writers.queue_up(3, LONG, MS).await;
    gate.open();
    sleep(300 * MS).await;
    assert_eq!(writers.order(), [0, 1, 2]);
    for future in idle {
        assert!(future.await.is_ok(), "it was let go");
    }
}

#[tokio::test(start_paused = true)]
async fn each_waits_to_its_own_deadline() {
    let writers = Writers::new(100);
    let mut tasks = Vec::new();
    for millis in [700_u64, 20, 300] {
        let gate = Arc::clone(&writers.gate);
        tasks.push(tokio::spawn(async move {
            let started = Instant::now();
            let result = gate.pass(started + Duration::from_millis(millis)).await.map(drop);
            (result, started.elapsed(), Duration::from_millis(millis))
        }));
    }
    for task in tasks {
        let (result, took, limit) = task.await.unwrap();
        assert_eq!((result, took), (Err(HoldError::DeadlinePassed), limit));
    }
    assert_eq!(writers.gate.waiting(), 0);
    let past = writers.gate.pass(Instant::now()).await.map(drop);
    assert_eq!(past, Err(HoldError::DeadlinePassed));
}

#[tokio::test(start_paused = true)]
async fn let_go_at_the_moment_of_the_deadline_is_let_go() {
    let gate = Gate::new(10, STEP);
    let deadline = Instant::now() + 10 * MS;
    let mut waiting = Box::pin(gate.pass(deadline));
    assert!(waiting.as_mut().now_or_never().is_none());
    tokio::time::advance(10 * MS).await;
    gate.open();
    assert!(waiting.await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn who_goes_away_holds_up_nobody() {
    let mut writers = Writers::new(100);
    writers.queue_up(6, LONG, MS).await;
    // The head of the queue, before it is let go.
    writers.tasks[0].abort();
    settle().await;
    assert_eq!(writers.gate.waiting(), 5);
    writers.gate.open();
    // One that was let go, before it knows.
    writers.tasks[1].abort();
    settle().await;
    sleep(20 * MS).await;
    assert_eq!(writers.order(), [2, 3, 4, 5]);
    assert!(writers.gate.pass(Instant::now()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn closed_during_the_ramp_it_holds_the_rest_in_their_order() {
    let mut writers = Writers::new(100);
    writers.queue_up(10, LONG, 5 * MS).await;
    writers.gate.open();
    sleep(7 * MS).await;
    writers.gate.close();
    sleep(500 * MS).await;
    assert_eq!(writers.batches(), [(0, 1), (5, 2)], "those who were let go keep their permission");
    assert_eq!(writers.gate.waiting(), 7);
    writers.gate.open();
    sleep(500 * MS).await;
    assert_eq!(writers.order(), (0..10).collect::<Vec<_>>());
    assert_eq!(writers.batches()[2..], [(507, 1), (512, 2), (517, 4)]);
}

#[tokio::test(start_paused = true)]
async fn one_too_many_is_refused_at_once() {
    let mut writers = Writers::new(3);
    writers.queue_up(3, LONG, MS).await;
    let started = Instant::now();
    let refused = writers.gate.pass(started + LONG).await.map(drop);
    assert_eq!(refused, Err(HoldError::TooMany { limit: 3 }));
    assert_eq!(started.elapsed(), Duration::ZERO);
    assert_eq!(refused.unwrap_err().to_string(), "3 writers are waiting already");
}

#[tokio::test(start_paused = true)]
async fn who_arrives_during_the_ramp_queues_behind() {
    let mut writers = Writers::new(100);
    writers.queue_up(5, LONG, 5 * MS).await;
    writers.gate.open();
    sleep(2 * MS).await;
    writers.queue_up(5, LONG, 5 * MS).await;
    sleep(100 * MS).await;
    assert_eq!(writers.order(), (0..10).collect::<Vec<_>>());
    assert_eq!(writers.batches(), [(0, 1), (5, 2), (10, 4), (15, 3)]);
}

#[tokio::test(start_paused = true)]
async fn shut_it_sends_everybody_away_for_good() {
    let mut writers = Writers::new(100);
    writers.queue_up(4, LONG, MS).await;
    writers.gate.shut();
    for task in writers.tasks {
        assert_eq!(task.await.unwrap(), Err(HoldError::Closed));
    }
    writers.gate.open();
    let late = writers.gate.pass(Instant::now() + LONG).await.map(drop);
    assert_eq!(late, Err(HoldError::Closed));
    assert_eq!(writers.gate.waiting(), 0);
    writers.gate.drive().await;
}

#[tokio::test(start_paused = true)]
async fn an_open_gate_is_shut_too() {
    let gate = Gate::new(1, STEP);
    gate.open();
    gate.shut();
    assert_eq!(gate.pass(Instant::now() + LONG).await.map(drop), Err(HoldError::Closed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_is_lost_while_it_opens_and_closes() {
    let gate = Arc::new(Gate::new(10_000, MS));
    let driven = Arc::clone(&gate);
    tokio::spawn(async move { driven.drive().await });
    let deadline = Instant::now() + Duration::from_secs(60);
    let writers: Vec<_> = (0..64)
        .map(|_| {
            let gate = Arc::clone(&gate);
            tokio::spawn(async move {
                for _ in 0..200 {
                    let permit = gate.pass(deadline).await.expect("let go in time");
                    yield_now().await;
                    drop(permit);
                    // Some give up at once.
                    let _ = gate.pass(deadline).now_or_never();
                }
            })
        })
        .collect();
    while !writers.iter().all(JoinHandle::is_finished) {
        gate.open();
        sleep(MS).await;
        gate.close();
        sleep(MS).await;
    }
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(gate.waiting(), 0);
}

/// Printed, not asserted: `cargo test --release --lib hold -- --nocapture what_an_open_gate_costs`.
#[tokio::test]
async fn what_an_open_gate_costs() {
    const ROUNDS: u32 = 1_000_000;
    let gate = Gate::new(1, STEP);
    gate.open();
    let deadline = Instant::now() + LONG;
    let started = Instant::now();
    for _ in 0..ROUNDS {
        assert!(std::hint::black_box(&gate).pass(deadline).await.is_ok());
    }
    println!("an open gate: {:.1} ns", started.elapsed().as_nanos() as f64 / f64::from(ROUNDS));
}
