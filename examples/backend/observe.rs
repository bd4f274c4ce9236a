//! Around each request: its deadline, its number, its metrics, when to ask again where it was turned away, and a
//! line in the log where it failed.

use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use tokio::time::Instant;

use crate::App;
use crate::deadline::{Deadline, whole_seconds};
use crate::error::Failure;
use crate::metrics;

const REQUEST_ID: &str = "x-request-id";
const MAX_REQUEST_ID: usize = 128;
/// When to ask again after what passes soon.
const MOMENT: Duration = Duration::from_secs(1);

pub(crate) async fn observe(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request_id(&request);
    let method = method(request.method());
    // The pattern, not the path: metrics must not grow with what callers make up.
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let route = route.unwrap_or_else(|| "unknown".to_owned());
    request.extensions_mut().insert(Deadline::starting_now(&app.limits));

    let mut response = next.run(request).await;

    let (status, took) = (response.status(), started.elapsed());
    response.headers_mut().insert("x-instance", app.instance);
    if let Some(failure) = response.extensions().get::<Failure>() {
        let (code, message) = (failure.code, &failure.message);
        // The pool itself logs what makes `/ready` fail, and probes come often.
        if status.is_server_error() && route != "/ready" {
            tracing::warn!(%status, code, %route, method, ?id, ?took, "{message}");
        } else {
            tracing::debug!(%status, code, %route, method, ?id, ?took, "{message}");
        }
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        // What the pool knows of the lease, or a moment where it is not the leader that is missing.
        let wait = app.pool.retry_after().unwrap_or(MOMENT);
        response.headers_mut().insert(RETRY_AFTER, whole_seconds(wait).into());
    }
    response.headers_mut().insert(REQUEST_ID, id);
    metrics::request(route, method, status.as_u16(), took);
    response
}

/// The caller's own, where there is a short one.
fn request_id(request: &Request) -> HeaderValue {
    let given = request.headers().get(REQUEST_ID);
    match given.filter(|id| (1..=MAX_REQUEST_ID).contains(&id.len())) {
        Some(id) => id.clone(),
        None => HeaderValue::from_str(&format!("{:016x}", rand::random::<u64>()))
            .unwrap_or(HeaderValue::from_static("none")),
    }
}

fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}
