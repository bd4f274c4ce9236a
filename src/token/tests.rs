use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::*;
use crate::lineage::history;

fn token(timeline: u32, lsn: u64) -> CausalToken {
    CausalToken {
        system_id: SystemId(7_711_353_190_614_709_005),
        timeline: Timeline(timeline),
        lsn: Lsn(lsn),
    }
}

#[test]
fn the_text_is_stable() {
    // Tokens outlive releases in cookies: this text must be read for ever.
    let text = "lp1_awQ63tAqMw0AAAADAAAAFrN02Eh7FY35";
    assert_eq!(token(3, 0x16_B374_D848).to_string(), text);
    assert_eq!(text.parse(), Ok(token(3, 0x16_B374_D848)));
    let json = serde_json::to_string(&token(3, 0x16_B374_D848)).expect("serialises");
    assert_eq!(json, format!("{text:?}"));
    assert_eq!(
        serde_json::from_str::<CausalToken>(&json).expect("reads"),
        token(3, 0x16_B374_D848)
    );
}

#[test]
fn other_texts_are_refused() {
    let good = token(3, 99).to_string();
    for bad in ["", "lp1_", "lp2_AAAA", &good[1..], &good[..good.len() - 1], &format!("{good} ")] {
        assert!(bad.parse::<CausalToken>().is_err(), "{bad:?} must be refused");
    }
    let wide: String = "lp1_".chars().chain(std::iter::repeat_n('é', 16)).collect();
    assert!(wide.parse::<CausalToken>().is_err());
}

#[test]
fn standings() {
    let lines = history(&[(1, 100), (2, 200)]);
    let cases = [
        (token(3, 5000), Standing::Valid),
        (token(2, 200), Standing::Valid),
        (token(2, 201), Standing::Lost { timeline: Timeline(2), switch_lsn: Lsn(200) }),
        (token(1, 100), Standing::Valid),
        (token(1, 150), Standing::Lost { timeline: Timeline(1), switch_lsn: Lsn(100) }),
        (token(4, 1), Standing::Future),
    ];
    let cluster = token(1, 1).system_id;
    for (token, expected) in cases {
        assert_eq!(token.standing(cluster, Timeline(3), &lines), expected, "{token:?}");
    }
    assert_eq!(token(1, 1).standing(cluster, Timeline(3), &lines[..1]), Standing::Unknown);
    assert_eq!(token(1, 1).standing(SystemId(1), Timeline(1), &[]), Standing::OtherCluster);
}

#[test]
fn replicas_satisfy_tokens_of_their_own_history() {
    let lines = history(&[(1, 100), (2, 200)]);
    let cases = [
        // token, replica's timeline and position
        (token(1, 50), (1, 50), Satisfaction::Yes),
        (token(1, 50), (1, 49), Satisfaction::NotYet),
        (token(1, 50), (3, 50), Satisfaction::Yes),
        (token(1, 50), (3, 49), Satisfaction::NotYet),
        (token(1, 101), (3, 900), Satisfaction::Lost),
        (token(1, 101), (2, 900), Satisfaction::Lost),
        // On a timeline that was left, or that it has not left yet.
        (token(3, 250), (2, 900), Satisfaction::NotYet),
        (token(1, 50), (5, 900), Satisfaction::Unknown),
    ];
    for (token, (timeline, reached), expected) in cases {
        let found = token.satisfied_by(Timeline(timeline), Lsn(reached), &lines);
        assert_eq!(found, expected, "{token:?} on {timeline} at {reached}");
    }
}

