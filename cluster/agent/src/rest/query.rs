//! The query string, and the sizes and times that people write.

use axum::extract::Query as Parser;
use hyper::Uri;

/// The parameters of a request. Of several with one name the first counts; empty ones do not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// The parameters of `uri`; none where they cannot be read.
    #[must_use]
    pub fn of(uri: &Uri) -> Self {
        let pairs = Parser::<Vec<(String, String)>>::try_from_uri(uri);
        let mut pairs = pairs.map(|Parser(pairs)| pairs).unwrap_or_default();
        pairs.retain(|(_, value)| !value.is_empty());
        Self(pairs)
    }

    /// The value of `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The tags that are asked for: `tag_zone=b` asks for `zone` to be `b`.
    pub fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().enumerate().filter_map(|(place, (key, value))| {
            let first = self.0.iter().position(|(other, _)| other == key) == Some(place);
            first.then_some((key.strip_prefix("tag_")?, value.as_str()))
        })
    }
}

/// Bytes: a number, with or without one of PostgreSQL's units. `None` where it is neither.
#[must_use]
pub fn parse_bytes(text: &str) -> Option<u64> {
    let units = [("B", 0), ("kB", 10), ("MB", 20), ("GB", 30), ("TB", 40)];
    parse_with_unit(text, |unit| {
        let (_, shift) = units.iter().find(|(name, _)| *name == unit)?;
        Some(f64::from(1_u32 << (shift % 30)) * if *shift >= 30 { 1_073_741_824.0 } else { 1.0 })
    })
}

/// Seconds: a number, with or without one of PostgreSQL's units. `None` where it is neither.
#[must_use]
pub fn parse_seconds(text: &str) -> Option<u64> {
    parse_with_unit(text, |unit| {
        Some(match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "min" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return None,
        })
    })
}

fn parse_with_unit(text: &str, factor: impl Fn(&str) -> Option<f64>) -> Option<u64> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (text[..split].parse::<f64>().ok()?, text[split..].trim());
    let value = if unit.is_empty() { number } else { number * factor(unit)? };
    // Beyond 2^53 it is a typing error, and the float is no longer exact.
    (value.is_finite() && value <= 9_007_199_254_740_992.0).then_some(value.round() as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_and_times() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("1048576", Some(1 << 20)),
            ("10MB", Some(10 << 20)),
            ("16 kB", Some(16 << 10)),
            ("1.5GB", Some(3 << 29)),
            ("2TB", Some(2 << 40)),
            ("10mb", None),
            ("MB", None),
            ("-1", None),
            ("", None),
            ("1e300", None),
            ("9999999TB", None),
        ] {
            assert_eq!(parse_bytes(text), bytes, "{text}");
        }
        for (text, seconds) in [
            ("60", Some(60)),
            ("1min", Some(60)),
            ("2 h", Some(7200)),
            ("x", None),
            ("500ms", Some(1)),
        ] {
            assert_eq!(parse_seconds(text), seconds, "{text}");
        }
    }

    #[test]
    fn the_first_of_each_name_counts() {
        let query = Query::of(&Uri::from_static(
            "/replica?lag=10MB&lag=1&tag_zone=b%20c&tag_zone=d&tag_x=&tag_y=+",
        ));
        assert_eq!(query.get("lag"), Some("10MB"));
        assert_eq!(query.tags().collect::<Vec<_>>(), [("zone", "b c"), ("y", " ")]);
        assert_eq!(Query::of(&Uri::from_static("/replica")), Query::default());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = (parse_bytes(&text), parse_seconds(&text));
        }
    }
}
