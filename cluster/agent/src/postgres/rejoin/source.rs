//! What is to be known of the leader before anything is done to a server's data.
//!
//! It is asked by `psql`, since that is libpq: whatever the configuration says about TLS, certificates, Kerberos or several
//! hosts works as it does for `pg_rewind` and the walreceiver; and it speaks the replication protocol, which lets the
//! replication account read timeline histories.

use leaderpool::patroni::{HistoryLine, SystemId, Timeline, parse_history_file};

use crate::postgres::binaries::ToolError;
use crate::postgres::settings::{Account, Upstream};
use crate::postgres::site::{ASK_DEADLINE, Site};

/// Between fields and rows: never part of an answer.
const FIELD: &str = "\u{1f}";
const ROW: &str = "\u{1e}";

/// Who the leader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identified {
    /// Its system identifier.
    pub system_id: SystemId,
    /// Its timeline.
    pub timeline: Timeline,
}

/// Whether the leader can be rewound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Readiness {
    pub(crate) in_recovery: bool,
    /// Whether its control file knows its timeline: pg_rewind goes by that file.
    pub(crate) checkpointed: bool,
    /// Whether a socket lies in its data directory.
    pub(crate) has_socket: bool,
}

/// Why the leader could not be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// It does not answer, or refuses.
    #[error("cannot ask {upstream} (as {user}): {source}")]
    Ask {
        /// The leader.
        upstream: String,
        /// As whom it was asked.
        user: String,
        /// What psql said.
        #[source]
        source: ToolError,
    },
    /// Its answer makes no sense.
    #[error("{upstream} answers {what} with {answer:?}, which is not understood")]
    Strange {
        /// The leader.
        upstream: String,
        /// What it was asked.
        what: &'static str,
        /// What it said.
        answer: String,
    },
}

/// Who a server is, asked as the replication account.
///
/// # Errors
/// When it does not answer.
pub async fn identify(site: &Site, upstream: &Upstream) -> Result<Identified, SourceError> {
    let answer = replication(site, upstream, "IDENTIFY_SYSTEM").await?;
    let fields: Vec<&str> = first_row(&answer);
    let parsed = || {
        let system_id = SystemId(fields.first()?.parse().ok()?);
        Some(Identified { system_id, timeline: Timeline(fields.get(1)?.parse().ok()?) })
    };
    parsed().ok_or_else(|| strange(upstream, "IDENTIFY_SYSTEM", &answer))
}

/// The history of a server's timeline: where each one before it was left.
///
/// # Errors
/// When it does not answer.
pub async fn history(
    site: &Site,
    upstream: &Upstream,
    timeline: Timeline,
) -> Result<Vec<HistoryLine>, SourceError> {
    if timeline.0 <= 1 {
        return Ok(Vec::new());
    }
    let answer = replication(site, upstream, &format!("TIMELINE_HISTORY {timeline}")).await?;
    let fields = first_row(&answer);
    // In some versions psql knows the content as bytes, and shows them so.
    let parsed = fields.get(1).and_then(|content| match content.strip_prefix("\\x") {
        Some(hex) => parse_history_file(&from_hex(hex)?),
        None => parse_history_file(content),
    });
    parsed.ok_or_else(|| strange(upstream, "TIMELINE_HISTORY", &answer))
}

/// Whether a server can be rewound to, asked as the account that would.
pub(crate) async fn readiness(site: &Site, upstream: &Upstream) -> Result<Readiness, SourceError> {
    const SQL: &str = "SELECT r, CASE WHEN r THEN false ELSE ('x' || pg_catalog.substr(\
        pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8))::bit(32)::int = \
        (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()) END, \
        EXISTS (SELECT FROM pg_catalog.pg_ls_dir('.', true, true) AS f \
        WHERE f LIKE '.s.PGSQL.%' AND f NOT LIKE '%.lock') \
        FROM (SELECT pg_catalog.pg_is_in_recovery() AS r OFFSET 0) AS s";
    let account = site.settings.rewind_account();
    let database = [("dbname", site.settings.database.as_str())];
    let answer = psql(site, upstream, account, &database, SQL).await?;
    let fields = first_row(&answer);
    match fields[..] {
        [in_recovery, checkpointed, has_socket] => Ok(Readiness {
            in_recovery: in_recovery == "t",
            checkpointed: checkpointed == "t",
            has_socket: has_socket == "t",
        }),
        _ => Err(strange(upstream, "whether it can be rewound to", &answer)),
    }
}

async fn replication(
    site: &Site,
    upstream: &Upstream,
    command: &str,
) -> Result<String, SourceError> {
    let account = &site.settings.replication;
    psql(site, upstream, account, &[("replication", "true")], command).await
}

async fn psql(
    site: &Site,
    upstream: &Upstream,
    account: &Account,
    more: &[(&str, &str)],
    command: &str,
) -> Result<String, SourceError> {
    let conninfo = site.conninfo(upstream, account, more);
    // `-w` never asks for a password; `-X` reads nobody's .psqlrc.
    let mut tool = site.connecting_tool("psql", account);
    if more.iter().any(|(keyword, _)| *keyword == "replication") {
        // A replication connection takes no statement_timeout.
        tool = tool.env("PGOPTIONS", "");
    }
    let output = tool
        .args([
            "-X", "-w", "-A", "-t", "-q", "-F", FIELD, "-R", ROW, "-d", &conninfo, "-c", command,
        ])
        .deadline(ASK_DEADLINE)
        .run()
        .await;
    output.map(|output| output.stdout).map_err(|source| SourceError::Ask {
        upstream: upstream.name.clone(),
        user: account.username.clone(),
        source,
    })
}

fn first_row(answer: &str) -> Vec<&str> {
    let row = answer.split(ROW).next().unwrap_or_default();
    row.trim_end_matches('\n').split(FIELD).collect()
}

fn from_hex(hex: &str) -> Option<String> {
    let hex = hex.trim();
    let byte = |i: usize| u8::from_str_radix(hex.get(i..i + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..hex.len()).step_by(2).map(byte).collect();
    String::from_utf8(bytes?).ok()
}

fn strange(upstream: &Upstream, what: &'static str, answer: &str) -> SourceError {
    let answer = answer.chars().take(200).collect();
    SourceError::Strange { upstream: upstream.name.clone(), what, answer }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_apart() {
        let answer = format!("77{FIELD}3{FIELD}0/3000060{FIELD}\n");
        assert_eq!(first_row(&answer), ["77", "3", "0/3000060", ""]);
        assert_eq!(from_hex("31093020").as_deref(), Some("1\t0 "));
        assert_eq!(from_hex("3"), None);
        assert_eq!(from_hex("zz"), None);
    }
}
