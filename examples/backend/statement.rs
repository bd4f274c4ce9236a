//! What the failure of a statement, or of a transaction, means to the caller.

use axum::http::StatusCode;
use leaderpool::retry::Cause;
use leaderpool::tokio_postgres::Error;
use leaderpool::tokio_postgres::error::{DbError, Severity, SqlState};
use leaderpool::{Client, OperationError, Outcome};
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

/// Of a transaction that was run for as long as it was safe and promising to run it again. Its failure has two
/// meanings: it was not done, or nobody can tell; the second must never look like the first.
pub(crate) fn write_failed(error: &OperationError) -> ApiError {
    if let Some(error) = error.checkout_error() {
        return ApiError::from(error);
    }
    let timed_out = error.cause() == Some(Cause::TimedOut);
    let failure = match (
        error.outcome(),
        error.driver_error().and_then(|error| error.as_db_error()),
    ) {
        (Outcome::Unknown, _) => {
            let status = match timed_out {
                true => StatusCode::GATEWAY_TIMEOUT,
                false => StatusCode::INTERNAL_SERVER_ERROR,
            };
            let message = format!(
                "the event may have been stored or not ({error}): look for it before sending it again"
            );
            ApiError::new(status, "outcome_unknown", message)
        }
        _ if timed_out => ApiError::timeout(&error.to_string()),
        (_, Some(db)) => told(db, error.to_string()),
        (_, None) if matches!(error.cause(), Some(Cause::Client | Cause::Answer)) => {
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "database_error", error.to_string())
        }
        (_, None) => ApiError::unavailable("connection_lost", error.to_string()),
    };
    match Served::at(error) {
        Some(served) => failure.served(served),
        None => failure,
    }
}

fn no_effect(client: &Client, error: &Error) -> ApiError {
    let node = client.node();
    let Some(db) = error.as_db_error() else {
        let cause = client.end_cause().unwrap_or_else(|| describe(error));
        return ApiError::unavailable("connection_lost", format!("lost {node}: {cause}"));
    };
    told(db, format!("{node}: {}", db.message()))
}

/// What the server said, where it had no effect.
fn told(db: &DbError, message: String) -> ApiError {
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
