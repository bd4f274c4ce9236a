//! Segments that a dead primary had finished and not yet archived.
//!
//! Rewinding removes them, and the new leader may no longer have them: without this, the archive would have a gap, and with it
//! every recovery to a point in time.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use crate::postgres::files::sync_dir;
use crate::postgres::site::Site;

/// The longest that one call of the command may take.
const EACH: Duration = Duration::from_secs(60);

/// What came of archiving.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Archived {
    /// The segments that were archived.
    pub done: Vec<String>,
    /// Those that were not.
    pub left: Vec<String>,
}

/// Archives what is marked as ready, by the user's own `archive_command` and in the server's place. What cannot be archived
/// is left and told: that is no reason not to go on.
pub async fn archive_ready(site: &Site, deadline: Instant) -> Archived {
    let mut result = Archived::default();
    let settings = &site.settings;
    let mode = settings.parameter("archive_mode").unwrap_or("off");
    let command = settings.parameter("archive_command").unwrap_or_default();
    if !matches!(mode.to_ascii_lowercase().as_str(), "on" | "always" | "true" | "yes" | "1")
        || command.trim().is_empty()
    {
        return result;
    }
    let status = site.data_dir().join("pg_wal/archive_status");
    for segment in ready(&status, &site.data_dir().join("pg_wal")) {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = substitute(command, &segment);
        // The command is a shell's line, by PostgreSQL's definition; it is the server's user's own.
        let tool = crate::postgres::binaries::Tool::new("/bin/sh", &site.identity)
            .args(["-c", &line])
            .in_dir(site.data_dir())
            .keep_environment()
            .deadline(EACH.min(left));
        let outcome = if left.is_zero() {
            Err("no time left".to_owned())
        } else {
            tool.run().await.map(|_| ()).map_err(|error| error.to_string())
        };
        let (marked, done) =
            (status.join(format!("{segment}.ready")), status.join(format!("{segment}.done")));
        match outcome.and_then(|()| fs::rename(marked, done).map_err(|e| e.to_string())) {
            Ok(()) => result.done.push(segment),
            Err(error) => {
                tracing::warn!(segment, error, "a finished WAL segment was not archived");
                result.left.push(segment);
            }
        }
    }
    if !result.done.is_empty() {
        let _ = sync_dir(&status);
        tracing::info!(segments = ?result.done, "archived what the server had left");
    }
    result
}

/// The segments that are marked as ready and still there, in order.
fn ready(status: &Path, wal: &Path) -> Vec<String> {
    let entries = fs::read_dir(status).into_iter().flatten().flatten();
    let mut segments: Vec<String> = entries
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".ready")?.to_owned()))
        .filter(|name| is_segment(name) && wal.join(name).is_file())
        .collect();
    segments.sort();
    segments
}

fn is_segment(name: &str) -> bool {
    let stem = name.strip_suffix(".partial").unwrap_or(name);
    stem.len() == 24 && stem.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b))
}

/// `%p` is the segment's path from the data directory, `%f` its name, `%%` a per cent sign.
fn substitute(command: &str, segment: &str) -> String {
    let mut out = String::new();
    let mut chars = command.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.peek() {
            Some('p') => out.push_str(&format!("pg_wal/{segment}")),
            Some('f') => out.push_str(segment),
            Some('%') => out.push('%'),
            _ => {
                out.push('%');
                continue;
            }
        }
        chars.next();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_placeholders() {
        let segment = "000000010000000000000002";
        assert_eq!(
            substitute("cp %p /a/%f; echo 100%% %x %", segment),
            format!("cp pg_wal/{segment} /a/{segment}; echo 100% %x %")
        );
    }

    #[test]
    fn only_segments_that_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let status = dir.path().join("archive_status");
        fs::create_dir(&status).unwrap();
        let (a, b) = ("000000010000000000000002", "000000010000000000000003.partial");
        for name in [b, a] {
            fs::write(dir.path().join(name), "").unwrap();
            fs::write(status.join(format!("{name}.ready")), "").unwrap();
        }
        for name in ["000000010000000000000009.ready", "00000002.history.ready", "x.done"] {
            fs::write(status.join(name), "").unwrap();
        }
        assert_eq!(ready(&status, dir.path()), [a, b]);
    }
}
