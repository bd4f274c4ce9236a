//! The value of `failover`: who shall lead next, and when.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::values::{ValueError, text_of};

/// The value of `failover`: a switchover or failover that was asked for. `{}` means none.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FailoverRequest {
    /// The leader to step down; set for a switchover.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// Who should take over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// When, in ISO 8601; now where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled_at: Option<String>,
}

impl FailoverRequest {
    /// Reads the value of `failover`. The old form `leader:member` is accepted.
    ///
    /// # Errors
    /// Where the bytes are neither.
    pub fn parse(value: &[u8]) -> Result<Self, ValueError> {
        let text = text_of(value)?.trim();
        if text.is_empty() {
            return Ok(Self::default());
        }
        let request = match serde_json::from_str(text) {
            // A list would be read as the fields in their order.
            Ok(object @ Value::Object(_)) => serde_json::from_value(object)?,
            Ok(_) => return Err(ValueError::NotJson("not an object".into())),
            Err(error) if text.starts_with('{') => return Err(error.into()),
            Err(error) => match text.split_once(':') {
                Some((leader, member)) => Self {
                    leader: Some(leader.trim().to_owned()),
                    member: Some(member.trim().to_owned()),
                    scheduled_at: None,
                },
                None => return Err(error.into()),
            },
        };
        // An empty name or moment is none.
        let Self { leader, member, scheduled_at } = request;
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        Ok(Self { leader: given(leader), member: given(member), scheduled_at: given(scheduled_at) })
    }

    /// When it is to be carried out.
    #[must_use]
    pub fn schedule(&self) -> Schedule {
        Schedule::of(self.scheduled_at.as_deref())
    }

    /// Whether it asks `leader`, which holds the leader key, to give it to another member.
    #[must_use]
    pub fn asks_to_go(&self, leader: &str) -> bool {
        match (&self.leader, &self.member) {
            (None, None) => false,
            (named, candidate) => {
                named.as_deref().is_none_or(|named| named == leader)
                    && candidate.as_deref() != Some(leader)
            }
        }
    }

    /// Whether anything is asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.leader.is_none() && self.member.is_none()
    }
}

/// When a request is to be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// As soon as it is seen.
    Now,
    /// Not before this moment.
    At(SystemTime),
    /// Something that is no moment: it is never carried out.
    Unreadable,
}

impl Schedule {
    /// What `scheduled_at` says.
    #[must_use]
    pub fn of(scheduled_at: Option<&str>) -> Self {
        match scheduled_at {
            None => Schedule::Now,
            Some(text) => parse_time(text).map_or(Schedule::Unreadable, Schedule::At),
        }
    }

    /// How long it is until then at `wall`; zero where it is due, `None` where it never is.
    #[must_use]
    pub fn due_in(&self, wall: SystemTime) -> Option<Duration> {
        match self {
            Schedule::Now => Some(Duration::ZERO),
            Schedule::At(at) => Some(at.duration_since(wall).unwrap_or_default()),
            Schedule::Unreadable => None,
        }
    }
}

