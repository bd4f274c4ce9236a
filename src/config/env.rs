//! `LEADERPOOL_<SECTION>_<FIELD>` variables over the table of a file.

use std::ffi::OsString;

use toml::{Table, Value};

use super::ConfigError;

const PREFIX: &str = "LEADERPOOL_";

/// What a variable's text stands for. The field decides, not the text: a password of digits is text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    List,
    Integer,
    Bool,
}

use Kind::{Bool, Integer, List, Text};

/// Every field of every section.
pub(super) const FIELDS: &[(&str, &str, Kind)] = &[
    ("cluster", "scope", Text),
    ("cluster", "namespace", Text),
    ("etcd", "endpoints", List),
    ("etcd", "username", Text),
    ("etcd", "password", Text),
    ("etcd", "ca_file", Text),
    ("etcd", "cert_file", Text),
    ("etcd", "key_file", Text),
    ("etcd", "server_name", Text),
    ("etcd", "timeout", Text),
    ("etcd", "verify_interval", Text),
    ("rest", "endpoints", List),
    ("rest", "ca_file", Text),
    ("rest", "cert_file", Text),
    ("rest", "key_file", Text),
    ("rest", "interval", Text),
    ("rest", "timeout", Text),
    ("fixed", "hosts", List),
    ("postgres", "user", Text),
    ("postgres", "password", Text),
    ("postgres", "password_file", Text),
    ("postgres", "dbname", Text),
    ("postgres", "sslmode", Text),
    ("postgres", "sslrootcert", Text),
    ("postgres", "sslcert", Text),
    ("postgres", "sslkey", Text),
    ("postgres", "application_name", Text),
    ("postgres", "options", Text),
    ("postgres", "connect_timeout", Text),
    ("postgres", "tcp_user_timeout", Text),
    ("postgres", "keepalive_idle", Text),
    ("postgres", "keepalive_interval", Text),
    ("pool", "name", Text),
    ("pool", "max_size", Integer),
    ("pool", "write_timeout", Text),
    ("pool", "read_timeout", Text),
    ("pool", "max_waiting", Integer),
    ("pool", "start_timeout", Text),
    ("pool", "close_timeout", Text),
    ("pool", "max_lifetime", Text),
    ("pool", "idle_timeout", Text),
    ("pool", "cut_on_demotion", Bool),
    ("pool", "cut_dead_after", Text),
    ("pool", "hung_after", Text),
    ("pool", "keepalive_interval", Text),
    ("pool", "leak_after", Text),
    ("pool", "min_idle", Integer),
    ("probe", "interval", Text),
    ("probe", "watchful_interval", Text),
    ("probe", "urgent_interval", Text),
    ("probe", "timeout", Text),
    ("breaker", "connect_failures", Integer),
    ("breaker", "timeouts", Integer),
    ("breaker", "error_percent", Integer),
    ("breaker", "min_samples", Integer),
    ("breaker", "window", Text),
    ("breaker", "open_for", Text),
    ("breaker", "open_at_most", Text),
    ("breaker", "trials", Integer),
    ("read", "max_behind", Text),
    ("read", "max_bytes_behind", Integer),
    ("read", "when_none", Text),
    ("read", "prefer_tag", Text),
    ("retry", "max_attempts", Integer),
    ("retry", "min_per_second", Integer),
    ("retry", "budget_percent", Integer),
];

/// The variable that sets `section.field`.
pub(super) fn variable(section: &str, field: &str) -> String {
    format!("{PREFIX}{section}_{field}").to_ascii_uppercase()
}

/// The process's variables of this prefix.
pub(super) fn variables() -> Result<Vec<(String, String)>, ConfigError> {
    ours(std::env::vars_os())
}

