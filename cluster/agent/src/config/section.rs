//! Reading a section: each key is asked for by name and kind; what nobody asked for is reported at the end.
//!
//! Reading never stops at a fault. A value of the wrong kind is reported and taken as not written; whoever asked
//! for it has a default, or reports that there is none.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::Duration;

use super::Secret;
use super::diagnostics::{Code, Diagnostic, Diagnostics, Origin, Severity};
use super::parameters::units;
use super::suggest::nearest;
use super::yaml::{Data, Entry, Map, Node, Resolved, parse_bool};

/// What is found and asked for while a configuration is read.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub(super) diagnostics: Diagnostics,
    /// The path of every key that was asked for, whether written or not: what the documentation's table
    /// is compared with.
    pub(super) asked: BTreeSet<String>,
}

impl Reading {
    pub(super) fn push(&mut self, diagnostic: Diagnostic) {
        self.diagnostics.push(diagnostic);
    }

    pub(super) fn notice(
        &mut self,
        code: Code,
        at: &At,
        message: impl Into<String>,
        done: impl Into<String>,
    ) {
        self.push(
            Diagnostic::new(Severity::Notice, code, &at.origin, &at.path, message).done(done),
        );
    }

    pub(super) fn warning(
        &mut self,
        code: Code,
        at: &At,
        message: impl Into<String>,
        done: impl Into<String>,
    ) {
        self.push(
            Diagnostic::new(Severity::Warning, code, &at.origin, &at.path, message).done(done),
        );
    }

    pub(super) fn error(
        &mut self,
        code: Code,
        at: &At,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.push(Diagnostic::new(Severity::Error, code, &at.origin, &at.path, message).help(help));
    }
}

/// A key, and where it is written.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct At {
    pub(super) path: String,
    pub(super) origin: Origin,
}

/// A value with its place. Two are equal where the values are.
#[derive(Debug, Clone)]
pub(super) struct Found<'a> {
    pub(super) node: &'a Node,
    pub(super) at: At,
}

/// The path of `key` below `path`.
pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// One section, as far as it was read.
pub(super) struct Section<'a> {
    map: Option<&'a Map>,
    at: At,
    /// The path as the table of keys has it: with `*` for a name that is the operator's choice.
    pattern: String,
    known: Vec<&'static str>,
}

impl<'a> Section<'a> {
    /// The section that `node` is; an empty one, and a finding, where it is something else.
    pub(super) fn new(node: Option<&'a Node>, at: At, reading: &mut Reading) -> Self {
        let map = match node.map(|node| &node.data) {
            Some(Data::Map(map)) => Some(map),
            Some(_) => {
                let kind = node.map_or("nothing", Node::kind);
                // What the whole cluster shares must not stop a member that runs.
                let severity = match at.origin {
                    Origin::Dynamic => Severity::Warning,
                    _ => Severity::Error,
                };
                reading.push(
                    Diagnostic::new(
                        severity,
                        Code::WrongType,
                        &at.origin,
                        &at.path,
                        format!(
                            "a section with keys of its own is wanted here, and this is {kind}"
                        ),
                    )
                    .help("write its keys below it, indented"),
                );
                None
            }
            None => None,
        };
        Self { map, pattern: at.path.clone(), at, known: Vec::new() }
    }

    /// The section of something whose name is the operator's choice, under the `pattern` of its kind.
    pub(super) fn named(found: &Found<'a>, pattern: &str, reading: &mut Reading) -> Self {
        let section = Self::new(Some(found.node), found.at.clone(), reading);
        Self { pattern: pattern.to_owned(), ..section }
    }

    pub(super) fn with_pattern(self, pattern: &str) -> Self {
        Self { pattern: pattern.to_owned(), ..self }
    }

    pub(super) fn at(&self) -> &At {
        &self.at
    }

    /// The place of `key`, whether it is written or not.
    pub(super) fn place(&self, key: &str) -> At {
        let origin = self
            .map
            .and_then(|map| map.get(key))
            .map_or_else(|| self.at.origin.clone(), |entry| entry.node.origin.clone());
        At { path: join(&self.at.path, key), origin }
    }

    /// Whether anything is written in it.
    pub(super) fn is_written(&self) -> bool {
        self.map.is_some_and(|map| !map.entries.is_empty())
    }

    /// Whether `key` is written, be it with no value.
    pub(super) fn has(&self, key: &str) -> bool {
        self.map.is_some_and(|map| map.get(key).is_some_and(|entry| !entry.node.is_null()))
    }

