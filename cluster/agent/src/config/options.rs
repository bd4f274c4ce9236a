//! Options for a PostgreSQL program, as lists and maps in a configuration name them.

use super::diagnostics::{Code, Diagnostic, Severity};
use super::section::{At, Found, Reading, join};
use super::yaml::{Data, Node, Resolved};

/// One long option: `--name` or `--name=value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolOption {
    /// Without the dashes.
    pub name: String,
    /// What follows the `=`.
    pub value: Option<String>,
}

impl ToolOption {
    /// As an argument of the program.
    #[must_use]
    pub fn argument(&self) -> String {
        match &self.value {
            Some(value) => format!("--{}={value}", self.name),
            None => format!("--{}", self.name),
        }
    }
}

/// Options of `tool` in any of Patroni's forms: `- flag`, `- name: value`, or a map. What is in `reserved` the
/// agent says itself.
pub(super) fn read(
    found: &Found<'_>,
    tool: &str,
    reserved: &[&str],
    reading: &mut Reading,
) -> Vec<ToolOption> {
    let mut options = Vec::new();
    match &found.node.data {
        Data::Map(map) => {
            for entry in &map.entries {
                let path = join(&found.at.path, &entry.key);
                let at = At { path, origin: entry.node.origin.clone() };
                options.extend(option(&entry.key, &entry.node, &at, reading));
            }
        }
        Data::List(_) => {
            for item in found.items() {
                match &item.node.data {
                    Data::Scalar(scalar) => {
                        options.extend(flag(scalar.as_str(), &item.at, reading));
                    }
                    Data::Map(map) => {
                        for entry in &map.entries {
                            let path = join(&item.at.path, &entry.key);
                            let at = At { path, origin: entry.node.origin.clone() };
                            options.extend(option(&entry.key, &entry.node, &at, reading));
                        }
                    }
                    Data::List(_) => {
                        let message = "an option is `- name` or `- name: value`";
                        reading.warning(Code::WrongType, &item.at, message, "left out");
                    }
                }
            }
        }
        Data::Scalar(_) => {
            let message = "options are a list: `- name` or `- name: value`";
            reading.warning(Code::WrongType, &found.at, message, "taken as not written");
        }
    }
    options.retain(|option| {
        let taken = reserved.contains(&option.name.as_str());
        if taken {
            let message = format!("`--{}` is the agent's to say to {tool}", option.name);
            reading.warning(Code::ReservedOption, &found.at, message, "left out");
        }
        !taken
    });
    options
}

/// `- data-checksums`; also `- encoding=UTF8` and `- --no-sync`, which people write.
fn flag(text: &str, at: &At, reading: &mut Reading) -> Option<ToolOption> {
    let text = text.trim().trim_start_matches('-');
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(unquoted(value))),
        None => (text, None),
    };
    named(name, value, at, reading)
}

fn option(name: &str, node: &Node, at: &At, reading: &mut Reading) -> Option<ToolOption> {
    let value = match &node.data {
        Data::Scalar(scalar) => match scalar.resolve() {
            // `- data-checksums: true` means the flag, `- data-checksums: false` and nothing its absence.
            Resolved::Null | Resolved::Bool(true) => None,
            Resolved::Bool(false) => return None,
            _ => Some(unquoted(scalar.as_str())),
        },
        _ => {
            let message = "an option's value is text";
            reading.warning(Code::WrongType, at, message, "left out");
            return None;
        }
    };
    named(name.trim().trim_start_matches('-'), value, at, reading)
}

fn named(name: &str, value: Option<String>, at: &At, reading: &mut Reading) -> Option<ToolOption> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if name.is_empty() || !name.bytes().all(fine) {
        let diagnostic = Diagnostic::new(
            Severity::Warning,
            Code::InvalidValue,
            &at.origin,
            &at.path,
            "this is not the name of an option",
        );
        reading.push(diagnostic.done("left out").help("one option an item: `- name: value`"));
        return None;
    }
    Some(ToolOption { name: name.to_owned(), value })
}

/// Quotes within the quotes are for a shell that is not there.
fn unquoted(text: &str) -> String {
    let text = text.trim();
    for quote in ['\'', '"'] {
        if let Some(inner) = text.strip_prefix(quote).and_then(|t| t.strip_suffix(quote)) {
            return inner.to_owned();
        }
    }
    text.to_owned()
}
