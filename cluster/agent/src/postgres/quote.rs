//! Quoting, for each of the languages that PostgreSQL reads.

use std::fmt::Write as _;

/// A string as an SQL literal, whatever `standard_conforming_strings` is set to.
#[must_use]
pub fn sql_literal(text: &str) -> String {
    let body = text.replace('\'', "''");
    if body.contains('\\') {
        format!("E'{}'", body.replace('\\', "\\\\"))
    } else {
        format!("'{body}'")
    }
}

/// A name as an SQL identifier, always quoted.
#[must_use]
pub fn sql_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A value as `postgresql.conf` reads it: in single quotes, with quotes doubled and backslashes escaped.
#[must_use]
pub fn conf_value(value: &str) -> String {
    let mut out = String::with_capacity(value.len() + 2);
    out.push('\'');
    for c in value.chars() {
        match c {
            '\'' => out.push_str("''"),
            '\\' => out.push_str("\\\\"),
            // A line break ends an entry even inside quotes.
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            c => out.push(c),
        }
    }
    out.push('\'');
    out
}

/// Reads a value of `postgresql.conf`, quoted or bare. Escapes are those of the server's own scanner.
#[must_use]
pub fn read_conf_value(text: &str) -> String {
    let text = text.trim();
    let Some(body) = text.strip_prefix('\'') else {
        return text.split(['#', ' ', '\t']).next().unwrap_or_default().to_owned();
    };
    let mut out = String::new();
    let mut chars = body.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\'' if chars.peek() == Some(&'\'') => {
                chars.next();
                out.push('\'');
            }
            '\'' => break,
            '\\' => match chars.next() {
                Some('n') => out.push('\n'),
                Some('r') => out.push('\r'),
                Some('t') => out.push('\t'),
                Some(other) => out.push(other),
                None => {}
            },
            c => out.push(c),
        }
    }
    out
}

/// Keywords and values as a libpq connection string. Empty values are kept: they override a default.
#[must_use]
pub fn conninfo<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut out = String::new();
    for (keyword, value) in pairs {
        if !out.is_empty() {
            out.push(' ');
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.,:/@+=*[]%".contains(c);
        if !value.is_empty() && value.chars().all(plain) {
            let _ = write!(out, "{keyword}={value}");
        } else {
            let escaped = value.replace('\\', "\\\\").replace('\'', "\\'");
            let _ = write!(out, "{keyword}='{escaped}'");
        }
    }
    out
}

/// A field of a libpq password file.
#[must_use]
pub fn pgpass_field(value: &str) -> String {
    value.replace('\\', "\\\\").replace(':', "\\:")
}

/// Splits a command line into words as a POSIX shell would, without ever running one: quotes and
/// backslashes are honoured, nothing is expanded.
///
/// # Errors
/// When a quote is not closed, or the line ends in a backslash.
pub fn split_words(line: &str) -> Result<Vec<String>, WordsError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('\'') => break,
                        Some(c) => word.push(c),
                        None => return Err(WordsError::OpenQuote(line.to_owned())),
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
                            None => return Err(WordsError::OpenQuote(line.to_owned())),
                        },
                        Some(c) => word.push(c),
                        None => return Err(WordsError::OpenQuote(line.to_owned())),
                    }
                }
            }
            '\\' => match chars.next() {
                Some(c) => word.get_or_insert_default().push(c),
                None => return Err(WordsError::OpenQuote(line.to_owned())),
            },
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    if words.is_empty() {
        return Err(WordsError::Empty);
    }
    Ok(words)
}

/// Why a command line cannot be split into words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WordsError {
    /// A quote or an escape is not complete.
    #[error("the command has an unclosed quote or a trailing backslash: {0}")]
    OpenQuote(String),
    /// There is no word in it.
    #[error("the command is empty")]
    Empty,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sql_text_cannot_break_out() {
        assert_eq!(sql_literal("it's"), "'it''s'");
        assert_eq!(sql_literal(r"a\'b"), r"E'a\\''b'");
        assert_eq!(sql_ident(r#"a"b"#), r#""a""b""#);
    }

    #[test]
    fn a_connection_string_quotes_what_needs_it() {
        let text = conninfo([("host", "::1"), ("user", "o'brien"), ("application_name", "")]);
        assert_eq!(text, r"host=::1 user='o\'brien' application_name=''");
    }

    #[test]
    fn words_follow_the_shell_without_expanding() {
        let split = |line| split_words(line).unwrap();
        assert_eq!(
            split("/bin/cb  a 'b c' \"d \\\" e\" f\\ g"),
            ["/bin/cb", "a", "b c", "d \" e", "f g"]
        );
        assert_eq!(split("x '' $HOME *"), ["x", "", "$HOME", "*"]);
        assert!(split_words("a 'b").is_err());
        assert!(split_words("a \\").is_err());
        assert_eq!(split_words("  "), Err(WordsError::Empty));
    }

    proptest! {
        #[test]
        fn a_value_survives_the_file(value in "[^\0]*") {
            let written = conf_value(&value);
            prop_assert!(!written.contains('\n'));
            prop_assert_eq!(read_conf_value(&written), value);
        }

        #[test]
        fn a_quoted_word_survives_the_splitter(word in ".*") {
            let quoted = format!("'{}'", word.replace('\'', r#"'"'"'"#));
            prop_assert_eq!(split_words(&quoted).unwrap(), vec![word]);
        }
    }
}
