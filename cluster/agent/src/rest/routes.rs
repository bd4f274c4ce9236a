//! Which request asks for what. Pure.

use hyper::Method;

use super::answer::Answer;
use super::body::{cluster_body, metrics_text, status_body};
use super::health::{PrimaryRule, health_code, liveness_code, readiness_code};
use super::query::Query;
use super::status::{Moment, NodeStatus};

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// A health path, or any unknown one; without a body for `HEAD` and `OPTIONS`.
    Health {
        /// Whether the status is told as well.
        with_body: bool,
    },
    /// The status, always with 200.
    Patroni,
    /// Whether the loop goes round.
    Liveness,
    /// Whether the node can be used.
    Readiness,
    /// The members.
    Cluster,
    /// The switch points.
    History,
    /// The dynamic configuration.
    Config,
    /// The members to ask when etcd is gone.
    Failsafe,
    /// Metrics for Prometheus.
    Metrics,
    /// Something that changes something.
    Unsafe(Action),
    /// No such method here.
    Unsupported,
}

/// What changes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// `POST /switchover`
    Switchover,
    /// `POST /failover`
    Failover,
    /// `DELETE /switchover`
    CancelSwitchover,
    /// `POST /restart`
    Restart,
    /// `DELETE /restart`
    CancelRestart,
    /// `POST /reload`
    Reload,
    /// `POST /reinitialize`
    Reinitialize,
    /// `PATCH /config`
    PatchConfig,
    /// `PUT /config`
    PutConfig,
    /// `POST /failsafe`
    Failsafe,
}

impl Route {
    /// The route of a request. Only the first segment of the path counts, but for health paths, which are
    /// looked at as a whole.
    #[must_use]
    pub fn of(method: &Method, path: &str) -> Self {
        let segment = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        match (method.as_str(), segment) {
            ("GET", "patroni") => Route::Patroni,
            ("GET", "liveness") => Route::Liveness,
            ("GET", "readiness") => Route::Readiness,
            ("GET", "cluster") => Route::Cluster,
            ("GET", "history") => Route::History,
            ("GET", "config") => Route::Config,
            ("GET", "failsafe") => Route::Failsafe,
            ("GET", "metrics") => Route::Metrics,
            ("GET", _) => Route::Health { with_body: true },
            ("HEAD" | "OPTIONS", _) => Route::Health { with_body: false },
            ("POST", "switchover") => Route::Unsafe(Action::Switchover),
            ("POST", "failover") => Route::Unsafe(Action::Failover),
            ("DELETE", "switchover") => Route::Unsafe(Action::CancelSwitchover),
            ("POST", "restart") => Route::Unsafe(Action::Restart),
            ("DELETE", "restart") => Route::Unsafe(Action::CancelRestart),
            ("POST", "reload") => Route::Unsafe(Action::Reload),
            ("POST", "reinitialize") => Route::Unsafe(Action::Reinitialize),
            ("PATCH", "config") => Route::Unsafe(Action::PatchConfig),
            ("PUT", "config") => Route::Unsafe(Action::PutConfig),
            ("POST", "failsafe") => Route::Unsafe(Action::Failsafe),
            _ => Route::Unsupported,
        }
    }
}

/// The answer to whatever only reads; `None` for what changes something.
#[must_use]
pub fn read_answer(
    route: Route,
    status: &NodeStatus,
    rule: PrimaryRule,
    path: &str,
    query: &Query,
    moment: &Moment,
) -> Option<Answer> {
    let facts = status.cluster.as_deref();
    Some(match route {
        Route::Health { with_body } => {
            let code = health_code(status, rule, path, query, moment);
            match with_body {
                true => Answer::json_body(code, status_body(status, moment.now)),
                false => Answer::code(code),
            }
        }
        Route::Patroni => Answer::json_body(200, status_body(status, moment.now)),
        Route::Liveness => Answer::code(liveness_code(status, moment)),
        Route::Readiness => Answer::code(readiness_code(status, rule, query, moment)),
        Route::Cluster => Answer::json_body(200, cluster_body(status)),
        Route::History => match facts.and_then(|facts| facts.history.as_ref()) {
            Some(history) => Answer::json(200, history),
            None => Answer::json_body(200, b"[]".to_vec()),
        },
        Route::Config => match facts.and_then(|facts| facts.config.as_ref()) {
            Some(config) => Answer::json(200, config),
            None => Answer::text(502, "the dynamic configuration is not known"),
        },
        Route::Failsafe => match facts.and_then(|facts| facts.failsafe.as_ref()) {
            Some(failsafe) => Answer::json(200, failsafe),
            None => Answer::text(502, "there is no list of failsafe members"),
        },
        Route::Metrics => Answer::text(200, metrics_text(status, moment.now)),
        Route::Unsupported => Answer::text(501, "this path does not know this method"),
        Route::Unsafe(_) => return None,
    })
}
