//! Read-your-writes, from any instance of the service.
//!
//! The answer to a write carries a token in the header `x-causal-token`: one opaque word that stands for a
//! position in the database's history. A read that sends it back sees that write, whichever instance and
//! whichever replica serves it: a replica that has not replayed so far is given a moment (50 ms), then the leader
//! is asked. The answer to such a read repeats the token, so that a caller may always keep the last one it saw.
//!
//! ```text
//! POST /events                              201, x-causal-token: lp1_WkTq…
//! GET  /events   x-causal-token: lp1_WkTq…  200, with the event in it
//! ```
//!
//! A caller that holds several tokens, from writes of its own and of others, sends all of them: as headers
//! of that name, or in one, with commas between. The read then comes after all of those writes.
//!
//! What is no token is answered with 400 `invalid_token`. A token may also outlive its write: where a failover has
//! lost that, no server will ever have it, and the answer is 409 `token_lost`. Then look what became of the write,
//! and go on without the token. A token of another database is 409 `token_other_cluster`. Where a failover is so
//! recent that nobody can tell yet, it is 503 `token_unknown`, and the same request may be sent again.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponseParts, ResponseParts};
use leaderpool::token::{Standing, TokenError};
use leaderpool::{CausalToken, ReadPolicy};

use crate::App;
use crate::error::ApiError;

const HEADER: &str = "x-causal-token";

/// The header `x-causal-token` of a request, all values of it in one; and of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token(pub(crate) Option<CausalToken>);

impl Token {
    /// Where a read that comes after it may go.
    pub(crate) fn policy(self) -> Option<ReadPolicy> {
        self.0.map(ReadPolicy::after)
    }
}

impl FromRequestParts<App> for Token {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let tokens = parse(&parts.headers)?;
        let token = app.pool.merge_tokens(tokens).map_err(refuse_pair)?;
        // A lost one is refused here rather than by the checkout, so that it is for each read alike.
        match token {
            Some(token) => match refuse(token, app.pool.token_standing(token)) {
                Some(error) => Err(error),
                None => Ok(Self(Some(token))),
            },
            None => Ok(Self(None)),
        }
    }
}

impl IntoResponseParts for Token {
    type Error = std::convert::Infallible;

    fn into_response_parts(self, mut parts: ResponseParts) -> Result<ResponseParts, Self::Error> {
        if let Some(Ok(value)) = self.0.map(|token| HeaderValue::from_str(&token.to_string())) {
            parts.headers_mut().insert(HEADER, value);
        }
        Ok(parts)
    }
}

fn parse(headers: &HeaderMap) -> Result<Vec<CausalToken>, ApiError> {
    let invalid = |text: &str, why: &str| {
        let shown: String = text.chars().take(64).collect();
        let message = format!("{HEADER}: {shown:?} is {why}");
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_token", message)
    };
    let mut tokens = Vec::new();
    for value in headers.get_all(HEADER) {
        let Ok(text) = value.to_str() else {
            let text = String::from_utf8_lossy(value.as_bytes());
            return Err(invalid(&text, "not a token: it is not ASCII"));
        };
        for text in text.split(',').map(str::trim) {
            let token =
                text.parse().map_err(|error: TokenError| invalid(text, &error.to_string()))?;
            tokens.push(token);
        }
    }
    Ok(tokens)
}

/// Two tokens that cannot be one.
fn refuse_pair(error: TokenError) -> ApiError {
    let message = format!("{HEADER}: {error}");
    match error {
        TokenError::Lost { .. } => conflict("token_lost", message),
        TokenError::OtherCluster { .. } => conflict("token_other_cluster", message),
        _ => ApiError::unavailable("token_unknown", message),
    }
}

/// What to say of a token that no read can be given; `None` where one can, now or in a moment.
pub(crate) fn refuse(token: CausalToken, standing: Standing) -> Option<ApiError> {
    match standing {
        Standing::Lost { timeline, switch_lsn } => Some(conflict(
            "token_lost",
            format!(
                "the write that the token {token} stands for was lost in a failover, when timeline {timeline} was \
                 left at {switch_lsn}: look what became of it, and go on without the token"
            ),
        )),
        Standing::OtherCluster => {
            let message = format!("the token {token} is not of this database");
            Some(conflict("token_other_cluster", message))
        }
        Standing::Valid | Standing::Unknown | Standing::Future => None,
    }
}

fn conflict(code: &'static str, message: String) -> ApiError {
    ApiError::new(StatusCode::CONFLICT, code, message)
}
