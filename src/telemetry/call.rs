//! The spans around what a caller has the pool do, by OpenTelemetry's conventions for databases.
//!
//! One span covers a call with all its attempts; what it says of the member, the epoch and the attempt is
//! that of the last one. They are made at level DEBUG: where nobody listens there, a call pays one atomic
//! load for its span.

use tracing::field::{Empty, display};
use tracing::{Instrument, Span, debug_span};

use super::Operation;
use super::database::Database;
use super::meter::Meter;
use crate::client::Client;
use crate::error::CheckoutError;
use crate::failure::OperationError;
use crate::retry::{Cause, Outcome};

/// All of them have the same fields.
macro_rules! span {
    ($name:literal, $operation:literal, $database:expr, $sql:expr) => {
        debug_span!(
            $name,
            otel.name = display(format_args!(concat!($operation, " {}"), $database.namespace)),
            otel.kind = "client",
            otel.status_code = Empty,
            db.system.name = "postgresql",
            db.namespace = $database.namespace,
            db.operation.name = $operation,
            db.query.text = $sql,
            db.response.status_code = Empty,
            server.address = $database.address,
            server.port = $database.port,
            network.peer.address = Empty,
            network.peer.port = Empty,
            error.type = Empty,
            leaderpool.pool = $database.pool,
            leaderpool.node = Empty,
            leaderpool.epoch = Empty,
            leaderpool.attempt = Empty,
            leaderpool.outcome = Empty,
        )
    };
}

/// One call, from its beginning to its end.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    operation: Operation,
    span: Span,
    meter: &'a Meter,
}

/// Why a call failed, as far as telemetry goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failed {
    /// No connection was to be had.
    Checkout(&'static str),
    /// This went wrong.
    By(Cause, Outcome),
    /// The closure did not want to go on.
    RolledBack,
}

impl Failed {
    pub(crate) fn of(error: &OperationError) -> Self {
        match (error.cause(), error.checkout_error()) {
            (Some(cause), _) => Failed::By(cause, error.outcome()),
            (None, Some(error)) => Failed::Checkout(refusal(error)),
            (None, None) => Failed::Checkout("_OTHER"),
        }
    }

    fn outcome(self) -> &'static str {
        match self {
            Failed::Checkout(_) | Failed::By(_, Outcome::NotSent) => "not_sent",
            Failed::By(_, Outcome::NotApplied) => "not_applied",
            Failed::By(_, Outcome::Unknown) => "unknown",
            Failed::RolledBack => "rolled_back",
        }
    }
}

impl<'a> Call<'a> {
    /// `sql` only where its values are kept apart from it, as parameters.
    pub(crate) fn begin(
        operation: Operation,
        sql: Option<&str>,
        database: &Database,
        meter: &'a Meter,
    ) -> Self {
        let span = match operation {
            Operation::Transaction => {
                span!("leaderpool.transaction", "transaction", database, sql)
            }
            Operation::ExecuteWrite => {
                span!("leaderpool.execute_write", "execute_write", database, sql)
            }
            Operation::QueryRead => span!("leaderpool.query_read", "query_read", database, sql),
        };
        Self { operation, span, meter }
    }

    /// Runs `work` within the span.
    pub(crate) async fn within<T>(&self, work: impl Future<Output = T>) -> T {
        work.instrument(self.span.clone()).await
    }

    /// An attempt has its connection.
    pub(crate) fn attempt(&self, number: u32, client: &Client) {
        attempt(&self.span, number, client);
    }

    /// It ended.
    pub(crate) fn ended(&self, failed: Option<Failed>) {
        let Some(failed) = failed else {
            self.span.record("leaderpool.outcome", "ok");
            self.meter.done(self.operation);
            return;
        };
        self.span.record("leaderpool.outcome", failed.outcome());
        match failed {
            // As it was asked to: no error of the database.
            Failed::RolledBack => {}
            Failed::Checkout(kind) => error(&self.span, kind),
            Failed::By(Cause::Sqlstate(code) | Cause::Panic(code), _) => {
                self.span.record("db.response.status_code", code.as_str());
                error(&self.span, code.as_str());
            }
            Failed::By(cause, _) => error(&self.span, error_type(cause)),
        }
        self.meter.ended(self.operation, failed.outcome());
    }
}

/// The settling of one commit.
#[derive(Debug)]
pub(crate) struct Settling<'a> {
    span: Span,
    meter: &'a Meter,
}

impl<'a> Settling<'a> {
    pub(crate) fn begin(database: &Database, meter: &'a Meter) -> Self {
        let span = span!("leaderpool.settlement", "settlement", database, None::<&str>);
        Self { span, meter }
    }

    /// Runs `work` within the span.
    pub(crate) async fn within<T>(&self, work: impl Future<Output = T>) -> T {
        work.instrument(self.span.clone()).await
    }

    /// The leader is asked.
    pub(crate) fn attempt(&self, number: u32, client: &Client) {
        attempt(&self.span, number, client);
    }

    /// `committed`, `not_applied` or `unknown`.
    pub(crate) fn ended(&self, result: &'static str) {
        self.span.record("leaderpool.outcome", result);
        if result == "unknown" {
            error(&self.span, "unsettled");
        }
        self.meter.settled(result);
    }
}

fn attempt(span: &Span, number: u32, client: &Client) {
    if span.is_disabled() {
        return;
    }
    let address = client.address();
    span.record("network.peer.address", address.host.as_str());
    span.record("network.peer.port", address.port);
    span.record("leaderpool.node", client.node());
    if let Some(epoch) = client.epoch() {
        span.record("leaderpool.epoch", display(epoch));
    }
    span.record("leaderpool.attempt", number);
}

fn error(span: &Span, kind: &str) {
    span.record("error.type", kind);
    span.record("otel.status_code", "ERROR");
}

/// A cause without a code of the server's.
pub(super) fn error_type(cause: Cause) -> &'static str {
    match cause {
        Cause::ConnectionLost => "connection_lost",
        Cause::TimedOut => "timeout",
        Cause::Cut => "cut",
        Cause::Cancelled => "cancelled",
        Cause::Client => "client",
        Cause::Answer => "answer",
        Cause::Panic(_) => "panic",
        Cause::Sqlstate(_) => "sqlstate",
    }
}

/// Why there was no connection, in a word.
pub(super) fn refusal(error: &CheckoutError) -> &'static str {
    match error {
        CheckoutError::NoLeader { .. } => "no_leader",
        CheckoutError::NoReplica { .. } => "no_replica",
        CheckoutError::Exhausted { .. } => "exhausted",
        CheckoutError::TooManyWaiting { .. } => "too_many_waiting",
        CheckoutError::Refused { .. } => "refused",
        CheckoutError::Token { .. } => "token",
        CheckoutError::Closed => "closed",
    }
}
