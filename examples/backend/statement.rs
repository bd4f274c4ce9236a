//! Running one statement within the deadline, and telling what its failure means.

use axum::http::StatusCode;
use leaderpool::Client;
use leaderpool::tokio_postgres::Error;
use leaderpool::tokio_postgres::error::{DbError, Severity, SqlState};
use tokio::time::timeout_at;

use crate::deadline::Deadline;
use crate::error::{ApiError, Served};

/// For statements that change nothing: whatever happens, the request may be repeated.
pub(crate) async fn read<T>(
    client: &Client,
    deadline: Deadline,
    statement: impl Future<Output = Result<T, Error>>,
) -> Result<T, ApiError> {
    let failure = match timeout_at(deadline.0, statement).await {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => no_effect(client, &error),
        Err(_) => ApiError::timeout(&format!("{} has not answered", client.node())),
    };
    Err(failure.served(Served::by(client)))
}

/// For a statement that commits by itself. Its failure has two meanings: it was not done, or nobody can
/// tell; the second must never look like the first.
pub(crate) async fn write<T>(
    client: &Client,
    deadline: Deadline,
    statement: impl Future<Output = Result<T, Error>>,
) -> Result<T, ApiError> {
    let failure = match timeout_at(deadline.0, statement).await {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) if is_proof_of_no_effect(&error) => no_effect(client, &error),
        Ok(Err(error)) => {
            let cause = client.end_cause().unwrap_or_else(|| describe(&error));
            unknown(StatusCode::INTERNAL_SERVER_ERROR, client, &cause)
        }
        Err(_) => unknown(StatusCode::GATEWAY_TIMEOUT, client, "no answer in time"),
    };
    Err(failure.served(Served::by(client)))
}

/// An ERROR from the server ends the statement and rolls it back. Anything else leaves a doubt: a lost
/// connection, and also a FATAL, as a server that shuts down may have committed already.
fn is_proof_of_no_effect(error: &Error) -> bool {
    const DOUBTFUL: [SqlState; 2] =
        [SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN, SqlState::TRANSACTION_RESOLUTION_UNKNOWN];
    error.as_db_error().is_some_and(|db| {
        db.parsed_severity() == Some(Severity::Error) && !DOUBTFUL.contains(db.code())
    })
}

fn unknown(status: StatusCode, client: &Client, cause: &str) -> ApiError {
    let message = format!(
        "the event was sent to {}, then the answer was lost ({cause}): it may have been stored or not. \
         Look for it before sending it again",
        client.node()
    );
    ApiError::new(status, "outcome_unknown", message)
}

fn no_effect(client: &Client, error: &Error) -> ApiError {
    let node = client.node();
    let Some(db) = error.as_db_error() else {
        let cause = client.end_cause().unwrap_or_else(|| describe(error));
        return ApiError::unavailable("connection_lost", format!("lost {node}: {cause}"));
    };
    let message = format!("{node}: {}", db.message());
    let failure = match db.code() {
        // Not the leader any more; the pool finds the next one.
        &SqlState::READ_ONLY_SQL_TRANSACTION => ApiError::unavailable("read_only", message),
        // A replica that has not replayed the table yet, or a start that has not made it.
        &SqlState::UNDEFINED_TABLE => ApiError::unavailable("starting", message),
        // A replica cancels a query that stands in the way of replay.
        &SqlState::T_R_SERIALIZATION_FAILURE | &SqlState::T_R_DEADLOCK_DETECTED => {
            ApiError::unavailable("conflict", message)
        }
        _ if is_end_of_session(db) => ApiError::unavailable("connection_lost", message),
        // What JSON allows and jsonb does not: \u0000, numbers beyond numeric, very deep nesting.
        code if code.code().starts_with("22") || code.code().starts_with("54") => {
            ApiError::invalid_event(message)
        }
        _ => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "database_error", message),
    };
    failure.sqlstate(db.code().code())
}

fn is_end_of_session(db: &DbError) -> bool {
    matches!(db.parsed_severity(), Some(Severity::Fatal | Severity::Panic))
}

/// The driver's own message says only which kind of failure it was; the cause says which failure.
fn describe(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