/// A moment in ISO 8601 with a date, a time of day and an offset, as Python's `isoformat` writes them. One
/// without an offset is none: nobody can tell which moment is meant, and Patroni refuses it too.
fn parse_time(text: &str) -> Option<SystemTime> {
    let text = text.trim();
    if !text.is_ascii() {
        return None;
    }
    // The first signs stand in the date.
    let sign_at = text.get(10..)?.rfind(['+', '-', 'Z', 'z'])? + 10;
    let (local, offset) = text.split_at(sign_at);
    let is_digital = |byte: u8| byte.is_ascii_digit() || b":.tT ".contains(&byte);
    if !local.bytes().skip(10).all(is_digital) {
        return None;
    }
    let local = humantime::parse_rfc3339_weak(local).ok()?;
    let offset_seconds = || {
        let digits: String = offset[1..].chars().filter(|character| *character != ':').collect();
        let all_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
        if !all_digits || ![2, 4, 6].contains(&digits.len()) {
            return None;
        }
        let pairs = (0..digits.len()).step_by(2).map(|at| digits[at..at + 2].parse::<u64>());
        pairs.zip([3600, 60, 1]).try_fold(0, |sum, (pair, unit)| Some(sum + pair.ok()? * unit))
    };
    match offset.as_bytes() {
        b"Z" | b"z" => Some(local),
        [b'+', ..] => local.checked_sub(Duration::from_secs(offset_seconds()?)),
        [b'-', ..] => local.checked_add(Duration::from_secs(offset_seconds()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(text: &str) -> Option<f64> {
        let since = parse_time(text)?.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        Some(since.as_secs_f64())
    }

    #[test]
    fn moments_as_python_writes_them() {
        for text in [
            "2026-11-24T12:30:00+00:00",
            "2026-11-24T12:30:00Z",
            "2026-11-24 12:30:00z",
            "2026-11-24T14:30:00+02:00",
            "2026-11-24T14:30:00+02",
            "2026-11-24T08:00:00-0430",
            "2026-11-24T12:30:01+00:00:01",
            " 2026-11-24T12:30:00.000000+00:00 ",
        ] {
            assert_eq!(seconds(text), Some(1_795_523_400.0), "{text}");
        }
        assert_eq!(seconds("2026-11-24T12:30:00.250000+00:00"), Some(1_795_523_400.25));
    }

    #[test]
    fn what_is_no_moment() {
        for text in [
            "",
            "soon",
            "2026-11-24",
            "2026-11-24T12:30:00",
            "2026-11-24T12:30:00+",
            "2026-11-24T12:30:00+2",
            "2026-11-24T12:30:00+aa:bb",
            "2026-13-24T12:30:00Z",
            "2026-11-24T12:30:00+00:00Z",
            "2026-11-24T12:30:00 Europe/Madrid",
            "２０２６-11-24T12:30:00Z",
        ] {
            assert_eq!(parse_time(text), None, "{text}");
            assert_eq!(Schedule::of(Some(text)), Schedule::Unreadable);
        }
    }

    #[test]
    fn due_when_the_clock_says_so() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let schedule = Schedule::At(at);
        assert_eq!(schedule.due_in(at - Duration::from_secs(3)), Some(Duration::from_secs(3)));
        assert_eq!(schedule.due_in(at), Some(Duration::ZERO));
        assert_eq!(schedule.due_in(at + Duration::from_secs(3)), Some(Duration::ZERO));
        assert_eq!(Schedule::Now.due_in(at), Some(Duration::ZERO));
        assert_eq!(Schedule::Unreadable.due_in(at), None);
    }

    #[test]
    fn failover_requests() {
        assert!(FailoverRequest::parse(b"{}").expect("reads").is_empty());
        let request = FailoverRequest::parse(br#"{"leader":"a","member":"b"}"#).expect("reads");
        assert_eq!((request.leader.as_deref(), request.member.as_deref()), (Some("a"), Some("b")));
        let old = FailoverRequest::parse(b"a:b").expect("reads");
        assert_eq!(old, request);
        let old = FailoverRequest::parse(b" a : b ").expect("reads");
        assert_eq!(old, request);
        let empty = br#"{"leader":"","member":"","scheduled_at":""}"#;
        assert_eq!(FailoverRequest::parse(empty).expect("reads"), FailoverRequest::default());
        for garbage in ["{", "7", "true", r#"["a","b"]"#, r#""a:b""#, r#"{"leader":7}"#, "a"] {
            assert!(FailoverRequest::parse(garbage.as_bytes()).is_err(), "{garbage}");
        }
    }

    #[test]
    fn whom_a_failover_request_asks_to_go() {
        let request = |text: &str| FailoverRequest::parse(text.as_bytes()).expect("reads");
        for (text, asks_a) in [
            (r#"{"leader":"a"}"#, true),
            (r#"{"leader":"a","member":"b"}"#, true),
            (r#"{"member":"b"}"#, true),
            (r#"{"member":"a"}"#, false),
            (r#"{"leader":"a","member":"a"}"#, false),
            (r#"{"leader":"b","member":"c"}"#, false),
            (r#"{"leader":"b","member":"a"}"#, false),
            ("{}", false),
            (r#"{"scheduled_at":"2026-11-24T12:30:00Z"}"#, false),
        ] {
            assert_eq!(request(text).asks_to_go("a"), asks_a, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(
            text in prop_oneof![".{0,40}", r"[0-9TZz:+\- \.]{0,40}",
                r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,12})?[+\-][0-9:]{0,9}"]
        ) {
            let _ = Schedule::of(Some(&text)).due_in(SystemTime::UNIX_EPOCH);
            let _ = FailoverRequest::parse(text.as_bytes());
        }
    }
}
