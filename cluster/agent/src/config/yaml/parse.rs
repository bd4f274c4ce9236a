//! From text to the tree.
//!
//! The parser's events are taken one by one, rather than its ready-made tree: so a key that is written twice
//! is reported with both places, `<<` merges, an alias cannot multiply without bound, and nothing recurses
//! deeper than [`DEPTH`].

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Tag};

use super::scalar::Scalar;
use super::{Data, Entry, Map, Node};
use crate::config::diagnostics::{Code, Diagnostic, Diagnostics, Origin, Severity};

/// How deep sections may nest. Patroni's own go to seven.
const DEPTH: usize = 48;
/// How many nodes a document may have, aliases counted as often as they are used.
const NODES: usize = 100_000;
/// How many bytes a file may have.
const BYTES: usize = 4 << 20;

/// The document in `text`; `None` where there is none, and the reason in `diagnostics`.
pub(crate) fn parse(file: &Arc<str>, text: &str, diagnostics: &mut Diagnostics) -> Option<Node> {
    Builder { file, text, diagnostics, stack: Vec::new(), anchors: BTreeMap::new(), nodes: 0 }
        .document()
}

enum Frame {
    List { items: Vec<Node>, origin: Origin, anchor: usize },
    Map { entries: Vec<(Entry, bool)>, key: Option<Key>, origin: Origin, anchor: usize },
}

enum Key {
    /// A name, where it stands, and whether it was unquoted (only then is `<<` a merge).
    Name(String, Origin, bool),
    /// A list or a map as a key: its value is dropped.
    Unusable,
}

struct Builder<'a> {
    file: &'a Arc<str>,
    text: &'a str,
    diagnostics: &'a mut Diagnostics,
    stack: Vec<Frame>,
    anchors: BTreeMap<usize, Node>,
    nodes: usize,
}

