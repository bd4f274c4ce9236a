//! What can go wrong between the session and etcd, and what it means for a write.

use std::time::Duration;

/// Why an operation did not succeed.
///
/// For a write, [`maybe_applied`](Self::maybe_applied) says whether it may have taken effect all the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DcsError {
    /// The settings cannot work.
    #[error("etcd settings: {0}")]
    Settings(String),
    /// etcd refuses the user or its password.
    #[error("etcd at {endpoint} refuses the user or password: {reason}")]
    AuthFailed {
        /// Who said so.
        endpoint: String,
        /// In its words.
        reason: String,
    },
    /// The user may not do this.
    #[error(
        "etcd at {endpoint} denies permission: {reason}; grant the user read and write on the cluster's prefix"
    )]
    PermissionDenied {
        /// Who said so.
        endpoint: String,
        /// In its words.
        reason: String,
    },
    /// Members answer, and say that etcd has no leader: it has lost its quorum, or is electing.
    #[error("etcd has no leader: {}", list(.failures))]
    NoLeader {
        /// Each endpoint and what it said.
        failures: Vec<(String, String)>,
        /// Whether a write may have been applied.
        maybe_applied: bool,
    },
    /// No endpoint could be used.
    #[error("no etcd endpoint can be used after {waited:?}: {}", list(.failures))]
    Unreachable {
        /// How long it was tried.
        waited: Duration,
        /// Each endpoint and why.
        failures: Vec<(String, String)>,
        /// Whether a write may have been applied.
        maybe_applied: bool,
    },
    /// Endpoints took the request, and no answer came in time.
    #[error("etcd gave no answer within {waited:?}: {}", list(.failures))]
    TimedOut {
        /// How long it was tried.
        waited: Duration,
        /// Each endpoint and why.
        failures: Vec<(String, String)>,
        /// Whether a write may have been applied.
        maybe_applied: bool,
    },
    /// etcd refuses the request itself: no space left, too large, malformed.
    #[error("etcd at {endpoint} refuses the request: {reason}")]
    Refused {
        /// Who said so.
        endpoint: String,
        /// In its words.
        reason: String,
    },
    /// There is no lease to hang the key on: it ran out, was revoked, or was not granted yet.
    #[error("no live lease in etcd: {0}")]
    NoLease(String),
    /// The session was shut down.
    #[error("the session with etcd is shut down")]
    Closed,
}

impl DcsError {
    /// Whether a write that ended so may have been applied, or may still be.
    #[must_use]
    pub fn maybe_applied(&self) -> bool {
        match self {
            DcsError::NoLeader { maybe_applied, .. }
            | DcsError::Unreachable { maybe_applied, .. }
            | DcsError::TimedOut { maybe_applied, .. } => *maybe_applied,
            DcsError::Settings(_)
            | DcsError::AuthFailed { .. }
            | DcsError::PermissionDenied { .. }
            | DcsError::Refused { .. }
            | DcsError::NoLease(_)
            | DcsError::Closed => false,
        }
    }

    /// The same of something that only reads.
    pub(super) fn of_a_read(mut self) -> Self {
        match &mut self {
            DcsError::NoLeader { maybe_applied, .. }
            | DcsError::Unreachable { maybe_applied, .. }
            | DcsError::TimedOut { maybe_applied, .. } => *maybe_applied = false,
            _ => {}
        }
        self
    }
}

fn list(failures: &[(String, String)]) -> String {
    if failures.is_empty() {
        return "none was asked".into();
    }
    failures
        .iter()
        .map(|(endpoint, reason)| format!("{endpoint}: {reason}"))
        .collect::<Vec<_>>()
        .join("; ")
}

/// What one failed attempt at one endpoint means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) kind: FailureKind,
    pub(super) reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// The endpoint cannot be used, and has not taken the request: ask another.
    Elsewhere,
    /// The request may have been taken: ask another, and mind that.
    Unknown,
    /// No answer came in the attempt's time.
    Silent,
    /// The member says that etcd has no leader.
    NoLeader,
    /// Our token is too old: the connection must be made anew.
    Reconnect,
    /// etcd has no users, and we named one.
    AuthIsOff,
    /// The user or password is wrong.
    Auth,
    /// The user may not do this.
    Permission,
    /// The request is refused wherever it is asked.
    Refused,
    /// The lease is gone.
    Lease,
}

impl FailureKind {
    /// Whether another endpoint could do better.
    pub(super) fn try_elsewhere(self) -> bool {
        match self {
            FailureKind::Elsewhere
            | FailureKind::Unknown
            | FailureKind::Silent
            | FailureKind::NoLeader
            | FailureKind::Reconnect
            | FailureKind::AuthIsOff => true,
            FailureKind::Auth
            | FailureKind::Permission
            | FailureKind::Refused
            | FailureKind::Lease => false,
        }
    }

    /// Whether a write may have been applied.
    pub(super) fn maybe_applied(self) -> bool {
        matches!(self, FailureKind::Unknown | FailureKind::Silent)
    }
}

impl Failure {
    pub(super) fn silent(within: Duration) -> Self {
        Self { kind: FailureKind::Silent, reason: format!("no answer within {within:?}") }
    }

