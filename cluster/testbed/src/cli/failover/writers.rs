//! Writers that never stop, and the account of what became of their writes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use leaderpool_testbed::http::Http;
use leaderpool_testbed::{postgres, wait};
use serde_json::json;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::seen::{Ack, Seen, What};
use crate::cli::demo::code;
use crate::cli::look::{Role, look};
use crate::cli::place::{BackendState, State};
use crate::cli::say;

const HAPROXY: &str = "HAProxy";
const PAUSE: Duration = Duration::from_millis(50);
/// Writers through each backend.
const EACH: usize = 2;
/// What took so long was held.
const HELD: Duration = Duration::from_secs(1);
/// How long a plain client through HAProxy waits for its answer.
const PLAIN_PATIENCE: Duration = Duration::from_secs(2);
/// Longer than the backends' own limit.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Writers {
    tasks: JoinSet<()>,
    stop: CancellationToken,
    account: Arc<Mutex<Account>>,
    ways: usize,
}

/// What became of the writes, by their way: a backend's, or HAProxy's.
#[derive(Debug, Clone, Default)]
pub(super) struct Account {
    pub(super) run: String,
    pub(super) ways: BTreeMap<String, Way>,
    acknowledged: BTreeSet<i64>,
    unknown: BTreeSet<i64>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Way {
    pub(super) acknowledged: u64,
    pub(super) held: u64,
    pub(super) longest: Duration,
    pub(super) errors: BTreeMap<String, u64>,
    last: Option<Instant>,
    /// The longest time between two acknowledgements.
    pub(super) gap: Duration,
}

impl Way {
    fn acknowledge(&mut self, at: Instant, took: Duration) {
        self.acknowledged += 1;
        self.longest = self.longest.max(took);
        self.held += u64::from(took >= HELD);
        self.gap = self.last.map_or(self.gap, |last| self.gap.max(at - last));
        self.last = Some(at);
    }
}

impl Account {
    /// The backends' ways as one.
    pub(super) fn backends(&self) -> Way {
        let mut all = Way::default();
        for (_, way) in self.ways.iter().filter(|(name, _)| *name != HAPROXY) {
            all.acknowledged += way.acknowledged;
            all.held += way.held;
            all.longest = all.longest.max(way.longest);
            all.gap = all.gap.max(way.gap);
            for (code, count) in &way.errors {
                *all.errors.entry(code.clone()).or_default() += count;
            }
        }
        all
    }

    pub(super) fn haproxy(&self) -> Way {
        self.ways.get(HAPROXY).cloned().unwrap_or_default()
    }
}

/// What a writer needs.
#[derive(Clone)]
struct Desk {
    account: Arc<Mutex<Account>>,
    tell: UnboundedSender<Seen>,
    stop: CancellationToken,
    run: String,
}

impl Desk {
    /// A number for the next write; it is stored with it.
    fn number() -> i64 {
        use std::sync::atomic::{AtomicI64, Ordering};
        static NEXT: AtomicI64 = AtomicI64::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    fn acknowledged(&self, number: i64, ack: Ack) {
        let at = Instant::now();
        {
            let mut account = self.account.lock().expect("not poisoned");
            account.acknowledged.insert(number);
            account.ways.entry(ack.by.clone()).or_default().acknowledge(at, ack.took);
        }
        let _ = self.tell.send(Seen { at, what: What::Acknowledged(ack) });
    }

    fn failed(&self, by: &str, code: String, unknown: Option<i64>) {
        let mut account = self.account.lock().expect("not poisoned");
        account.unknown.extend(unknown);
        let way = account.ways.entry(by.to_owned()).or_default();
        *way.errors.entry(code).or_default() += 1;
    }
}

impl Writers {
    pub(super) fn start(state: &State, tell: &UnboundedSender<Seen>) -> Self {
        let stop = CancellationToken::new();
        let run = format!("failover-{}-{}", std::process::id(), crate::cli::events::now_unix());
        let account = Arc::new(Mutex::new(Account { run: run.clone(), ..Account::default() }));
        let desk = Desk { account: account.clone(), tell: tell.clone(), stop: stop.clone(), run };
        let mut tasks = JoinSet::new();
        for backend in &state.backends {
            for _ in 0..EACH {
                tasks.spawn(through_backend(backend.clone(), desk.clone()));
            }
        }
        tasks.spawn(through_haproxy(state.clone(), desk));
        Self { tasks, stop, account, ways: state.backends.len() + 1 }
    }

