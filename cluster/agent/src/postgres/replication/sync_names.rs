//! Whether a change of `synchronous_standby_names` is in effect.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::postgres::session::{Sender, Session, SessionError};

/// How often the server is asked.
const LOOK: Duration = Duration::from_millis(5);
/// The checkpointer gets its signal after the sessions, and nothing tells when it has acted on it; seen at rest this much
/// later, it has.
const SETTLE: Duration = Duration::from_millis(20);

/// What `synchronous_standby_names` is to be, and which members it names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SyncNames {
    /// The value, as the server reads it; empty for none.
    pub value: String,
    /// The members it names. `*` among them stands for all.
    pub members: BTreeSet<String>,
}

/// Why it is not known to be in effect.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SyncNamesError {
    /// The server does not answer.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Not by the deadline.
    #[error("synchronous_standby_names is not known to be in effect after {after:?}: {why}")]
    NotInEffect {
        /// For how long it was watched.
        after: Duration,
        /// What is missing.
        why: String,
    },
}

/// Waits until the value is in effect everywhere it counts: this session has read it (and so has every other at its next
/// statement); each walsender acts on it, which its priority shows; and the checkpointer has told the sessions that commits
/// must wait at all. Cancel-safe.
pub(crate) async fn wait_in_effect(
    session: &Session,
    names: &SyncNames,
    deadline: Instant,
) -> Result<Vec<Sender>, SyncNamesError> {
    let begin = Instant::now();
    let mut read_at = None;
    loop {
        let state = session.state().await?;
        let why = if state.synchronous_standby_names != names.value {
            read_at = None;
            format!("the server still says {:?}", state.synchronous_standby_names)
        } else if let Some(sender) = state.senders.iter().find(|s| !agrees(s, names)) {
            format!("the walsender for {} has not taken it up", sender.application_name)
        } else {
            let read_at = *read_at.get_or_insert_with(Instant::now);
            if Instant::now() >= read_at + SETTLE && checkpointer_is_at_rest(session).await? {
                return Ok(state.senders);
            }
            "the checkpointer has not taken it up".to_owned()
        };
        if Instant::now() >= deadline {
            return Err(SyncNamesError::NotInEffect { after: begin.elapsed(), why });
        }
        sleep(LOOK).await;
    }
}

/// Whether a walsender treats its receiver as the value says. One that only makes a backup never counts.
fn agrees(sender: &Sender, names: &SyncNames) -> bool {
    if !matches!(sender.state.as_deref(), Some("streaming" | "catchup")) {
        return true;
    }
    let name = sender.application_name.as_str();
    let named = names.members.contains("*")
        || names.members.iter().any(|member| member.eq_ignore_ascii_case(name));
    named == (sender.sync_priority.unwrap_or(0) > 0)
}

async fn checkpointer_is_at_rest(session: &Session) -> Result<bool, SessionError> {
    let sql =
        "SELECT wait_event FROM pg_catalog.pg_stat_activity WHERE backend_type = 'checkpointer'";
    let rows = session.rows("look at the checkpointer", sql, &[]).await?;
    let event: Option<String> = rows.first().and_then(|row| row.get(0));
    // Before each of these it looks whether there is a new configuration.
    Ok(matches!(event.as_deref(), Some("CheckpointerMain" | "CheckpointWriteDelay")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender(name: &str, priority: i32, state: &str) -> Sender {
        Sender {
            pid: 1,
            usename: None,
            application_name: name.into(),
            client_addr: None,
            state: Some(state.into()),
            sync_state: None,
            sync_priority: Some(priority),
            sent: None,
            written: None,
            flushed: None,
            replayed: None,
        }
    }

    #[test]
    fn a_walsender_agrees_when_its_priority_does() {
        let names = |members: &[&str]| SyncNames {
            value: String::new(),
            members: members.iter().map(|m| (*m).to_owned()).collect(),
        };
        assert!(agrees(&sender("pg1", 1, "streaming"), &names(&["pg1"])));
        assert!(!agrees(&sender("pg1", 0, "streaming"), &names(&["pg1"])));
        assert!(!agrees(&sender("pg1", 1, "streaming"), &names(&["pg2"])));
        assert!(agrees(&sender("pg1", 0, "catchup"), &names(&[])));
        assert!(agrees(&sender("pg1", 1, "streaming"), &names(&["*"])));
        assert!(agrees(&sender("pg1", 0, "backup"), &names(&["pg1"])));
    }
}
