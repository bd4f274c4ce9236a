//! The name that was probably meant.

/// The one of `known` nearest to `wrong`, where it is near enough to be a slip of the fingers.
pub(super) fn nearest<'a>(
    wrong: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let wrong = fold(wrong);
    let limit = (wrong.len() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|name| (name, fold(name)))
        .filter(|(_, folded)| folded.len().abs_diff(wrong.len()) <= limit)
        .map(|(name, folded)| (distance(&wrong, &folded), name))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Case and the kind of dash do not count.
fn fold(name: &str) -> Vec<char> {
    name.chars().take(64).map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() }).collect()
}

/// Insertions, deletions, replacements and swaps of neighbours.
fn distance(a: &[char], b: &[char]) -> usize {
    let width = b.len() + 1;
    let mut rows = vec![vec![0; width]; a.len() + 1];
    for (column, cell) in rows[0].iter_mut().enumerate() {
        *cell = column;
    }
    for i in 1..=a.len() {
        rows[i][0] = i;
        for j in 1..=b.len() {
            let same = usize::from(a[i - 1] != b[j - 1]);
            let mut best =
                (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + same);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn slips_are_recognised_and_strangers_are_not() {
        let known = ["connect_address", "listen", "ttl", "loop_wait", "scope"];
        for (wrong, expected) in [
            ("connect-address", Some("connect_address")),
            ("conect_adress", Some("connect_address")),
            ("Listen", Some("listen")),
            ("lsiten", Some("listen")),
            ("tll", Some("ttl")),
            ("loopwait", Some("loop_wait")),
            ("something", None),
            ("x", None),
        ] {
            assert_eq!(nearest(wrong, known), expected, "{wrong}");
        }
    }
}
