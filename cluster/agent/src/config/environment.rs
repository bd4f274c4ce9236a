//! `PATRONI_…` variables: laid over the file, each at the key it stands for.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::diagnostics::{Code, Diagnostic, Diagnostics, Origin, Severity};
use super::suggest::nearest;
use super::yaml::{self, Data, Entry, Map, Node};

/// The environment of the process. It is handed in, so that reading a configuration has no other inputs.
pub type Environment = BTreeMap<String, String>;

const PREFIX: &str = "PATRONI_";

/// The variable that holds a whole configuration.
pub(super) const WHOLE: &str = "PATRONI_CONFIGURATION";

/// How a variable's text is read.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    /// As it is.
    Text,
    /// A YAML list, or items with commas between.
    List,
    /// A YAML map, with or without its braces.
    Map,
    /// A list where it has no `%(`, text otherwise.
    LogFormat,
}

use Form::{List, LogFormat, Map as Pairs, Text};

/// Sections, and their keys that a variable can set: `PATRONI_SECTION_KEY`.
const SECTIONS: &[(&str, &[(&str, Form)])] = &[
    (
        "log",
        &[
            ("type", Text),
            ("level", Text),
            ("traceback_level", Text),
            ("format", LogFormat),
            ("dateformat", Text),
            ("static_fields", Pairs),
            ("max_queue_size", Text),
            ("dir", Text),
            ("mode", Text),
            ("file_size", Text),
            ("file_num", Text),
            ("loggers", Pairs),
            ("deduplicate_heartbeat_logs", Text),
        ],
    ),
    (
        "restapi",
        &[
            ("listen", Text),
            ("connect_address", Text),
            ("certfile", Text),
            ("keyfile", Text),
            ("keyfile_password", Text),
            ("cafile", Text),
            ("ciphers", Text),
            ("verify_client", Text),
            ("http_extra_headers", Pairs),
            ("https_extra_headers", Pairs),
            ("allowlist", List),
            ("allowlist_include_members", Text),
            ("request_queue_size", Text),
            ("server_tokens", Text),
            ("thread_pool_size", Text),
        ],
    ),
    (
        "ctl",
        &[
            ("insecure", Text),
            ("cacert", Text),
            ("certfile", Text),
            ("keyfile", Text),
            ("keyfile_password", Text),
        ],
    ),
    (
        "postgresql",
        &[
            ("listen", Text),
            ("connect_address", Text),
            ("proxy_address", Text),
            ("config_dir", Text),
            ("data_dir", Text),
            ("pgpass", Text),
            ("bin_dir", Text),
        ],
    ),
    // Not in Patroni, whose users would expect them: every setting has a variable.
    ("watchdog", &[("mode", Text), ("device", Text), ("safety_margin", Text)]),
];

const TOP: [&str; 5] = ["name", "namespace", "scope", "thread_pool_size", "thread_stack_size"];

const PROGRAMS: [&str; 7] =
    ["pg_ctl", "initdb", "pg_controldata", "pg_basebackup", "postgres", "pg_isready", "pg_rewind"];

/// `PATRONI_SUPERUSER_…` and its like.
const USERS: [&str; 3] = ["replication", "superuser", "rewind"];
const CREDENTIALS: [&str; 12] = [
    "username",
    "password",
    "sslmode",
    "sslcert",
    "sslkey",
    "sslpassword",
    "sslrootcert",
    "sslcrl",
    "sslcrldir",
    "gssencmode",
    "channel_binding",
    "sslnegotiation",
];

/// `PATRONI_ETCD3_…` and `PATRONI_ETCD_…`.
const ETCD: [(&str, Form); 14] = [
    ("host", Text),
    ("hosts", List),
    ("port", Text),
    ("use_proxies", Text),
    ("protocol", Text),
    ("srv", Text),
    ("srv_suffix", Text),
    ("url", Text),
    ("proxy", Text),
    ("cacert", Text),
    ("cert", Text),
    ("key", Text),
    ("username", Text),
    ("password", Text),
];

/// Stores that the agent does not work with. Their variables count as their sections.
const OTHER_STORES: [&str; 6] = ["consul", "zookeeper", "exhibitor", "kubernetes", "raft", "citus"];

