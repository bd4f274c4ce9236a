//! Where a checkpoint's record ends, and what stands before it.

use std::time::Duration;

use leaderpool::patroni::{Lsn, Timeline};

use crate::postgres::binaries::ToolError;
use crate::postgres::control::{ControlData, DataState};
use crate::postgres::site::Site;

/// A page of WAL, as every package builds it.
const PAGE: u64 = 8192;
/// A page's header; the first of a segment has a longer one.
const HEADER: u64 = 24;
const LONG_HEADER: u64 = 40;

/// A record of the WAL, as `pg_waldump` prints it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) begin: Lsn,
    pub(crate) previous: Lsn,
    pub(crate) length: u64,
    pub(crate) manager: String,
    pub(crate) what: String,
}

/// Why a record cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WalError {
    /// It is not there.
    #[error("cannot read the WAL record at {lsn} on timeline {timeline}: {source}")]
    Read {
        /// Where.
        lsn: Lsn,
        /// On which timeline.
        timeline: Timeline,
        /// What pg_waldump said.
        #[source]
        source: ToolError,
    },
    /// What is printed is not understood.
    #[error("cannot read the WAL record at {lsn}: pg_waldump printed {printed:?}")]
    Strange {
        /// Where.
        lsn: Lsn,
        /// What it printed.
        printed: String,
    },
}

impl Record {
    /// Reads a line such as `rmgr: XLOG  len (rec/tot):    114/   114, tx:  0, lsn: 0/03018080, prev 0/03018048, desc:
    /// CHECKPOINT_SHUTDOWN redo …`.
    fn parse(line: &str) -> Option<Self> {
        let after = |word: &str| line.split_once(word).map(|(_, rest)| rest.trim_start());
        let manager = after("rmgr:")?.split_whitespace().next()?.to_owned();
        let lengths = after("len (rec/tot):")?.split(',').next()?;
        let length = lengths.split_once('/')?.1.trim().parse().ok()?;
        let begin = after(" lsn: ")?.split(',').next()?.trim().parse().ok()?;
        let previous = after(" prev ")?.split(',').next()?.trim().parse().ok()?;
        let what = after(" desc: ")?.to_owned();
        Some(Self { begin, previous, length, manager, what })
    }

    pub(crate) fn is_shutdown_checkpoint(&self) -> bool {
        self.manager == "XLOG" && self.what.starts_with("CHECKPOINT_SHUTDOWN")
    }

    /// A new segment was begun after it, as a primary that archives does before the shutdown checkpoint.
    fn is_switch(&self) -> bool {
        self.manager == "XLOG" && self.what.starts_with("SWITCH")
    }

    /// Where it ends: the server aligns records to eight bytes, and page headers lie between its parts.
    pub(crate) fn end(&self, segment: u64) -> Lsn {
        let mut position = self.begin.0;
        let mut left = self.length;
        loop {
            let room = PAGE - position % PAGE;
            if left <= room {
                let end = (position + left).next_multiple_of(8);
                return Lsn(end);
            }
            left -= room;
            position += room;
            position += if position.is_multiple_of(segment) { LONG_HEADER } else { HEADER };
        }
    }
}

/// Reads one record from the data directory's WAL.
pub(crate) async fn read_record(
    site: &Site,
    timeline: Timeline,
    lsn: Lsn,
) -> Result<Record, WalError> {
    let output = site
        .tool("pg_waldump")
        .arg("-p")
        .arg(site.data_dir().join("pg_wal"))
        .args(["-t", &timeline.to_string(), "-s", &lsn.to_string(), "-n", "1"])
        .deadline(Duration::from_secs(30))
        .run()
        .await
        .map_err(|source| WalError::Read { lsn, timeline, source })?;
    let record = output.stdout.lines().next().and_then(Record::parse);
    record.filter(|record| record.begin == lsn).ok_or_else(|| WalError::Strange {
        lsn,
        printed: output.stdout.chars().take(300).collect(),
    })
}

/// The record that a primary wrote last when it was shut down in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShutdownCheckpoint {
    /// Its timeline.
    pub timeline: Timeline,
    /// Where it begins.
    pub begin: Lsn,
    /// Where it ends, and with it the server's WAL.
    pub end: Lsn,
    /// The last position that carries anything: where a segment was closed just before it, the record that closed it;
    /// else where the checkpoint begins. A standby that has this has everything.
    pub last_content: Lsn,
}

/// Reads the record of the shutdown; none where the server was not a primary that was shut down in order.
///
/// # Errors
/// When its WAL cannot be read.
pub async fn shutdown_checkpoint(
    site: &Site,
    control: &ControlData,
) -> Result<Option<ShutdownCheckpoint>, WalError> {
    if control.state != DataState::ShutDown {
        return Ok(None);
    }
    let (timeline, begin) = (control.timeline, control.checkpoint);
    let record = read_record(site, timeline, begin).await?;
    if !record.is_shutdown_checkpoint() {
        return Err(WalError::Strange { lsn: begin, printed: record.what });
    }
    let end = record.end(control.wal_segment_size);
    // That record lies in the segment before, which may be gone: then there is nothing to be said of it.
    let previous = read_record(site, timeline, record.previous).await.ok();
    let last_content = previous.filter(Record::is_switch).map_or(begin, |switch| switch.begin);
    Ok(Some(ShutdownCheckpoint { timeline, begin, end, last_content }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "rmgr: XLOG        len (rec/tot):    114/   114, tx:          0, lsn: 0/03018080, prev 0/03018048, desc: CHECKPOINT_SHUTDOWN redo 0/3018080; tli 1; prev tli 1; fpw true";

    #[test]
    fn a_printed_record() {
        let record = Record::parse(LINE).unwrap();
        assert_eq!((record.begin, record.previous), (Lsn(0x301_8080), Lsn(0x301_8048)));
        assert_eq!(record.length, 114);
        assert!(record.is_shutdown_checkpoint() && !record.is_switch());
        assert_eq!(Record::parse("rmgr: nonsense"), None);
    }

    #[test]
    fn ends_are_aligned_and_skip_page_headers() {
        let segment = 16 << 20;
        let end = |begin: u64, length| {
            let record = Record { begin: Lsn(begin), length, ..Record::parse(LINE).unwrap() };
            record.end(segment).0
        };
        assert_eq!(end(0x301_8080, 114), 0x301_80F8);
        // Across a page: 32 bytes fit, 82 follow the header of the next.
        assert_eq!(end(0x2000 - 32, 114), (0x2000 + 24 + 82_u64).next_multiple_of(8));
        // Across a segment: the header is longer.
        assert_eq!(end((16 << 20) - 32, 114), ((16 << 20) + 40 + 82_u64).next_multiple_of(8));
        // Just to the end of a page.
        assert_eq!(end(0x2000 - 112, 112), 0x2000);
        // More than a page.
        assert_eq!(end(0x2000 + 24, 8168 + 8168 + 8), 0x2000 + 3 * 8192 - 8192 + 24 + 8);
    }
}
