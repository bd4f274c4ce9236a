//! `${NAME}` in values.
//!
//! Patroni does not do this itself; it is the wrapper scripts around it (`envsubst`, containers) that do, and
//! files are written for them. Keys are not expanded, nor is what comes from the environment.

use super::Environment;
use super::diagnostics::{Code, Diagnostic, Diagnostics, Severity};
use super::yaml::{Data, Node};

/// Expands every value below `node`. `path` is where `node` stands.
pub(super) fn expand(
    node: &mut Node,
    path: &str,
    environment: &Environment,
    diagnostics: &mut Diagnostics,
) {
    match &mut node.data {
        Data::List(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                expand(item, &format!("{path}[{index}]"), environment, diagnostics);
            }
        }
        Data::Map(map) => {
            for entry in &mut map.entries {
                let path = super::section::join(path, &entry.key);
                expand(&mut entry.node, &path, environment, diagnostics);
            }
        }
        Data::Scalar(scalar) => {
            let text = scalar.as_str();
            if !text.contains("${") {
                return;
            }
            let (expanded, faults) = substitute(text, environment);
            *scalar = scalar.with_text(expanded);
            for fault in faults {
                diagnostics.push(fault.diagnostic(node, path));
            }
        }
    }
}

#[derive(Debug, PartialEq)]
enum Fault {
    Unset(String),
    Shell(String),
}

impl Fault {
    fn diagnostic(self, node: &Node, path: &str) -> Diagnostic {
        match self {
            Fault::Unset(name) => Diagnostic::new(
                Severity::Error,
                Code::UnsetVariable,
                &node.origin,
                path,
                format!("the variable {name} is not set"),
            )
            .help(format!(
                "set it in the agent's environment, write `${{{name}:-default}}`, or `$${{{name}}}` for the \
                 characters themselves"
            )),
            Fault::Shell(inside) => Diagnostic::new(
                Severity::Notice,
                Code::ShellExpansion,
                &node.origin,
                path,
                format!("`${{{inside}}}` is not a variable's name"),
            )
            .done("left as it is, for a shell to read"),
        }
    }
}

/// `${NAME}`, `${NAME:-default}`, and `$${` for a literal `${`. An unset variable becomes nothing.
fn substitute(text: &str, environment: &Environment) -> (String, Vec<Fault>) {
    let mut out = String::with_capacity(text.len());
    let mut faults = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let before = &rest[..start];
        let after = &rest[start + 2..];
        if let Some(before) = before.strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = after;
            continue;
        }
        out.push_str(before);
        let Some(end) = after.find('}') else {
            out.push_str("${");
            rest = after;
            continue;
        };
        let inside = &after[..end];
        rest = &after[end + 1..];
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        if !is_name(name) {
            out.push_str("${");
            out.push_str(inside);
            out.push('}');
            faults.push(Fault::Shell(inside.to_owned()));
            continue;
        }
        match (environment.get(name).filter(|v| default.is_none() || !v.is_empty()), default) {
            (Some(value), _) => out.push_str(value),
            (None, Some(default)) => out.push_str(default),
            (None, None) => faults.push(Fault::Unset(name.to_owned())),
        }
    }
    out.push_str(rest);
    (out, faults)
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> Environment {
        [("NAME", "node1"), ("EMPTY", ""), ("DOLLAR", "${NAME}")]
            .into_iter()
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect()
    }

    #[test]
    fn variables_are_expanded_once() {
        let unset = |name: &str| vec![Fault::Unset(name.to_owned())];
        let shell = |inside: &str| vec![Fault::Shell(inside.to_owned())];
        for (text, expected, faults) in [
            ("${NAME}:8008", "node1:8008", vec![]),
            ("${NAME}${NAME}", "node1node1", vec![]),
            ("${DOLLAR}", "${NAME}", vec![]),
            ("$${NAME}", "${NAME}", vec![]),
            ("a$${NAME}b${NAME}", "a${NAME}bnode1", vec![]),
            ("$NAME", "$NAME", vec![]),
            ("pa$$word", "pa$$word", vec![]),
            ("${EMPTY}", "", vec![]),
            ("${EMPTY:-x}", "x", vec![]),
            ("${NONE:-x}", "x", vec![]),
            ("${NONE:-}", "", vec![]),
            ("a${NONE}b", "ab", unset("NONE")),
            ("${1}", "${1}", shell("1")),
            ("${NAME%.*}", "${NAME%.*}", shell("NAME%.*")),
            ("${}", "${}", shell("")),
            ("${open", "${open", vec![]),
            ("${", "${", vec![]),
        ] {
            let (out, found) = substitute(text, &environment());
            assert_eq!((out.as_str(), &found), (expected, &faults), "{text}");
        }
    }
}
