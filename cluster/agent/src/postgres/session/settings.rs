//! What the server made of its configuration.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Session, SessionError};

/// How often to ask whether the configuration was read: it is read within milliseconds.
const LOOK: Duration = Duration::from_millis(5);

/// A parameter whose configured value takes effect only with a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingRestart {
    /// The parameter.
    pub name: String,
    /// The value the server runs with.
    pub running: String,
    /// The value it would be restarted with.
    pub configured: String,
}

/// A line of the configuration that the server does not accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RejectedLine {
    /// The file.
    pub file: String,
    /// The line in it, from one.
    pub line: i32,
    /// The parameter, where the line has one.
    pub name: Option<String>,
    /// The server's reason.
    pub reason: String,
}

/// When a session last read the configuration, as text that is only compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LoadTime(String);

impl Session {
    pub(crate) async fn load_time(&self) -> Result<LoadTime, SessionError> {
        let sql = "SELECT pg_catalog.pg_conf_load_time()::text";
        let row = self.row("ask when the configuration was read", sql, &[]).await?;
        Ok(LoadTime(row.get(0)))
    }

    /// Waits until the configuration was read again; what is wrong with it where it was not. Where there is an error
    /// in it, the server takes on nothing of it.
    pub(crate) async fn wait_reloaded(
        &self,
        before: &LoadTime,
        deadline: Instant,
    ) -> Result<Vec<RejectedLine>, SessionError> {
        let begin = Instant::now();
        let mut look_for_errors = begin + Duration::from_millis(100);
        loop {
            if self.load_time().await? != *before {
                return self.rejected_lines().await;
            }
            let now = Instant::now();
            if now >= look_for_errors {
                let rejected = self.rejected_lines().await?;
                if !rejected.is_empty() {
                    return Ok(rejected);
                }
                look_for_errors = now + Duration::from_millis(500);
            }
            if now >= deadline {
                let after = now - begin;
                return Err(SessionError::TimedOut { what: "reload the configuration", after });
            }
            sleep(LOOK).await;
        }
    }

    /// The lines of the configuration files that the server does not accept.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn rejected_lines(&self) -> Result<Vec<RejectedLine>, SessionError> {
        let sql = "SELECT f.sourcefile, f.sourceline, f.name, f.error FROM pg_catalog.pg_file_settings f \
                   LEFT JOIN pg_catalog.pg_settings s ON s.name = lower(f.name) \
                   WHERE f.error IS NOT NULL AND NOT coalesce(s.pending_restart, false) ORDER BY f.seqno";
        let rows = self.rows("look for errors in the configuration", sql, &[]).await?;
        Ok(rows
            .iter()
            .map(|row| RejectedLine {
                file: row.get::<_, Option<String>>(0).unwrap_or_default(),
                line: row.get::<_, Option<i32>>(1).unwrap_or_default(),
                name: row.get(2),
                reason: row.get(3),
            })
            .collect())
    }

    /// The parameters that wait for a restart: those in the files, by the server's own account; and those on the
    /// command line, `forced`, by comparing what runs with what it would be started with.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn pending_restart(
        &self,
        forced: &[(String, String)],
    ) -> Result<Vec<PendingRestart>, SessionError> {
        const WHAT: &str = "ask what waits for a restart";
        let sql = "SELECT s.name, pg_catalog.current_setting(s.name), (SELECT f.setting \
                   FROM pg_catalog.pg_file_settings f WHERE lower(f.name) = lower(s.name) \
                   ORDER BY f.seqno DESC LIMIT 1) FROM pg_catalog.pg_settings s \
                   WHERE s.pending_restart ORDER BY s.name";
        let mut pending: Vec<PendingRestart> = self
            .rows(WHAT, sql, &[])
            .await?
            .iter()
            .map(|row| PendingRestart {
                name: row.get(0),
                running: row.get(1),
                configured: row.get::<_, Option<String>>(2).unwrap_or_default(),
            })
            .collect();
        let names: Vec<&str> = forced.iter().map(|(name, _)| name.as_str()).collect();
        let sql = "SELECT s.name, s.setting, s.vartype FROM pg_catalog.pg_settings s WHERE s.name = ANY($1)";
        for row in self.rows(WHAT, sql, &[&names]).await? {
            let (name, running, kind): (String, String, String) =
                (row.get(0), row.get(1), row.get(2));
            let configured = forced.iter().find(|(n, _)| *n == name).map(|(_, value)| value);
            let Some(configured) = configured.filter(|c| !is_same(&running, c, &kind)) else {
                continue;
            };
            pending.retain(|p| p.name != name);
            pending.push(PendingRestart { name, running, configured: configured.clone() });
        }
        pending.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(pending)
    }
}

/// Whether two spellings mean the same value of a parameter of this type.
fn is_same(running: &str, configured: &str, kind: &str) -> bool {
    let (running, configured) = (running.trim(), configured.trim());
    match kind {
        "bool" => truth(running).is_some() && truth(running) == truth(configured),
        "integer" => running.parse::<i64>().is_ok_and(|a| configured.parse() == Ok(a)),
        // The name that `replica` had before version 9.6 is still taken.
        "enum" => {
            let name = |v: &str| {
                let v = v.to_ascii_lowercase();
                if v == "hot_standby" || v == "archive" { "replica".to_owned() } else { v }
            };
            name(running) == name(configured)
        }
        _ => running == configured,
    }
}

/// The server takes any unambiguous beginning of these words.
fn truth(value: &str) -> Option<bool> {
    let value = value.to_ascii_lowercase();
    let begins = |word: &str, least: usize| value.len() >= least && word.starts_with(&value);
    if begins("true", 1) || begins("yes", 1) || begins("on", 2) || value == "1" {
        Some(true)
    } else if begins("false", 1) || begins("no", 1) || begins("off", 2) || value == "0" {
        Some(false)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings() {
        for (running, configured, kind, same) in [
            ("on", "true", "bool", true),
            ("on", "1", "bool", true),
            ("off", "of", "bool", true),
            ("off", "on", "bool", false),
            ("on", "o", "bool", false),
            ("100", " 100 ", "integer", true),
            ("100", "0100", "integer", true),
            ("100", "200", "integer", false),
            ("replica", "hot_standby", "enum", true),
            ("replica", "logical", "enum", false),
            ("127.0.0.1", "*", "string", false),
        ] {
            assert_eq!(is_same(running, configured, kind), same, "{running} {configured}");
        }
    }
}