impl Builder<'_> {
    fn document(mut self) -> Option<Node> {
        let start = self.origin(1, 1);
        if self.text.len() > BYTES {
            self.error(Code::TooLarge, &start, format!("the file has more than {BYTES} bytes"));
            return None;
        }
        let mut parser = Parser::new_from_str(self.text);
        let mut root = None;
        let mut documents = 0;
        while let Some(event) = parser.next_event() {
            let (event, span) = match event {
                Ok(event) => event,
                Err(error) => {
                    self.syntax(error.marker(), error.info());
                    return None;
                }
            };
            let origin = self.at(&span.start);
            let mut size = 1;
            let node = match event {
                Event::DocumentStart(_) => {
                    documents += 1;
                    if documents > 1 {
                        let what = "a second YAML document begins here";
                        self.diagnostics.push(
                            Diagnostic::new(
                                Severity::Warning,
                                Code::SecondDocument,
                                &origin,
                                "",
                                what,
                            )
                            .done("only the first one is read")
                            .help("take the `---` line out, or make it a file of its own"),
                        );
                        break;
                    }
                    continue;
                }
                Event::StreamEnd => break,
                Event::Nothing | Event::StreamStart | Event::DocumentEnd => continue,
                Event::SequenceStart(anchor, tag) => {
                    self.check_tag(tag.as_deref(), &origin, &["seq", "omap", "pairs"]);
                    self.open(Frame::List { items: Vec::new(), origin, anchor })?;
                    continue;
                }
                Event::MappingStart(anchor, tag) => {
                    self.check_tag(tag.as_deref(), &origin, &["map", "set"]);
                    self.open(Frame::Map { entries: Vec::new(), key: None, origin, anchor })?;
                    continue;
                }
                Event::SequenceEnd | Event::MappingEnd => self.close()?,
                Event::Scalar(text, style, anchor, tag) => {
                    let mut plain = style == ScalarStyle::Plain;
                    if let Some(tag) = tag.as_deref() {
                        self.check_tag(
                            Some(tag),
                            &origin,
                            &["str", "int", "float", "bool", "null", ""],
                        );
                        plain = tag.suffix != "str" && !tag.suffix.is_empty();
                    }
                    let text = text.into_owned();
                    let scalar = if plain { Scalar::plain(text) } else { Scalar::text(text) };
                    let node = Node { data: Data::Scalar(scalar), origin };
                    if anchor > 0 {
                        self.anchors.insert(anchor, node.clone());
                    }
                    node
                }
                Event::Alias(id) => match self.anchors.get(&id) {
                    Some(node) => {
                        size = node.size();
                        if self.nodes + size > NODES {
                            self.many(&origin);
                            return None;
                        }
                        node.clone()
                    }
                    None => {
                        let what = "this alias is inside of what it stands for";
                        self.error(Code::YamlSyntax, &origin, what.to_owned());
                        return None;
                    }
                },
            };
            self.nodes += size;
            if self.nodes > NODES {
                self.many(&node.origin);
                return None;
            }
            if let Some(done) = self.place(node) {
                root = Some(done);
            }
        }
        if root.as_ref().is_none_or(Node::is_null) {
            self.error(Code::EmptyFile, &start, "there is no configuration in it".to_owned());
            return None;
        }
        root
    }

    fn open(&mut self, frame: Frame) -> Option<()> {
        if self.stack.len() == DEPTH {
            let (Frame::List { origin, .. } | Frame::Map { origin, .. }) = &frame;
            let origin = origin.clone();
            self.error(Code::TooLarge, &origin, format!("nested more than {DEPTH} deep"));
            return None;
        }
        self.stack.push(frame);
        Some(())
    }

    /// Closes the innermost list or map and returns it as a node.
    fn close(&mut self) -> Option<Node> {
        let (node, anchor) = match self.stack.pop()? {
            Frame::List { items, origin, anchor } => {
                (Node { data: Data::List(items), origin }, anchor)
            }
            Frame::Map { entries, origin, anchor, .. } => {
                (Node { data: Data::Map(self.map(entries)), origin }, anchor)
            }
        };
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Some(node)
    }

    /// Puts `node` where it belongs; returns it where it is the whole document.
    fn place(&mut self, node: Node) -> Option<Node> {
        let complex = match self.stack.last_mut() {
            None => return Some(node),
            Some(Frame::List { items, .. }) => {
                items.push(node);
                return None;
            }
            Some(Frame::Map { entries, key, .. }) => match key.take() {
                Some(Key::Name(key, origin, plain)) => {
                    let merge = plain && key == "<<";
                    entries.push((Entry { key, origin, node }, merge));
                    return None;
                }
                Some(Key::Unusable) => return None,
                None => match node.data {
                    Data::Scalar(scalar) => {
                        let plain = scalar.is_plain();
                        *key = Some(Key::Name(scalar.as_str().to_owned(), node.origin, plain));
                        return None;
                    }
                    _ => {
                        *key = Some(Key::Unusable);
                        node.origin
                    }
                },
            },
        };
        let what = "a list or a section cannot be a key".to_owned();
        self.error(Code::ComplexKey, &complex, what);
        None
    }

    /// A finished mapping: merges first, then the later of two equal keys.
    fn map(&mut self, entries: Vec<(Entry, bool)>) -> Map {
        let mut own = Vec::new();
        let mut merged = Map::default();
        for (entry, merge) in entries {
            if merge {
                self.merge(entry, &mut merged);
            } else {
                own.push(entry);
            }
        }
        let mut map = Map { entries: Vec::with_capacity(own.len()) };
        let mut places: HashMap<String, usize> = HashMap::new();
        for entry in own {
            match places.get(&entry.key).copied() {
                Some(place) => {
                    let earlier = &map.entries[place].origin;
                    self.diagnostics.push(
                        Diagnostic::new(
                            Severity::Warning,
                            Code::DuplicateKey,
                            &entry.origin,
                            &entry.key,
                            format!("written a second time in the same section, after {earlier}"),
                        )
                        .done("the later one counts, as for Patroni")
                        .help("keep one of them"),
                    );
                    map.entries[place] = entry;
                }
                None => {
                    places.insert(entry.key.clone(), map.entries.len());
                    map.entries.push(entry);
                }
            }
        }
        for entry in merged.entries {
            if !places.contains_key(&entry.key) {
                map.entries.push(entry);
            }
        }
        map
    }

    /// `<<: *base` or `<<: [*a, *b]`; of two bases the earlier one wins.
    fn merge(&mut self, entry: Entry, merged: &mut Map) {
        let bases = match entry.node.data {
            Data::List(items) => items,
            data => vec![Node { data, origin: entry.node.origin }],
        };
        for base in bases {
            let Data::Map(map) = base.data else {
                let what = "`<<` takes a section, or a list of sections".to_owned();
                self.error(Code::WrongType, &base.origin, what);
                continue;
            };
            for entry in map.entries {
                if merged.get(&entry.key).is_none() {
                    merged.entries.push(entry);
                }
            }
        }
    }

    fn check_tag(&mut self, tag: Option<&Tag>, origin: &Origin, known: &[&str]) {
        let Some(tag) = tag else { return };
        let core = tag.is_yaml_core_schema() || (tag.handle == "!" && tag.suffix.is_empty());
        if core && known.contains(&tag.suffix.as_str()) {
            return;
        }
        self.diagnostics.push(
            Diagnostic::new(
                Severity::Error,
                Code::UnknownTag,
                origin,
                "",
                format!("the tag `{tag}` means nothing here"),
            )
            .help("write the value without a tag; `${NAME}` takes one from the environment"),
        );
    }

    fn syntax(&mut self, marker: &Marker, info: &str) {
        let mut origin = self.at(marker);
        let mut help = None;
        // A tab in front of a line is found by the parser only at the end of the line before.
        let place = marker.line().saturating_sub(1);
        for (index, line) in self.text.lines().enumerate().skip(place).take(2) {
            let indent = &line[..line.len() - line.trim_start().len()];
            if let Some(tab) = indent.find('\t') {
                origin = self.origin(index + 1, tab + 1);
                help = Some("the line begins with a tab; YAML indents with spaces only");
                break;
            }
            if index == place && line.matches(": ").count() > 1 {
                help = Some("a value that holds `: ` needs quotes");
            }
        }
        let message = format!("not YAML: {info}");
        let mut diagnostic =
            Diagnostic::new(Severity::Error, Code::YamlSyntax, &origin, "", message);
        diagnostic.help = help.map(str::to_owned);
        self.diagnostics.push(diagnostic);
    }

    fn many(&mut self, origin: &Origin) {
        let what = format!("more than {NODES} values, aliases counted each time");
        self.error(Code::TooLarge, origin, what);
    }

    fn error(&mut self, code: Code, origin: &Origin, message: String) {
        self.diagnostics.push(Diagnostic::new(Severity::Error, code, origin, "", message));
    }

    fn at(&self, marker: &Marker) -> Origin {
        self.origin(marker.line(), marker.col() + 1)
    }

    fn origin(&self, line: usize, column: usize) -> Origin {
        Origin::File { file: Arc::clone(self.file), line, column }
    }
}
