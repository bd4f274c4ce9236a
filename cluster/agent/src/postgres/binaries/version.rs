//! The version of PostgreSQL's programs.

use std::fmt;

/// The oldest major version the agent works with.
pub const OLDEST: u32 = 12;
/// The newest major version it was written for. Newer ones are tried, with a warning.
pub const NEWEST: u32 = 18;

/// A server version, such as 15.18.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// The major version.
    pub major: u32,
    /// The minor version; zero before a release.
    pub minor: u32,
}

impl Version {
    /// Reads the answer of `postgres -V`: `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
    #[must_use]
    pub fn parse(answer: &str) -> Option<Self> {
        let number = answer.split_once("(PostgreSQL)")?.1.split_whitespace().next()?;
        Self::parse_number(number)
    }

    /// Reads `15.18`, `15`, `17beta1` or `18devel`.
    #[must_use]
    pub fn parse_number(number: &str) -> Option<Self> {
        let digits = |text: &str| -> Option<u32> {
            let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            text.get(..end)?.parse().ok()
        };
        let (major, minor) = number.split_once('.').unwrap_or((number, "0"));
        Some(Self { major: digits(major)?, minor: digits(minor).unwrap_or(0) })
    }

    /// As the server counts: 150018.
    #[must_use]
    pub fn number(self) -> u32 {
        self.major * 10_000 + self.minor
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_real_programs() {
        for (answer, number) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", 150_018),
            ("postgres (PostgreSQL) 12.0", 120_000),
            ("postgres (PostgreSQL) 17beta2", 170_000),
            ("postgres (PostgreSQL) 18devel", 180_000),
        ] {
            assert_eq!(Version::parse(answer).map(Version::number), Some(number), "{answer}");
        }
        assert_eq!(Version::parse("etcd Version: 3.4.23"), None);
    }
}
