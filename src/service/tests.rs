use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};
use tower::limit::ConcurrencyLimitLayer;
use tower::load_shed::error::Overloaded;
use tower::timeout::error::Elapsed;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt};

use super::*;
use crate::Config;
use crate::client::Client;
use crate::failure::OperationError;
use crate::patroni::{Lsn, MemberRole, MemberState, ServerAddress, SystemId, Tags, Timeline};
use crate::topology::{Cadence, MemberHealth, MemberView, ProbeReport};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// A pool whose tasks are ended, so that only the test moves it; but the gate's ramp goes on.
async fn pool(change: impl FnOnce(&mut Config)) -> LeaderPool {
    let mut config = Config::builder().fixed(["127.0.0.1:1"]).user("nobody").build().unwrap();
    change(&mut config);
    let pool = LeaderPool::connect_lazy(config).expect("a pool");
    pool.shared.cancel.cancel();
    pool.shared.tasks.close();
    pool.shared.tasks.wait().await;
    let shared = Arc::clone(&pool.shared);
    tokio::spawn(async move { shared.gate.drive().await });
    pool
}

/// Lets every task run until it waits.
async fn settle() {
    for _ in 0..20 {
        yield_now().await;
    }
}

fn is_shed<T: std::fmt::Debug>(result: Result<T, BoxError>) -> bool {
    result.expect_err("no server is there").is::<Overloaded>()
}

/// The call was made: it waited for the leader to its own deadline, as there is no server in these tests.
fn was_called<T: std::fmt::Debug>(result: Result<T, BoxError>) -> bool {
    let error = result.expect_err("no server is there");
    matches!(error.downcast_ref(), Some(CheckoutError::NoLeader { .. }))
}

fn soon() -> WriteRequest {
    WriteRequest::new().within(SECOND)
}

#[tokio::test(start_paused = true)]
async fn load_shed_refuses_at_once_while_there_is_no_leader() {
    let pool = pool(|_| {}).await;
    let stack = ServiceBuilder::new().load_shed().service(pool.write_service());
    let started = Instant::now();
    assert!(is_shed(stack.clone().oneshot(soon()).await));
    assert_eq!(started.elapsed(), Duration::ZERO);
    assert_eq!(pool.report().held, 0, "who was shed does not wait");
    assert!(!pool.write_service().is_ready());

    pool.shared.gate.open();
    assert!(pool.write_service().is_ready());
    assert!(was_called(stack.clone().oneshot(soon()).await));

    // One that is kept, rather than cloned, asks anew each time.
    let mut kept = stack;
    pool.shared.gate.close();
    assert!(is_shed(kept.ready().await.unwrap().call(soon()).await));
    assert_eq!(pool.report().held, 1, "it keeps its place in the queue");
    pool.shared.gate.open();
    settle().await;
    assert!(was_called(kept.ready().await.unwrap().call(soon()).await));
}