/// Older spellings, which count where the newer ones are not set.
const OLD: [(&str, &str); 3] = [
    ("PATRONI_LOGLEVEL", "PATRONI_LOG_LEVEL"),
    ("PATRONI_LOGFORMAT", "PATRONI_LOG_FORMAT"),
    ("PATRONI_LOG_DATEFMT", "PATRONI_LOG_DATEFORMAT"),
];

/// What a variable sets.
struct Target {
    path: Vec<String>,
    form: Form,
}

fn target(path: &[&str], form: Form) -> Target {
    Target { path: path.iter().map(|part| (*part).to_owned()).collect(), form }
}

/// Every variable with a fixed name, and what it sets.
fn known() -> BTreeMap<String, Target> {
    let mut all = BTreeMap::new();
    let mut add = |name: String, target: Target| {
        all.insert(format!("{PREFIX}{}", name.to_ascii_uppercase()), target);
    };
    for key in TOP {
        add(key.to_owned(), target(&[key], Text));
    }
    for (section, keys) in SECTIONS {
        for (key, form) in *keys {
            add(format!("{section}_{key}"), target(&[section, key], *form));
        }
    }
    for section in ["restapi", "ctl"] {
        for key in ["username", "password"] {
            add(format!("{section}_{key}"), target(&[section, "authentication", key], Text));
        }
    }
    for user in USERS {
        for key in CREDENTIALS {
            let path = ["postgresql", "authentication", user, key];
            add(format!("{user}_{key}"), target(&path, Text));
        }
    }
    for program in PROGRAMS {
        let path = ["postgresql", "bin_name", program];
        add(format!("postgresql_bin_{program}"), target(&path, Text));
    }
    for section in ["etcd", "etcd3"] {
        for (key, form) in ETCD {
            add(format!("{section}_{key}"), target(&[section, key], form));
        }
    }
    all
}

/// Every variable with a fixed name.
#[must_use]
pub fn variables() -> Vec<String> {
    let mut names: Vec<String> = known().into_keys().collect();
    names.push(WHOLE.to_owned());
    names
}

/// The tree that the variables make, to be laid over the file's.
pub(super) fn overlay(environment: &Environment, diagnostics: &mut Diagnostics) -> Map {
    let known = known();
    let mut map = Map::default();
    let mut users: BTreeMap<&str, [Option<(&str, &str)>; 2]> = BTreeMap::new();
    for (name, value) in environment {
        // As for Patroni, an empty variable is none.
        if !name.starts_with(PREFIX) || value.is_empty() || name == WHOLE {
            continue;
        }
        let origin = Origin::Environment(Arc::from(name.as_str()));
        let (name, renamed) = match OLD.iter().find(|(old, _)| old == name) {
            Some((_, new)) => (*new, true),
            None => (name.as_str(), false),
        };
        if renamed {
            diagnostics.push(
                Diagnostic::new(
                    Severity::Notice,
                    Code::OldName,
                    &origin,
                    "",
                    format!("an older name of {name}"),
                )
                .done("read as the newer one"),
            );
            if environment.get(name).is_some_and(|value| !value.is_empty()) {
                continue;
            }
        }
        if let Some(target) = known.get(&name.to_ascii_uppercase()).filter(|_| is_upper(name)) {
            set(&mut map, target, value, &origin, diagnostics);
            continue;
        }
        let rest = &name[PREFIX.len()..];
        let lower = rest.to_ascii_lowercase();
        let store = OTHER_STORES.iter().find_map(|store| {
            let key = lower.strip_prefix(store)?.strip_prefix('_')?;
            Some(target(&[store, key], Text))
        });
        if let Some(target) = store.filter(|_| is_upper(name)) {
            set(&mut map, &target, value, &origin, diagnostics);
            continue;
        }
        // PATRONI_<user>_PASSWORD and PATRONI_<user>_OPTIONS.
        let user = [("_PASSWORD", 0), ("_OPTIONS", 1)]
            .iter()
            .find_map(|(suffix, slot)| Some((rest.strip_suffix(suffix)?, *slot)))
            .filter(|(user, _)| !user.is_empty());
        if let Some((user, slot)) = user {
            users.entry(user).or_default()[slot] = Some((name, value));
            continue;
        }
        unknown(name, &known, &origin, diagnostics);
    }
    for (user, [password, options]) in users {
        let Some((name, password)) = password else {
            // Options alone make no user.
            if let Some((name, _)) = options {
                unknown(name, &known, &Origin::Environment(Arc::from(name)), diagnostics);
            }
            continue;
        };
        let origin = Origin::Environment(Arc::from(name));
        let path = ["bootstrap", "users", user, "password"];
        set(&mut map, &target(&path, Text), password, &origin, diagnostics);
        if let Some((name, options)) = options {
            let origin = Origin::Environment(Arc::from(name));
            let path = ["bootstrap", "users", user, "options"];
            set(&mut map, &target(&path, List), options, &origin, diagnostics);
        }
    }
    map
}

