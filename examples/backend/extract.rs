//! axum's extractors with this service's errors, and with its deadline.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout_at;

use crate::App;
use crate::deadline::Deadline;
use crate::error::ApiError;

/// The JSON body.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<App> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let (mut parts, body) = request.into_parts();
        let Ok(deadline) = Deadline::from_request_parts(&mut parts, app).await;
        let reading = Json::<T>::from_request(Request::from_parts(parts, body), app);
        match timeout_at(deadline.0, reading).await {
            Ok(Ok(Json(value))) => Ok(Self(value)),
            Ok(Err(rejection)) => Err(refuse(&rejection)),
            Err(_) => Err(ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                "body_timeout",
                "the body did not arrive in time (--request-timeout)",
            )),
        }
    }
}

fn refuse(rejection: &JsonRejection) -> ApiError {
    let status = rejection.status();
    let code = match (rejection, status) {
        (JsonRejection::JsonDataError(_), _) => "invalid_event",
        (JsonRejection::JsonSyntaxError(_), _) => "malformed_json",
        (JsonRejection::MissingJsonContentType(_), _) => "unsupported_media_type",
        (_, StatusCode::PAYLOAD_TOO_LARGE) => "payload_too_large",
        _ => "unreadable_body",
    };
    ApiError::new(status, code, rejection.body_text())
}

/// The query's parameters.
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(ApiError::invalid_query(rejection.body_text())),
        }
    }
}

/// For routes that take no parameters: `Params<None>` refuses all of them.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct None {}

/// The event's number in the path.
pub(crate) struct Id(pub(crate) i64);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::<i64>::from_request_parts(parts, state).await {
            Ok(Path(id)) if id > 0 => Ok(Self(id)),
            _ => Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                "invalid_id",
                "the id of an event is a whole number from 1 to 9223372036854775807",
            )),
        }
    }
}
