//! The table, made at the start by whichever instance comes first.

use std::time::Duration;

use anyhow::Context;
use leaderpool::{CheckoutError, LeaderPool};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::error::ApiError;

/// Sent as one simple query, so that it is one transaction: the lock is held until the table is
/// committed. `IF NOT EXISTS` alone is not safe among instances that start together; the losers would
/// fail with a unique violation in the catalogue. The number means nothing, it is only the same for all.
const SCHEMA: &str = "
    SELECT pg_advisory_xact_lock(908490859086);
    CREATE TABLE IF NOT EXISTS events (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        kind text NOT NULL,
        payload jsonb NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now()
    )";

/// How long one try waits for a leader, how long for the statement, and the pause between two.
const LEADER_WAIT: Duration = Duration::from_secs(5);
const STATEMENT_LIMIT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(500);

/// Why the table is not there yet; `None` once it is.
#[derive(Clone)]
pub(crate) struct Schema(watch::Receiver<Option<String>>);

impl Schema {
    /// Sets it up in the background, trying until it is done or the pool is closed.
    pub(crate) fn set_up(pool: LeaderPool) -> Self {
        let (state, watched) = watch::channel(Some("not tried yet".to_owned()));
        tokio::spawn(async move {
            while let Err(error) = create(&pool).await {
                if matches!(error.downcast_ref(), Some(CheckoutError::Closed)) {
                    return;
                }
                tracing::warn!("cannot set the table up yet: {error:#}");
                state.send_replace(Some(format!("{error:#}")));
                sleep(PAUSE).await;
            }
            state.send_replace(None);
        });
        Self(watched)
    }

    pub(crate) fn ready(&self) -> Result<(), ApiError> {
        match &*self.0.borrow() {
            None => Ok(()),
            Some(reason) => {
                let message = format!("the table is not set up: {reason}");
                Err(ApiError::unavailable("starting", message))
            }
        }
    }
}

async fn create(pool: &LeaderPool) -> anyhow::Result<()> {
    let client = pool.write_within(LEADER_WAIT).await?;
    timeout(STATEMENT_LIMIT, client.batch_execute(SCHEMA))
        .await
        .with_context(|| format!("{} does not answer", client.node()))?
        .with_context(|| format!("on {}", client.node()))?;
    tracing::info!(node = client.node(), "the table is there");
    Ok(())
}
