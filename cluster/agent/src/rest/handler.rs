//! One request: who asks, for what, and the answer.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;

use super::access::{Access, Caller, Denied, Network};
use super::answer::Answer;
use super::commands::{
    ChangeKind, Command, FailsafeRequest, Reply, Restart, Switchover, SwitchoverOutcome,
};
use super::parse::is_true;
use super::query::Query;
use super::routes::{Action, Route, read_answer};
use super::server::{RestError, RestSources};
use super::settings::RestSettings;
use super::status::{Moment, NodeStatus};
use crate::dcs::BootTime;

/// Commands that may wait for their answers at once.
const COMMANDS: usize = 16;
/// How long names in the allowlist may take to resolve.
const RESOLVE: Duration = Duration::from_secs(2);

/// The settings, made ready.
pub(super) struct Live {
    pub(super) settings: RestSettings,
    pub(super) tls: Option<TlsAcceptor>,
    access: Access,
    networks: Vec<Network>,
    names: Vec<String>,
    headers: HeaderMap,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Live {
    pub(super) fn new(
        settings: RestSettings,
        tls: Option<TlsAcceptor>,
        access: Access,
        networks: Vec<Network>,
        names: Vec<String>,
    ) -> Result<Self, RestError> {
        let mut headers = HeaderMap::new();
        let secure = tls.is_some().then_some(&settings.https_extra_headers);
        for (name, value) in settings.http_extra_headers.iter().chain(secure.into_iter().flatten())
        {
            let fail = |why: String| {
                RestError::Settings(format!("restapi.http_extra_headers: {name:?}: {why}"))
            };
            let key = HeaderName::try_from(name).map_err(|error| fail(error.to_string()))?;
            let value = HeaderValue::try_from(value).map_err(|error| fail(error.to_string()))?;
            headers.insert(key, value);
        }
        Ok(Self { settings, tls, access, networks, names, headers })
    }
}

#[derive(Debug)]
pub(super) struct Handler {
    live: RwLock<Arc<Live>>,
    sources: RestSources,
    commands: Semaphore,
}

/// A time that the connection's deadline is moved to.
type Deadline = watch::Sender<Instant>;

impl Handler {
    pub(super) fn new(live: Live, sources: RestSources) -> Self {
        Self { live: RwLock::new(Arc::new(live)), sources, commands: Semaphore::new(COMMANDS) }
    }

