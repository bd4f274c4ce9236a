//! Log files, for the errors that must carry what the servers said.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const LINES: usize = 25;

/// The last lines of one log, under a heading.
#[must_use]
pub fn tail_of(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let mut out = format!("--- {} ", log.display());
    let _ = writeln!(out, "(last {} of {} lines)", lines.len().min(LINES), lines.len());
    for line in &lines[lines.len().saturating_sub(LINES)..] {
        let _ = writeln!(out, "{line}");
    }
    out
}

/// The last lines of every log in a directory.
#[must_use]
pub fn tails_in(dir: &Path) -> String {
    let mut logs: Vec<PathBuf> =
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    logs.sort();
    logs.iter().map(|log| tail_of(log)).collect()
}
