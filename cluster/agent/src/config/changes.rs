//! What a new configuration asks of a server that runs with an older one.

use std::collections::{BTreeMap, BTreeSet};

use super::effective::{Effective, Role};
use super::parameters::{Context, Lookup, ServerVersion, lookup, same_value};

/// What `pg_settings` says of one setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSetting {
    /// `context`: `postmaster`, `sighup`, ….
    pub context: String,
    /// `vartype`: `bool`, `integer`, ….
    pub vartype: String,
    /// `unit`: `kB`, `8kB`, `ms`, ….
    pub unit: Option<String>,
}

impl ServerSetting {
    /// What PostgreSQL of `version` itself says of a setting; `None` where it has none of that name. `context` is
    /// one of `internal`, `postmaster` and `sighup`, which stands for all the others.
    #[must_use]
    pub fn usual(name: &str, version: ServerVersion) -> Option<Self> {
        match lookup(name, version) {
            Lookup::Found(setting) => Some(setting.facts()),
            Lookup::Elsewhere { .. } | Lookup::Unknown => None,
        }
    }
}

/// One setting that is to have another value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterChange {
    /// Its name.
    pub name: String,
    /// What it was set to; `None`: it was not.
    pub old: Option<String>,
    /// What it is to be; `None`: the server's default.
    pub new: Option<String>,
}

/// What has changed between two configurations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Changes {
    /// Settings that a reload brings into effect.
    pub reload: Vec<ParameterChange>,
    /// Settings that need a restart.
    pub restart: Vec<ParameterChange>,
    /// The lines of `pg_hba.conf`: a reload.
    pub pg_hba: bool,
    /// The lines of `pg_ident.conf`: a reload.
    pub pg_ident: bool,
    /// `ttl`, `loop_wait` or `retry_timeout`. A new `ttl` needs a new lease.
    pub timers: bool,
    /// The watchdog: it is to be opened anew.
    pub watchdog: bool,
    /// The tags, and with them the member's key.
    pub tags: bool,
    /// Anything else.
    pub other: bool,
}

impl Changes {
    /// Whether nothing has changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the server's files are to be written and it is to be told.
    #[must_use]
    pub fn needs_reload(&self) -> bool {
        !self.reload.is_empty() || !self.restart.is_empty() || self.pg_hba || self.pg_ident
    }

    /// Whether some setting waits for a restart.
    #[must_use]
    pub fn needs_restart(&self) -> bool {
        !self.restart.is_empty()
    }
}

impl Effective {
    /// What `new` asks of a server that has this configuration, in `role`.
    ///
    /// `settings` is what the server's own `pg_settings` says, by name in lower case; for what is not in it, the
    /// usual kind of that setting is assumed. Values that mean the same (`128MB` and `131072kB`) are no change.
    #[must_use]
    pub fn changes(
        &self,
        new: &Effective,
        role: Role,
        settings: &BTreeMap<String, ServerSetting>,
    ) -> Changes {
        let (before, after) = (self.files_for(role), new.files_for(role));
        let mut changes = Changes {
            pg_hba: before.pg_hba != after.pg_hba,
            pg_ident: before.pg_ident != after.pg_ident,
            timers: self.cluster.timers != new.cluster.timers,
            watchdog: self.watchdog != new.watchdog
                || self.watchdog_timeout != new.watchdog_timeout,
            tags: self.tags != new.tags,
            other: self.other() != new.other(),
            ..Changes::default()
        };
        let mut compare = |before: &BTreeMap<String, String>, after: &BTreeMap<String, String>| {
            let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            for name in names {
                let (old, value) = (before.get(name), after.get(name));
                let facts = new.facts(name, settings);
                let same = match (old, value) {
                    (Some(old), Some(value)) => {
                        same_value(&facts.vartype, facts.unit.as_deref(), old, value)
                    }
                    (old, value) => old == value,
                };
                if same {
                    continue;
                }
                let change =
                    ParameterChange { name: name.clone(), old: old.cloned(), new: value.cloned() };
                match Context::parse(&facts.context) {
                    Context::Restart => changes.restart.push(change),
                    Context::Reload => changes.reload.push(change),
                    Context::Internal => {}
                }
            }
        };
        compare(&before.parameters, &after.parameters);
        if role != Role::Primary {
            compare(&before.recovery, &after.recovery);
        }
        changes
    }

    fn facts(&self, name: &str, settings: &BTreeMap<String, ServerSetting>) -> ServerSetting {
        if let Some(facts) = settings.get(&name.to_ascii_lowercase()) {
            return facts.clone();
        }
        ServerSetting::usual(name, self.server.version).unwrap_or_else(|| ServerSetting {
            context: "sighup".to_owned(),
            vartype: "string".to_owned(),
            unit: None,
        })
    }

    /// All that no other part of [`Changes`] is about.
    fn other(&self) -> Effective {
        let mut rest = self.clone();
        rest.cluster.timers = Default::default();
        rest.cluster.postgresql = Default::default();
        rest.watchdog = Default::default();
        rest.watchdog_timeout = Default::default();
        rest.tags = Default::default();
        rest.files = Default::default();
        rest.files_by_role = Default::default();
        rest.diagnostics = Default::default();
        rest
    }
}
