//! What the driver's errors mean.

use crate::client::Client;
use crate::failure::{OperationError, Place};
use crate::retry::{Attempt, Cause, SqlState5};

/// What went wrong, from the driver's error and what the wire and the fence know.
pub(super) fn cause(error: &tokio_postgres::Error, attempt: Attempt, client: &Client) -> Cause {
    if let Some(db) = error.as_db_error() {
        let code = db.code().code().parse::<SqlState5>();
        return match code {
            Ok(code) if db.severity() == "PANIC" => Cause::Panic(code),
            Ok(code) => Cause::Sqlstate(code),
            Err(_) => Cause::Answer,
        };
    }
    let broken = error.is_closed()
        || std::error::Error::source(error).is_some_and(|cause| cause.is::<std::io::Error>());
    match (broken, attempt.sent) {
        (true, _) if client.was_cut() => Cause::Cut,
        (true, _) => Cause::ConnectionLost,
        (false, false) => Cause::Client,
        (false, true) => Cause::Answer,
    }
}

/// The driver's error as an operation's.
pub(super) fn failed(
    error: tokio_postgres::Error,
    attempt: Attempt,
    client: &Client,
    place: &Place,
) -> OperationError {
    let cause = cause(&error, attempt, client);
    let ended = match cause {
        Cause::ConnectionLost | Cause::Cut => client.end_cause(),
        _ => None,
    };
    OperationError::driver(error, cause, attempt, ended, place)
}
