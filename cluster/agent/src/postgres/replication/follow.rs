//! Whether a standby receives from the upstream it is to follow.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use crate::postgres::process::Server;
use crate::postgres::session::{Receiver, Session, SessionError};
use crate::postgres::settings::Upstream;

/// How often the server is asked.
const LOOK: Duration = Duration::from_millis(5);
/// How soon the server is made to try again, at first and at most. By itself it rests `wal_retrieve_retry_interval`, five
/// seconds by default, between attempts, and an upstream that is just being promoted refuses the first.
const NUDGE: Duration = Duration::from_millis(100);
const NUDGE_AT_MOST: Duration = Duration::from_secs(1);

/// A standby that receives from its upstream.
#[derive(Debug, Clone, PartialEq)]
pub struct Streaming {
    /// What it receives.
    pub receiver: Receiver,
    /// How long it took until it did.
    pub took: Duration,
}

/// Why a standby does not receive from its upstream.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FollowError {
    /// It does not answer.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// It is no standby (any more).
    #[error("PostgreSQL is not in recovery: it follows nobody")]
    NotAStandby,
    /// It ended meanwhile.
    #[error("PostgreSQL ended; the end of its log:\n{said}")]
    Exited {
        /// The end of its log.
        said: String,
    },
    /// Not by the deadline.
    #[error(
        "PostgreSQL does not stream from {upstream} after {after:?} ({}); its log says why",
        seen.as_ref().map_or("it receives nothing".to_owned(), |r| format!("it is {} from {}", r.status, r.host.as_deref().unwrap_or("somewhere")))
    )]
    NotStreaming {
        /// Whom it is to follow.
        upstream: String,
        /// What it does instead.
        seen: Option<Receiver>,
        /// For how long it was watched.
        after: Duration,
    },
}

/// Whether what is received comes from an upstream.
#[must_use]
pub fn is_from(receiver: &Receiver, upstream: &Upstream) -> bool {
    let hosts: Vec<&str> = upstream.host.split(',').map(str::trim).collect();
    let ports: Vec<&str> = upstream.port.split(',').map(str::trim).collect();
    hosts.iter().enumerate().any(|(i, host)| {
        let port = ports.get(i).or(ports.last()).and_then(|port| port.parse().ok());
        receiver.host.as_deref() == Some(host) && (port.is_none() || receiver.port == port)
    })
}

/// Waits until a standby streams from its upstream, and makes it try often meanwhile. Cancel-safe.
pub(crate) async fn wait_streaming(
    server: &Server,
    session: &Session,
    upstream: &Upstream,
    deadline: Instant,
) -> Result<Streaming, FollowError> {
    let begin = Instant::now();
    let watch = async {
        let (mut rest, mut nudge) = (NUDGE, begin + NUDGE);
        loop {
            let state = session.state().await;
            let (receiver, in_recovery) = match state {
                Ok(state) => (state.receiver, state.in_recovery),
                // It may still be starting, or shaking its sessions off.
                Err(error) if Instant::now() >= deadline => return Err(error.into()),
                Err(_) => (None, true),
            };
            if !in_recovery {
                return Err(FollowError::NotAStandby);
            }
            if let Some(receiver) = &receiver
                && receiver.status == "streaming"
                && is_from(receiver, upstream)
            {
                return Ok(Streaming { receiver: receiver.clone(), took: begin.elapsed() });
            }
            let now = Instant::now();
            if now >= deadline {
                let (upstream, after) = (upstream.name.clone(), now - begin);
                return Err(FollowError::NotStreaming { upstream, seen: receiver, after });
            }
            if receiver.is_none() && now >= nudge {
                rest = (rest + rest / 2).min(NUDGE_AT_MOST);
                nudge = now + rest;
                retry_now(server, session).await;
            }
            sleep(LOOK).await;
        }
    };
    tokio::select! {
        biased;
        _ = server.exited() => Err(FollowError::Exited { said: server.last_words() }),
        streaming = watch => streaming,
    }
}

/// Ends the rest that the startup process takes between attempts: it wakes up to read its configuration.
async fn retry_now(server: &Server, session: &Session) {
    let sql = "SELECT pid FROM pg_catalog.pg_stat_activity WHERE backend_type = 'startup'";
    let Ok(rows) = session.rows("look for the startup process", sql, &[]).await else { return };
    let pid: Option<i32> = rows.first().map(|row| row.get(0));
    if let Some(pid) = pid.filter(|pid| server.is_parent_of(*pid)).and_then(Pid::from_raw) {
        let _ = kill_process(pid, Signal::HUP);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_known_by_host_and_port() {
        let receiver = Receiver {
            pid: 1,
            status: "streaming".into(),
            written: None,
            flushed: None,
            timeline: None,
            latest_end: None,
            slot: None,
            host: Some("b".into()),
            port: Some(5433),
            conninfo: None,
        };
        let from = |host: &str, port: &str| {
            let upstream = Upstream { port: port.into(), ..Upstream::new("x", host, 1) };
            is_from(&receiver, &upstream)
        };
        assert!(from("b", "5433") && from("a, b", "5432,5433") && from("a,b", "5433"));
        assert!(!from("b", "5432") && !from("a", "5433") && !from("a,b", "5433,5432"));
    }
}
