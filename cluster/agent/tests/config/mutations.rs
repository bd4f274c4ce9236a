//! Damaged files: whatever is in them, there is an answer and no panic, and no password in it.

use leaderpool_agent::config::{Config, Dynamic, Environment, ServerVersion};
use proptest::prelude::*;

use super::{SEED, seed_environment};

/// Words that a file can hold, so that a mutation may meet a key rather than break the syntax.
const WORDS: [&str; 26] = [
    "scope:",
    "ttl: -1",
    "etcd3:",
    "bootstrap:",
    "dcs:",
    "*x",
    "&x ",
    "<<: *x",
    "- ",
    "[",
    "]",
    "{",
    "}",
    "null",
    "on",
    "0x",
    "${X}",
    "${",
    "\t",
    "'",
    "\"",
    "|",
    ">",
    "!!str ",
    "---\n",
    "host all all x/32 md5",
];

/// A variable that is read, or one that is not.
fn variable() -> impl Strategy<Value = String> {
    let known = leaderpool_agent::config::variables();
    prop_oneof![proptest::sample::select(known), "PATRONI_[A-Za-z0-9_]{0,20}"]
}

/// A value of some kind in place of what was at a key.
fn value() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec![
        "[]",
        "{}",
        "[[1]]",
        "{a: {b: c}}",
        "-1",
        "0",
        "1.5",
        ".inf",
        "''",
        "on",
        "99999999999999999999",
        "host:port",
        "[a, {b: c}, null]",
        "\"\\0\"",
        "'a: b'",
        "*:0",
    ])
}

