//! A modest load on the backends: posts and reads, all the time, each counted.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use leaderpool_testbed::http::{Answer, Http};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};

use crate::cli::events::{Events, Tone};
use crate::cli::place::BackendState;

/// Callers of each backend; each sends one request every `PERIOD`, if its last one is answered.
const WRITERS: u32 = 5;
const READERS: u32 = 12;
const PERIOD: Duration = Duration::from_millis(500);
/// Longer than the backends' own limit.
const PATIENCE: Duration = Duration::from_secs(60);
/// A call that is under way for so long is held.
const HELD: Duration = Duration::from_millis(500);
/// Replicas are never so far behind.
const REPLAYED: Duration = Duration::from_secs(2);
/// Rates and latencies are of the last so long.
const WINDOW: Duration = Duration::from_secs(5);
/// Seconds of history.
pub(super) const HISTORY: usize = 300;

/// Cloning shares it.
#[derive(Clone)]
pub(super) struct Load {
    pub(super) apps: Vec<Arc<App>>,
    acked: Arc<Mutex<History>>,
}

/// One backend.
pub(super) struct App {
    pub(super) name: String,
    pub(super) port: u16,
    http: Http,
    /// What was stored lately, the newest last.
    stored: Mutex<VecDeque<(Instant, i64)>>,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    /// When, whether a write, how long it took; the newest last.
    done: VecDeque<(Instant, bool, Duration)>,
    under_way: BTreeMap<u64, Instant>,
    next: u64,
    retried: u64,
    errors: BTreeMap<String, u64>,
    told: BTreeMap<String, Instant>,
}

/// Acknowledged writes, second by second.
struct History {
    began: Instant,
    seconds: VecDeque<u32>,
    first: u64,
}

impl History {
    fn now(&mut self) -> &mut u32 {
        let second = self.began.elapsed().as_secs();
        while self.first + (self.seconds.len() as u64) <= second {
            self.seconds.push_back(0);
            if self.seconds.len() > HISTORY {
                self.seconds.pop_front();
                self.first += 1;
            }
        }
        self.seconds.back_mut().expect("one was pushed at the latest just now")
    }
}

/// How one backend fares.
#[derive(Debug, Clone, Default)]
pub(super) struct Figures {
    pub(super) per_second: f64,
    pub(super) write: Option<(Duration, Duration)>,
    pub(super) read: Option<(Duration, Duration)>,
    pub(super) held: usize,
    pub(super) longest: Duration,
    pub(super) retried: u64,
    pub(super) errors: u64,
}

impl Load {
    pub(super) fn new(backends: &[BackendState]) -> Self {
        let app = |backend: &BackendState| {
            Arc::new(App {
                name: backend.name.clone(),
                port: backend.port,
                http: Http::plain(backend.port),
                stored: Mutex::default(),
                counts: Mutex::default(),
            })
        };
        let history = History { began: Instant::now(), seconds: VecDeque::new(), first: 0 };
        Self { apps: backends.iter().map(app).collect(), acked: Arc::new(Mutex::new(history)) }
    }

    /// Drives it until dropped.
    pub(super) async fn run(&self, events: &Events) {
        let mut callers = Vec::new();
        let all = (WRITERS + READERS) * u32::try_from(self.apps.len()).unwrap_or(1);
        for app in &self.apps {
            for n in 0..WRITERS + READERS {
                // Spread over the period.
                let begin = PERIOD / all * u32::try_from(callers.len()).unwrap_or(0);
                callers.push(self.caller(app, n < WRITERS, begin, events));
            }
        }
        join_all(callers).await;
    }

    async fn caller(&self, app: &App, writes: bool, begin: Duration, events: &Events) {
        let mut ticks = interval_at(Instant::now() + begin, PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            if writes {
                if app.write(events).await {
                    *self.acked.lock().expect("not poisoned").now() += 1;
                }
            } else {
                app.read(events).await;
            }
        }
    }

    /// Acknowledged writes of each of the last seconds, the newest (which is not over) last.
    pub(super) fn history(&self) -> Vec<u32> {
        let mut history = self.acked.lock().expect("not poisoned");
        history.now();
        history.seconds.iter().copied().collect()
    }
}

