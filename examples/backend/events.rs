//! `/events`: one table, written on the leader and read where the configuration says.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use leaderpool::service::TxRequest;
use leaderpool::tokio_postgres::types::{Json as Jsonb, ToSql};
use leaderpool::tokio_postgres::{Error, Row};
use leaderpool::{Client, OperationError, ReadPolicy};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::timeout_at;
use tower::Service;

use crate::deadline::Deadline;
use crate::error::{ApiError, Served};
use crate::extract::{Body, Id, None as NoParams, Params};
use crate::token::Token;
use crate::{App, statement};

const MAX_KIND: usize = 200;
const MAX_LIMIT: u32 = 500;

/// With casts, so that a table of another shape fails when the statement is prepared, not when a stored
/// event is read back. `created_at` becomes RFC 3339 on the server: no date library is needed here.
macro_rules! columns {
    () => {
        r#"id::bigint, kind::text, payload::jsonb,
           to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"#
    };
}

const INSERT: &str =
    concat!("INSERT INTO events (kind, payload) VALUES ($1, $2) RETURNING ", columns!());
const BY_ID: &str = concat!("SELECT ", columns!(), " FROM events WHERE id = $1");
const PAGE: &str =
    concat!("SELECT ", columns!(), " FROM events WHERE id > $1 ORDER BY id LIMIT $2");

/// What is posted. The payload stays text on its way to `jsonb`, so that no number loses digits.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewEvent {
    kind: String,
    #[serde(default)]
    payload: Box<RawValue>,
}

impl NewEvent {
    fn check(&self) -> Result<(), ApiError> {
        if self.kind.trim().is_empty() {
            return Err(ApiError::invalid_event("kind is empty"));
        }
        if self.kind.chars().count() > MAX_KIND {
            return Err(ApiError::invalid_event(format!(
                "kind is longer than {MAX_KIND} characters"
            )));
        }
        if self.kind.contains('\0') {
            return Err(ApiError::invalid_event("kind contains the character U+0000"));
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct Event {
    id: i64,
    kind: String,
    payload: Box<RawValue>,
    created_at: String,
}

impl Event {
    fn from_row(row: &Row) -> Result<Self, ApiError> {
        let read = || {
            let Jsonb(payload) = row.try_get(2)?;
            Ok(Self {
                id: row.try_get(0)?,
                kind: row.try_get(1)?,
                payload,
                created_at: row.try_get(3)?,
            })
        };
        read().map_err(|error: Error| {
            let message = format!("the table is not as expected: {error}");
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "database_error", message)
        })
    }
}

/// An event, and where this answer comes from.
#[derive(Serialize)]
struct EventAnswer {
    #[serde(flatten)]
    event: Event,
    #[serde(flatten)]
    served: Served,
}

#[derive(Serialize)]
struct PageAnswer {
    events: Vec<Event>,
    /// The `after` of the next page; null where this is the last one.
    next: Option<i64>,
    #[serde(flatten)]
    served: Served,
}

/// `POST /events`
pub(crate) async fn create(
    State(app): State<App>,
    deadline: Deadline,
    _: Params<NoParams>,
    Body(new): Body<NewEvent>,
) -> Result<Response, ApiError> {
    new.check()?;
    app.schema.ready()?;
    let mut writes = app.writes.clone();
    let writes = match timeout_at(app.limits.leader_by(deadline), writes.ready()).await {
        Ok(ready) => ready?,
        Err(_) => return Err(no_leader(&app)),
    };
    // Run again from the start where that is safe, hence the shared event. The deadline is the transaction's own
    // rather than a timeout around it, which could end it in the middle of its commit.
    let new = Arc::new(new);
    let insert = TxRequest::new(move |tx| {
        let new = Arc::clone(&new);
        async move {
            let payload = Jsonb(&new.payload);
            let row = tx.query_one(INSERT, &[&new.kind, &payload]).await?;
            Ok::<_, OperationError>((row, Served::in_transaction(&tx)))
        }
    });
    let committed = writes
        .call(insert.within(deadline.left()))
        .await
        .map_err(|error| statement::write_failed(&error.into_operation_error()))?;
    crate::metrics::event_written();
    let (row, served) = committed.value;
    let event = Event::from_row(&row)?;
    let location = [(header::LOCATION, format!("/events/{}", event.id))];
    let answer = Json(EventAnswer { event, served: served.clone() });
    Ok((StatusCode::CREATED, location, served, Token(committed.token), answer).into_response())
}

fn no_leader(app: &App) -> ApiError {
    let report = app.pool.report();
    let message = format!("no leader in time (--request-timeout): {}", report.leader_state);
    ApiError::unavailable("no_leader", message)
}

/// The parameters of `GET /events`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PageParams {
    #[serde(default = "default_limit")]
    limit: u32,
    #[serde(default)]
    after: i64,
    fresh: Option<Fresh>,
}

fn default_limit() -> u32 {
    50
}

/// `GET /events`
pub(crate) async fn page(
    State(app): State<App>,
    deadline: Deadline,
    headers: HeaderMap,
    token: Token,
    Params(params): Params<PageParams>,
) -> Result<Response, ApiError> {
    if !(1..=MAX_LIMIT).contains(&params.limit) {
        return Err(ApiError::invalid_query(format!("limit is from 1 to {MAX_LIMIT}")));
    }
    if params.after < 0 {
        return Err(ApiError::invalid_query("after is the id of an event, or 0"));
    }
    let from = From::asked_for(params.fresh, &headers, token)?;
    let client = checkout(&app, deadline, &from).await?;
    let select = statement::read(&client, deadline, client.prepare_cached(PAGE)).await?;
    // One more than asked for tells whether there is a next page.
    let limit = i64::from(params.limit) + 1;
    let values: [&(dyn ToSql + Sync); 2] = [&params.after, &limit];
    let rows = statement::read(&client, deadline, client.query(&select, &values)).await?;
    let page = &rows[..rows.len().min(params.limit as usize)];
    let events = page.iter().map(Event::from_row).collect::<Result<Vec<_>, _>>()?;
    let next = if page.len() < rows.len() { events.last().map(|event| event.id) } else { None };
    let served = Served::by(&client);
    Ok((served.clone(), token, Json(PageAnswer { events, next, served })).into_response())
}

/// The parameters of `GET /events/{id}`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ByIdParams {
    fresh: Option<Fresh>,
}

