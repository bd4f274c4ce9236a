//! Against sockets that answer, answer late, and never answer.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::*;

/// What a request gets.
#[derive(Debug, Clone)]
enum Answer {
    Body(String),
    /// Once there is a permit for it.
    Later(Arc<Semaphore>, String),
    /// The connection stays open, and silent.
    Never,
}

/// A member's REST API on a socket of its own, which says what it is told to.
struct Api {
    url: String,
    cluster: Arc<Mutex<Answer>>,
    /// Requests for `/cluster`.
    asked: Arc<AtomicUsize>,
    _serving: JoinSet<()>,
}

impl Api {
    async fn start(cluster: Answer, status: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let (cluster, asked) = (Arc::new(Mutex::new(cluster)), Arc::new(AtomicUsize::new(0)));
        let mut serving = JoinSet::new();
        let (answer, count) = (Arc::clone(&cluster), Arc::clone(&asked));
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, status) = (Arc::clone(&answer), status.clone());
                connections.spawn(serve(stream, answer, status, Arc::clone(&count)));
            }
        });
        Self { url, cluster, asked, _serving: serving }
    }

    fn say(&self, answer: Answer) {
        *self.cluster.lock().expect("not poisoned") = answer;
    }
}

async fn serve(
    mut stream: TcpStream,
    cluster: Arc<Mutex<Answer>>,
    status: Answer,
    asked: Arc<AtomicUsize>,
) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => request.push(byte),
            Err(_) => return,
        }
    }
    let answer = if request.starts_with(b"GET /cluster ") {
        asked.fetch_add(1, Ordering::Relaxed);
        cluster.lock().expect("not poisoned").clone()
    } else {
        status
    };
    let body = match answer {
        Answer::Body(body) => body,
        Answer::Later(permits, body) => {
            permits.acquire().await.expect("not closed").forget();
            body
        }
        Answer::Never => std::future::pending().await,
    };
    // As Patroni does: no length, and the end of the connection is the end of the answer.
    let text = format!("HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{body}");
    let _ = stream.write_all(text.as_bytes()).await;
}

