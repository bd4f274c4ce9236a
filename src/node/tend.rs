//! The care of a member's idle connections: those too old or dead are dropped, those long idle are asked
//! for a sign of life, and where it is wanted some are kept ready.

use std::sync::Arc;
use std::time::Duration;

use deadpool::managed::Object;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::conn::Conn;
use super::idle::Idle;
use super::manager::ConnObject;
use super::member::{Node, give_back, sign_of_life};
use crate::config::PoolConfig;

/// How often it is looked after them, at most and at least.
const OFTEN: Duration = Duration::from_millis(50);
const SELDOM: Duration = Duration::from_secs(1);
/// The pause between two connections that are made ahead of need: a server that was just promoted has enough
/// to do.
const REFILL: Duration = Duration::from_secs(1);
/// The longest pause between two attempts to make a connection that is to be kept ready.
const PATIENCE: Duration = Duration::from_secs(30);

/// Tends them until cancelled.
pub(super) async fn run(
    node: Arc<Node>,
    config: PoolConfig,
    answer_limit: Duration,
    cancel: CancellationToken,
) {
    let mut tick = interval(period(&config));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tender = Tender {
        node,
        config,
        answer_limit,
        idle: Idle::default(),
        next_refill: Instant::now(),
        failures: 0,
    };
    let _ = cancel
        .run_until_cancelled(async {
            loop {
                tokio::select! {
                    _ = tick.tick() => {}
                    () = tender.node.wants_more() => {}
                }
                tender.sweep();
                tender.ask_for_signs().await;
                tender.refill().await;
            }
        })
        .await;
}

fn period(config: &PoolConfig) -> Duration {
    let bounds = [config.idle_timeout, config.keepalive_interval];
    let shortest = bounds.into_iter().filter(|bound| !bound.is_zero()).min();
    shortest.map_or(SELDOM, |bound| (bound / 4).clamp(OFTEN, SELDOM))
}

struct Tender {
    node: Arc<Node>,
    config: PoolConfig,
    answer_limit: Duration,
    idle: Idle,
    next_refill: Instant,
    /// Attempts in a row that made no connection.
    failures: u32,
}

fn id(conn: &Conn) -> usize {
    Arc::as_ptr(conn.wire()) as usize
}

impl Tender {
    /// Drops connections that are dead, and those that were idle for too long and are not to be kept.
    fn sweep(&mut self) {
        self.node.cool_down();
        let status = self.node.status();
        let mut spare = status.available.saturating_sub(self.node.min_idle());
        let mut look = self.idle.look(Instant::now());
        let limit = self.config.idle_timeout;
        let gone = self.node.pool().retain(|conn, metrics| {
            if conn.is_dead() {
                spare = spare.saturating_sub(1);
                return false;
            }
            let too_long = look.see(id(conn), metrics.recycle_count) >= limit;
            let drop = too_long && spare > 0;
            spare -= usize::from(drop);
            !drop
        });
        look.done();
        drop(gone);
    }

    /// Asks those that have been silent for `keepalive_interval`, one after the other; each is out of the pool
    /// for as long as its answer takes.
    async fn ask_for_signs(&mut self) {
        let interval = self.config.keepalive_interval;
        if interval.is_zero() {
            return;
        }
        // As many as there are now, so that this ends.
        for _ in 0..self.node.status().available {
            let now = Instant::now();
            if !self.idle.any_due(interval, now) {
                return;
            }
            let Some(object) = self.take_due(interval, now).await else { return };
            let answer = sign_of_life(&object, now + self.answer_limit).await;
            match answer {
                Ok(()) => {
                    self.node.gave_a_sign(Instant::now());
                    self.idle.gave_a_sign(id(&object), Instant::now());
                    // Not on top: it is as idle as before.
                    let idle = &mut self.idle;
                    self.node.put_below(object, |other| idle.taken_for_care(id(other))).await;
                }
                Err(failure) => {
                    tracing::debug!(node = self.node.name, %failure, "an idle connection is dead");
                    drop(Object::take(object));
                }
            }
        }
    }

    /// Takes one that is due out of the pool; the others are back at once, as they lay.
    async fn take_due(&mut self, interval: Duration, now: Instant) -> Option<ConnObject> {
        let mut all = self.node.take_idle().await;
        all.iter().for_each(|object| self.idle.taken_for_care(id(object)));
        let due = all.iter().rposition(|object| self.idle.is_due(id(object), interval, now));
        let taken = due.map(|due| all.remove(due));
        give_back(all);
        taken
    }

    /// Makes one connection more where fewer are idle than are to be kept ready. With each failure in a row
    /// it waits twice as long for the next attempt.
    async fn refill(&mut self) {
        let status = self.node.status();
        let now = Instant::now();
        if status.available >= self.node.min_idle()
            || status.size >= status.max_size
            || now < self.next_refill
            || !self.node.guard.would_pass()
        {
            return;
        }
        let made = self.node.make_one_more(|object| self.idle.taken_for_care(id(object))).await;
        self.failures = if made { 0 } else { (self.failures + 1).min(10) };
        self.next_refill = Instant::now() + (REFILL * (1 << self.failures)).min(PATIENCE);
    }
}
