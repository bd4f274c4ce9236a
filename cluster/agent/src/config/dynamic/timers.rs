//! `ttl`, `loop_wait` and `retry_timeout`, and the rule between them.

use std::time::Duration;

use crate::config::diagnostics::{Code, Diagnostic, Severity};
use crate::config::section::{Found, Reading, Section};

/// The times that failover is made of. `loop_wait + 2·retry_timeout ≤ ttl` always holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timers {
    /// How long the leader key outlives its last renewal. Default: 30 s; at least 2 s.
    pub ttl: Duration,
    /// How often the loop runs when nothing else wakes it. Default: 10 s.
    pub loop_wait: Duration,
    /// How long one operation on etcd may take, retries included. Default: 10 s.
    pub retry_timeout: Duration,
    /// What a Patroni member of the same cluster takes for `ttl`, where that is another: it raises less than
    /// 20 s to 20 s.
    pub patroni_ttl: Option<Duration>,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(30),
            loop_wait: Duration::from_secs(10),
            retry_timeout: Duration::from_secs(10),
            patroni_ttl: None,
        }
    }
}

impl Timers {
    /// etcd grants no shorter lease to speak of.
    pub const LEAST_TTL: Duration = Duration::from_secs(2);
    /// The least that Patroni takes.
    pub const PATRONI_LEAST_TTL: Duration = Duration::from_secs(20);

    const LEAST_LOOP_WAIT: Duration = Duration::from_secs(1);
    const LEAST_RETRY_TIMEOUT: Duration = Duration::from_secs(3);

    /// How long one operation on PostgreSQL may take, retries included: half of [`Timers::retry_timeout`].
    #[must_use]
    pub fn postgres_timeout(&self) -> Duration {
        self.retry_timeout / 2
    }

    /// The three as they are wanted, brought under the rule: `loop_wait` is shortened first, `retry_timeout`
    /// only when that is not enough.
    ///
    /// From 20 s upwards the result is Patroni's to the second. Below, where Patroni has no answer, no least
    /// value stands in the way of a short `ttl`: both shrink with it.
    #[must_use]
    pub fn fitted(ttl: Duration, loop_wait: Duration, retry_timeout: Duration) -> Self {
        let ttl = ttl.max(Self::LEAST_TTL);
        let short = ttl < Self::PATRONI_LEAST_TTL;
        let (least_loop, least_retry) = if short {
            let least_loop = Self::LEAST_LOOP_WAIT.min(ttl / 5);
            (least_loop, Self::LEAST_RETRY_TIMEOUT.min((ttl - least_loop) / 2))
        } else {
            (Self::LEAST_LOOP_WAIT, Self::LEAST_RETRY_TIMEOUT)
        };
        let mut loop_wait = loop_wait.max(least_loop);
        let mut retry_timeout = retry_timeout.max(least_retry);
        if least_loop + 2 * retry_timeout > ttl {
            loop_wait = least_loop;
            retry_timeout = (ttl - least_loop) / 2;
            if !short {
                retry_timeout = Duration::from_secs(retry_timeout.as_secs());
            }
        } else if loop_wait + 2 * retry_timeout > ttl {
            loop_wait = ttl - 2 * retry_timeout;
        }
        let patroni_ttl = short.then_some(Self::PATRONI_LEAST_TTL);
        Self { ttl, loop_wait, retry_timeout, patroni_ttl }
    }
}

/// Reads the three.
pub(super) fn read(section: &mut Section<'_>, reading: &mut Reading) -> Timers {
    let default = Timers::default();
    let mut one = |key: &'static str, default: Duration, reading: &mut Reading| {
        let found = section.find(key, reading);
        let value = found.as_ref().and_then(|found| found.seconds(0, reading));
        (value.unwrap_or(default), found)
    };
    let (ttl, ttl_at) = one("ttl", default.ttl, reading);
    let (loop_wait, loop_at) = one("loop_wait", default.loop_wait, reading);
    let (retry_timeout, retry_at) = one("retry_timeout", default.retry_timeout, reading);
    let timers = Timers::fitted(ttl, loop_wait, retry_timeout);

    if let Some(found) = &ttl_at {
        if ttl < Timers::LEAST_TTL {
            let message =
                format!("{} is less than {}, the least", show(ttl), show(Timers::LEAST_TTL));
            reading.warning(Code::OutOfRange, &found.at, message, show(timers.ttl));
        }
        if timers.patroni_ttl.is_some() {
            let message = "less than Patroni's least, 20 s";
            let done = format!(
                "{} for this agent; a Patroni member of the same cluster takes 20 s",
                show(timers.ttl)
            );
            reading.notice(Code::TtlBelowPatroni, &found.at, message, done);
        }
    }
    let changed = timers.loop_wait != loop_wait || timers.retry_timeout != retry_timeout;
    let place: Option<&Found<'_>> = retry_at.as_ref().or(loop_at.as_ref()).or(ttl_at.as_ref());
    if let (true, Some(found)) = (changed, place) {
        let broken = loop_wait + 2 * retry_timeout > timers.ttl;
        let message = if broken {
            format!(
                "loop_wait + 2·retry_timeout is {} + 2·{}, which is more than a ttl of {}",
                show(loop_wait),
                show(retry_timeout),
                show(timers.ttl)
            )
        } else {
            "`loop_wait` is at least 1 s, `retry_timeout` at least 3 s".to_owned()
        };
        let done = format!(
            "loop_wait {}, retry_timeout {}",
            show(timers.loop_wait),
            show(timers.retry_timeout)
        );
        reading.push(
            Diagnostic::new(
                Severity::Notice,
                Code::TimersAdjusted,
                &found.at.origin,
                &found.at.path,
                message,
            )
            .done(done)
            .help("write values that fit, such as 30, 10 and 10"),
        );
    }
    timers
}

fn show(time: Duration) -> String {
    format!("{} s", time.as_secs_f64())
}
