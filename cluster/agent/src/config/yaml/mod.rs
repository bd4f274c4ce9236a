//! The tree that a configuration is read from: YAML as Patroni's users write it, each node with its place.
//!
//! Scalars keep their text and are interpreted by whoever asks for them. So `"30"` and `30` are both a
//! number where a number is wanted, `22:30` stays text where text is wanted (YAML 1.1 makes it 1350), and a
//! password `0123` keeps its zero.

mod parse;
mod scalar;

#[cfg(test)]
mod tests;

use std::fmt;

use serde_json::Value as Json;

pub(crate) use parse::parse;
pub(crate) use scalar::{Resolved, Scalar, parse_bool};

use super::diagnostics::Origin;

/// One node of the tree.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) data: Data,
    pub(crate) origin: Origin,
}

/// What a node holds.
#[derive(Clone)]
pub(crate) enum Data {
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Map),
}

/// A mapping, in the order of the file, each key once.
#[derive(Clone, Default)]
pub(crate) struct Map {
    pub(crate) entries: Vec<Entry>,
}

/// One key of a mapping.
#[derive(Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    /// Where the key stands.
    pub(crate) origin: Origin,
    pub(crate) node: Node,
}

impl Map {
    pub(crate) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    /// Sets `key`, in place where it is there already.
    pub(crate) fn set(&mut self, entry: Entry) {
        match self.entries.iter_mut().find(|old| old.key == entry.key) {
            Some(old) => *old = entry,
            None => self.entries.push(entry),
        }
    }

    /// Lays `over` on top: maps merge, anything else replaces. A null removes the key, as in a patch of
    /// Patroni's configuration.
    pub(crate) fn overlay(&mut self, over: Map) {
        for entry in over.entries {
            if entry.node.is_null() {
                self.entries.retain(|old| old.key != entry.key);
                continue;
            }
            let old = self.entries.iter_mut().find(|old| old.key == entry.key);
            match (old, entry.node.data) {
                (
                    Some(Entry { node: Node { data: Data::Map(below), .. }, .. }),
                    Data::Map(over),
                ) => {
                    below.overlay(over);
                }
                (_, data) => {
                    let node = Node { data, origin: entry.node.origin };
                    self.set(Entry { key: entry.key, origin: entry.origin, node });
                }
            }
        }
    }
}

impl Node {
    /// Text that no rule of YAML turns into anything else.
    pub(crate) fn text(text: impl Into<String>, origin: &Origin) -> Self {
        Self { data: Data::Scalar(Scalar::text(text.into())), origin: origin.clone() }
    }

    pub(crate) fn map(map: Map, origin: &Origin) -> Self {
        Self { data: Data::Map(map), origin: origin.clone() }
    }

    /// The same, all of it written at `origin`.
    pub(crate) fn moved_to(self, origin: &Origin) -> Self {
        let data = match self.data {
            Data::Scalar(scalar) => Data::Scalar(scalar),
            Data::List(items) => {
                Data::List(items.into_iter().map(|item| item.moved_to(origin)).collect())
            }
            Data::Map(map) => Data::Map(Map {
                entries: map
                    .entries
                    .into_iter()
                    .map(|entry| Entry {
                        key: entry.key,
                        origin: origin.clone(),
                        node: entry.node.moved_to(origin),
                    })
                    .collect(),
            }),
        };
        Self { data, origin: origin.clone() }
    }

    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.data, Data::Scalar(scalar) if scalar.resolve() == Resolved::Null)
    }

    /// "a list", "a map", "text", … for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match &self.data {
            Data::List(_) => "a list",
            Data::Map(_) => "a section",
            Data::Scalar(scalar) => match scalar.resolve() {
                Resolved::Null => "nothing",
                Resolved::Bool(_) => "true or false",
                Resolved::Int(_) | Resolved::Float(_) => "a number",
                Resolved::Text => "text",
            },
        }
    }

    /// How many nodes there are from here down.
    pub(crate) fn size(&self) -> usize {
        1 + match &self.data {
            Data::Scalar(_) => 0,
            Data::List(items) => items.iter().map(Node::size).sum(),
            Data::Map(map) => map.entries.iter().map(|entry| entry.node.size()).sum(),
        }
    }

    /// The tree of a JSON value, all of it with the same `origin`.
    pub(crate) fn from_json(json: &Json, origin: &Origin) -> Self {
        let data = match json {
            Json::Null => Data::Scalar(Scalar::plain("null".to_owned())),
            Json::Bool(value) => Data::Scalar(Scalar::plain(value.to_string())),
            Json::Number(number) => Data::Scalar(Scalar::number(number)),
            Json::String(text) => Data::Scalar(Scalar::text(text.clone())),
            Json::Array(items) => {
                Data::List(items.iter().map(|item| Node::from_json(item, origin)).collect())
            }
            Json::Object(map) => Data::Map(Map {
                entries: map
                    .iter()
                    .map(|(key, value)| Entry {
                        key: key.clone(),
                        origin: origin.clone(),
                        node: Node::from_json(value, origin),
                    })
                    .collect(),
            }),
        };
        Self { data, origin: origin.clone() }
    }

    /// The same as JSON, scalars as YAML 1.1 reads them: what Patroni would write into `/config`.
    pub(crate) fn to_json(&self) -> Json {
        match &self.data {
            Data::Scalar(scalar) => match scalar.resolve() {
                Resolved::Null => Json::Null,
                Resolved::Bool(value) => Json::Bool(value),
                Resolved::Int(value) => Json::from(value),
                Resolved::Float(value) => serde_json::Number::from_f64(value)
                    .map_or_else(|| Json::String(scalar.as_str().to_owned()), Json::Number),
                Resolved::Text => Json::String(scalar.as_str().to_owned()),
            },
            Data::List(items) => Json::Array(items.iter().map(Node::to_json).collect()),
            Data::Map(map) => Json::Object(
                map.entries.iter().map(|entry| (entry.key.clone(), entry.node.to_json())).collect(),
            ),
        }
    }
}

/// Only the shape: the tree holds passwords.
impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.data {
            Data::Scalar(_) => f.write_str("…"),
            Data::List(items) => f.debug_list().entries(items).finish(),
            Data::Map(map) => {
                f.debug_map().entries(map.entries.iter().map(|e| (&e.key, &e.node))).finish()
            }
        }
    }
}