    pub(super) fn elsewhere(reason: impl Into<String>) -> Self {
        Self { kind: FailureKind::Elsewhere, reason: reason.into() }
    }

    pub(super) fn of(error: &etcd_client::Error) -> Self {
        use etcd_client::Error;
        let kind = match error {
            Error::GRpcStatus(status) => {
                let kind = of_status(i32::from(status.code()), status.message());
                let reason = and_causes(status.message(), std::error::Error::source(status));
                return Self { kind, reason };
            }
            Error::LeaseKeepAliveError(text) if text.contains("not found") => FailureKind::Lease,
            Error::InvalidArgs(_) | Error::InvalidUri(_) | Error::InvalidMetadataValue(_) => {
                FailureKind::Refused
            }
            // Before any request is on the wire.
            Error::TransportError(_) => FailureKind::Elsewhere,
            _ => FailureKind::Unknown,
        };
        Self { kind, reason: and_causes(&error.to_string(), std::error::Error::source(error)) }
    }
}

// gRPC's codes by number, as the type is not part of etcd_client's API.
const INVALID_ARGUMENT: i32 = 3;
const NOT_FOUND: i32 = 5;
const PERMISSION_DENIED: i32 = 7;
const RESOURCE_EXHAUSTED: i32 = 8;
const FAILED_PRECONDITION: i32 = 9;
const OUT_OF_RANGE: i32 = 11;
const UNIMPLEMENTED: i32 = 12;
const UNAVAILABLE: i32 = 14;
const UNAUTHENTICATED: i32 = 16;

/// etcd's own words decide where there are any; what is not known may have been applied.
fn of_status(code: i32, message: &str) -> FailureKind {
    let says = |text: &str| message.contains(text);
    match code {
        _ if says("no leader") => FailureKind::NoLeader,
        _ if says("authentication failed") || says("user name is empty") => FailureKind::Auth,
        _ if says("revision of auth store is old") || says("invalid auth token") => {
            FailureKind::Reconnect
        }
        _ if says("authentication is not enabled") => FailureKind::AuthIsOff,
        PERMISSION_DENIED => FailureKind::Permission,
        NOT_FOUND if says("lease") => FailureKind::Lease,
        RESOURCE_EXHAUSTED if says("too many requests") => FailureKind::Elsewhere,
        // The connection could not be made: nothing was sent.
        UNAVAILABLE if says("tcp connect error") || says("dns error") => FailureKind::Elsewhere,
        UNAUTHENTICATED => FailureKind::Reconnect,
        INVALID_ARGUMENT | NOT_FOUND | RESOURCE_EXHAUSTED | FAILED_PRECONDITION | OUT_OF_RANGE
        | UNIMPLEMENTED => FailureKind::Refused,
        _ => FailureKind::Unknown,
    }
}

/// `text` with `cause` and its causes after it, each that is not said already.
pub(super) fn and_causes(
    text: &str,
    mut cause: Option<&(dyn std::error::Error + 'static)>,
) -> String {
    let mut text = text.to_owned();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_of_etcd_has_its_meaning() {
        let table = [
            (14, "etcdserver: no leader", FailureKind::NoLeader),
            (14, "etcdserver: request timed out", FailureKind::Unknown),
            (14, "etcdserver: leader changed", FailureKind::Unknown),
            (14, "tcp connect error", FailureKind::Elsewhere),
            (14, "error trying to connect: tcp connect error", FailureKind::Elsewhere),
            (14, "transport error", FailureKind::Unknown),
            (4, "context deadline exceeded", FailureKind::Unknown),
            (1, "operation was canceled", FailureKind::Unknown),
            (2, "h2 protocol error", FailureKind::Unknown),
            (
                3,
                "etcdserver: authentication failed, invalid user ID or password",
                FailureKind::Auth,
            ),
            (3, "etcdserver: user name is empty", FailureKind::Auth),
            (3, "etcdserver: revision of auth store is old", FailureKind::Reconnect),
            (16, "etcdserver: invalid auth token", FailureKind::Reconnect),
            (9, "etcdserver: authentication is not enabled", FailureKind::AuthIsOff),
            (7, "etcdserver: permission denied", FailureKind::Permission),
            (5, "etcdserver: requested lease not found", FailureKind::Lease),
            (8, "etcdserver: too many requests", FailureKind::Elsewhere),
            (8, "etcdserver: mvcc: database space exceeded", FailureKind::Refused),
            (3, "etcdserver: request is too large", FailureKind::Refused),
        ];
        for (code, message, kind) in table {
            assert_eq!(of_status(code, message), kind, "{message}");
        }
    }

    #[test]
    fn an_error_names_each_endpoint() {
        let error = DcsError::Unreachable {
            waited: Duration::from_secs(3),
            failures: vec![
                ("http://a:1".into(), "refused".into()),
                ("http://b:1".into(), "x".into()),
            ],
            maybe_applied: true,
        };
        assert_eq!(
            error.to_string(),
            "no etcd endpoint can be used after 3s: http://a:1: refused; http://b:1: x"
        );
        assert!(error.maybe_applied() && !DcsError::Closed.maybe_applied());
    }
}
