//! What settings there are, in which versions, and of what kind: `catalog.txt`.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::ServerVersion;
use crate::config::changes::ServerSetting;

const TEXT: &str = include_str!("catalog.txt");

/// One setting in a range of versions.
#[derive(Debug)]
pub(crate) struct Setting {
    /// Its name as PostgreSQL spells it.
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// The unit of a bare number.
    pub(crate) unit: Option<&'static str>,
    pub(crate) since: u32,
    pub(crate) until: u32,
    pub(crate) context: Context,
}

impl Setting {
    /// What `pg_settings` would say of it.
    pub(crate) fn facts(&self) -> ServerSetting {
        let context = match self.context {
            Context::Internal => "internal",
            Context::Restart => "postmaster",
            Context::Reload => "sighup",
        };
        let vartype = match self.kind {
            Kind::Bool => "bool",
            Kind::Int { .. } => "integer",
            Kind::Real { .. } => "real",
            Kind::Enum(_) => "enum",
            Kind::Text | Kind::Preset => "string",
        };
        ServerSetting {
            context: context.to_owned(),
            vartype: vartype.to_owned(),
            unit: self.unit.map(str::to_owned),
        }
    }
}

/// What a setting's values are.
#[derive(Debug, PartialEq)]
pub(crate) enum Kind {
    Bool,
    Int {
        least: f64,
        most: f64,
    },
    Real {
        least: f64,
        most: f64,
    },
    Text,
    Enum(Vec<&'static str>),
    /// Reported, never set.
    Preset,
}

/// When a change takes effect: `pg_settings.context`, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Context {
    /// `internal`: never.
    Internal,
    /// `postmaster`: at a start of the server.
    Restart,
    /// Any other: at a reload.
    Reload,
}

impl Context {
    /// From `pg_settings.context`.
    #[must_use]
    pub(crate) fn parse(text: &str) -> Self {
        match text {
            "internal" => Context::Internal,
            "postmaster" => Context::Restart,
            _ => Context::Reload,
        }
    }
}

/// What is known of a name in a version.
#[derive(Debug)]
pub(crate) enum Lookup {
    Found(&'static Setting),
    /// Other versions have it: from the first to the last of these.
    Elsewhere {
        since: u32,
        until: u32,
    },
    Unknown,
}

static SETTINGS: LazyLock<HashMap<String, Vec<Setting>>> = LazyLock::new(|| {
    let mut settings: HashMap<String, Vec<Setting>> = HashMap::new();
    for line in TEXT.lines().filter(|line| !line.starts_with('#')) {
        // A line of another form is a fault of the table; a test finds it.
        if let Some(setting) = parse(line) {
            settings.entry(setting.name.to_ascii_lowercase()).or_default().push(setting);
        }
    }
    settings
});

fn parse(line: &'static str) -> Option<Setting> {
    let mut rest = line;
    let mut word = || {
        let text = rest.trim_start();
        let end = text.find(' ').unwrap_or(text.len());
        rest = &text[end..];
        (!text.is_empty()).then(|| &text[..end])
    };
    let (name, kind, unit) = (word()?, word()?, word()?);
    let (least, most, versions, context) = (word()?, word()?, word()?, word()?);
    let values = rest.trim();
    let bound = |text: &str| text.parse::<f64>().ok();
    let (since, until) = versions.split_once('-')?;
    let kind = match kind {
        "bool" => Kind::Bool,
        "int" => Kind::Int { least: bound(least)?, most: bound(most)? },
        "real" => Kind::Real { least: bound(least)?, most: bound(most)? },
        "text" => Kind::Text,
        "enum" => Kind::Enum(values.split(',').collect()),
        "preset" => Kind::Preset,
        _ => return None,
    };
    Some(Setting {
        name,
        kind,
        unit: (unit != "-").then_some(unit),
        since: since.parse().ok()?,
        until: if until.is_empty() { ServerVersion::NEWEST } else { until.parse().ok()? },
        context: Context::parse(context),
    })
}

/// What is known of `name`, in any case, in `version`.
pub(crate) fn lookup(name: &str, version: ServerVersion) -> Lookup {
    let Some(rows) = SETTINGS.get(&name.to_ascii_lowercase()) else {
        return Lookup::Unknown;
    };
    let major = version.major().min(ServerVersion::NEWEST);
    match rows.iter().find(|row| (row.since..=row.until).contains(&major)) {
        Some(setting) => Lookup::Found(setting),
        None => Lookup::Elsewhere {
            since: rows.iter().map(|row| row.since).min().unwrap_or(0),
            until: rows.iter().map(|row| row.until).max().unwrap_or(0),
        },
    }
}

/// Every name that `version` has.
pub(crate) fn names(version: ServerVersion) -> impl Iterator<Item = &'static str> {
    let major = version.major().min(ServerVersion::NEWEST);
    SETTINGS
        .values()
        .flatten()
        .filter(move |row| (row.since..=row.until).contains(&major))
        .map(|row| row.name)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_table_can_be_read() {
        let mut count = 0;
        for line in TEXT.lines().filter(|line| !line.starts_with('#')) {
            let setting = parse(line).unwrap_or_else(|| panic!("{line}"));
            assert!(setting.since >= ServerVersion::OLDEST, "{line}");
            assert!(setting.until <= ServerVersion::NEWEST, "{line}");
            assert!(setting.since <= setting.until, "{line}");
            if let Kind::Int { least, most } | Kind::Real { least, most } = &setting.kind {
                assert!(least <= most, "{line}");
            }
            if let Kind::Enum(values) = &setting.kind {
                assert!(values.len() > 1, "{line}");
            }
            count += 1;
        }
        assert!(count > 400);
    }

    #[test]
    fn rows_of_one_name_do_not_overlap() {
        for (name, rows) in SETTINGS.iter() {
            for major in ServerVersion::OLDEST..=ServerVersion::NEWEST {
                let matching =
                    rows.iter().filter(|row| (row.since..=row.until).contains(&major)).count();
                assert!(matching <= 1, "{name} in {major}");
            }
        }
    }
}
