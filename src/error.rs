//! What can go wrong for the holder of a pool.

use std::time::Duration;

use crate::config::ConfigError;
use crate::node::DialError;
use crate::routing::Ineligible;
use crate::token::{CausalToken, Standing};

/// Why a pool could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The configuration is impossible, or names a file that cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Nothing that could serve a query was found in time.
    #[error("nothing to connect to within {waited:?} (pool.start_timeout): {reasons}")]
    Unreachable {
        /// How long it was tried.
        waited: Duration,
        /// Each endpoint and member, and why it is of no use.
        reasons: String,
    },
}

/// Why no connection was handed out. Nothing was sent to any server, so that the call may be repeated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckoutError {
    /// No leader was admitted before the deadline.
    #[error("no leader for {waited:?}: {state}{}", first(.first_error))]
    NoLeader {
        /// How long the call waited.
        waited: Duration,
        /// What is known of the leader.
        state: String,
        /// The first failure on the way, where there was one.
        first_error: Option<Box<DialError>>,
    },
    /// No replica satisfies the policy.
    #[error("no replica for this read after {waited:?}: {}", list(.reasons))]
    NoReplica {
        /// How long the call waited.
        waited: Duration,
        /// Each member, and why it does not qualify.
        reasons: Vec<(String, Ineligible)>,
    },
    /// The member's connections were all in use, or a new one took too long.
    #[error(
        "no free connection to {node} within {waited:?}: all {max_size} are in use \
         (pool.max_size), or the server is slow to answer{}", first(.first_error)
    )]
    Exhausted {
        /// The member.
        node: String,
        /// How long the call waited.
        waited: Duration,
        /// Connections to each member at most.
        max_size: usize,
        /// The first failure on the way, where there was one.
        first_error: Option<Box<DialError>>,
    },
    /// As many callers are waiting as may.
    #[error("{limit} callers are waiting already (pool.max_waiting)")]
    TooManyWaiting {
        /// The limit.
        limit: usize,
    },
    /// The member turns this pool down, and waiting would not help.
    #[error("cannot use {node}: {source}")]
    Refused {
        /// The member.
        node: String,
        /// Why.
        #[source]
        source: Box<DialError>,
    },
    /// The token's write is not part of this cluster's history, and no server has it; or nobody could tell
    /// before the deadline.
    #[error("no server has what the token {token} asks for: {why}")]
    Token {
        /// The token.
        token: CausalToken,
        /// What it is worth.
        standing: Standing,
        /// What became of its write.
        why: String,
    },
    /// The pool was closed.
    #[error("the pool is closed")]
    Closed,
}

/// Connections were still out when [`close`](crate::LeaderPool::close) gave up waiting.
#[derive(Debug, thiserror::Error)]
#[error("{still_out} connections were still out after {waited:?} (pool.close_timeout)")]
pub struct CloseError {
    /// How many.
    pub still_out: usize,
    /// How long it waited.
    pub waited: Duration,
}

fn first(error: &Option<Box<DialError>>) -> String {
    error.as_ref().map(|error| format!(" (first failure: {error})")).unwrap_or_default()
}

fn list(reasons: &[(String, Ineligible)]) -> String {
    if reasons.is_empty() {
        return "no member is known".into();
    }
    reasons.iter().map(|(name, why)| format!("{name} {why}")).collect::<Vec<_>>().join("; ")
}

/// An error with its causes, in one line: the libraries below put the one that helps last.
pub(crate) fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    and_causes(error.to_string(), error.source())
}

/// `text` with `cause` and its causes after it, each that is not said already.
pub(crate) fn and_causes(
    mut text: String,
    mut cause: Option<&(dyn std::error::Error + 'static)>,
) -> String {
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
