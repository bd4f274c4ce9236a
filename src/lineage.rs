//! Whether a WAL position is part of a later timeline's history.

use crate::patroni::{HistoryLine, Lsn, Timeline};

/// What became of a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lineage {
    /// It is part of the current timeline's history.
    Kept,
    /// It lies beyond the point where `timeline` was left.
    Lost { timeline: Timeline, switch_lsn: Lsn },
    /// The history does not say: it is not written down yet, or no more.
    Unknown,
}

/// Whether `lsn` on `timeline` is part of the history of `current`.
///
/// `history` is one timeline's list of ancestors, as Patroni keeps it. It is believed only if it is that of
/// `current`: it ends with the timeline just before, or names `current` itself. After a promotion the
/// leader writes it with a delay, and an old list would call positions kept or lost that are not. (Where
/// a timeline's number was skipped, a current list looks like an old one; then nothing is said.)
///
/// Limit: a promotion that failed before anybody saw it can leave its timeline's number to be taken again.
/// Two timelines of one number cannot be told apart here.
pub(crate) fn lineage(
    timeline: Timeline,
    lsn: Lsn,
    current: Timeline,
    history: &[HistoryLine],
) -> Lineage {
    if timeline == current {
        return Lineage::Kept;
    }
    let is_current = history
        .iter()
        .any(|line| line.timeline == current || line.timeline.0.checked_add(1) == Some(current.0));
    if timeline > current || !is_current {
        return Lineage::Unknown;
    }
    let on_the_way = |line: &&HistoryLine| line.timeline >= timeline && line.timeline < current;
    // Switch points only grow, so that the first one left behind decides; the later ones are checked
    // in case the list is not what it should be.
    let lost = history
        .iter()
        .filter(on_the_way)
        .filter(|line| lsn > line.switch_lsn)
        .min_by_key(|line| line.timeline);
    match lost {
        Some(line) => Lineage::Lost { timeline: line.timeline, switch_lsn: line.switch_lsn },
        None if history.iter().any(|line| line.timeline == timeline) => Lineage::Kept,
        // The list is cut off (`max_timelines_history`), or `timeline` is no ancestor.
        None => Lineage::Unknown,
    }
}

/// A history of these timelines and switch points, for tests.
#[cfg(test)]
pub(crate) fn history(lines: &[(u32, u64)]) -> Vec<HistoryLine> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_kept_lost_or_unknown() {
        let lost =
            |timeline, lsn| Lineage::Lost { timeline: Timeline(timeline), switch_lsn: Lsn(lsn) };
        let full: &[(u32, u64)] = &[(1, 100), (2, 200), (3, 300)];
        let cases = [
            // timeline, lsn, current, history, expected
            (4, 999, 4, full, Lineage::Kept),
            (4, 999, 4, &[], Lineage::Kept),
            (5, 1, 4, full, Lineage::Unknown),
            (3, 300, 4, full, Lineage::Kept),
            (3, 301, 4, full, lost(3, 300)),
            (1, 100, 4, full, Lineage::Kept),
            (1, 101, 4, full, lost(1, 100)),
            // Not written down yet.
            (3, 300, 4, &full[..2], Lineage::Unknown),
            (1, 999, 4, &full[..2], Lineage::Unknown),
            // A list that is ahead of the view.
            (1, 100, 3, full, Lineage::Kept),
            (2, 201, 3, full, lost(2, 200)),
            (1, 100, 3, &[(1, 100), (4, 400)], Lineage::Unknown),
            // Cut off at its beginning: a loss at a later switch is still sure.
            (1, 100, 4, &full[1..], Lineage::Unknown),
            (1, 250, 4, &full[1..], lost(2, 200)),
            // Timeline 2 was abandoned.
            (2, 150, 4, &[(1, 100), (3, 300)], Lineage::Unknown),
            (1, 100, 4, &[(1, 100), (3, 300)], Lineage::Kept),
            // A later switch point before an earlier one.
            (1, 90, 4, &[(1, 100), (2, 80), (3, 300)], lost(2, 80)),
            (u32::MAX, 1, 4, full, Lineage::Unknown),
            (1, 1, u32::MAX, full, Lineage::Unknown),
        ];
        for (timeline, lsn, current, lines, expected) in cases {
            let found = lineage(Timeline(timeline), Lsn(lsn), Timeline(current), &history(lines));
            assert_eq!(found, expected, "{timeline}/{lsn} seen from {current} with {lines:?}");
        }
    }
}
