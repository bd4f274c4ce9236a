//! The routes, and the ones that tell how the service is.

use axum::error_handling::HandleErrorLayer;
use axum::extract::{DefaultBodyLimit, OriginalUri, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{BoxError, Json, Router, middleware};
use leaderpool::Report;
use serde::Deserialize;
use serde_json::{Value, json};
use tower::ServiceBuilder;
use tower::limit::GlobalConcurrencyLimitLayer;
use tower::load_shed::LoadShedLayer;
use tower::load_shed::error::Overloaded;

use crate::deadline::whole_seconds;
use crate::error::ApiError;
use crate::extract::Params;
use crate::{App, events, observe};

const MAX_BODY: usize = 1024 * 1024;

/// At most `max_writes` of them are let in at once, those included that wait for a leader.
pub(crate) fn router(app: App, max_writes: usize) -> Router {
    let refuse = HandleErrorLayer::new(move |error: BoxError| async move {
        let message = format!("{max_writes} writes are under way or wait already (--max-writes)");
        match error.is::<Overloaded>() {
            true => ApiError::unavailable("overloaded", message),
            false => ApiError::unavailable("unavailable", error.to_string()),
        }
    });
    let writes = ServiceBuilder::new()
        .layer(refuse)
        .layer(LoadShedLayer::new())
        .layer(GlobalConcurrencyLimitLayer::new(max_writes));
    Router::new()
        .route("/events", get(events::page).merge(post(events::create).layer(writes)))
        .route("/events/{id}", get(events::by_id))
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/cluster", get(cluster))
        .route("/metrics", get(metrics))
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(app.clone(), observe::observe))
        .with_state(app)
}

/// `GET /health`: this process serves. It says nothing of the database, as to restart this process
/// would not mend that.
async fn health() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

/// The parameters of `GET /ready`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadyParams {
    r#for: Option<Need>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Need {
    Writes,
    Reads,
}

/// `GET /ready`: what would be served without waiting for a member. Where writes would wait, but reads would not,
/// this is 200, and the body says so; with `?for=writes` it is 503.
async fn ready(
    State(app): State<App>,
    Params(params): Params<ReadyParams>,
) -> Result<Response, ApiError> {
    app.schema.ready()?;
    let (writes, reads) = (app.writes.is_ready(), app.reads.is_ready());
    let report = app.pool.report();
    let status = match (writes, reads, params.r#for) {
        (false, _, Some(Need::Writes)) => {
            return Err(ApiError::unavailable("writes_held", report.leader_state));
        }
        (_, false, Some(Need::Reads)) => {
            let message = "no member to read from under the section [read]";
            return Err(ApiError::unavailable("reads_unavailable", message));
        }
        (false, false, None) => {
            let message = format!("no member to read from, and {}", report.leader_state);
            return Err(ApiError::unavailable("unavailable", message));
        }
        (true, true, _) => "ready",
        (true, false, _) => "writes_only",
        (false, true, _) => "reads_only",
    };
    let mut body = json!({
        "status": status, "writes": writes, "reads": reads, "leader": report.leader,
    });
    if let Some(wait) = app.pool.retry_after() {
        body["reason"] = json!(report.leader_state);
        body["retry_after"] = json!(whole_seconds(wait));
    }
    Ok(Json(body).into_response())
}

/// `GET /cluster`: how the pool sees the cluster.
async fn cluster(State(app): State<App>) -> Json<Report> {
    Json(app.pool.report())
}

/// `GET /metrics`
async fn metrics(State(app): State<App>) -> impl IntoResponse {
    let text = app.metrics.render();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

async fn unknown_route(OriginalUri(uri): OriginalUri) -> ApiError {
    let message = format!("there is nothing at {}", uri.path());
    ApiError::new(StatusCode::NOT_FOUND, "unknown_route", message)
}

async fn wrong_method(method: Method, OriginalUri(uri): OriginalUri) -> ApiError {
    let message = format!("{} does not take {method}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}
