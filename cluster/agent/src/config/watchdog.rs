//! `watchdog`: the device that resets the machine when the agent no longer can.

use std::path::PathBuf;
use std::time::Duration;

use super::diagnostics::Code;
use super::section::{Reading, Section};

/// How the watchdog device is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watchdog {
    /// Whether it is used.
    pub mode: WatchdogMode,
    /// The device. Default: `/dev/watchdog`.
    pub device: PathBuf,
    /// How long before the leader key runs out it fires. Default: 5 seconds.
    pub safety_margin: SafetyMargin,
}

impl Default for Watchdog {
    fn default() -> Self {
        Self {
            mode: WatchdogMode::Automatic,
            device: PathBuf::from("/dev/watchdog"),
            safety_margin: SafetyMargin::Before(Duration::from_secs(5)),
        }
    }
}

/// Whether the watchdog is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WatchdogMode {
    /// Never.
    Off,
    /// Where there is one.
    Automatic,
    /// Always: without one, this member does not lead.
    Required,
}

/// How long before the leader key runs out the watchdog fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SafetyMargin {
    /// This long before.
    Before(Duration),
    /// At half of the ttl: it outlives a key renewed a moment before the agent froze. Written as `-1`.
    HalfOfTtl,
}

impl Watchdog {
    /// How long the device waits for a sign of life. `None`: the margin leaves no time within `ttl`, and half
    /// of it is to be used.
    #[must_use]
    pub fn timeout(&self, ttl: Duration) -> Option<Duration> {
        match self.safety_margin {
            SafetyMargin::HalfOfTtl => Some(ttl / 2),
            SafetyMargin::Before(margin) => {
                ttl.checked_sub(margin).filter(|timeout| *timeout >= Duration::from_secs(1))
            }
        }
    }
}

const MODES: [(&str, WatchdogMode); 7] = [
    ("off", WatchdogMode::Off),
    ("automatic", WatchdogMode::Automatic),
    ("required", WatchdogMode::Required),
    ("disable", WatchdogMode::Off),
    ("disabled", WatchdogMode::Off),
    ("auto", WatchdogMode::Automatic),
    ("require", WatchdogMode::Required),
];

pub(super) fn read(mut section: Section<'_>, reading: &mut Reading) -> Watchdog {
    let default = Watchdog::default();
    let mode = section.find("mode", reading).map(|found| {
        found.word(&MODES, reading).unwrap_or_else(|| {
            let message = "not a mode of the watchdog";
            reading.warning(Code::InvalidValue, &found.at, message, "off, as for Patroni");
            WatchdogMode::Off
        })
    });
    if let Some(found) = section.find("driver", reading) {
        let message = "the agent speaks to the Linux watchdog device only";
        reading.notice(Code::NoEffect, &found.at, message, "`device` is used");
    }
    let watchdog = Watchdog {
        mode: mode.unwrap_or(default.mode),
        device: section.text("device", reading).map_or(default.device, PathBuf::from),
        safety_margin: section.number("safety_margin", -1..=86_400, reading).map_or(
            default.safety_margin,
            |seconds| match u64::try_from(seconds) {
                Ok(seconds) => SafetyMargin::Before(Duration::from_secs(seconds)),
                Err(_) => SafetyMargin::HalfOfTtl,
            },
        ),
    };
    section.finish(reading);
    watchdog
}
