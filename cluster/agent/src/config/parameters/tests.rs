use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::config::diagnostics::{Code, Severity};

fn version(major: u32) -> Server {
    ServerVersion::new(major * 10_000).unwrap().into()
}

fn instance() -> Instance {
    Instance {
        scope: "demo".to_owned(),
        listen_addresses: "0.0.0.0".to_owned(),
        port: 5432,
        data_dir: PathBuf::from("/data"),
        config_dir: PathBuf::from("/etc/pg"),
        synchronous: false,
    }
}

fn wanted(pairs: &[(&str, &str)]) -> Parameters {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), Parameter::new(*value))).collect()
}

/// The rendered value of the one setting, and the codes of what was said.
fn one(name: &str, value: &str, major: u32) -> (Rendered, Vec<Code>) {
    let rendered =
        render(&wanted(&[(name, value)]), &Parameters::default(), &instance(), &version(major));
    let codes = rendered.diagnostics.iter().map(|d| d.code).collect();
    (rendered, codes)
}

#[test]
fn versions_are_read_from_what_programs_print() {
    for (text, number) in [
        ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", Some(150_018)),
        ("15", Some(150_000)),
        ("15\n", Some(150_000)),
        ("18beta1", Some(180_000)),
        ("10.23", Some(100_023)),
        ("9.6", None),
        ("", None),
        ("fifteen", None),
        ("99999999999", None),
    ] {
        assert_eq!(ServerVersion::parse(text).map(ServerVersion::number), number, "{text}");
    }
}

