//! Commands as they are written in a configuration: split into words as a shell would, run without one.

use std::fmt;

use super::diagnostics::Code;
use super::section::{Found, Reading};

/// A program and its arguments. The agent adds its own arguments behind them.
///
/// `Debug` shows the program alone: an argument may be a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Command {
    /// The program first. Never empty.
    pub words: Vec<String>,
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = self.words.first().map_or("", String::as_str);
        match self.words.len() {
            0 | 1 => write!(f, "`{program}`"),
            many => write!(f, "`{program} …` ({} arguments)", many - 1),
        }
    }
}

impl Found<'_> {
    /// A command.
    pub(super) fn command(&self, reading: &mut Reading) -> Option<Command> {
        let text = self.text(reading)?;
        match split(&text) {
            Ok(words) if words.is_empty() => None,
            Ok(words) => Some(Command { words }),
            Err(message) => {
                let help = "quote as in a shell; the command is run without one, so no pipes or `&&`: \
                            call `sh -c '…'` for those";
                reading.error(Code::InvalidValue, &self.at, message, help);
                None
            }
        }
    }
}

/// Words by the rules of a POSIX shell: blanks separate, `'…'` is literal, `"…"` and `\` quote.
fn split(text: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' | '\r' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('\'') => break,
                        Some(c) => word.push(c),
                        None => return Err("a quote `'` is not closed"),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('"') => break,
                        Some('\\') => match chars.next() {
                            Some(c @ ('"' | '\\')) => word.push(c),
                            Some(c) => word.extend(['\\', c]),
                            None => return Err("a quote `\"` is not closed"),
                        },
                        Some(c) => word.push(c),
                        None => return Err("a quote `\"` is not closed"),
                    }
                }
            }
            '\\' => match chars.next() {
                Some(c) => word.get_or_insert_default().push(c),
                None => return Err("it ends with a backslash"),
            },
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn words_are_split_as_a_shell_does() {
        for (text, words) in [
            ("/bin/echo", &["/bin/echo"][..]),
            ("  a  b\tc\n", &["a", "b", "c"]),
            ("a 'b c' \"d e\"", &["a", "b c", "d e"]),
            (r#"a b\ c "d\"e" 'f\g' "h\i""#, &["a", "b c", "d\"e", r"f\g", r"h\i"]),
            ("a '' b", &["a", "", "b"]),
            ("pre'fix 'post", &["prefix post"]),
            ("", &[]),
        ] {
            assert_eq!(split(text).unwrap(), words, "{text}");
        }
        for text in ["a 'b", "a \"b", "a\\", "\"a\\"] {
            assert!(split(text).is_err(), "{text}");
        }
    }
}