impl App {
    /// Posts an event; whether it is acknowledged. What was certainly not stored is sent again.
    async fn write(&self, events: &Events) -> bool {
        let body = json!({"kind": "demo", "payload": {"by": self.name}});
        let call = Call::begin(self);
        loop {
            let answer = self.http.post("/events", &body, PATIENCE).await;
            match &answer {
                Ok(answer) if answer.status == 201 => {
                    let id = answer.json().ok().and_then(|event| event["id"].as_i64());
                    let mut stored = self.stored.lock().expect("not poisoned");
                    stored.push_back((Instant::now(), id.unwrap_or(1)));
                    drop(stored);
                    call.done(true);
                    return true;
                }
                Ok(answer) if answer.status == 503 => self.retry("POST", answer, events).await,
                _ => {
                    self.failed("POST", answer, events);
                    return false;
                }
            }
        }
    }

    async fn read(&self, events: &Events) {
        let path = format!("/events/{}", self.settled());
        let call = Call::begin(self);
        loop {
            let answer = self.http.get(&path, PATIENCE).await;
            match &answer {
                Ok(answer) if [200, 404].contains(&answer.status) => return call.done(false),
                Ok(answer) if answer.status == 503 => self.retry("GET", answer, events).await,
                _ => return self.failed("GET", answer, events),
            }
        }
    }

    /// An event that the replicas have by now. For one that they lack the backend would ask the leader, and wait
    /// for one where there is none.
    fn settled(&self) -> i64 {
        let mut stored = self.stored.lock().expect("not poisoned");
        while stored.get(1).is_some_and(|(at, _)| at.elapsed() > REPLAYED) {
            stored.pop_front();
        }
        stored.front().map_or(1, |(_, id)| *id)
    }

    /// As Retry-After says.
    async fn retry(&self, method: &str, answer: &Answer, events: &Events) {
        self.counts.lock().expect("not poisoned").retried += 1;
        self.tell(Tone::Plain, format!("{method} to be sent again: {}", code(answer)), events);
        sleep(Duration::from_secs(1)).await;
    }

    fn failed(&self, method: &str, answer: anyhow::Result<Answer>, events: &Events) {
        let code = match &answer {
            Ok(answer) => format!("{} {}", answer.status, code(answer)),
            Err(_) => "no answer".to_owned(),
        };
        *self.counts.lock().expect("not poisoned").errors.entry(code.clone()).or_default() += 1;
        self.tell(Tone::Bad, format!("{method} failed: {code}"), events);
    }

    /// The same thing not more than once in two seconds.
    fn tell(&self, tone: Tone, text: String, events: &Events) {
        let mut counts = self.counts.lock().expect("not poisoned");
        let told = counts.told.get(&text);
        if told.is_none_or(|at| at.elapsed() > Duration::from_secs(2)) {
            counts.told.insert(text.clone(), Instant::now());
            events.add(tone, format!("{}: {text}", self.name));
        }
    }

    pub(super) fn figures(&self) -> Figures {
        let now = Instant::now();
        let mut counts = self.counts.lock().expect("not poisoned");
        while counts.done.front().is_some_and(|(at, ..)| now - *at > WINDOW) {
            counts.done.pop_front();
        }
        let took = |write: bool| {
            let mut took: Vec<Duration> =
                counts.done.iter().filter(|d| d.1 == write).map(|d| d.2).collect();
            took.sort();
            let at = |percent: usize| took.get((took.len() * percent / 100).min(took.len() - 1));
            if took.is_empty() { None } else { at(50).copied().zip(at(99).copied()) }
        };
        let ages = || counts.under_way.values().map(|begun| now - *begun);
        #[expect(clippy::cast_precision_loss, reason = "some hundreds")]
        let per_second = counts.done.len() as f64 / WINDOW.as_secs_f64();
        Figures {
            per_second,
            write: took(true),
            read: took(false),
            held: ages().filter(|age| *age >= HELD).count(),
            longest: ages().max().unwrap_or_default(),
            retried: counts.retried,
            errors: counts.errors.values().sum(),
        }
    }
}

/// A call under way, whatever becomes of it.
struct Call<'a> {
    app: &'a App,
    number: u64,
    begun: Instant,
}

impl<'a> Call<'a> {
    fn begin(app: &'a App) -> Self {
        let mut counts = app.counts.lock().expect("not poisoned");
        let (number, begun) = (counts.next, Instant::now());
        counts.next += 1;
        counts.under_way.insert(number, begun);
        drop(counts);
        Self { app, number, begun }
    }

    fn done(self, write: bool) {
        let mut counts = self.app.counts.lock().expect("not poisoned");
        counts.done.push_back((Instant::now(), write, self.begun.elapsed()));
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.app.counts.lock().expect("not poisoned").under_way.remove(&self.number);
    }
}

/// The code of an error, as the backends write it.
pub(in crate::cli) fn code(answer: &Answer) -> String {
    let body: Value = answer.json().unwrap_or_default();
    body["error"]["code"].as_str().unwrap_or("(no code)").to_owned()
}