/// `/cluster` of a cluster of a and b on this timeline, with this leader.
fn cluster(leader: &str, timeline: u32) -> String {
    let member = |name: &str, port: u16| {
        let role = if name == leader { "leader" } else { "replica" };
        format!(
            r#"{{"name":"{name}","role":"{role}","state":"running","host":"127.0.0.1","port":{port},"timeline":{timeline}}}"#
        )
    };
    format!(r#"{{"members":[{},{}]}}"#, member("a", 1), member("b", 2))
}

fn ours() -> Answer {
    Answer::Body(r#"{"database_system_identifier":"7"}"#.into())
}

/// A source at work, and what it says.
struct Following {
    seen: mpsc::Receiver<Observation>,
    endpoints: Arc<ArcSwap<Vec<String>>>,
    _source: JoinSet<()>,
}

impl Following {
    /// Asks often, and is patient: whatever waits for a silent member will be late.
    fn start(apis: &[&Api], timeout: Duration) -> Self {
        let config =
            RestConfig { interval: Duration::from_millis(20), timeout, ..RestConfig::default() };
        let urls = apis.iter().map(|api| api.url.clone()).collect();
        let endpoints = Arc::new(ArcSwap::from_pointee(urls));
        let mut source = RestSource::new(&config, Arc::clone(&endpoints)).expect("a client");
        source.grace = PATIENCE;
        let (out, seen) = mpsc::channel(16);
        let mut tasks = JoinSet::new();
        tasks.spawn(Box::new(source).run(out, CancellationToken::new()));
        Self { seen, endpoints, _source: tasks }
    }

    async fn next(&mut self) -> Observation {
        timeout(Duration::from_secs(10), self.seen.recv())
            .await
            .expect("an observation, long before a silent member's time is up")
            .expect("the source runs")
    }

    /// The leader in the next snapshot, and whose cluster it is.
    async fn next_snapshot(&mut self) -> (Option<String>, Option<SystemId>) {
        loop {
            match self.next().await {
                Observation::Snapshot(snapshot) => {
                    let leader = snapshot.leader.as_ref().map(|leader| leader.name.clone());
                    return (leader, snapshot.system_id);
                }
                Observation::Contact => {}
                Observation::Lost(reason) => panic!("lost: {reason}"),
            }
        }
    }

    async fn expect_contacts(&mut self, count: usize) {
        for _ in 0..count {
            let observation = self.next().await;
            assert!(matches!(observation, Observation::Contact), "{observation:?}");
        }
    }
}

/// Long enough for a local answer on a busy machine.
const PATIENCE: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(60);

fn named(name: &str) -> (Option<String>, Option<SystemId>) {
    (Some(name.into()), Some(SystemId(7)))
}

#[tokio::test]
async fn a_member_that_never_answers_delays_nobody() {
    let silent = Api::start(Answer::Never, Answer::Never).await;
    let good = Api::start(Answer::Body(cluster("a", 1)), ours()).await;
    let mut following = Following::start(&[&silent, &good], LONG);
    assert_eq!(following.next_snapshot().await, named("a"));
    following.expect_contacts(5).await;
    good.say(Answer::Body(cluster("b", 2)));
    assert_eq!(following.next_snapshot().await, named("b"));
    assert_eq!(silent.asked.load(Ordering::Relaxed), 1, "asked again before it has answered");
}

#[tokio::test]
async fn what_a_silent_member_said_last_does_not_outlive_news() {
    let falls_silent = Api::start(Answer::Body(cluster("a", 1)), ours()).await;
    let good = Api::start(Answer::Body(cluster("a", 1)), ours()).await;
    let mut following = Following::start(&[&falls_silent, &good], LONG);
    assert_eq!(following.next_snapshot().await, named("a"));
    falls_silent.say(Answer::Never);
    // Until it was asked once more.
    let before = falls_silent.asked.load(Ordering::Relaxed);
    while falls_silent.asked.load(Ordering::Relaxed) == before {
        following.next().await;
    }
    // The lock is gone, then b has it, before its promotion.
    good.say(Answer::Body(cluster("nobody", 1)));
    assert_eq!(following.next_snapshot().await, (None, Some(SystemId(7))));
    good.say(Answer::Body(cluster("b", 1)));
    assert_eq!(following.next_snapshot().await, named("b"));
}

#[tokio::test]
async fn a_better_answer_is_believed_however_late() {
    let permits = Arc::new(Semaphore::new(0));
    let slow = Api::start(Answer::Later(Arc::clone(&permits), cluster("b", 2)), ours()).await;
    // The fast one is cut off, and goes on telling what it knew.
    let fast = Api::start(Answer::Body(cluster("a", 1)), ours()).await;
    let mut following = Following::start(&[&fast, &slow], LONG);
    assert_eq!(following.next_snapshot().await, named("a"));
    permits.add_permits(1);
    assert_eq!(following.next_snapshot().await, named("b"));
    // Nor is that taken back while the slow one owes its next answer.
    following.expect_contacts(10).await;
}

#[tokio::test]
async fn a_worse_answer_changes_nothing() {
    let permits = Arc::new(Semaphore::new(0));
    let slow = Api::start(Answer::Later(Arc::clone(&permits), cluster("a", 1)), ours()).await;
    let fast = Api::start(Answer::Body(cluster("b", 2)), ours()).await;
    let mut following = Following::start(&[&slow, &fast], LONG);
    assert_eq!(following.next_snapshot().await, named("b"));
    permits.add_permits(1);
    while slow.asked.load(Ordering::Relaxed) < 2 {
        following.expect_contacts(1).await;
    }
    following.expect_contacts(3).await;
}

#[test]
fn the_first_answer_waits_for_the_others() {
    // It may be of a former primary's own agent, which would admit that primary.
    let snapshot = |leader, timeline| {
        let body = cluster(leader, timeline);
        RestCluster::parse(body.as_bytes()).expect("it reads").into_snapshot(None)
    };
    let endpoints = ["x".to_owned(), "y".to_owned()];
    let (mut answers, mut told) = (Answers::default(), Told::default());
    assert_eq!(answers.begin_round(&endpoints).len(), 2);
    assert!(answers.take("x", 1, Ok(snapshot("a", 1))));
    assert!(told.hear(&answers, true, GRACE).is_none() && told.settle_at.is_some());
    assert!(answers.take("y", 1, Ok(snapshot("b", 2))));
    let Some(Observation::Snapshot(said)) = told.hear(&answers, true, GRACE) else {
        panic!("everybody has answered")
    };
    assert_eq!(said.leader.as_ref().expect("a leader").name, "b");
    assert!(told.settle_at.is_none());
    // In later rounds a newer timeline is news at once.
    assert_eq!(answers.begin_round(&endpoints).len(), 2);
    told.in_round = false;
    assert!(answers.take("y", 2, Ok(snapshot("a", 3))));
    assert!(matches!(told.hear(&answers, true, GRACE), Some(Observation::Snapshot(_))));
    // Old timelines are not, nor an answer that nobody waits for any more.
    assert!(answers.take("x", 2, Ok(snapshot("b", 2))));
    assert!(told.hear(&answers, true, GRACE).is_none());
    assert!(!answers.take("x", 2, Ok(snapshot("b", 4))) && !answers.take("z", 2, Err("".into())));
}

#[test]
fn which_answer_is_believed() {
    let snapshot = |leader, timeline| {
        let body = cluster(leader, timeline);
        RestCluster::parse(body.as_bytes()).expect("it reads").into_snapshot(None)
    };
    let endpoints = ["x".to_owned(), "y".to_owned(), "x".to_owned()];
    // In order of the rounds in which they were asked: of x, then of y.
    for (of_x, of_y, same_round, expected) in [
        (("a", 1), ("b", 2), true, "b"),
        (("b", 2), ("a", 1), true, "b"),
        (("b", 2), ("a", 1), false, "b"),
        (("a", 1), ("b", 1), true, "a"),
        (("a", 1), ("b", 1), false, "b"),
        // That nobody leads is news only of a later round, or a newer timeline.
        (("nobody", 1), ("b", 1), true, "b"),
        (("a", 1), ("nobody", 1), true, "a"),
        (("a", 1), ("nobody", 1), false, "none"),
        (("a", 1), ("nobody", 2), true, "none"),
        (("a", 2), ("nobody", 1), false, "a"),
    ] {
        let mut answers = Answers::default();
        assert_eq!(answers.begin_round(&endpoints).len(), 2, "each is asked once");
        let round_of_y = if same_round {
            1
        } else {
            assert!(answers.take("y", 1, Err("too slow".into())));
            assert_eq!(answers.begin_round(&endpoints), [("y".to_owned(), 2)]);
            2
        };
        assert!(answers.take("x", 1, Ok(snapshot(of_x.0, of_x.1))));
        assert!(!answers.round_is_over());
        assert!(answers.take("y", round_of_y, Ok(snapshot(of_y.0, of_y.1))));
        assert!(answers.round_is_over() && answers.all_failed().is_none());
        let (_, best) = answers.best().expect("two answers");
        let leader = best.leader.as_ref().map_or("none", |leader| leader.name.as_str());
        assert_eq!(leader, expected, "{of_x:?}, {of_y:?}, same round: {same_round}");
    }
}

#[tokio::test]
async fn an_agent_whose_server_hangs_still_tells_who_leads() {
    let api = Api::start(Answer::Body(cluster("a", 1)), Answer::Never).await;
    let mut following = Following::start(&[&api], LONG);
    assert_eq!(following.next_snapshot().await, (Some("a".into()), None));
    following.expect_contacts(2).await;
}

#[tokio::test]
async fn nobody_answers() {
    let limit = PATIENCE;
    let silent = Api::start(Answer::Never, ours()).await;
    let garbage = Api::start(Answer::Body("<html>".into()), ours()).await;
    let mut following = Following::start(&[&silent, &garbage], limit);
    let Observation::Lost(reason) = following.next().await else { panic!("they answered") };
    assert!(reason.contains(&silent.url) && reason.contains("no answer within"), "{reason}");
    assert!(reason.contains(&garbage.url) && reason.contains("/cluster is not"), "{reason}");
    // One is back.
    garbage.say(Answer::Body(cluster("a", 1)));
    loop {
        match following.next().await {
            Observation::Snapshot(snapshot) => {
                assert_eq!(snapshot.leader.as_ref().expect("a leader").name, "a");
                break;
            }
            Observation::Lost(_) => {}
            Observation::Contact => panic!("a contact, after it was lost"),
        }
    }
    // And away again.
    garbage.say(Answer::Never);
    while !matches!(following.next().await, Observation::Lost(_)) {}
}

#[tokio::test]
async fn the_list_may_change_at_any_time() {
    let first = Api::start(Answer::Body(cluster("a", 1)), ours()).await;
    let second = Api::start(Answer::Body(cluster("b", 1)), ours()).await;
    let mut following = Following::start(&[&first], LONG);
    assert_eq!(following.next_snapshot().await, named("a"));
    following.endpoints.store(Arc::new(vec![second.url.clone()]));
    assert_eq!(following.next_snapshot().await, named("b"));
    following.endpoints.store(Arc::default());
    loop {
        if let Observation::Lost(reason) = following.next().await {
            assert_eq!(reason, "no member's REST address is known");
            break;
        }
    }
}
