//! Replication slots that are kept, and those that are left alone.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::diagnostics::{Code, Diagnostic, Severity};
use crate::config::parameters::units;
use crate::config::section::{Found, Reading, Section};
use crate::config::yaml::{Data, Resolved};

/// A slot that is kept for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PermanentSlot {
    /// What it hands out.
    pub kind: SlotKind,
    /// Only kept in a cluster of this kind; in any where there is none.
    pub cluster_type: Option<ClusterType>,
}

/// What a slot hands out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotKind {
    /// WAL.
    Physical,
    /// Decoded changes.
    Logical {
        /// Of this database.
        database: String,
        /// By this plugin.
        plugin: String,
    },
}

/// A kind of cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ClusterType {
    /// One with a primary.
    Primary,
    /// One that follows another.
    Standby,
}

/// Slots that are somebody else's: those that agree with all that is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SlotFilter {
    /// The slot's name.
    pub name: Option<String>,
    /// `physical` or `logical`.
    pub kind: Option<String>,
    /// The database of a logical slot.
    pub database: Option<String>,
    /// The plugin of a logical slot.
    pub plugin: Option<String>,
}

impl SlotFilter {
    /// Whether a slot of these properties is meant.
    #[must_use]
    pub fn matches(
        &self,
        name: &str,
        kind: &str,
        database: Option<&str>,
        plugin: Option<&str>,
    ) -> bool {
        let agrees = |wanted: &Option<String>, value: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| Some(wanted) == value)
        };
        agrees(&self.name, Some(name))
            && agrees(&self.kind, Some(kind))
            && agrees(&self.database, database)
            && agrees(&self.plugin, plugin)
    }
}

fn slot_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

fn reject(found: &Found<'_>, message: String, help: &str, reading: &mut Reading) {
    reading.push(
        Diagnostic::new(
            Severity::Warning,
            Code::InvalidSlot,
            &found.at.origin,
            &found.at.path,
            message,
        )
        .done("left out")
        .help(help),
    );
}

/// `slots`: a map from names to properties.
pub(super) fn permanent(
    found: &Found<'_>,
    reading: &mut Reading,
) -> BTreeMap<String, PermanentSlot> {
    let section = Section::new(Some(found.node), found.at.clone(), reading);
    let mut slots = BTreeMap::new();
    for (name, found) in section.rest() {
        if !slot_name(name) {
            let message = format!("`{}` cannot be the name of a slot", name.escape_debug());
            reject(&found, message, "lower case letters, digits and `_`, at most 63", reading);
            continue;
        }
        if let Some(slot) = slot(&found, reading) {
            slots.insert(name.to_owned(), slot);
        }
    }
    slots
}

fn slot(found: &Found<'_>, reading: &mut Reading) -> Option<PermanentSlot> {
    // A name alone is a physical slot.
    if found.node.is_null() {
        return Some(PermanentSlot { kind: SlotKind::Physical, cluster_type: None });
    }
    let help = "`{type: physical}`, or `{type: logical, database: …, plugin: …}`";
    if !matches!(found.node.data, Data::Map(_)) {
        reject(
            found,
            format!("a slot has properties, and this is {}", found.node.kind()),
            help,
            reading,
        );
        return None;
    }
    let mut section = Section::named(found, "dynamic.slots.*", reading);
    let kinds = [("physical", false), ("logical", true)];
    let kind = section.find("type", reading).map(|found| found.word(&kinds, reading));
    let database = section.text("database", reading);
    let plugin = section.text("plugin", reading);
    let types = [("primary", ClusterType::Primary), ("standby", ClusterType::Standby)];
    let cluster_type =
        section.find("cluster_type", reading).and_then(|found| found.word(&types, reading));
    section.finish(reading);
    let logical = match kind {
        Some(None) => {
            reject(found, "its type is not known".to_owned(), help, reading);
            return None;
        }
        Some(Some(logical)) => logical,
        None => database.is_some() && plugin.is_some(),
    };
    let kind = match (logical, database, plugin) {
        (false, _, _) => SlotKind::Physical,
        (true, Some(database), Some(plugin)) => SlotKind::Logical { database, plugin },
        (true, _, _) => {
            let message = "a logical slot needs a `database` and a `plugin`".to_owned();
            reject(found, message, help, reading);
            return None;
        }
    };
    Some(PermanentSlot { kind, cluster_type })
}

/// `ignore_slots`: a list of properties.
pub(super) fn filters(found: &Found<'_>, reading: &mut Reading) -> Vec<SlotFilter> {
    let mut filters = Vec::new();
    for item in found.items() {
        if !matches!(item.node.data, Data::Map(_)) {
            let message =
                format!("a slot's properties are wanted, and this is {}", item.node.kind());
            reject(&item, message, "a list: `- {name: …, type: logical}`", reading);
            continue;
        }
        let mut section = Section::named(&item, "dynamic.ignore_slots.*", reading);
        let filter = SlotFilter {
            name: section.text("name", reading),
            kind: section.text("type", reading),
            database: section.text("database", reading),
            plugin: section.text("plugin", reading),
        };
        section.finish(reading);
        if filter == SlotFilter::default() {
            let message = "without any property it would stand for every slot".to_owned();
            reject(&item, message, "give a `name` at least", reading);
            continue;
        }
        filters.push(filter);
    }
    filters
}

/// `member_slots_ttl`: here Patroni reads units too.
pub(super) fn ttl(found: &Found<'_>, reading: &mut Reading) -> Option<Duration> {
    if let Data::Scalar(scalar) = &found.node.data {
        let with_unit = scalar.resolve() == Resolved::Text;
        if let (true, Some(seconds)) = (with_unit, units::to_base(scalar.as_str(), Some("s")))
            && (0.0..=f64::from(u32::MAX)).contains(&seconds)
        {
            return Some(Duration::from_secs(seconds.round() as u64));
        }
    }
    found.seconds(0, reading)
}
