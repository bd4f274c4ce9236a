//! The three numbers that order PostgreSQL histories: LSN, timeline and system identifier.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A position in the write-ahead log, in bytes since the cluster was made.
///
/// Displays as PostgreSQL does (`16/B374D848`), and parses either that form or a decimal number, which
/// is how Patroni writes it into its keys.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Bytes from `earlier` to `self`; zero where `earlier` is not earlier.
    #[must_use]
    pub fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is neither `hex/hex` nor a decimal number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a WAL position (expected `16/B374D848` or a decimal number): {0:?}")]
pub struct LsnParseError(String);

impl FromStr for Lsn {
    type Err = LsnParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = || LsnParseError(text.chars().take(40).collect());
        match text.split_once('/') {
            Some((high, low)) => {
                let half = |part: &str| {
                    if part.is_empty() || part.len() > 8 || part.starts_with('+') {
                        return Err(fail());
                    }
                    u64::from_str_radix(part, 16).map_err(|_| fail())
                };
                Ok(Lsn(half(high)? << 32 | half(low)?))
            }
            None => text.parse().map(Lsn).map_err(|_| fail()),
        }
    }
}

/// A PostgreSQL timeline: it grows by one with each promotion.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timeline(pub u32);

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The system identifier that `initdb` gave the cluster; every member of one cluster has the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemId(pub u64);

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

// As text: JSON readers that keep numbers as doubles would lose its low digits.
impl Serialize for SystemId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SystemId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Text(String),
            Number(u64),
        }
        match Form::deserialize(deserializer)? {
            Form::Number(number) => Ok(SystemId(number)),
            Form::Text(text) => text.parse().map(SystemId).map_err(|_| {
                serde::de::Error::custom(format!("not a system identifier: {text:?}"))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn_reads_both_forms_and_prints_postgres_own() {
        for (text, value) in [("0/4000060", 0x400_0060), ("67108960", 67_108_960), ("1/0", 1 << 32)]
        {
            assert_eq!(text.parse(), Ok(Lsn(value)), "{text}");
        }
        assert_eq!(Lsn(0x16_B374_D848).to_string(), "16/B374D848");
        for bad in ["", "/", "1/", "/1", "x/1", "-1", "1/123456789", "+1/+2", "1/2/3"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn system_id_survives_json_as_text() {
        let id = SystemId(7_711_353_190_614_709_005);
        let json = serde_json::to_string(&id).expect("serialises");
        assert_eq!(json, "\"7711353190614709005\"");
        assert_eq!(serde_json::from_str::<SystemId>(&json).expect("reads back"), id);
        assert!(serde_json::from_str::<SystemId>("\"\"").is_err());
    }
}
