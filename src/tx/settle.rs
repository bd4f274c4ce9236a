//! Asks the leader what became of a commit whose answer never came.

use std::time::Duration;

use tokio::time::timeout_at;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::TxInner;
use super::run::pause;
use crate::client::Client;
use crate::node::{RUN_COLUMNS, RunSeen};
use crate::patroni::Lsn;
use crate::pool::{Deadline, LeaderPool};
use crate::settle::{
    CommitNote, Identity, LeaderNow, Plan, Restart, ServerRun, Settlement, Unsettled, XactStatus,
    conclude, plan,
};
use crate::telemetry::Settling;
use crate::token::CausalToken;

/// The pause before the leader is asked again.
const AGAIN: Duration = Duration::from_millis(20);

/// What was noted in one go with `COMMIT`.
pub(super) enum Note {
    /// The transaction wrote nothing: there is nothing to lose.
    WroteNothing,
    /// It did.
    Wrote(CommitNote),
}

impl Note {
    /// From the answer to the question that goes before `COMMIT`.
    pub(super) fn read(row: &Row, inner: &TxInner) -> Option<Self> {
        let Some(xid) = row.try_get::<_, Option<i64>>(0).ok()? else {
            return Some(Note::WroteNothing);
        };
        Some(Note::Wrote(CommitNote {
            xid: xid.cast_unsigned(),
            lsn: Lsn(row.try_get::<_, i64>(1).ok()?.cast_unsigned()),
            epoch: inner.place.epoch?,
            run: ServerRun {
                started_at: row.try_get(2).ok()?,
                reset_at: row.try_get::<_, Option<i64>>(3).ok()?.unwrap_or(0),
            },
        }))
    }

    pub(super) fn wrote(&self) -> bool {
        matches!(self, Note::Wrote(_))
    }
}

/// How a commit was settled.
pub(super) enum Settled {
    Committed { token: Option<CausalToken> },
    NotApplied { why: String },
    Unknown { why: String },
}

/// Settles the commit behind `note`, by the deadline.
pub(super) async fn settle(pool: &LeaderPool, note: Option<Note>, deadline: &Deadline) -> Settled {
    let settling = Settling::begin(&pool.shared.database, &pool.shared.meter);
    let settled = settling.within(ask_until(pool, note, deadline, &settling)).await;
    settling.ended(match &settled {
        Settled::Committed { .. } => "committed",
        Settled::NotApplied { .. } => "not_applied",
        Settled::Unknown { .. } => "unknown",
    });
    settled
}

async fn ask_until(
    pool: &LeaderPool,
    note: Option<Note>,
    deadline: &Deadline,
    settling: &Settling<'_>,
) -> Settled {
    let note = match note {
        Some(Note::Wrote(note)) => note,
        Some(Note::WroteNothing) => return Settled::Committed { token: None },
        None => {
            return Settled::Unknown { why: "the connection was lost before the note came".into() };
        }
    };
    let mut last = Unsettled::Deadline.to_string();
    let mut attempts = 0;
    while !deadline.left().is_zero() {
        let client = match pool.write_until(deadline).await {
            Ok(client) => client.only_commits_count(),
            Err(error) => return Settled::Unknown { why: error.to_string() },
        };
        attempts += 1;
        settling.attempt(attempts, &client);
        match timeout_at(deadline.at, ask(pool, &client, &note)).await {
            Ok(Ok(Some((settlement, token)))) => {
                return match settlement {
                    Settlement::Committed => Settled::Committed { token: Some(token) },
                    Settlement::NotApplied { why } => Settled::NotApplied { why: why.to_string() },
                    Settlement::Unknown { why } => Settled::Unknown { why: why.to_string() },
                };
            }
            Ok(Ok(None)) => {}
            Ok(Err(error)) => last = crate::error::with_causes(&error),
            Err(_) => break,
        }
        drop(client);
        pause(AGAIN, deadline).await;
    }
    Settled::Unknown { why: last }
}

/// Asks once; `None` is to ask again.
async fn ask(
    pool: &LeaderPool,
    client: &Client,
    note: &CommitNote,
) -> Result<Option<(Settlement, CausalToken)>, tokio_postgres::Error> {
    // The status and the run in one statement, so that they speak of the same server.
    let question = format!(
        "SELECT pg_catalog.txid_status($1), \
                (pg_catalog.pg_current_wal_insert_lsn() - '0/0'::pg_catalog.pg_lsn)::bigint, {RUN_COLUMNS} \
         FROM pg_catalog.pg_control_checkpoint() AS c"
    );
    let xid = note.xid.cast_signed();
    let (status, row) = match client.query_typed(&question, &[(&xid, Type::INT8)]).await {
        Ok(rows) => {
            let Some(row) = rows.into_iter().next() else { return Ok(None) };
            let status = match row.try_get::<_, Option<&str>>(0)? {
                Some("committed") => XactStatus::Committed,
                Some("aborted") => XactStatus::Aborted,
                Some("in progress") => XactStatus::InProgress,
                Some(_) | None => XactStatus::Unavailable,
            };
            (status, row)
        }
        Err(error) if error.code().is_some_and(|code| code.code() == "22023") => {
            let question = question.replace("pg_catalog.txid_status($1)", "NULL::text");
            let Some(row) = client.query_typed(&question, &[]).await?.into_iter().next() else {
                return Ok(None);
            };
            (XactStatus::NotAssigned, row)
        }
        Err(error) => return Err(error),
    };
    let Some(epoch) = client.epoch() else { return Ok(None) };
    let seen = RunSeen::then(client.run_seen(), RunSeen::read(&row)?);
    let leader = LeaderNow { epoch, run: seen.run };
    let token = CausalToken {
        system_id: epoch.system_id,
        timeline: epoch.timeline,
        lsn: Lsn(row.try_get::<_, i64>(1)?.cast_unsigned()),
    };
    let history = pool.shared.past.history(&pool.shared.view.load());
    let mut planned = plan(note, leader, None, &history);
    if planned == Plan::AskRestart {
        let restart = Restart {
            run: seen.run,
            lowest_xmax: Some(seen.xmax),
            recovered_to: seen.recovered_to.filter(|_| seen.after == Some(note.run)),
        };
        planned = plan(note, leader, Some(restart), &history);
    }
    Ok(match planned {
        Plan::AskStatus(identity @ (Identity::Ours | Identity::PerhapsReused)) => {
            conclude(status, identity).map(|settlement| (settlement, token))
        }
        Plan::Answer(settlement) => Some((settlement, token)),
        Plan::AskRestart | Plan::WaitForHistory => None,
    })
}
