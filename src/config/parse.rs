//! From TOML text and variables to a checked [`Config`].

use serde::Deserialize;
use serde::de::Deserializer;
use toml::Table;

use super::{Config, ConfigError, env};

impl Config {
    pub(super) fn from_toml_and(
        text: &str,
        name: &str,
        overrides: Vec<(String, String)>,
    ) -> Result<Self, ConfigError> {
        let fail = |error: &toml::de::Error, field: Option<&str>| ConfigError::Parse {
            path: name.to_owned(),
            message: describe(error, field, Some(text)),
        };
        let deserializer = toml::Deserializer::parse(text).map_err(|error| fail(&error, None))?;
        // Also where variables follow: only the text knows its lines.
        let config: Self =
            deserialize(deserializer).map_err(|(field, error)| fail(&error, Some(&field)))?;
        if overrides.is_empty() {
            config.validate()?;
            return Ok(config);
        }
        let table = text.parse().map_err(|error| fail(&error, None))?;
        Self::from_table(table, name, overrides)
    }

    pub(super) fn from_table(
        mut table: Table,
        name: &str,
        overrides: Vec<(String, String)>,
    ) -> Result<Self, ConfigError> {
        let names: Vec<String> = overrides.iter().map(|(name, _)| name.clone()).collect();
        // Whoever set the value by a variable looks for the variable, not for a field in a file.
        let variable = |path: &str| {
            let (section, field) = path.split_once('.')?;
            let variable = env::variable(section, field);
            names.iter().find(|name| **name == variable)
        };
        env::overlay(&mut table, overrides)?;
        let config: Self = deserialize(table).map_err(|(field, error)| match variable(&field) {
            Some(name) => env::refuse(name, describe(&error, Some(&field), None)),
            None => ConfigError::Parse {
                path: name.to_owned(),
                message: describe(&error, Some(&field), None),
            },
        })?;
        config.validate().map_err(|error| match error {
            ConfigError::Field { field, problem } => match variable(&field) {
                Some(name) => env::refuse(name, format!("`{field}`: {problem}")),
                None => ConfigError::Field { field, problem },
            },
            other => other,
        })?;
        Ok(config)
    }
}

fn deserialize<'de, T, D>(deserializer: D) -> Result<T, (String, toml::de::Error)>
where
    T: Deserialize<'de>,
    D: Deserializer<'de, Error = toml::de::Error>,
{
    serde_path_to_error::deserialize(deserializer)
        .map_err(|error| (error.path().to_string(), error.into_inner()))
}

/// What `Display` of toml's error says, without the line of source that it repeats: that line may hold a
/// password.
fn describe(error: &toml::de::Error, field: Option<&str>, text: Option<&str>) -> String {
    let mut message = String::new();
    if let (Some(span), Some(text)) = (error.span(), text) {
        let before = text.get(..span.start).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        message = format!("line {line}, column {column}: ");
    }
    // "." is the root: nothing to name.
    if let Some(field) = field.filter(|field| *field != ".") {
        message = format!("{message}`{field}`: ");
    }
    match without_text(error.message()) {
        Some(expected) => format!("{message}expected {expected}, found text"),
        None => message + error.message(),
    }
}

/// serde repeats text of the wrong type, which may be a URL with a password where a section or a list
/// belongs.
fn without_text(message: &str) -> Option<&str> {
    let (_, expected) =
        message.strip_prefix("invalid type: string ")?.rsplit_once(", expected ")?;
    Some(expected)
}