    pub(super) fn live(&self) -> Arc<Live> {
        Arc::clone(&self.live.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn set_live(&self, live: Live) {
        *self.live.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(live);
    }

    pub(super) async fn handle(
        &self,
        request: Request<Incoming>,
        peer: IpAddr,
        has_certificate: bool,
        deadline: &Deadline,
    ) -> Response<Full<Bytes>> {
        let live = self.live();
        let status = self.sources.status.borrow().clone();
        let (path, query) = (request.uri().path(), Query::of(request.uri()));
        let route = Route::of(request.method(), path);
        let moment = Moment { now: BootTime::now(), lock: self.sources.lease.leadership() };
        let rule = live.settings.primary_rule;
        let answer = match read_answer(route, &status, rule, path, &query, &moment) {
            Some(answer) => answer,
            None => {
                let Route::Unsafe(action) = route else {
                    unreachable!("every other route has an answer");
                };
                let caller = Caller {
                    peer,
                    has_certificate,
                    authorization: request
                        .headers()
                        .get(header::AUTHORIZATION)
                        .map(HeaderValue::as_bytes),
                };
                match self.admit(&live, &status, action, &caller).await {
                    Ok(()) => match self.act(request, action, &live, &status, deadline).await {
                        Ok(answer) | Err(answer) => answer,
                    },
                    Err(denied) => denied,
                }
            }
        };
        response(answer, &live.headers)
    }

    async fn admit(
        &self,
        live: &Live,
        status: &NodeStatus,
        action: Action,
        caller: &Caller<'_>,
    ) -> Result<(), Answer> {
        let mut access = live.access.clone();
        // A primary that asks for its life is not judged by a list of members that may be out of date.
        let members = live.settings.allowlist_include_members && action != Action::Failsafe;
        if members || !live.settings.allowlist.is_empty() {
            let mut networks = live.networks.clone();
            if !networks.iter().any(|network| network.contains(caller.peer)) {
                let mut names = live.names.clone();
                if members {
                    names.extend(member_hosts(status));
                }
                networks.extend(resolve(&names).await);
            }
            access.networks = Some(networks);
        }
        access.check(caller).map_err(|denied| match denied {
            Denied::Forbidden(why) => Answer::text(403, why),
            Denied::Unauthorized(why) => Answer::text(401, why)
                .with_header("www-authenticate", "Basic realm=\"leaderpool-agent\"".into()),
        })
    }

    async fn act(
        &self,
        request: Request<Incoming>,
        action: Action,
        live: &Live,
        status: &NodeStatus,
        deadline: &Deadline,
    ) -> Result<Answer, Answer> {
        let now = OffsetDateTime::now_utc();
        let limit = live.settings.command_timeout;
        match action {
            Action::Switchover | Action::Failover => {
                let kind = match action {
                    Action::Switchover => ChangeKind::Switchover,
                    _ => ChangeKind::Failover,
                };
                let body = object(request, false, live).await?;
                let request = Switchover::parse(kind, &body, status, now)?;
                let limit = change_limit(status);
                let command = request.clone();
                let ask = |reply| Command::Switchover { request: command, reply };
                let outcome = match self.ask(ask, limit, deadline).await {
                    Err(Unanswered::TooLate) => SwitchoverOutcome::Unknown,
                    other => other?,
                };
                Ok(request.answer(outcome))
            }
            Action::CancelSwitchover => {
                let ask = |reply| Command::CancelSwitchover { reply };
                Ok(self.ask(ask, limit, deadline).await?.of_switchover())
            }
            Action::Restart => {
                let body = object(request, true, live).await?;
                let request = Restart::parse(&body, now)?;
                let limit = request.timeout.map_or(limit, |timeout| timeout.max(limit));
                let ask = |reply| Command::Restart { request, reply };
                Ok(self.ask(ask, limit, deadline).await?.into())
            }
            Action::CancelRestart => {
                let ask = |reply| Command::CancelRestart { reply };
                Ok(self.ask(ask, limit, deadline).await?.of_restart())
            }
            Action::Reload => {
                self.ask(|reply| Command::Reload { reply }, limit, deadline).await?;
                Ok(Answer::text(202, "reload scheduled"))
            }
            Action::Reinitialize => {
                let body = object(request, true, live).await?;
                let flag = |name: &str| body.get(name).is_some_and(is_true);
                let (force, from_leader) = (flag("force"), flag("from_leader"));
                let ask = |reply| Command::Reinitialize { force, from_leader, reply };
                Ok(self.ask(ask, limit, deadline).await?.into())
            }
            Action::PatchConfig => {
                let patch = object(request, false, live).await?;
                let ask = |reply| Command::PatchConfig { patch, reply };
                Ok(self.ask(ask, limit, deadline).await?.answer(true))
            }
            Action::PutConfig => {
                let config = object(request, false, live).await?;
                let ask = |reply| Command::PutConfig { config, reply };
                Ok(self.ask(ask, limit, deadline).await?.answer(false))
            }
            Action::Failsafe => {
                if !status.mode.failsafe {
                    return Err(Answer::text(502, "failsafe_mode is off"));
                }
                let body = object(request, false, live).await?;
                let request: FailsafeRequest = serde_json::from_value(Value::Object(body))
                    .map_err(|error| {
                        Answer::text(400, format!("not a failsafe request: {error}"))
                    })?;
                let ask = |reply| Command::Failsafe { request, reply };
                Ok(self.ask(ask, limit, deadline).await?.into())
            }
        }
    }

    /// Gives a command to the run loop and waits for its answer.
    async fn ask<T>(
        &self,
        command: impl FnOnce(Reply<T>) -> Command,
        limit: Duration,
        deadline: &Deadline,
    ) -> Result<T, Unanswered> {
        let Ok(_slot) = self.commands.try_acquire() else { return Err(Unanswered::Busy) };
        let (reply, answer) = oneshot::channel();
        match self.sources.commands.try_send(command(reply)) {
            Ok(()) => {}
            Err(tokio::sync::mpsc::error::TrySendError::Full(_)) => return Err(Unanswered::Busy),
            Err(tokio::sync::mpsc::error::TrySendError::Closed(_)) => {
                return Err(Unanswered::Closed);
            }
        }
        // A little more, for the answer that the command took too long.
        deadline.send_replace(Instant::now() + limit + Duration::from_secs(5));
        match timeout(limit, answer).await {
            Ok(Ok(outcome)) => Ok(outcome),
            Ok(Err(_)) => Err(Unanswered::Closed),
            Err(_) => Err(Unanswered::TooLate),
        }
    }
}

/// Why a command has no outcome.
#[derive(Debug, Clone, Copy)]
enum Unanswered {
    Busy,
    Closed,
    TooLate,
}

impl From<Unanswered> for Answer {
    fn from(why: Unanswered) -> Self {
        Answer::text(
            503,
            match why {
                Unanswered::Busy => "the agent has too many commands to do: ask again",
                Unanswered::Closed => "the agent is shutting down",
                Unanswered::TooLate => {
                    "no outcome is known yet: it goes on, look at /patroni and /cluster"
                }
            },
        )
    }
}

/// How long a change of the leader is waited for, and a little more: the run loop gives up first.
fn change_limit(status: &NodeStatus) -> Duration {
    2 * status.loop_wait.max(Duration::from_secs(10)) + Duration::from_secs(5)
}

/// The body: a JSON object. An optional one may be missing or empty.
async fn object(
    request: Request<Incoming>,
    optional: bool,
    live: &Live,
) -> Result<Map<String, Value>, Answer> {
    let length = request.body().size_hint().exact();
    let limit = live.settings.max_body;
    if length == Some(0) {
        return match (optional, request.headers().contains_key(header::CONTENT_LENGTH)) {
            (true, _) => Ok(Map::new()),
            (false, true) => Err(Answer::text(400, "a JSON object is wanted")),
            (false, false) => Err(Answer::text(411, "a body is wanted, and its length")),
        };
    }
    let too_large = || Answer::text(413, format!("the body is larger than {limit} bytes"));
    if length.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let body = Limited::new(request.into_body(), limit).collect();
    let bytes = match timeout(live.settings.client_timeout, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            return Err(too_large());
        }
        Ok(Err(error)) => return Err(Answer::text(400, format!("the body broke off: {error}"))),
        Err(_) => return Err(Answer::text(408, "the body took too long")),
    };
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(object)) if optional || !object.is_empty() => Ok(object),
        Ok(_) => Err(Answer::text(400, "a JSON object is wanted")),
        Err(error) => Err(Answer::text(400, format!("the body is not JSON: {error}"))),
    }
}

/// The hosts in the members' `api_url`.
fn member_hosts(status: &NodeStatus) -> impl Iterator<Item = String> + '_ {
    let members = status.snapshot().into_iter().flat_map(|cluster| cluster.members.values());
    members.filter_map(|member| {
        let uri: hyper::Uri = member.api_url.as_deref()?.parse().ok()?;
        Some(uri.host()?.trim_start_matches('[').trim_end_matches(']').to_owned())
    })
}

async fn resolve(names: &[String]) -> Vec<Network> {
    let lookups = names.iter().map(|name| async move {
        match name.parse::<IpAddr>() {
            Ok(address) => vec![Network::from(address)],
            Err(_) => match timeout(RESOLVE, tokio::net::lookup_host((name.as_str(), 0))).await {
                Ok(Ok(found)) => found.map(|address| Network::from(address.ip())).collect(),
                Ok(Err(_)) | Err(_) => Vec::new(),
            },
        }
    });
    futures_util::future::join_all(lookups).await.concat()
}

fn response(answer: Answer, extra: &HeaderMap) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(answer.body)));
    *response.status_mut() =
        StatusCode::from_u16(answer.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.extend(extra.clone());
    if let Some(kind) = answer.content_type {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    for (name, value) in answer.headers {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    response
}
