//! Power of two choices: two candidates at random, the less loaded of them. Close to the best choice,
//! without the herd that always choosing the best one makes.

use std::time::Duration;

use rand::{Rng, RngExt};

/// The index of one of `count` candidates, by what each costs now: work in flight and latency.
pub(crate) fn pick_two(
    count: usize,
    cost: impl Fn(usize) -> (usize, Duration),
    rng: &mut impl Rng,
) -> Option<usize> {
    match count {
        0 => None,
        1 => Some(0),
        _ => {
            let first = rng.random_range(0..count);
            // Another one than the first, each equally likely.
            let second = (first + rng.random_range(1..count)) % count;
            let weigh = |index| {
                let (in_flight, latency): (usize, Duration) = cost(index);
                (in_flight as u128 + 1) << slowness(latency)
            };
            Some(if weigh(second) < weigh(first) { second } else { first })
        }
    }
}

/// Leaves the candidates that `passes` lets through; or, where it lets none through, all of them: a call
/// to a member that probably fails is better than a call that surely does.
///
/// True where all were left for that reason: then each of them is the last resort.
pub(crate) fn keep_passable<T>(
    candidates: &mut Vec<T>,
    mut passes: impl FnMut(&T) -> bool,
) -> bool {
    // Mostly all of them pass.
    if candidates.iter().all(&mut passes) {
        return false;
    }
    let before = std::mem::take(candidates);
    let (passable, refused): (Vec<T>, Vec<T>) = before.into_iter().partition(passes);
    let last_resort = passable.is_empty();
    *candidates = if last_resort { refused } else { passable };
    last_resort
}

/// Latency in powers of two above 16 ms. Finer differences are mostly noise, and following them would
/// send all idle traffic to one member; MongoDB's drivers take 15 ms for the same reason.
fn slowness(latency: Duration) -> u32 {
    u64::try_from(latency.as_millis() / 16).unwrap_or(u64::MAX).max(1).ilog2()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_busiest_of_three_is_never_chosen_and_the_others_share() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut chosen = [0; 3];
        for _ in 0..3000 {
            let cost = |index| (if index == 1 { 9 } else { 2 }, MS);
            chosen[pick_two(3, cost, &mut rng).expect("three")] += 1;
        }
        assert_eq!(chosen[1], 0);
        assert!(chosen[0] > 1200 && chosen[2] > 1200, "{chosen:?}");
    }

    #[test]
    fn nearly_equal_candidates_share_evenly() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut chosen = [0; 4];
        let latency = [180, 240, 9000, 900].map(Duration::from_micros);
        for _ in 0..8000 {
            chosen[pick_two(4, |index| (0, latency[index]), &mut rng).expect("four")] += 1;
        }
        assert!(chosen.iter().all(|count| (1700..2300).contains(count)), "{chosen:?}");
    }

    #[test]
    fn a_slow_member_is_left_alone_until_the_others_are_busy() {
        let mut rng = StdRng::seed_from_u64(7);
        let near_busy =
            |in_flight| move |index| if index == 0 { (in_flight, MS) } else { (0, 600 * MS) };
        assert!((0..100).all(|_| pick_two(2, near_busy(30), &mut rng) == Some(0)));
        assert!((0..100).all(|_| pick_two(2, near_busy(32), &mut rng) == Some(1)));
    }

    #[test]
    fn the_last_candidates_are_never_taken_away() {
        let keep = |open: [bool; 3]| {
            let mut candidates = vec![0, 1, 2];
            let last_resort = keep_passable(&mut candidates, |index: &usize| !open[*index]);
            (candidates, last_resort)
        };
        assert_eq!(keep([false, false, false]), (vec![0, 1, 2], false));
        assert_eq!(keep([true, false, true]), (vec![1], false));
        assert_eq!(keep([true, true, true]), (vec![0, 1, 2], true));
        let mut nobody: Vec<usize> = Vec::new();
        assert!(!keep_passable(&mut nobody, |_| false));
    }

    proptest! {
        #[test]
        fn always_a_candidate_and_never_the_worse_of_two(
            costs in proptest::collection::vec((0_usize..1000, 0_u64..10_000_000_000), 0..8),
            seed in any::<u64>(),
        ) {
            let mut rng = StdRng::seed_from_u64(seed);
            let cost = |index: usize| (costs[index].0, Duration::from_nanos(costs[index].1));
            let chosen = pick_two(costs.len(), cost, &mut rng);
            prop_assert_eq!(chosen.is_none(), costs.is_empty());
            if costs.len() == 2 {
                let weigh = |index: usize| (costs[index].0 as u128 + 1) << slowness(cost(index).1);
                let best = weigh(0).min(weigh(1));
                prop_assert_eq!(weigh(chosen.expect("two")), best);
            }
        }
    }
}