    /// The value of `key`. A key without a value counts as not written.
    pub(super) fn find(&mut self, key: &'static str, reading: &mut Reading) -> Option<Found<'a>> {
        if !self.known.contains(&key) {
            self.known.push(key);
            reading.asked.insert(join(&self.pattern, key));
        }
        let entry = self.map?.get(key)?;
        if entry.node.is_null() {
            return None;
        }
        let at = At { path: join(&self.at.path, key), origin: entry.node.origin.clone() };
        Some(Found { node: &entry.node, at })
    }

    /// The value of `key`, or of one of its older names.
    pub(super) fn find_renamed(
        &mut self,
        key: &'static str,
        old: &[&'static str],
        reading: &mut Reading,
    ) -> Option<Found<'a>> {
        let new = self.find(key, reading);
        for old in old {
            let Some(found) = self.find(old, reading) else { continue };
            if new.is_some() {
                let message = format!("this is an older name of `{key}`, which is written too");
                reading.warning(Code::OldName, &found.at, message, format!("`{key}` counts"));
            } else {
                let message = format!("an older name of `{key}`");
                reading.notice(Code::OldName, &found.at, message, "read as the newer one");
                return Some(found);
            }
        }
        new
    }

    /// The section `key`, empty where it is not written.
    pub(super) fn section(&mut self, key: &'static str, reading: &mut Reading) -> Section<'a> {
        let found = self.find(key, reading);
        let at = self.place(key);
        let section = Section::new(found.map(|found| found.node), at, reading);
        Section { pattern: join(&self.pattern, key), ..section }
    }

    /// Text; an empty one counts as not written.
    pub(super) fn text(&mut self, key: &'static str, reading: &mut Reading) -> Option<String> {
        let found = self.find(key, reading)?;
        found.text(reading).filter(|text| !text.is_empty())
    }

    /// A password.
    pub(super) fn secret(&mut self, key: &'static str, reading: &mut Reading) -> Option<Secret> {
        self.text(key, reading).map(Secret::from)
    }

    /// Text that must be there.
    pub(super) fn required(
        &mut self,
        key: &'static str,
        help: &str,
        reading: &mut Reading,
    ) -> Option<String> {
        let text = self.text(key, reading);
        if text.is_none() {
            reading.error(Code::Missing, &self.place(key), "this must be given", help);
        }
        text
    }

    /// True or false.
    pub(super) fn flag(&mut self, key: &'static str, reading: &mut Reading) -> Option<bool> {
        let found = self.find(key, reading)?;
        found.flag(reading)
    }

    /// A whole number within `range`.
    pub(super) fn number(
        &mut self,
        key: &'static str,
        range: RangeInclusive<i64>,
        reading: &mut Reading,
    ) -> Option<i64> {
        let found = self.find(key, reading)?;
        found.number(range, reading)
    }

    /// A time in seconds, at least `least`.
    pub(super) fn seconds(
        &mut self,
        key: &'static str,
        least: u64,
        reading: &mut Reading,
    ) -> Option<Duration> {
        let found = self.find(key, reading)?;
        found.seconds(least, reading)
    }

    /// A list of texts. `commas`: text with commas will do as well.
    pub(super) fn texts(
        &mut self,
        key: &'static str,
        commas: bool,
        reading: &mut Reading,
    ) -> Option<Vec<String>> {
        let found = self.find(key, reading)?;
        found.texts(commas, reading)
    }

    /// A map from names to texts.
    pub(super) fn pairs(
        &mut self,
        key: &'static str,
        reading: &mut Reading,
    ) -> Vec<(String, String)> {
        let section = self.section(key, reading);
        section
            .rest()
            .into_iter()
            .filter_map(|(name, found)| Some((name.to_owned(), found.text(reading)?)))
            .collect()
    }

    /// What was not asked for, with its place; nothing of it is reported as unknown.
    pub(super) fn rest(&self) -> Vec<(&'a str, Found<'a>)> {
        let entries = self.map.map_or(&[][..], |map| &map.entries[..]);
        entries
            .iter()
            .filter(|entry| !self.known.contains(&entry.key.as_str()))
            .map(|entry| (entry.key.as_str(), self.found(entry)))
            .collect()
    }

    fn found(&self, entry: &'a Entry) -> Found<'a> {
        let at = At { path: join(&self.at.path, &entry.key), origin: entry.node.origin.clone() };
        Found { node: &entry.node, at }
    }

    /// Reports what was not asked for. `judge` may know more about a key than that it is not known.
    pub(super) fn finish_with(
        &self,
        reading: &mut Reading,
        judge: impl Fn(&str, &Found<'a>) -> Verdict,
    ) {
        let entries = self.map.map_or(&[][..], |map| &map.entries[..]);
        for entry in entries {
            // `x-…` and `.…` hold what anchors point at.
            if self.known.contains(&entry.key.as_str())
                || entry.key.starts_with('.')
                || entry.key.starts_with("x-")
            {
                continue;
            }
            let path = join(&self.at.path, &entry.key);
            match judge(&entry.key, &self.found(entry)) {
                Verdict::Fine => continue,
                Verdict::Because { severity, code, message, done, help } => {
                    let mut diagnostic =
                        Diagnostic::new(severity, code, &entry.origin, path, message);
                    diagnostic.done = Some(done).filter(|done| !done.is_empty());
                    diagnostic.help = Some(help).filter(|help| !help.is_empty());
                    reading.push(diagnostic);
                    continue;
                }
                Verdict::Unknown => {}
            }
            let mut diagnostic = Diagnostic::new(
                Severity::Warning,
                Code::UnknownKey,
                &entry.origin,
                path,
                "no such key",
            )
            .done("it has no effect");
            if let Some(near) = nearest(&entry.key, self.known.iter().copied()) {
                diagnostic = diagnostic.help(format!("did you mean `{near}`?"));
            }
            reading.push(diagnostic);
        }
    }

    pub(super) fn finish(&self, reading: &mut Reading) {
        self.finish_with(reading, |_, _| Verdict::Unknown);
    }
}

/// What a key is that nobody asked for.
pub(super) enum Verdict {
    /// In its place.
    Fine,
    /// A mistake, or from another program.
    Unknown,
    /// Known, and not in its place.
    Because {
        severity: Severity,
        code: Code,
        message: String,
        /// Empty: nothing to say.
        done: String,
        /// Empty: nothing to say.
        help: String,
    },
}

impl<'a> Found<'a> {
    fn wrong(&self, wanted: &str, reading: &mut Reading) {
        let message = format!("{wanted} is wanted here, and this is {}", self.node.kind());
        reading.warning(Code::WrongType, &self.at, message, "taken as not written");
    }

    pub(super) fn text(&self, reading: &mut Reading) -> Option<String> {
        match &self.node.data {
            Data::Scalar(scalar) => Some(scalar.as_str().to_owned()),
            _ => {
                self.wrong("text", reading);
                None
            }
        }
    }

    /// Text that something depends on: anything else is an error.
    pub(super) fn text_or_error(&self, help: &str, reading: &mut Reading) -> Option<String> {
        match &self.node.data {
            Data::Scalar(scalar) => Some(scalar.as_str().to_owned()),
            _ => {
                let message = format!("text is wanted here, and this is {}", self.node.kind());
                reading.error(Code::WrongType, &self.at, message, help);
                None
            }
        }
    }

    pub(super) fn flag(&self, reading: &mut Reading) -> Option<bool> {
        let value = match &self.node.data {
            Data::Scalar(scalar) => scalar.as_bool(),
            _ => None,
        };
        if value.is_none() {
            self.wrong("`true` or `false`", reading);
        }
        value
    }

    pub(super) fn number(&self, range: RangeInclusive<i64>, reading: &mut Reading) -> Option<i64> {
        let Data::Scalar(scalar) = &self.node.data else {
            self.wrong("a whole number", reading);
            return None;
        };
        let Some(value) = scalar.as_int() else {
            self.wrong("a whole number", reading);
            return None;
        };
        if range.contains(&value) {
            return Some(value);
        }
        self.out_of_range(&value.to_string(), &range, "", reading);
        None
    }

    /// A number, where there is one; nothing is reported.
    pub(super) fn number_quietly(&self) -> Option<i64> {
        match &self.node.data {
            Data::Scalar(scalar) => scalar.as_int(),
            _ => None,
        }
    }

    fn out_of_range(
        &self,
        value: &str,
        range: &RangeInclusive<i64>,
        unit: &str,
        reading: &mut Reading,
    ) {
        let (least, most) = (range.start(), range.end());
        let message = if *most == i64::MAX || *most == i64::from(u32::MAX) {
            format!("{value}{unit} is less than the smallest possible, {least}{unit}")
        } else {
            format!("{value}{unit} is outside of {least} … {most}{unit}")
        };
        reading.warning(Code::OutOfRange, &self.at, message, "taken as not written");
    }

    /// `30`, `"30"`, and `"30s"`, which Patroni would refuse.
    pub(super) fn seconds(&self, least: u64, reading: &mut Reading) -> Option<Duration> {
        self.amount(least, "s", reading).map(Duration::from_secs)
    }

    /// `1048576`, or `1MB`.
    pub(super) fn bytes(&self, least: u64, reading: &mut Reading) -> Option<u64> {
        self.amount(least, "B", reading)
    }

    fn amount(&self, least: u64, base: &'static str, reading: &mut Reading) -> Option<u64> {
        let wanted = if base == "s" { "a number of seconds" } else { "a number of bytes" };
        let Data::Scalar(scalar) = &self.node.data else {
            self.wrong(wanted, reading);
            return None;
        };
        let value = match scalar.resolve() {
            Resolved::Int(value) => value as f64,
            Resolved::Float(value) => value,
            Resolved::Text => match units::quantity(scalar.as_str()) {
                Some(quantity) if quantity.unit.is_empty() => quantity.number,
                Some(_) => match units::to_base(scalar.as_str(), Some(base)) {
                    Some(value) => {
                        let done = format!("read as {value}{base}");
                        let message = "Patroni reads no unit here";
                        reading.notice(Code::UnitNotInPatroni, &self.at, message, done);
                        value
                    }
                    None => {
                        self.wrong(wanted, reading);
                        return None;
                    }
                },
                None => {
                    self.wrong(wanted, reading);
                    return None;
                }
            },
            Resolved::Null | Resolved::Bool(_) => {
                self.wrong(wanted, reading);
                return None;
            }
        };
        if !value.is_finite() {
            self.wrong(wanted, reading);
            return None;
        }
        // As Python's int(): what is behind the point is cut off.
        let whole = value.trunc();
        let most = i64::from(u32::MAX) * if base == "B" { 1 << 20 } else { 1 };
        let least = i64::try_from(least).unwrap_or(0);
        if whole < least as f64 || whole > most as f64 {
            self.out_of_range(&format!("{whole}"), &(least..=most), base, reading);
            return None;
        }
        Some(whole as u64)
    }

    pub(super) fn texts(&self, commas: bool, reading: &mut Reading) -> Option<Vec<String>> {
        match &self.node.data {
            Data::List(items) => Some(
                items
                    .iter()
                    .enumerate()
                    .filter(|(_, item)| !item.is_null())
                    .filter_map(|(index, item)| {
                        let path = format!("{}[{index}]", self.at.path);
                        let at = At { path, origin: item.origin.clone() };
                        Found { node: item, at }.text(reading)
                    })
                    .collect(),
            ),
            Data::Scalar(scalar) if commas => Some(
                scalar
                    .as_str()
                    .split(',')
                    .map(|part| part.trim().trim_matches(['\'', '"']).to_owned())
                    .filter(|part| !part.is_empty())
                    .collect(),
            ),
            _ => {
                self.wrong("a list", reading);
                None
            }
        }
    }

    /// The items of a list with their places; anything else is its own only item.
    pub(super) fn items(&self) -> Vec<Found<'a>> {
        match &self.node.data {
            Data::List(items) => items
                .iter()
                .enumerate()
                .map(|(index, item)| {
                    let path = format!("{}[{index}]", self.at.path);
                    Found { node: item, at: At { path, origin: item.origin.clone() } }
                })
                .collect(),
            _ => vec![self.clone()],
        }
    }

    /// One of `words`, in any case; a boolean counts as `on` or `off`.
    pub(super) fn word<T: Copy>(&self, words: &[(&str, T)], reading: &mut Reading) -> Option<T> {
        self.one_of(words)
            .map_err(|message| {
                reading.warning(Code::InvalidValue, &self.at, message, "taken as not written");
            })
            .ok()
    }

    /// As [`Found::word`]; nothing is reported.
    pub(super) fn one_of<T: Copy>(&self, words: &[(&str, T)]) -> Result<T, String> {
        let names: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        let names = names.join(", ");
        let Data::Scalar(scalar) = &self.node.data else {
            return Err(format!("one of {names} is wanted here, and this is {}", self.node.kind()));
        };
        let text = match scalar.resolve() {
            Resolved::Bool(true) => "on",
            Resolved::Bool(false) => "off",
            _ => scalar.as_str().trim(),
        };
        let by_name = |wanted: &str| {
            words
                .iter()
                .find(|(word, _)| word.eq_ignore_ascii_case(wanted))
                .map(|(_, value)| *value)
        };
        let by_meaning = || match parse_bool(text) {
            Some(true) => by_name("on"),
            Some(false) => by_name("off"),
            None => None,
        };
        by_name(text)
            .or_else(by_meaning)
            .ok_or_else(|| format!("`{}` is not one of {names}", text.escape_debug()))
    }
}