#[derive(Debug, Clone)]
enum Mutation {
    Insert(usize, usize),
    Delete(usize, usize),
    Byte(usize, u8),
    Swap(usize, usize),
    Indent(usize, usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let place = 0..SEED.len();
    prop_oneof![
        (place.clone(), 0..WORDS.len()).prop_map(|(at, word)| Mutation::Insert(at, word)),
        (place.clone(), 1_usize..40).prop_map(|(at, length)| Mutation::Delete(at, length)),
        (place, any::<u8>()).prop_map(|(at, byte)| Mutation::Byte(at, byte)),
        (0_usize..90, 0_usize..90).prop_map(|(a, b)| Mutation::Swap(a, b)),
        (0_usize..90, 0_usize..9).prop_map(|(line, depth)| Mutation::Indent(line, depth)),
    ]
}

fn apply(bytes: &mut Vec<u8>, mutation: &Mutation) {
    let length = bytes.len();
    let mut lines: Vec<Vec<u8>> = bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    let count = lines.len();
    match mutation {
        Mutation::Insert(at, word) => {
            let at = at.min(&length);
            bytes.splice(*at..*at, WORDS[*word].bytes());
        }
        Mutation::Delete(at, many) => {
            let at = *at.min(&length);
            bytes.drain(at..(at + many).min(length));
        }
        Mutation::Byte(at, byte) => {
            if let Some(place) = bytes.get_mut(*at) {
                *place = *byte;
            }
        }
        Mutation::Swap(a, b) => {
            lines.swap(a % count, b % count);
            *bytes = lines.join(&b'\n');
        }
        Mutation::Indent(line, depth) => {
            let line = &mut lines[line % count];
            let text = line.trim_ascii_start().to_vec();
            *line = [vec![b' '; *depth], text].concat();
            *bytes = lines.join(&b'\n');
        }
    }
}

/// Reads, renders, prints.
fn exercise(bytes: &[u8], environment: &Environment) -> String {
    let (config, diagnostics) = Config::load_files(&[("patroni.yml", bytes)], environment);
    assert_eq!(config.is_some(), !diagnostics.has_errors());
    let mut printed = format!("{diagnostics}\n{diagnostics:?}\n{config:?}");
    if let Some(config) = config {
        for major in [10, 15, 18] {
            let version = ServerVersion::new(major * 10_000).expect("a version");
            let effective = config.effective(&config.bootstrap.dynamic, version);
            printed += &format!("{}\n{effective:?}", effective.diagnostics);
        }
        let (dynamic, _) = Dynamic::from_json(&config.bootstrap.dcs.0);
        assert_eq!(dynamic, config.bootstrap.dynamic);
    }
    printed
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn a_damaged_file_is_read_or_refused(mutations in proptest::collection::vec(mutation(), 1..6)) {
        let mut bytes = SEED.as_bytes().to_vec();
        for mutation in &mutations {
            apply(&mut bytes, mutation);
        }
        exercise(&bytes, &seed_environment());
    }

    #[test]
    fn any_value_may_stand_at_any_key(
        changes in proptest::collection::vec((0_usize..90, value()), 1..4),
    ) {
        let mut lines: Vec<String> = SEED.lines().map(str::to_owned).collect();
        for (line, value) in changes {
            let count = lines.len();
            let line = &mut lines[line % count];
            if let Some((key, _)) = line.split_once(": ") {
                *line = format!("{key}: {value}");
            }
        }
        exercise(lines.join("\n").as_bytes(), &seed_environment());
    }

    #[test]
    fn any_key_may_have_any_value(
        key in proptest::sample::select(
            leaderpool_agent::config::known_keys().into_iter().collect::<Vec<_>>()
        ),
        value in value(),
    ) {
        let path = key.replace("dynamic", "bootstrap.dcs").replace('*', "m");
        let parts: Vec<&str> = path.split('.').collect();
        let start = parts.iter().rev().fold(value.to_owned(), |text, part| format!("{{{part}: {text}}}"));
        let files = [("patroni.yml", SEED.as_bytes()), ("over.yml", start.as_bytes())];
        let (config, diagnostics) = Config::load_files(&files, &seed_environment());
        assert_eq!(config.is_some(), !diagnostics.has_errors(), "{start}\n{diagnostics}");
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        exercise(&bytes, &seed_environment());
    }

    #[test]
    fn any_variables_are_read_or_refused(
        variables in proptest::collection::btree_map(variable(), any::<String>(), 0..6),
    ) {
        exercise(SEED.as_bytes(), &variables);
        let _ = Config::from_environment(&variables);
    }
}

/// A file with a password everywhere one can stand, and in places where it is a mistake.
#[test]
fn passwords_are_never_printed() {
    let hidden = "hunter2";
    let text = "
scope: demo
name: node1
restapi:
  listen: 10.0.0.1:8008
  connect_address: node1:8008
  authentication: {username: u, password: hunter2}
  certfile: /c
  keyfile_password: hunter2
ctl: {authentication: {username: u, password: hunter2}, keyfile_password: hunter2}
etcd3: {url: 'https://root:hunter2@etcd:2379', password: hunter2}
bootstrap:
  method: m
  m: {command: restore hunter2, token: hunter2, recovery_conf: {restore_command: x hunter2}}
  users: {admin: {password: hunter2}}
  dcs: {postgresql: {parameters: {archive_command: x hunter2}}}
postgresql:
  listen: 10.0.0.1:5432
  connect_address: node1:5432
  data_dir: /data
  authentication:
    superuser: {username: a, password: hunter2, sslpassword: hunter2}
    replication: {username: b, password: hunter2}
    rewind: {username: c, password: hunter2}
  m: {command: clone, secret: hunter2}
  create_replica_methods: [m]
  parameters:
    primary_conninfo: host=a password=hunter2
    ssl_passphrase_command: echo hunter2
    archive_command: PGPASSWORD=hunter2 archive %p
  recovery_conf: {restore_command: fetch hunter2 %f %p}
  pre_promote: fence --with hunter2
  pg_hba:
  - host all all ldap/32 ldap ldapbindpasswd=hunter2
  - host all all 10.0.0.0/8 ldap ldapbindpasswd=hunter2
  - hots all all 10.0.0.0/8 ldap ldapbindpasswd=hunter2
";
    let printed = exercise(text.as_bytes(), &Environment::new());
    assert!(printed.contains("node1"), "the configuration was not read: {printed}");
    assert!(!printed.contains(hidden), "{printed}");
    for wrong in [
        text.replace("password: hunter2", "password: [hunter2]"),
        text.replace("password: hunter2", "password: {a: hunter2}"),
        text.replace("authentication:", "authentication: &a"),
        text.replace("'https://root:hunter2@etcd:2379'", "'ftp://root:hunter2@etcd:2379'"),
        text.replace("'https://root:hunter2@etcd:2379'", "'https://root:hunter2@etcd:port'"),
        text.replace("'https://root:hunter2@etcd:2379'", "'https://root:hunter2@e tcd'"),
        text.replace("password: hunter2}", "password: hunter2, password: hunter2}"),
        text.replace("password: hunter2", "password: *hunter2"),
        text.replace("password: hunter2", "password: !hunter2 x"),
        text.replace("password: hunter2", "password: 'hunter2"),
    ] {
        let printed = exercise(wrong.as_bytes(), &Environment::new());
        let printed = printed.replace("tag `!hunter2`", "");
        assert!(!printed.contains(hidden), "{printed}");
    }
    let variables = [
        ("PATRONI_SUPERUSER_PASSWORD", hidden),
        ("PATRONI_REPLICATION_PASSWORD", hidden),
        ("PATRONI_ETCD3_PASSWORD", hidden),
        ("PATRONI_ETCD3_HOSTS", "[hunter2"),
        ("PATRONI_RESTAPI_ALLOWLIST", "{hunter2: "),
        ("PATRONI_someone_PASSWORD", hidden),
        ("PATRONI_SOMETHING", hidden),
    ];
    let printed = exercise(text.as_bytes(), &super::environment(&variables));
    assert!(!printed.contains(hidden), "{printed}");
}