    /// Waits until a write was acknowledged on each way.
    pub(super) async fn all_acknowledged(&self) -> Result<()> {
        let every = Duration::from_millis(20);
        wait::until("a first write on each way", Duration::from_secs(15), every, async || {
            let account = self.account.lock().expect("not poisoned");
            let served = account.ways.values().filter(|way| way.acknowledged > 0).count();
            ensure!(served == self.ways, "on {served} of {}: {:?}", self.ways, account.ways);
            Ok(())
        })
        .await
    }

    /// Lets what is under way finish, then hands the account over.
    pub(super) async fn stop(mut self) -> Account {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.account.lock().expect("not poisoned").clone()
    }
}

async fn through_backend(backend: BackendState, desk: Desk) {
    let http = Http::plain(backend.port);
    while !desk.stop.is_cancelled() {
        let number = Desk::number();
        let event = json!({"kind": desk.run, "payload": number});
        let began = Instant::now();
        match http.post("/events", &event, PATIENCE).await {
            Ok(answer) if answer.status == 201 => {
                let body = answer.json().unwrap_or_default();
                let ack = Ack {
                    by: backend.name.clone(),
                    by_haproxy: false,
                    node: body["served_by"].as_str().unwrap_or_default().to_owned(),
                    took: began.elapsed(),
                };
                desk.acknowledged(number, ack);
            }
            Ok(answer) => {
                // A 503 says that nothing was stored.
                let unknown = (answer.status != 503).then_some(number);
                desk.failed(&backend.name, code(&answer), unknown);
                sleep(5 * PAUSE).await;
            }
            Err(_) => {
                desk.failed(&backend.name, "no answer".to_owned(), Some(number));
                sleep(5 * PAUSE).await;
            }
        }
        sleep(PAUSE).await;
    }
}

/// A plain client without a pool: one connection for each write, through the port for writes.
async fn through_haproxy(state: State, desk: Desk) {
    const INSERT: &str = "insert into events (kind, payload) \
        values ($1, to_jsonb($2::bigint)) returning inet_server_port()";
    while !desk.stop.is_cancelled() {
        let number = Desk::number();
        let began = Instant::now();
        let port = state.haproxy.writes;
        let client = postgres::connect(port, postgres::DATABASE, PLAIN_PATIENCE).await;
        let Ok(client) = client else {
            desk.failed(HAPROXY, "connections refused".to_owned(), None);
            sleep(PAUSE).await;
            continue;
        };
        let write = async {
            let row = client.query_one(INSERT, &[&desk.run, &number]).await?;
            anyhow::Ok(row.get::<_, i32>(0))
        };
        match timeout(PLAIN_PATIENCE, write).await {
            Ok(Ok(port)) => {
                let node = state.nodes.iter().find(|node| i32::from(node.postgres) == port);
                let ack = Ack {
                    by: HAPROXY.to_owned(),
                    by_haproxy: true,
                    node: node.map_or_else(String::new, |node| node.name.clone()),
                    took: began.elapsed(),
                };
                desk.acknowledged(number, ack);
            }
            Ok(Err(_)) => desk.failed(HAPROXY, "connections lost".to_owned(), Some(number)),
            Err(_) => desk.failed(HAPROXY, "without an answer".to_owned(), Some(number)),
        }
        sleep(PAUSE).await;
    }
}

/// Holds the account against the table.
pub(super) async fn find_lost(state: &State, account: &Account) -> Result<()> {
    let health = look(state).await;
    let leader = health.members.into_iter().find(|m| m.role == Role::Leader);
    let port = leader.context("no leader")?.postgres;
    let client = postgres::connect(port, postgres::DATABASE, Duration::from_secs(5)).await?;
    let query = "select payload::text::bigint from events where kind = $1";
    let rows = client.query(query, &[&account.run]).await.map_err(|e| anyhow!("{query}: {e}"))?;
    let stored: BTreeSet<i64> = rows.iter().map(|row| row.get(0)).collect();
    let lost = account.acknowledged.difference(&stored).count();
    let all = account.acknowledged.len();
    say(match lost {
        0 => format!("each of the {all} acknowledged writes is in the table of the leader"),
        n => format!(
            "{n} of the {all} acknowledged writes went down with the old leader: replication is asynchronous here"
        ),
    });
    if !account.unknown.is_empty() {
        let found = account.unknown.intersection(&stored).count();
        say(format_args!(
            "of {} the answer was lost, so that nobody could say: {found} of them are in the table",
            account.unknown.len()
        ));
    }
    Ok(())
}
