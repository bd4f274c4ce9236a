//! What is seen while the leader is away.

use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, sleep};

use crate::cli::look::{Member, etcd, look};
use crate::cli::place::State;

/// One thing, and when.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) at: Instant,
    pub(super) what: What,
}

#[derive(Debug, Clone)]
pub(super) enum What {
    /// The leader key names somebody, or nobody.
    Key(Option<String>),
    /// A write was acknowledged.
    Acknowledged(Ack),
    /// The old leader has a part in the cluster again, on this timeline.
    Returned(i32),
    /// All is as before, but for who leads.
    Healthy,
    /// The request was refused.
    Refused(String),
}

/// An acknowledged write.
#[derive(Debug, Clone)]
pub(super) struct Ack {
    /// The backend, or HAProxy.
    pub(super) by: String,
    pub(super) by_haproxy: bool,
    /// The node that took it.
    pub(super) node: String,
    pub(super) took: Duration,
}

/// Tells each change of the leader key.
pub(super) async fn watch_key(state: State, tell: UnboundedSender<Seen>) {
    let etcd = etcd(&state);
    let key = format!("{}leader", state.prefix);
    let mut before = None;
    loop {
        if let Ok(value) = etcd.get(&key).await {
            let holder = value.map(|kv| kv.value);
            if before.as_ref() != Some(&holder) {
                let what = What::Key(holder.clone());
                if tell.send(Seen { at: Instant::now(), what }).is_err() {
                    return;
                }
                before = Some(holder);
            }
        }
        sleep(Duration::from_millis(25)).await;
    }
}

/// Tells when the node has a part in the cluster again, and when all is healthy.
pub(super) async fn watch_return(state: State, name: String, tell: UnboundedSender<Seen>) {
    let mut returned = false;
    loop {
        let health = look(&state).await;
        let member = health.members.iter().find(|member| member.name == name);
        if let Some(Member { problem: None, timeline: Some(timeline), .. }) = member
            && !returned
        {
            returned = true;
            let what = What::Returned(*timeline);
            let _ = tell.send(Seen { at: Instant::now(), what });
        }
        if returned && health.healthy {
            let _ = tell.send(Seen { at: Instant::now(), what: What::Healthy });
            return;
        }
        sleep(Duration::from_millis(100)).await;
    }
}
