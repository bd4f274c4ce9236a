//! The routes, and the ones that tell how the service is.

use std::time::Duration;

use axum::extract::{DefaultBodyLimit, OriginalUri, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use leaderpool::Report;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::error::{ApiError, Served};
use crate::{App, events, observe};

const MAX_BODY: usize = 1024 * 1024;
/// How long `/ready` tries to read.
const READ_CHECK: Duration = Duration::from_secs(1);

pub(crate) fn router(app: App) -> Router {
    Router::new()
        .route("/events", get(events::page).post(events::create))
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

/// `GET /ready`: both writes and reads would be served at once. While a failover holds writes it is 503,
/// although requests are still accepted, and most of them will be served when it is over.
async fn ready(State(app): State<App>) -> Result<Response, ApiError> {
    let report = app.pool.report();
    let Some(leader) = report.leader else {
        return Err(ApiError::unavailable("writes_held", report.leader_state));
    };
    app.schema.ready()?;
    let unreadable = |reason: String| ApiError::unavailable("reads_unavailable", reason);
    let read = async {
        let client = app.pool.read().await.map_err(|error| unreadable(error.to_string()))?;
        let answer = client.batch_execute("SELECT 1").await;
        answer.map_err(|error| unreadable(format!("{}: {error}", client.node())))?;
        Ok(Served::by(&client))
    };
    let served = timeout(READ_CHECK, read)
        .await
        .unwrap_or_else(|_| Err(unreadable(format!("no answer within {READ_CHECK:?}"))))?;
    Ok((served, Json(json!({ "status": "ready", "leader": leader }))).into_response())
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