#[test]
fn what_is_not_written_has_the_clusters_defaults() {
    let rendered =
        render(&Parameters::default(), &Parameters::default(), &instance(), &version(15));
    assert!(rendered.diagnostics.is_empty(), "{}", rendered.diagnostics);
    let expected: Settings = [
        ("cluster_name", "demo"),
        ("hot_standby", "on"),
        ("listen_addresses", "0.0.0.0"),
        ("max_connections", "100"),
        ("max_locks_per_transaction", "64"),
        ("max_prepared_transactions", "0"),
        ("max_replication_slots", "10"),
        ("max_wal_senders", "10"),
        ("max_worker_processes", "8"),
        ("port", "5432"),
        ("track_commit_timestamp", "off"),
        ("wal_keep_size", "128MB"),
        ("wal_level", "replica"),
        ("wal_log_hints", "on"),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect();
    assert_eq!(rendered.parameters, expected);
}

#[test]
fn the_amount_of_wal_to_keep_has_the_name_of_its_version() {
    let renamed = [Code::RenamedParameter];
    for (given, value, major, name, text, codes) in [
        ("wal_keep_segments", "8", 15, "wal_keep_size", "128MB", &renamed[..]),
        ("wal_keep_segments", "8", 12, "wal_keep_segments", "8", &[]),
        ("wal_keep_size", "1GB", 15, "wal_keep_size", "1GB", &[]),
        ("wal_keep_size", "1GB", 12, "wal_keep_segments", "64", &renamed),
        ("wal_keep_size", "100", 10, "wal_keep_segments", "6", &renamed),
        ("wal_keep_size", "100", 18, "wal_keep_size", "100", &[]),
        ("wal_keep_segments", "many", 15, "wal_keep_size", "128MB", &[Code::InvalidParameter]),
        ("wal_keep_segments", "0", 12, "wal_keep_segments", "8", &[Code::InvalidParameter]),
    ] {
        let (rendered, found) = one(given, value, major);
        assert_eq!(
            rendered.parameters.get(name).map(String::as_str),
            Some(text),
            "{given} {major}"
        );
        assert_eq!(found, codes, "{given}={value} for {major}");
        let other = if name == "wal_keep_size" { "wal_keep_segments" } else { "wal_keep_size" };
        assert_eq!(rendered.parameters.get(other), None, "{given} {major}");
    }
    let both = wanted(&[("wal_keep_segments", "4"), ("wal_keep_size", "32MB")]);
    let rendered = render(&both, &Parameters::default(), &instance(), &version(15));
    assert_eq!(rendered.parameters["wal_keep_size"], "32MB");
    assert_eq!(rendered.diagnostics.of(Code::NoEffect).count(), 1);
}

#[test]
fn values_are_normalised_or_refused_one_by_one() {
    let fine: &[Code] = &[];
    let invalid = &[Code::InvalidParameter][..];
    for (name, value, major, text, codes) in [
        ("hot_standby", "on", 15, Some("on"), fine),
        ("hot_standby", "True", 15, Some("on"), fine),
        ("hot_standby", "off", 15, Some("on"), invalid),
        ("wal_level", "replica", 15, Some("replica"), fine),
        ("wal_level", "hot_standby", 15, Some("replica"), fine),
        ("wal_level", "LOGICAL", 15, Some("logical"), fine),
        ("wal_level", "minimal", 15, Some("replica"), invalid),
        ("max_connections", "200", 15, Some("200"), fine),
        ("max_connections", "3", 15, Some("100"), invalid),
        ("max_connections", "many", 15, None, invalid),
        ("archive_mode", "on", 15, Some("on"), fine),
        ("archive_mode", "yes", 15, Some("on"), fine),
        ("archive_mode", "always", 15, Some("always"), fine),
        ("archive_mode", "sometimes", 15, None, invalid),
        ("archive_timeout", "1800s", 15, Some("1800s"), fine),
        ("archive_timeout", "30min", 15, Some("30min"), fine),
        ("archive_timeout", "1800sec", 15, Some("1800s"), invalid),
        ("archive_timeout", "10MB", 15, None, invalid),
        ("shared_buffers", "128MB", 15, Some("128MB"), fine),
        ("shared_buffers", "128mb", 15, Some("128MB"), invalid),
        ("shared_buffers", "1G", 15, Some("1GB"), invalid),
        ("shared_buffers", "16", 15, Some("16"), fine),
        ("shared_buffers", "1", 15, Some("16"), invalid),
        ("checkpoint_completion_target", "0.9", 15, Some("0.9"), fine),
        ("checkpoint_completion_target", "9", 15, Some("1"), invalid),
        ("autovacuum_vacuum_cost_delay", "1.5", 11, None, invalid),
        ("autovacuum_vacuum_cost_delay", "1.5", 12, Some("1.5"), fine),
        ("synchronous_commit", "1", 15, Some("on"), fine),
        ("client_min_messages", "Debug", 15, Some("debug"), fine),
        ("wal_compression", "zstd", 15, Some("zstd"), fine),
        ("wal_compression", "zstd", 14, None, invalid),
        ("password_encryption", "on", 15, Some("md5"), invalid),
        ("log_line_prefix", "%m [%p] ", 15, Some("%m [%p] "), fine),
        ("archive_command", "cp %p ../a/%f", 15, Some("cp %p ../a/%f"), fine),
        ("pg_stat_statements.max", "10000", 15, Some("10000"), fine),
        ("hba_file", "hba.conf", 15, Some("/etc/pg/hba.conf"), fine),
        ("hba_file", "/x/hba.conf", 15, Some("/x/hba.conf"), fine),
    ] {
        let (rendered, found) = one(name, value, major);
        let wide = is_cluster_wide(name) && text.is_none();
        let got = rendered.parameters.get(name).map(String::as_str).filter(|_| !wide);
        assert_eq!(got, text, "{name}={value} for {major}");
        assert_eq!(found, codes, "{name}={value} for {major}: {}", rendered.diagnostics);
    }
}

#[test]
fn names_that_a_version_lacks_are_left_out_and_explained() {
    use Code::{ParameterNotInVersion as Gone, RenamedParameter as Renamed, UnknownParameter};
    for (name, value, major, written, code) in [
        ("stats_temp_directory", "x", 14, Some("stats_temp_directory"), None),
        ("stats_temp_directory", "x", 15, None, Some(Gone)),
        ("summarize_wal", "on", 17, Some("summarize_wal"), None),
        ("summarize_wal", "on", 16, None, Some(Gone)),
        ("old_snapshot_threshold", "1h", 17, None, Some(Gone)),
        ("checkpoint_segments", "10", 15, None, Some(Gone)),
        ("force_parallel_mode", "on", 16, Some("debug_parallel_query"), Some(Renamed)),
        ("debug_parallel_query", "on", 15, Some("force_parallel_mode"), Some(Renamed)),
        ("ssl_ecdh_curve", "prime256v1", 18, Some("ssl_groups"), Some(Renamed)),
        ("ssl_ecdh_curve", "prime256v1", 17, Some("ssl_ecdh_curve"), None),
        ("sharde_buffers", "1GB", 15, None, Some(UnknownParameter)),
        ("io_method", "worker", 19, Some("io_method"), None),
        ("not a.name", "1", 15, None, Some(UnknownParameter)),
    ] {
        let (rendered, codes) = one(name, value, major);
        assert_eq!(codes, code.into_iter().collect::<Vec<_>>(), "{name} for {major}");
        let extra: Vec<_> = rendered
            .parameters
            .keys()
            .map(String::as_str)
            .filter(|name| !is_cluster_wide(name))
            .collect();
        assert_eq!(extra, written.into_iter().collect::<Vec<_>>(), "{name} for {major}");
    }
    let (rendered, _) = one("sharde_buffers", "1GB", 15);
    let help = rendered.diagnostics.iter().find_map(|d| d.help.clone());
    assert_eq!(help.as_deref(), Some("did you mean `shared_buffers`?"));
}

#[test]
fn a_modified_servers_own_settings_are_kept() {
    let mut server = version(15);
    server.other_settings.insert("enterprise_mode".to_owned());
    let rendered =
        render(&wanted(&[("enterprise_mode", "x")]), &Parameters::default(), &instance(), &server);
    assert_eq!(rendered.parameters["enterprise_mode"], "x");
    assert!(rendered.diagnostics.is_empty());
}

#[test]
fn what_the_agent_decides_cannot_be_set() {
    use Code::{ManagedParameter as Managed, RefusedParameter as Refused};
    for (name, value, code) in [
        ("listen_addresses", "*", Managed),
        ("port", "6000", Managed),
        ("cluster_name", "x", Managed),
        ("data_directory", "/x", Managed),
        ("config_file", "/x", Managed),
        ("include_dir", "conf.d", Refused),
        ("transaction_read_only", "on", Refused),
        ("server_version", "15", Refused),
        ("data_checksums", "on", Refused),
    ] {
        let (rendered, codes) = one(name, value, 15);
        assert_eq!(codes, [code], "{name}");
        assert_ne!(rendered.parameters.get(name).map(String::as_str), Some(value), "{name}");
    }
    let names = wanted(&[("synchronous_standby_names", "*")]);
    let synchronous = Instance { synchronous: true, ..instance() };
    for (instance, expected) in [(instance(), Some("*")), (synchronous, None)] {
        let rendered = render(&names, &Parameters::default(), &instance, &version(15));
        let written = rendered.parameters.get("synchronous_standby_names");
        assert_eq!(written.map(String::as_str), expected);
    }
}

#[test]
fn dangerous_settings_are_kept_with_a_word_of_warning() {
    for (name, value, risky) in [
        ("fsync", "off", true),
        ("fsync", "on", false),
        ("full_page_writes", "no", true),
        ("zero_damaged_pages", "on", true),
        ("default_transaction_read_only", "on", true),
        ("synchronous_commit", "off", true),
        ("synchronous_commit", "local", false),
    ] {
        let (rendered, codes) = one(name, value, 15);
        assert_eq!(codes.contains(&Code::RiskyParameter), risky, "{name}={value}");
        assert!(rendered.parameters.contains_key(name));
    }
}

#[test]
fn settings_for_recovery_go_where_their_version_has_them() {
    let conf = wanted(&[
        ("restore_command", "cp ../wal_archive/%f %p"),
        ("recovery_min_apply_delay", "5min"),
        ("promote_trigger_file", "go"),
    ]);
    for (major, trigger) in
        [(11, Some("trigger_file")), (12, Some("promote_trigger_file")), (16, None)]
    {
        let rendered = render(&Parameters::default(), &conf, &instance(), &version(major));
        let mut names = vec!["recovery_min_apply_delay", "restore_command"];
        names.extend(trigger);
        names.sort_unstable();
        assert_eq!(rendered.recovery.keys().collect::<Vec<_>>(), names, "{major}");
        assert_eq!(rendered.recovery["restore_command"], "cp ../wal_archive/%f %p");
        assert_eq!(rendered.parameters.get("restore_command"), None);
        assert_eq!(rendered.diagnostics.len(), usize::from(trigger.is_none()), "{major}");
    }
}

#[test]
fn recovery_settings_that_would_stop_a_replica_are_refused() {
    use Code::{ManagedParameter as Managed, RefusedParameter as Refused};
    for (name, value, code) in [
        ("standby_mode", "on", Managed),
        ("primary_conninfo", "host=x", Managed),
        ("primary_slot_name", "x", Managed),
        ("recovery_target_timeline", "latest", Managed),
        ("recovery_target_time", "now", Refused),
        ("recovery_target_action", "shutdown", Refused),
        ("pause_at_recovery_target", "on", Refused),
        ("restor_command", "x", Code::UnknownParameter),
        ("shared_buffers", "1GB", Code::UnknownParameter),
    ] {
        let conf = wanted(&[(name, value)]);
        let rendered = render(&Parameters::default(), &conf, &instance(), &version(15));
        assert!(rendered.recovery.is_empty(), "{name}");
        let codes: Vec<_> = rendered.diagnostics.iter().map(|d| d.code).collect();
        assert_eq!(codes, [code], "{name}");
    }
    // Among the parameters they mean the same, and are told so.
    let (rendered, codes) = one("restore_command", "cp a b", 15);
    assert_eq!(codes, [Code::RecoveryParameter]);
    assert_eq!(rendered.recovery["restore_command"], "cp a b");
    assert_eq!(rendered.parameters.get("restore_command"), None);
}

#[test]
fn relative_directories_for_sockets_become_absolute() {
    let long = Instance { data_dir: PathBuf::from(format!("/{}", "x".repeat(100))), ..instance() };
    let relative = Instance { data_dir: PathBuf::from("data"), ..instance() };
    let moved = Some(Severity::Notice);
    for (instance, value, expected, severity) in [
        (&instance(), ".", "/data", moved),
        (&instance(), "./", "/data", moved),
        (&instance(), "sockets", "/data/sockets", moved),
        (&instance(), "/run/postgresql, .", "/run/postgresql, /data", moved),
        (&instance(), "/run/postgresql", "/run/postgresql", None),
        (&instance(), "@abstract", "@abstract", None),
        (&instance(), "", "", None),
        (&long, ".", ".", Some(Severity::Warning)),
        (&relative, ".", ".", None),
    ] {
        let wanted = wanted(&[("unix_socket_directories", value)]);
        let rendered = render(&wanted, &Parameters::default(), instance, &version(15));
        assert_eq!(rendered.parameters["unix_socket_directories"], expected, "{value}");
        let found: Vec<_> = rendered.diagnostics.iter().map(|d| (d.code, d.severity)).collect();
        let code = Code::RelativeSocketDirectory;
        assert_eq!(found, severity.map(|s| (code, s)).into_iter().collect::<Vec<_>>(), "{value}");
    }
}

#[test]
fn values_that_mean_the_same_are_recognised() {
    for (kind, unit, a, b, same) in [
        ("bool", None, "on", "true", true),
        ("bool", None, "on", "off", false),
        ("integer", Some("8kB"), "16384", "128MB", true),
        ("integer", Some("MB"), "1GB", "1024", true),
        ("integer", Some("s"), "1800", "30min", true),
        ("integer", Some("s"), "1800", "31min", false),
        ("real", None, "0.9", "0.90", true),
        ("enum", None, "Replica", "replica", true),
        ("enum", None, "on", "yes", true),
        ("string", None, "a", "A", false),
        ("integer", None, "x", "y", false),
    ] {
        assert_eq!(same_value(kind, unit, a, b), same, "{a} and {b}");
    }
}

proptest! {
    #[test]
    fn any_setting_is_rendered_or_named(
        name in "[a-z_.]{0,20}",
        value in any::<String>(),
        major in 10_u32..=19,
    ) {
        let (rendered, codes) = one(&name, &value, major);
        let managed = CLUSTER_WIDE.iter().any(|(wide, _)| *wide == name);
        prop_assert!(
            managed || !codes.is_empty() || rendered.parameters.contains_key(&name)
        );
    }

    #[test]
    fn every_known_setting_takes_odd_values_without_panic(
        index in 0_usize..400,
        value in "[-+]?[0-9]{0,12}(\\.[0-9]{0,3})?(e[0-9]{1,3})?( ?(kB|MB|s|min|mb|x))?",
        major in 10_u32..=18,
    ) {
        let server = version(major);
        let names: Vec<_> = catalog::names(server.version).collect();
        let name = names[index % names.len()].to_ascii_lowercase();
        let _ = one(&name, &value, major);
    }
}
