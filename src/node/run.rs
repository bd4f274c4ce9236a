//! Which run of its server a member is in, and what that run began with: what settling a commit across a
//! crash in place needs, and what is only to be had soon after it.

use tokio_postgres::Row;

use crate::patroni::Lsn;
use crate::settle::ServerRun;

/// The columns that [`RunSeen::read`] reads, from `pg_control_checkpoint()` named `c`.
pub(crate) const COLUMNS: &str = "
       (extract(epoch FROM pg_catalog.pg_postmaster_start_time()) * 1000000)::bigint AS started_at,
       (extract(epoch FROM pg_catalog.pg_stat_get_bgwriter_stat_reset_time()) * 1000000)::bigint AS reset_at,
       pg_catalog.txid_snapshot_xmax(pg_catalog.txid_current_snapshot()) AS xmax,
       (c.redo_lsn - '0/0'::pg_catalog.pg_lsn)::bigint AS redo,
       (c.checkpoint_lsn - '0/0'::pg_catalog.pg_lsn)::bigint AS checkpoint,
       (extract(epoch FROM c.checkpoint_time) * 1000000)::bigint AS checkpoint_at";

/// A run of a server, as it was first seen out of recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunSeen {
    pub(crate) run: ServerRun,
    /// The run before it, where that was seen too.
    pub(crate) after: Option<ServerRun>,
    pub(crate) xmax: u64,
    /// Where recovery ended, while the control file still tells.
    pub(crate) recovered_to: Option<Lsn>,
}

impl RunSeen {
    pub(crate) fn read(row: &Row) -> Result<Self, tokio_postgres::Error> {
        let run = ServerRun {
            started_at: row.try_get("started_at")?,
            reset_at: row.try_get::<_, Option<i64>>("reset_at")?.unwrap_or(0),
        };
        let position = |name: &str| row.try_get::<_, i64>(name).map(|at| Lsn(at.cast_unsigned()));
        let (redo, checkpoint) = (position("redo")?, position("checkpoint")?);
        // In whole seconds, as the control file keeps it.
        let second = |at: i64| at.div_euclid(1_000_000);
        let taken = second(row.try_get("checkpoint_at")?);
        let at_its_beginning =
            redo == checkpoint && taken >= second(run.started_at) && taken >= second(run.reset_at);
        Ok(Self {
            run,
            after: None,
            xmax: row.try_get::<_, i64>("xmax")?.cast_unsigned(),
            recovered_to: at_its_beginning.then_some(redo),
        })
    }

    /// What is known once `newer` was seen: the first sight of each run counts.
    pub(crate) fn then(known: Option<Self>, newer: Self) -> Self {
        match known {
            Some(known) if known.run == newer.run => known,
            Some(known) => Self { after: Some(known.run), ..newer },
            None => newer,
        }
    }
}
