//! Whether a server's data are part of its leader's history: the rule, without IO.

use leaderpool::patroni::{HistoryLine, Lsn, Timeline};

/// Where a server's own WAL ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalEnd {
    /// The timeline it ends on.
    pub timeline: Timeline,
    /// Where it ends.
    pub end: Lsn,
    /// What it was.
    pub was: Was,
}

/// What a server was when it wrote the end of its WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Was {
    /// A primary: what it wrote itself may be nowhere else.
    Primary,
    /// A standby: it has only what it was sent.
    Standby,
}

/// What is to be done with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Its WAL is part of the leader's history: it can follow as it is.
    Follow,
    /// It went its own way: it has to be rewound, or copied anew.
    Diverged {
        /// On which timeline the ways parted; the server's own.
        timeline: Timeline,
        /// Where the leader's history left that timeline; none where it never was on it.
        fork: Option<Lsn>,
        /// Where the server's own WAL ends.
        end: Lsn,
    },
}

/// Compares where a server's WAL ends with its leader's timeline and the history of that.
#[must_use]
pub fn compare(local: LocalEnd, leader: Timeline, history: &[HistoryLine]) -> Verdict {
    if local.timeline == leader {
        return Verdict::Follow;
    }
    let line = history.iter().find(|line| line.timeline == local.timeline);
    let fork = line.map(|line| line.switch_lsn).filter(|_| local.timeline < leader);
    let is_part = match (fork, local.was) {
        (None, _) => false,
        (Some(fork), Was::Standby) => local.end <= fork,
        // The leader must have received all of it, the record of the shutdown included, and gone on from just there. Were
        // the end before the fork, somebody else wrote between: then only pg_rewind can tell what this server has.
        (Some(fork), Was::Primary) => local.end == fork,
    };
    if is_part {
        Verdict::Follow
    } else {
        Verdict::Diverged { timeline: local.timeline, fork, end: local.end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(lines: &[(u32, u64)]) -> Vec<HistoryLine> {
        lines
            .iter()
            .map(|(timeline, lsn)| HistoryLine {
                timeline: Timeline(*timeline),
                switch_lsn: Lsn(*lsn),
                reason: String::new(),
                at: None,
                new_leader: None,
            })
            .collect()
    }

    #[test]
    fn the_rule() {
        use Was::{Primary, Standby};
        let lines = history(&[(1, 100), (3, 300)]);
        // The leader is on 4, which came of 3 at 300, which came of 1 at 100; 2 was somebody's failed promotion.
        for (timeline, end, was, follows) in [
            (4, 999, Standby, true),
            (4, 999, Primary, true),
            (1, 99, Standby, true),
            (1, 100, Standby, true),
            (1, 101, Standby, false),
            (1, 100, Primary, true),
            (1, 101, Primary, false),
            (1, 99, Primary, false),
            (3, 300, Standby, true),
            (3, 301, Standby, false),
            (2, 50, Standby, false),
            (5, 50, Standby, false),
            (5, 50, Primary, false),
        ] {
            let local = LocalEnd { timeline: Timeline(timeline), end: Lsn(end), was };
            let verdict = compare(local, Timeline(4), &lines);
            assert_eq!(verdict == Verdict::Follow, follows, "{local:?}: {verdict:?}");
        }
    }

    #[test]
    fn a_timeline_ahead_of_the_leaders_has_no_fork() {
        let local = LocalEnd { timeline: Timeline(7), end: Lsn(5), was: Was::Standby };
        let verdict = compare(local, Timeline(4), &history(&[(7, 9)]));
        assert_eq!(verdict, Verdict::Diverged { timeline: Timeline(7), fork: None, end: Lsn(5) });
    }
}
