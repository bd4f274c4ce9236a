//! What happened, in lines for people.

use std::collections::VecDeque;
use std::process::Command;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use super::say;

const KEPT: usize = 200;

/// How a line is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    Good,
    Bad,
}

#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) time: String,
    pub(super) tone: Tone,
    pub(super) text: String,
}

/// The last events, newest last. Cloning shares them.
#[derive(Debug, Clone)]
pub(super) struct Events {
    list: Arc<Mutex<VecDeque<Event>>>,
    echo: bool,
}

impl Events {
    /// With `echo`, each is printed as it comes.
    pub(super) fn new(echo: bool) -> Self {
        Self { list: Arc::default(), echo }
    }

    pub(super) fn add(&self, tone: Tone, text: impl Into<String>) {
        let event = Event { time: clock(now_unix()), tone, text: text.into() };
        if self.echo {
            say(format_args!("{}  {}", event.time, event.text));
        } else {
            // The live view forgets them.
            tracing::info!("{}", event.text);
        }
        let mut list = self.list.lock().expect("not poisoned");
        list.push_back(event);
        if list.len() > KEPT {
            list.pop_front();
        }
    }

    /// The last `count`, oldest first.
    pub(super) fn last(&self, count: usize) -> Vec<Event> {
        let list = self.list.lock().expect("not poisoned");
        list.iter().skip(list.len().saturating_sub(count)).cloned().collect()
    }
}

pub(super) fn now_unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The local time of day.
pub(super) fn clock(unix: u64) -> String {
    // The standard library knows no time zones; `date` does.
    static OFFSET: LazyLock<i64> = LazyLock::new(|| {
        let output = Command::new("date").arg("+%z").output();
        let text = output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
        text.ok().and_then(|text| seconds_east(&text)).unwrap_or(0)
    });
    let local = (i64::try_from(unix).unwrap_or(0) + *OFFSET).rem_euclid(86_400);
    format!("{:02}:{:02}:{:02}", local / 3600, local / 60 % 60, local % 60)
}

/// `+0530` in seconds.
fn seconds_east(text: &str) -> Option<i64> {
    let (sign, digits) = match text.split_at_checked(1)? {
        ("+", digits) => (1, digits),
        ("-", digits) => (-1, digits),
        _ => return None,
    };
    let number: i64 = digits.parse().ok()?;
    Some(sign * (number / 100 * 3600 + number % 100 * 60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_from_utc() {
        assert_eq!(seconds_east("+0530"), Some(19_800));
        assert_eq!(seconds_east("-0300"), Some(-10_800));
        assert_eq!(seconds_east("UTC"), None);
    }

    #[test]
    fn the_oldest_events_go() {
        let events = Events::new(false);
        for n in 0..=KEPT {
            events.add(Tone::Plain, n.to_string());
        }
        let all = events.last(usize::MAX);
        assert_eq!((all.len(), all[0].text.as_str()), (KEPT, "1"));
    }
}