/// `GET /events/{id}`
pub(crate) async fn by_id(
    State(app): State<App>,
    deadline: Deadline,
    headers: HeaderMap,
    token: Token,
    Id(id): Id,
    Params(params): Params<ByIdParams>,
) -> Result<Response, ApiError> {
    let from = From::asked_for(params.fresh, &headers, token)?;
    let mut found = find(&app, deadline, &from, id).await?;
    if found.0.is_none() && matches!(from, From::Configured) {
        // A replica that does not have it may be behind, so the leader decides: an event that was just
        // posted is never "not found", and only misses cost the leader anything. After a token a miss is final.
        found = find(&app, deadline, &From::Leader, id).await?;
    }
    match found {
        (Some(row), served) => {
            let event = Event::from_row(&row)?;
            Ok((served.clone(), token, Json(EventAnswer { event, served })).into_response())
        }
        (None, served) => {
            let message = format!("there is no event {id}");
            Err(ApiError::new(StatusCode::NOT_FOUND, "not_found", message).served(served))
        }
    }
}

async fn find(
    app: &App,
    deadline: Deadline,
    from: &From,
    id: i64,
) -> Result<(Option<Row>, Served), ApiError> {
    let client = checkout(app, deadline, from).await?;
    let select = statement::read(&client, deadline, client.prepare_cached(BY_ID)).await?;
    let row = statement::read(&client, deadline, client.query_opt(&select, &[&id])).await?;
    Ok((row, Served::by(&client)))
}

/// The value of `?fresh=`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Fresh {
    Leader,
}

/// Where a read goes.
enum From {
    /// Where the section `[read]` of the configuration says.
    Configured,
    /// To a server that has what a token asks for.
    After(ReadPolicy),
    Leader,
}

impl From {
    /// The leader for `?fresh=leader` or `x-read: leader`; it has what any token asks for.
    fn asked_for(
        fresh: Option<Fresh>,
        headers: &HeaderMap,
        token: Token,
    ) -> Result<Self, ApiError> {
        match (fresh, headers.get("x-read").map(|value| value.as_bytes())) {
            (_, Some(b"leader")) | (Some(Fresh::Leader), None) => Ok(From::Leader),
            (None, None) => Ok(token.policy().map_or(From::Configured, From::After)),
            (_, Some(_)) => Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                "invalid_header",
                "x-read is `leader`, or is left out",
            )),
        }
    }
}

async fn checkout(app: &App, deadline: Deadline, from: &From) -> Result<Client, ApiError> {
    let checkout = async {
        match from {
            From::Configured => app.pool.read().await,
            From::After(policy) => app.pool.read_with(policy.clone()).await,
            From::Leader => app.pool.read_with(ReadPolicy::leader()).await,
        }
    };
    match timeout_at(deadline.0, checkout).await {
        Ok(client) => Ok(client?),
        Err(_) => Err(ApiError::timeout("no connection to read from")),
    }
}
