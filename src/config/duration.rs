//! Durations as text with a unit, by the crate `humantime`.

use std::fmt;
use std::time::Duration;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};

pub(super) fn parse(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text.trim()).map_err(|error| {
        format!("{text:?} is not a duration ({error}); write a number with a unit, such as \"250ms\" or \"5s\"")
    })
}

pub(super) fn required<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    deserializer.deserialize_str(Text)
}

/// Formats that have a null spell an absent duration with it.
pub(super) fn optional<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    #[derive(Deserialize)]
    struct Given(#[serde(deserialize_with = "required")] Duration);

    Ok(Option::<Given>::deserialize(deserializer)?.map(|Given(value)| value))
}

struct Text;

impl Visitor<'_> for Text {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration as text with a unit, such as \"250ms\" or \"5s\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
        parse(text).map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        let good = [
            ("250ms", 250),
            ("5s", 5_000),
            (" 1.5s ", 1_500),
            ("1m 30s", 90_000),
            ("2min", 120_000),
            ("30m", 1_800_000),
            ("2h", 7_200_000),
            ("0s", 0),
        ];
        for (text, millis) in good {
            match parse(text) {
                Ok(value) => assert_eq!(value, Duration::from_millis(millis), "{text}"),
                Err(problem) => panic!("{text}: {problem}"),
            }
        }
        for text in ["", "5", "s", "five seconds", "-1s", "5 parsecs", "99999999999999999999s"] {
            let problem = parse(text).expect_err(text);
            assert!(problem.contains("a number with a unit"), "{problem}");
        }
    }
}