#[test]
fn merging_keeps_the_token_that_asks_for_more() {
    let lines = history(&[(1, 100), (2, 200)]);
    assert_eq!(token(2, 5).merge(token(2, 9)), Ok(token(2, 9)));
    assert_eq!(token(1, 90).merge_with_history(token(3, 210), &lines), Ok(token(3, 210)));
    let newer = Timeline(3);
    assert_eq!(
        token(1, 90).merge(token(3, 210)),
        Err(TokenError::NoHistory { older: Timeline(1), newer })
    );
    assert_eq!(
        token(3, 210).merge_with_history(token(2, 201), &lines),
        Err(TokenError::Lost { lost: token(2, 201), timeline: Timeline(2), switch_lsn: Lsn(200) })
    );
    let stranger = CausalToken { system_id: SystemId(1), ..token(2, 1) };
    assert!(matches!(token(2, 1).merge(stranger), Err(TokenError::OtherCluster { .. })));
}

#[tokio::test(start_paused = true)]
async fn the_ring_counts_what_a_failover_lost() {
    let mut ring = TokenRing::new(4);
    assert_eq!(ring.lost_beyond(Timeline(1), Lsn(0)), None);
    let begin = Instant::now();
    for lsn in [10, 20, 30, 25] {
        tokio::time::advance(Duration::from_millis(1)).await;
        ring.push(token(1, lsn), Instant::now());
    }
    let at = |ms| begin + Duration::from_millis(ms);
    let lost = ring.lost_beyond(Timeline(1), Lsn(20)).expect("two are lost");
    assert_eq!((lost.count, lost.at_least), (2, false));
    assert_eq!((lost.first, lost.last), ((token(1, 25), at(4)), (token(1, 30), at(3))));
    assert_eq!(ring.lost_beyond(Timeline(1), Lsn(30)), None);
    assert_eq!(ring.lost_beyond(Timeline(2), Lsn(0)), None);
    for lsn in [40, 50, 60, 70] {
        ring.push(token(1, lsn), Instant::now());
    }
    assert_eq!(ring.len(), 4);
    let lost = ring.lost_beyond(Timeline(1), Lsn(20)).expect("four are known");
    assert_eq!((lost.count, lost.at_least), (4, true));
}

fn tokens() -> impl Strategy<Value = CausalToken> {
    (any::<u64>(), any::<u32>(), any::<u64>()).prop_map(|(system_id, timeline, lsn)| CausalToken {
        system_id: SystemId(system_id),
        timeline: Timeline(timeline),
        lsn: Lsn(lsn),
    })
}

proptest! {
    #[test]
    fn every_token_survives_its_text(token in tokens()) {
        let text = token.to_string();
        prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
        prop_assert_eq!(text.parse(), Ok(token));
    }

    #[test]
    fn one_wrong_character_is_found(token in tokens(), at in 0_usize..36, new in "[A-Za-z0-9_-]") {
        let mut text = token.to_string();
        prop_assume!(text[at..=at] != new);
        text.replace_range(at..=at, &new);
        prop_assert!(text.parse::<CausalToken>().is_err());
    }

    #[test]
    fn no_text_panics(text in "(lp1_)?.{0,40}") {
        let _ = text.parse::<CausalToken>();
    }

    #[test]
    fn merging_is_symmetric_and_satisfies_both(
        (a_timeline, a_lsn, b_timeline, b_lsn) in (1_u32..5, 0_u64..500, 1_u32..5, 0_u64..500),
        reached in 0_u64..500,
    ) {
        let lines = history(&[(1, 100), (2, 200), (3, 300), (4, 400)]);
        let (a, b) = (token(a_timeline, a_lsn), token(b_timeline, b_lsn));
        let merged = a.merge_with_history(b, &lines);
        prop_assert_eq!(merged, b.merge_with_history(a, &lines));
        if let Ok(merged) = merged {
            let now = Timeline(5);
            let by = |token: CausalToken| token.satisfied_by(now, Lsn(reached), &lines);
            // The newer of the two may itself be lost; the older one then counts for nothing.
            if by(merged) == Satisfaction::Yes {
                prop_assert_eq!((by(a), by(b)), (Satisfaction::Yes, Satisfaction::Yes));
            }
        }
    }
}