/// The name of a bootstrap user is kept as it is; all other names are in capitals.
fn is_upper(name: &str) -> bool {
    !name.bytes().any(|b| b.is_ascii_lowercase())
}

fn unknown(
    name: &str,
    known: &BTreeMap<String, Target>,
    origin: &Origin,
    diagnostics: &mut Diagnostics,
) {
    let mut diagnostic =
        Diagnostic::new(Severity::Warning, Code::UnknownVariable, origin, "", "no such variable")
            .done("it has no effect");
    if let Some(near) = nearest(name, known.keys().map(String::as_str)) {
        diagnostic = diagnostic.help(format!("did you mean {near}?"));
    }
    diagnostics.push(diagnostic);
}

fn set(
    map: &mut Map,
    target: &Target,
    value: &str,
    origin: &Origin,
    diagnostics: &mut Diagnostics,
) {
    let node = match target.form {
        Text => Some(Node::text(value, origin)),
        List => list(value, origin, diagnostics),
        LogFormat if value.contains("%(") => Some(Node::text(value, origin)),
        LogFormat => list(value, origin, diagnostics),
        Pairs => pairs(value, origin, diagnostics),
    };
    let Some(node) = node else { return };
    let Some((last, sections)) = target.path.split_last() else { return };
    let mut map = map;
    for section in sections {
        let place = match map.entries.iter().position(|entry| entry.key == *section) {
            Some(place) => place,
            None => {
                map.entries.push(Entry {
                    key: section.clone(),
                    origin: origin.clone(),
                    node: Node::map(Map::default(), origin),
                });
                map.entries.len() - 1
            }
        };
        // Only this function fills the tree, and it makes a map of each section.
        let Data::Map(inner) = &mut map.entries[place].node.data else { return };
        map = inner;
    }
    map.set(Entry { key: last.clone(), origin: origin.clone(), node });
}

fn list(value: &str, origin: &Origin, diagnostics: &mut Diagnostics) -> Option<Node> {
    let value = value.trim();
    if value.starts_with('-') || value.starts_with('[') {
        return inline(value, origin, diagnostics);
    }
    inline(&format!("[{value}]"), origin, diagnostics)
}

fn pairs(value: &str, origin: &Origin, diagnostics: &mut Diagnostics) -> Option<Node> {
    let value = value.trim();
    if value.starts_with('{') {
        return inline(value, origin, diagnostics);
    }
    inline(&format!("{{{value}}}"), origin, diagnostics)
}

/// YAML within a variable; all of it has the variable as its place.
fn inline(text: &str, origin: &Origin, diagnostics: &mut Diagnostics) -> Option<Node> {
    let mut inner = Diagnostics::default();
    let node = yaml::parse(&Arc::from(""), text, &mut inner);
    if node.is_none() || inner.has_errors() {
        // The finding itself is told without its text, which may hold anything.
        diagnostics.push(
            Diagnostic::new(Severity::Error, Code::YamlSyntax, origin, "", "its value is not YAML")
                .help("a list is `a,b,c` or `[a, b]`; a map is `{name: value}`"),
        );
        return None;
    }
    node.map(|node| node.moved_to(origin))
}