#[tokio::test(start_paused = true)]
async fn load_shed_refuses_behind_a_full_queue() {
    let pool = pool(|config| config.pool.max_waiting = 2).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let pool = pool.clone();
        held.push(tokio::spawn(async move { pool.write_within(5 * SECOND).await.map(drop) }));
    }
    settle().await;
    let refused = pool.write_within(SECOND).await.map(drop);
    assert!(matches!(refused, Err(CheckoutError::TooManyWaiting { limit: 2 })));
    let stack = ServiceBuilder::new().load_shed().service(pool.write_service());
    assert!(is_shed(stack.clone().oneshot(soon()).await));
    // Without that layer they stand behind the queue, as many again; one more is refused.
    let mut behind: Vec<_> = (0..2).map(|_| pool.write_service()).collect();
    for service in &mut behind {
        assert!(service.ready().now_or_never().is_none());
    }
    assert_eq!(pool.report().held, 4);
    let refused = pool.write_service().oneshot(soon()).now_or_never().expect("at once");
    assert!(matches!(refused, Err(CheckoutError::TooManyWaiting { limit: 2 })));
    for writer in held {
        assert!(writer.await.unwrap().is_err());
    }
    assert_eq!(pool.report().held, 2);
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_woken_by_a_leader() {
    let pool = pool(|_| {}).await;
    let mut tasks = tokio::task::JoinSet::new();
    let started = Instant::now();
    for _ in 0..40 {
        let mut service = pool.write_service();
        tasks.spawn(async move {
            // The turn is dropped with the service.
            service.ready().await.map(|_| started.elapsed())
        });
    }
    settle().await;
    assert_eq!(pool.report().held, 40);
    sleep(SECOND).await;
    pool.shared.gate.open();
    while let Some(waited) = tasks.join_next().await {
        let waited = waited.unwrap().expect("not closed");
        assert!((SECOND..SECOND + 400 * MS).contains(&waited), "{waited:?}");
    }
    assert_eq!(pool.report().held, 0);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_counts_the_call() {
    let pool = pool(|_| {}).await;
    let mut stack = ServiceBuilder::new().timeout(SECOND).service(pool.write_service());
    // Not the wait for readiness, which is the caller's to bound.
    assert!(timeout(10 * SECOND, stack.ready()).await.is_err());
    pool.shared.gate.open();
    settle().await;
    let call = stack.ready().await.unwrap().call(WriteRequest::new());
    pool.shared.gate.close();
    let started = Instant::now();
    let error = call.await.expect_err("no leader");
    assert!(error.is::<Elapsed>(), "{error}");
    assert_eq!(started.elapsed(), SECOND);
    assert_eq!((pool.report().held, pool.report().waiting), (0, 0), "dropped, it waits no more");
}

#[tokio::test(start_paused = true)]
async fn a_concurrency_limit_bounds_the_calls() {
    let pool = pool(|_| {}).await;
    let layer = ConcurrencyLimitLayer::new(2);
    let stack = ServiceBuilder::new().layer(layer).service(pool.write_service());
    pool.shared.gate.open();
    let mut first = stack.clone();
    let call = first.ready().await.unwrap().call(soon());
    let mut second = stack.clone();
    second.ready().await.unwrap();
    let mut third = stack.clone();
    assert!(third.ready().now_or_never().is_none(), "one calls, one is ready to");
    drop(second);
    third.ready().await.expect("its place is free");
    let shedding = ServiceBuilder::new().load_shed().service(stack.clone());
    assert!(is_shed(shedding.oneshot(soon()).await));
    assert!(call.await.is_err());
    stack.clone().ready().await.expect("the first has ended");
}

#[tokio::test(start_paused = true)]
async fn a_buffer_holds_calls_until_there_is_a_leader() {
    let pool = pool(|_| {}).await;
    let mut stack = ServiceBuilder::new()
        .timeout(5 * SECOND)
        .load_shed()
        .buffer(4)
        .service(pool.write_service());
    let mut calls = tokio::task::JoinSet::new();
    // One more than the buffer has room for is with the worker.
    for _ in 0..5 {
        calls.spawn(stack.ready().await.unwrap().call(soon()));
        settle().await;
    }
    assert!(is_shed(stack.ready().await.unwrap().call(soon()).await), "the buffer is full");
    assert_eq!(pool.report().held, 1, "the worker waits for all of them");
    sleep(3 * SECOND).await;
    let opened = Instant::now();
    pool.shared.gate.open();
    while let Some(call) = calls.join_next().await {
        assert!(was_called(call.unwrap()));
    }
    assert!(opened.elapsed() <= SECOND);
    // No leader is nothing that a buffer dies of.
    pool.shared.gate.close();
    let error = stack.ready().await.unwrap().call(soon()).await.expect_err("no leader");
    assert!(error.is::<Elapsed>(), "{error}");
    pool.shared.gate.open();
    assert!(was_called(stack.ready().await.unwrap().call(soon()).await));
}

/// Again, as long as it was for want of a leader and there are attempts left.
#[derive(Clone)]
struct Again(usize);

impl tower::retry::Policy<WriteRequest, Client, CheckoutError> for Again {
    type Future = std::future::Ready<()>;

    fn retry(
        &mut self,
        _: &mut WriteRequest,
        result: &mut Result<Client, CheckoutError>,
    ) -> Option<Self::Future> {
        self.0 = self.0.checked_sub(1)?;
        matches!(result, Err(CheckoutError::NoLeader { .. })).then(|| std::future::ready(()))
    }

    fn clone_request(&mut self, request: &WriteRequest) -> Option<WriteRequest> {
        Some(*request)
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_waits_for_readiness_each_time() {
    let pool = pool(|_| {}).await;
    let stack = ServiceBuilder::new().retry(Again(2)).service(pool.write_service());
    pool.shared.gate.open();
    let started = Instant::now();
    let call = tokio::spawn(stack.oneshot(soon()));
    sleep(SECOND / 2).await;
    pool.shared.gate.close();
    sleep(10 * SECOND).await;
    assert!(!call.is_finished(), "the second attempt waits for the next leader");
    assert_eq!(pool.report().held, 1);
    pool.shared.gate.open();
    assert!(call.await.unwrap().is_err());
    // Two whole calls, and most of a third one.
    assert!(started.elapsed() > 12 * SECOND, "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn closed_it_is_an_error_for_all() {
    let pool = pool(|_| {}).await;
    let waiting: Vec<_> = [pool.write_service(), pool.write_service()]
        .into_iter()
        .map(|mut service| tokio::spawn(async move { service.ready().await.map(drop) }))
        .collect();
    let mut reading = pool.read_service(ReadPolicy::any());
    let reading = tokio::spawn(async move { reading.ready().await.map(drop) });
    let mut buffered = ServiceBuilder::new().buffer(4).service(pool.write_service());
    let buffered = tokio::spawn(buffered.ready().await.unwrap().call(soon()));
    settle().await;
    pool.close().await.expect("nothing is out");
    for task in waiting {
        assert!(matches!(task.await.unwrap(), Err(CheckoutError::Closed)));
    }
    assert!(matches!(reading.await.unwrap(), Err(CheckoutError::Closed)));
    let error = buffered.await.unwrap().expect_err("closed");
    assert!(error.to_string().contains("the pool is closed"), "{error}");
    let mut late = pool.transaction_service(TxOptions::new());
    let late = late.ready().await.expect_err("closed");
    assert!(matches!(late, CheckoutError::Closed));
    assert!(!pool.write_service().is_ready() && !pool.read_service(ReadPolicy::any()).is_ready());
}

#[tokio::test(start_paused = true)]
async fn transactions_of_any_kind_go_through_one_stack() {
    let pool = pool(|_| {}).await;
    let stack = ServiceBuilder::new()
        .load_shed()
        .concurrency_limit(2)
        .service(pool.transaction_service(TxOptions::new().within(2 * SECOND)));
    let number = || TxRequest::new(async |_| Ok::<i64, OperationError>(1)).within(SECOND);
    let text = || {
        TxRequest::new(
            |tx: crate::Tx| async move { Ok::<String, OperationError>(tx.node().to_owned()) },
        )
    };
    assert!(is_shed(stack.clone().oneshot(number()).await));
    assert!(is_shed(stack.clone().oneshot(text()).await));
    pool.shared.gate.open();
    let started = Instant::now();
    let failed = |error: BoxError| match error.downcast::<TransactionFailed>() {
        Ok(error) => matches!(
            *error,
            TransactionFailed::Failed(error)
                if matches!(error.checkout_error(), Some(CheckoutError::NoLeader { .. }))
        ),
        Err(error) => panic!("{error}"),
    };
    assert!(failed(stack.clone().oneshot(number()).await.expect_err("no server")));
    assert!(started.elapsed() <= SECOND, "the request's own limit");
    assert!(failed(stack.clone().oneshot(text()).await.expect_err("no server")));
    assert!(started.elapsed() > 2 * SECOND, "the options' limit");
}

type TransactionFailed = crate::TransactionError<OperationError>;

// Reads.

/// A replica that answered at `sent_at`, and held everything until then.
fn replica(name: &str, sent_at: Instant) -> MemberView {
    let report = ProbeReport {
        sent_at,
        round_trip: MS,
        system_id: SystemId(1),
        in_recovery: true,
        timeline: Timeline(1),
        written: None,
        received: Some(Lsn(10)),
        replayed: Some(Lsn(10)),
        replay_age: None,
        started_at: 0,
        server_version: 150_000,
    };
    MemberView {
        name: name.to_owned(),
        address: ServerAddress { host: "127.0.0.1".to_owned(), port: 1 },
        role: MemberRole::Replica,
        state: MemberState("running".to_owned()),
        listed_timeline: None,
        tags: Tags::default(),
        api_url: None,
        health: MemberHealth::Up(report),
        fresh_at: Some(sent_at),
        lag_bytes: Some(0),
        cadence: Cadence::Normal,
    }
}

fn publish(pool: &LeaderPool, members: impl IntoIterator<Item = MemberView>) {
    let shared = &pool.shared;
    let mut view = shared.view.load().as_ref().clone();
    view.version += 1;
    view.members = members.into_iter().map(|m| (m.name.clone(), m)).collect();
    let version = view.version;
    shared.view.store(Arc::new(view));
    shared.changed.send_replace(version);
}

#[tokio::test(start_paused = true)]
async fn reads_are_ready_when_a_member_qualifies() {
    let pool = pool(|_| {}).await;
    let mut tasks = tokio::task::JoinSet::new();
    for policy in [ReadPolicy::any(), ReadPolicy::any().or_wait(), ReadPolicy::any().or_error()] {
        assert!(!pool.read_service(policy.clone()).is_ready());
        let stack = ServiceBuilder::new().load_shed().service(pool.read_service(policy.clone()));
        assert!(is_shed(stack.oneshot(ReadRequest::new()).await));
        let mut service = pool.read_service(policy);
        tasks.spawn(async move { service.ready().await.map(drop) });
    }
    let mut leader = pool.read_service(ReadPolicy::leader());
    assert!(leader.ready().now_or_never().is_none());
    assert_eq!(pool.report().held, 1, "for the leader it queues as writers do");
    settle().await;
    // News that changes nothing for them.
    publish(&pool, []);
    settle().await;
    assert!(tasks.try_join_next().is_none());
    publish(&pool, [replica("a", Instant::now())]);
    settle().await;
    while let Some(ready) = tasks.try_join_next() {
        ready.unwrap().expect("a replica is there");
    }
    assert!(tasks.is_empty());
    assert!(leader.ready().now_or_never().is_none());
    pool.shared.gate.open();
    leader.ready().await.expect("a leader");
    // Ready again means: by what is so now.
    let mut service = pool.read_service(ReadPolicy::any());
    assert!(service.ready().now_or_never().is_some());
    publish(&pool, []);
    assert!(service.ready().now_or_never().is_none() && !service.is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_bound_on_staleness_is_part_of_readiness() {
    let pool = pool(|_| {}).await;
    let policy = ReadPolicy::at_most_behind(SECOND).or_wait();
    publish(&pool, [replica("a", Instant::now())]);
    let mut service = pool.read_service(policy.clone());
    assert!(service.ready().now_or_never().is_some());
    sleep(2 * SECOND).await;
    assert!(service.ready().now_or_never().is_none(), "its data are two seconds old by now");
    let bound = Duration::from_millis(1);
    assert!(pool.shared.demand.ask(bound, Instant::now()), "and 1 s is asked for already");
    let mut any = pool.read_service(ReadPolicy::any());
    assert!(any.ready().now_or_never().is_some());
    let waiting = tokio::spawn(async move { service.ready().await.map(drop) });
    settle().await;
    publish(&pool, [replica("a", Instant::now())]);
    waiting.await.unwrap().expect("fresh again");
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_member_is_gone_with_the_service() {
    let pool = pool(|_| {}).await;
    let before = pool.shared.changed.receiver_count();
    let mut services: Vec<_> = (0..10).map(|_| pool.read_service(ReadPolicy::any())).collect();
    for service in &mut services {
        assert!(service.ready().now_or_never().is_none());
        assert!(service.ready().now_or_never().is_none());
    }
    let clones = services.clone();
    assert_eq!(pool.shared.changed.receiver_count(), before + 10, "one each");
    // A call that was not waited for is a call all the same.
    drop(services[0].call(ReadRequest::new()));
    assert_eq!(pool.shared.changed.receiver_count(), before + 9);
    drop(services);
    assert_eq!(pool.shared.changed.receiver_count(), before);
    drop(clones);
}

#[test]
fn services_can_be_shared() {
    fn is_fit<T: Clone + Send + Sync + 'static>() {}
    is_fit::<WriteService>();
    is_fit::<ReadService>();
    is_fit::<TransactionService>();
}
