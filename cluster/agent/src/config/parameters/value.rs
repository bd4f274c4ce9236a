//! The value of one setting.

use super::catalog::{Kind, Setting};
use super::units;

/// A value that the server takes, and what had to be done for it.
#[derive(Debug, PartialEq)]
pub(super) struct Accepted {
    pub(super) text: String,
    /// What was changed, where more than the spelling of `on` and `off` was.
    pub(super) changed: Option<String>,
}

/// `raw` for `setting`, or why not.
pub(super) fn accept(setting: &Setting, text: &str, raw: &str) -> Result<Accepted, String> {
    let fine = |text: String| Ok(Accepted { text, changed: None });
    match &setting.kind {
        Kind::Text => fine(raw.to_owned()),
        Kind::Preset => Err("the server reports it, nobody sets it".to_owned()),
        Kind::Bool => match boolean(text) {
            Some(value) => fine(on_off(value).to_owned()),
            None => Err(format!("`{text}` is neither `on` nor `off`")),
        },
        Kind::Enum(values) => match enumerated(setting.name, values, text) {
            Some(value) => fine(value),
            None => Err(format!("`{text}` is not one of {}", values.join(", "))),
        },
        Kind::Int { least, most } => number(setting, text, *least, *most, true),
        Kind::Real { least, most } => number(setting, text, *least, *most, false),
    }
}

pub(super) fn on_off(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}

/// As PostgreSQL: any unambiguous beginning of `on`, `off`, `true`, `false`, `yes`, `no`, and 1 and 0.
pub(super) fn boolean(text: &str) -> Option<bool> {
    let text = text.trim().to_ascii_lowercase();
    if text.is_empty() || text == "o" {
        return None;
    }
    let begins = |word: &str| word.starts_with(&text);
    match text.as_str() {
        "1" => Some(true),
        "0" => Some(false),
        _ if begins("on") || begins("true") || begins("yes") => Some(true),
        _ if begins("off") || begins("false") || begins("no") => Some(false),
        _ => None,
    }
}

/// Words that PostgreSQL takes without listing them.
fn unlisted(name: &str, word: &str) -> bool {
    match name {
        "client_min_messages" => matches!(word, "debug" | "info" | "fatal" | "panic"),
        "log_min_messages" | "log_min_error_statement" | "trace_recovery_messages" => {
            word == "debug"
        }
        "wal_level" => matches!(word, "archive" | "hot_standby"),
        _ => false,
    }
}

fn enumerated(name: &str, values: &[&str], text: &str) -> Option<String> {
    let word = text.trim();
    if let Some(value) = values.iter().find(|value| value.eq_ignore_ascii_case(word)) {
        return Some((*value).to_owned());
    }
    let lower = word.to_ascii_lowercase();
    if unlisted(name, &lower) {
        return Some(lower);
    }
    // An enum with `on` and `off` takes the other words for them too.
    if !values.contains(&"on") || !values.contains(&"off") {
        return None;
    }
    match lower.as_str() {
        "true" | "yes" | "1" => Some("on".to_owned()),
        "false" | "no" | "0" => Some("off".to_owned()),
        _ => None,
    }
}

fn number(
    setting: &Setting,
    text: &str,
    least: f64,
    most: f64,
    whole: bool,
) -> Result<Accepted, String> {
    let what = if whole { "a whole number" } else { "a number" };
    let Some(quantity) = units::quantity(text) else {
        return Err(match setting.unit {
            Some(unit) => format!("`{text}` is not {what} with one of {}", units::allowed(unit)),
            None => format!("`{text}` is not {what}"),
        });
    };
    let mut changed = None;
    let mut written = text.trim().to_owned();
    let mut value = units::to_base(text, setting.unit);
    if let (None, Some(base)) = (value, setting.unit) {
        let Some(unit) = units::respelled(quantity.unit, base) else {
            let allowed = units::allowed(base);
            return Err(format!("`{}` is not one of its units: {allowed}", quantity.unit));
        };
        let digits = text.trim().strip_suffix(quantity.unit).unwrap_or(text).trim();
        written = format!("{digits}{unit}");
        changed = Some(format!("written as `{written}`: PostgreSQL knows no `{}`", quantity.unit));
        value = units::to_base(&written, setting.unit);
    }
    let Some(value) = value else {
        return Err(format!("`{text}`: this one has no unit"));
    };
    if whole && quantity.unit.is_empty() && value.fract() != 0.0 {
        return Err(format!("`{text}` is not a whole number"));
    }
    // A bare number may not be in the words of C: `1e3` for an integer.
    if whole && quantity.unit.is_empty() && value.abs() < 1e15 {
        written = format!("{}", value as i64);
    }
    let clamped = value.clamp(least, most);
    if clamped != value {
        let unit = setting.unit.unwrap_or_default();
        let limit = if clamped == least { "least" } else { "most" };
        let text = format!("{clamped}");
        changed = Some(format!("written as {text}, the {limit} possible (counted in {unit})"));
        if unit.is_empty() {
            changed = Some(format!("written as {text}, the {limit} possible"));
        }
        written = text;
    }
    Ok(Accepted { text: written, changed })
}

/// Whether two values of a setting mean the same to PostgreSQL: `128MB` and `131072kB`, `on` and `true`.
///
/// `kind` and `unit` are `pg_settings.vartype` and `.unit`.
#[must_use]
pub fn same_value(kind: &str, unit: Option<&str>, a: &str, b: &str) -> bool {
    if a == b {
        return true;
    }
    match kind {
        "bool" => boolean(a).is_some() && boolean(a) == boolean(b),
        "enum" => a.eq_ignore_ascii_case(b) || (boolean(a).is_some() && boolean(a) == boolean(b)),
        "integer" | "real" => match (units::to_base(a, unit), units::to_base(b, unit)) {
            (Some(a), Some(b)) if kind == "integer" => a.round() == b.round(),
            (Some(a), Some(b)) => (a - b).abs() <= f64::EPSILON * a.abs().max(b.abs()),
            _ => false,
        },
        _ => false,
    }
}
