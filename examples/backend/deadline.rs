//! One deadline per request, from its head to its answer.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use tokio::time::Instant;

use crate::App;

/// The most that is kept of a request's time for the transaction itself.
const STATEMENT_RESERVE: Duration = Duration::from_secs(2);

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    request: Duration,
    write_timeout: Option<Duration>,
}

impl Limits {
    /// `write_timeout` is the pool's own limit, where the configuration has one.
    pub(crate) fn new(request: Duration, write_timeout: Option<Duration>) -> Self {
        Self { request, write_timeout }
    }

    /// How long a write may wait for the leader. Some time is left for the transaction: one that commits at the
    /// last moment could end with an unknown outcome, one that never began ends with a clear "not stored".
    pub(crate) fn leader_by(&self, deadline: Deadline) -> Instant {
        let reserve = STATEMENT_RESERVE.min(self.request / 4);
        let latest = deadline.0 - reserve;
        self.write_timeout.map_or(latest, |limit| latest.min(Instant::now() + limit))
    }
}

/// When the request must have its answer. The handlers keep it themselves, rather than a layer around
/// them: only they know whether a statement was under way, so what the caller may be told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(pub(crate) Instant);

impl Deadline {
    pub(crate) fn starting_now(limits: &Limits) -> Self {
        Self(Instant::now() + limits.request)
    }

    pub(crate) fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }
}

/// As `Retry-After` has it: rounded up.
pub(crate) fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

impl FromRequestParts<App> for Deadline {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Infallible> {
        // `observe` has set it when the request came in.
        let set = parts.extensions.get().copied();
        Ok(set.unwrap_or_else(|| Self::starting_now(&app.limits)))
    }
}
