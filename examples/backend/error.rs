//! What a caller is told when a request fails: `{"error": {"code": …, "message": …}}`.

use axum::Json;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, IntoResponseParts, Response, ResponseParts};
use leaderpool::{CheckoutError, Epoch, OperationError, Tx};
use serde::Serialize;

use crate::token;

/// A failed request. Each 503 means that nothing was stored; `observe` gives it its `Retry-After`.
#[derive(Debug)]
pub(crate) struct ApiError(Box<Failure>);

/// What is in it. It also goes into the response's extensions, for the log.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Failure {
    #[serde(skip)]
    status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    sqlstate: Option<String>,
    #[serde(skip)]
    served: Option<Served>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self(Box::new(Failure { status, code, message, sqlstate: None, served: None }))
    }

    /// A condition that passes: the same request may be sent again as it is.
    pub(crate) fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message)
    }

    pub(crate) fn invalid_event(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_event", message)
    }

    pub(crate) fn invalid_query(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_query", message)
    }

    /// The request's time is over, and it has stored nothing.
    pub(crate) fn timeout(what: &str) -> Self {
        let message = format!("no answer in time: {what} (--request-timeout)");
        Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message)
    }

    pub(crate) fn sqlstate(mut self, sqlstate: &str) -> Self {
        self.0.sqlstate = Some(sqlstate.to_owned());
        self
    }

    pub(crate) fn served(mut self, served: Served) -> Self {
        self.0.served = Some(served);
        self
    }
}

impl From<&CheckoutError> for ApiError {
    /// Nothing was sent to any server.
    fn from(error: &CheckoutError) -> Self {
        let code = match error {
            CheckoutError::Token { token, standing, .. } => {
                match token::refuse(*token, *standing) {
                    Some(refusal) => return refusal,
                    None => "token_unknown",
                }
            }
            CheckoutError::NoLeader { .. } => "no_leader",
            CheckoutError::NoReplica { .. } => "no_replica",
            CheckoutError::Exhausted { .. } => "pool_exhausted",
            CheckoutError::TooManyWaiting { .. } => "too_many_waiting",
            CheckoutError::Refused { .. } => "refused",
            CheckoutError::Closed => "shutting_down",
            _ => "unavailable",
        };
        Self::unavailable(code, error.to_string())
    }
}

impl From<CheckoutError> for ApiError {
    fn from(error: CheckoutError) -> Self {
        Self::from(&error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let failure = *self.0;
        let body = Json(serde_json::json!({ "error": &failure }));
        let mut response = (failure.status, failure.served.clone(), body).into_response();
        response.extensions_mut().insert(failure);
        response
    }
}

/// Which node served an answer, and in which epoch: `x-served-by` and `x-epoch`, and in the JSON of
/// what came from the database `served_by` and `epoch`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Served {
    served_by: String,
    /// Timeline and revision of the leader key, as `3.1841`; not for sorting as text.
    epoch: Option<String>,
}

impl Served {
    pub(crate) fn by(client: &leaderpool::Client) -> Self {
        Self::new(client.node(), client.epoch())
    }

    pub(crate) fn in_transaction(tx: &Tx) -> Self {
        Self::new(tx.node(), tx.epoch())
    }

    /// Where an operation failed, if it got that far.
    pub(crate) fn at(error: &OperationError) -> Option<Self> {
        Some(Self::new(error.node()?, error.epoch()))
    }

    fn new(node: &str, epoch: Option<Epoch>) -> Self {
        Self { served_by: node.to_owned(), epoch: epoch.map(|epoch| epoch.to_string()) }
    }
}

impl IntoResponseParts for Served {
    type Error = std::convert::Infallible;

    fn into_response_parts(self, mut parts: ResponseParts) -> Result<ResponseParts, Self::Error> {
        // A member's name could hold what no header can: then it is in the body alone.
        if let Ok(node) = HeaderValue::from_str(&self.served_by) {
            parts.headers_mut().insert("x-served-by", node);
        }
        if let Some(Ok(epoch)) = self.epoch.map(|epoch| HeaderValue::from_str(&epoch)) {
            parts.headers_mut().insert("x-epoch", epoch);
        }
        Ok(parts)
    }
}