fn ours(
    all: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Vec<(String, String)>, ConfigError> {
    all.filter(|(name, _)| name.as_encoded_bytes().starts_with(PREFIX.as_bytes()))
        .map(|(name, value)| {
            let name = name
                .into_string()
                .map_err(|name| refuse(&name.to_string_lossy(), "the name is not UTF-8"))?;
            match value.into_string() {
                Ok(value) => Ok((name, value)),
                Err(_) => Err(refuse(&name, "the value is not UTF-8")),
            }
        })
        .collect()
}

/// Sets each variable's field in `table`.
pub(super) fn overlay(
    table: &mut Table,
    variables: Vec<(String, String)>,
) -> Result<(), ConfigError> {
    for (name, text) in variables {
        let Some(&(section, field, kind)) =
            FIELDS.iter().find(|(section, field, _)| variable(section, field) == name)
        else {
            return Err(unknown(&name));
        };
        let value = match kind {
            Text => Value::String(text),
            List if text.trim().is_empty() => Value::Array(Vec::new()),
            List => Value::Array(
                text.split(',').map(|item| Value::String(item.trim().to_owned())).collect(),
            ),
            Integer => Value::Integer(text.trim().parse().map_err(|_| {
                refuse(&name, format!("{text:?} is not a whole number (`{section}.{field}`)"))
            })?),
            Bool => Value::Boolean(text.trim().parse().map_err(|_| {
                refuse(
                    &name,
                    format!("{text:?} is neither `true` nor `false` (`{section}.{field}`)"),
                )
            })?),
        };
        let entry = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(fields) = entry else {
            return Err(ConfigError::field(section, "is a section, written as a table"));
        };
        fields.insert(field.to_owned(), value);
    }
    Ok(())
}

pub(super) fn refuse(name: &str, problem: impl Into<String>) -> ConfigError {
    ConfigError::Env { name: name.to_owned(), problem: problem.into() }
}

fn unknown(name: &str) -> ConfigError {
    // Beyond a third of the letters it is another word, and pointing to it would mislead.
    let nearest = FIELDS
        .iter()
        .map(|(section, field, _)| variable(section, field))
        .map(|known| (distance(name, &known), known))
        .min()
        .filter(|(distance, known)| distance * 3 <= known.len() - PREFIX.len());
    let hint = nearest.map_or_else(
        || "variables are named LEADERPOOL_<SECTION>_<FIELD>".to_owned(),
        |(_, known)| format!("did you mean {known}?"),
    );
    refuse(name, format!("it names no field; {hint}"))
}

/// Levenshtein's distance, by bytes: the known names are ASCII.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(!x.eq_ignore_ascii_case(&y));
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde::Deserialize;

    use super::super::{Config, WhenNone};
    use super::*;

    fn overlaid(table: &str, variables: &[(&str, &str)]) -> Result<Table, ConfigError> {
        let mut table: Table = table.parse().expect("a table");
        let variables =
            variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        overlay(&mut table, variables).map(|()| table)
    }

    fn sample(section: &str, field: &str, kind: Kind) -> &'static str {
        match (section, field, kind) {
            (_, "sslmode", _) => "verify-full",
            (_, "when_none", _) => "wait",
            (_, _, Integer) => "12",
            (_, _, Bool) => "false",
            (_, _, Text | List) => "3s",
        }
    }

    /// The names in serde's "expected one of `a`, `b`", or "expected `a`".
    fn expected_fields(table: &str) -> BTreeSet<String> {
        let error = Config::deserialize(table.parse::<Table>().expect("a table"))
            .expect_err("the field is unknown");
        let names = error.message().split_once("expected ").expect("a list of fields").1;
        names.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn the_table_covers_every_field() {
        let sections: BTreeSet<String> =
            FIELDS.iter().map(|(section, _, _)| (*section).to_owned()).collect();
        assert_eq!(expected_fields("no_such = 1"), sections);
        for section in &sections {
            let listed: BTreeSet<String> = FIELDS
                .iter()
                .filter(|(of, _, _)| of == section)
                .map(|(_, field, _)| (*field).to_owned())
                .collect();
            assert_eq!(expected_fields(&format!("[{section}]\nno_such = 1")), listed);
        }
    }

    #[test]
    fn every_variable_sets_its_field_with_the_right_type() {
        for &(section, field, kind) in FIELDS {
            let name = variable(section, field);
            let table = overlaid("", &[(&name, sample(section, field, kind))]).expect(&name);
            let config = Config::deserialize(table).expect(&name);
            assert_ne!(config, Config::default(), "{name} changes nothing");
        }
        let all: Vec<(String, &str)> = FIELDS
            .iter()
            .map(|&(section, field, kind)| (variable(section, field), sample(section, field, kind)))
            .collect();
        let all: Vec<(&str, &str)> = all.iter().map(|(name, value)| (&**name, *value)).collect();
        Config::deserialize(overlaid("", &all).expect("all of them")).expect("all of them");
    }

    #[test]
    fn variables_win_over_the_file_and_keep_their_type() {
        let table = overlaid(
            "[pool]\nmax_size = 4\nmax_waiting = 7\n[etcd]\nendpoints = ['http://old:1']",
            &[
                ("LEADERPOOL_POOL_MAX_SIZE", " 32 "),
                ("LEADERPOOL_ETCD_ENDPOINTS", "http://a:2379 , http://b:2379"),
                ("LEADERPOOL_POSTGRES_PASSWORD", "0042"),
                ("LEADERPOOL_POSTGRES_DBNAME", "true"),
                ("LEADERPOOL_POOL_CUT_ON_DEMOTION", "false"),
                ("LEADERPOOL_READ_WHEN_NONE", "error"),
            ],
        )
        .expect("overlays");
        let config = Config::deserialize(table).expect("deserialises");
        assert_eq!((config.pool.max_size, config.pool.max_waiting), (32, 7));
        assert_eq!(config.etcd.expect("etcd").endpoints, ["http://a:2379", "http://b:2379"]);
        assert_eq!(config.postgres.password.expect("password").expose(), "0042");
        assert_eq!(config.postgres.dbname.as_deref(), Some("true"));
        assert!(!config.pool.cut_on_demotion);
        assert_eq!(config.read.when_none, WhenNone::Error);
    }

    #[test]
    fn an_empty_list_is_empty() {
        let table = overlaid("", &[("LEADERPOOL_ETCD_ENDPOINTS", " ")]).expect("overlays");
        let config = Config::deserialize(table).expect("deserialises");
        assert!(config.etcd.expect("etcd").endpoints.is_empty());
    }

    #[test]
    fn meaningless_variables_are_refused_by_name() {
        let refused = [
            ("LEADERPOOL_POOL_MAX_SISE", "3", "did you mean LEADERPOOL_POOL_MAX_SIZE?"),
            ("LEADERPOOL_POOL_MAXSIZE", "3", "did you mean LEADERPOOL_POOL_MAX_SIZE?"),
            ("LEADERPOOL_pool_max_size", "3", "did you mean LEADERPOOL_POOL_MAX_SIZE?"),
            ("LEADERPOOL_POSTGRES_PASSWD", "3", "did you mean LEADERPOOL_POSTGRES_PASSWORD?"),
            ("LEADERPOOL_", "3", "LEADERPOOL_<SECTION>_<FIELD>"),
            ("LEADERPOOL_VERBOSITY_OF_TRACES", "3", "LEADERPOOL_<SECTION>_<FIELD>"),
            ("LEADERPOOL_POOL_MAX_SIZE", "many", "not a whole number (`pool.max_size`)"),
            ("LEADERPOOL_POOL_MAX_SIZE", "1.5", "not a whole number"),
            ("LEADERPOOL_POOL_MAX_SIZE", "", "not a whole number"),
            ("LEADERPOOL_POOL_CUT_ON_DEMOTION", "yes", "neither `true` nor `false`"),
        ];
        for (name, value, problem) in refused {
            let error = overlaid("", &[(name, value)]).expect_err(name);
            assert!(matches!(&error, ConfigError::Env { name: of, .. } if of == name), "{error:?}");
            let message = error.to_string();
            assert!(message.contains(name) && message.contains(problem), "{message}");
        }
    }

    #[test]
    fn other_variables_are_left_alone() {
        let all = [("PATH", "/bin"), ("LEADERPOOL_POOL_MAX_SIZE", "3"), ("LEADERPOOLS_X", "1")]
            .map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let found = ours(all.into_iter()).expect("all of them are UTF-8");
        assert_eq!(found, [("LEADERPOOL_POOL_MAX_SIZE".to_owned(), "3".to_owned())]);
    }

    #[cfg(unix)]
    #[test]
    fn bytes_that_are_not_text_are_refused_not_a_panic() {
        use std::os::unix::ffi::OsStringExt;

        let broken = || OsString::from_vec(b"s3cret\xff".to_vec());
        let named = OsString::from_vec(b"LEADERPOOL_\xff".to_vec());
        let cases = [
            (OsString::from("LEADERPOOL_POSTGRES_PASSWORD"), broken(), "POSTGRES_PASSWORD"),
            (named, OsString::from("x"), "LEADERPOOL_"),
        ];
        for (name, value, shown) in cases {
            let error = ours([(name, value)].into_iter()).expect_err("not UTF-8");
            assert!(matches!(error, ConfigError::Env { .. }), "{error:?}");
            let message = error.to_string();
            assert!(message.contains(shown) && message.contains("UTF-8"), "{message}");
            assert!(!message.contains("s3cret"), "{message}");
        }
        assert!(
            ours([(OsString::from("PATH"), broken())].into_iter()).expect("ignored").is_empty()
        );
    }
}
