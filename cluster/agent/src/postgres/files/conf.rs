//! The text of the configuration files.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::sockets::SocketDirs;
use crate::postgres::binaries::Version;
use crate::postgres::control::ControlData;
use crate::postgres::quote::{conf_value, conninfo, pgpass_field, read_conf_value};
use crate::postgres::settings::{Account, ServerSettings, Upstream};

/// Parameters that are given on the command line, where `ALTER SYSTEM` and included files cannot override them. What
/// standbys need to agree on with their primary is among them.
pub const FORCED: [&str; 13] = [
    "listen_addresses",
    "port",
    "cluster_name",
    "wal_level",
    "hot_standby",
    "max_connections",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
    "track_commit_timestamp",
    "max_replication_slots",
    "max_worker_processes",
    "wal_log_hints",
];

/// Parameters of recovery: nothing but the agent may set them, or a standby might be promoted, paused or led
/// elsewhere behind its back.
pub const RECOVERY: [&str; 15] = [
    "archive_cleanup_command",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_end_command",
    "recovery_min_apply_delay",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "restore_command",
];

/// Of these, what settings may name: the rest follows from the cluster's state.
const FROM_SETTINGS: [&str; 4] = [
    "archive_cleanup_command",
    "recovery_end_command",
    "recovery_min_apply_delay",
    "restore_command",
];

const HEAD: &str = "\
# Written by leaderpool-agent, and overwritten by it: change the cluster's configuration instead.
";

/// What recovery is to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Recovery {
    /// Nothing: a primary.
    #[default]
    None,
    /// Follow this upstream; without one, whatever `restore_command` brings.
    Standby(Option<Upstream>),
    /// Follow whomever the files that were found say, with these parameters: a standby that was taken on and has not been
    /// told yet whom to follow.
    StandbyAsFound(BTreeMap<String, String>),
    /// Recover to a target and then be a primary, with these parameters: a restored backup.
    Target(BTreeMap<String, String>),
    /// Whatever a custom bootstrap has set up: nothing is written and nothing taken away.
    AsFound,
}

/// The text of `postgresql.conf`: first what `initdb` (or the user's own file) says, then what the cluster's
/// configuration says, then recovery.
#[must_use]
pub fn postgresql_conf(
    settings: &ServerSettings,
    version: Version,
    include: &str,
    recovery: &Recovery,
) -> String {
    let mut text = HEAD.to_owned();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name} = {}", conf_value(value));
    };
    let mut parameters: BTreeMap<&str, String> = BTreeMap::new();
    for (name, value) in &settings.parameters {
        if !RECOVERY.contains(&name.as_str()) {
            parameters.insert(name, value.clone());
        }
    }
    for (name, value) in identity_parameters(settings) {
        parameters.insert(name, value);
    }
    let dir = settings.config_dir();
    for (name, file) in [("hba_file", "pg_hba.conf"), ("ident_file", "pg_ident.conf")] {
        let given = parameters.get(name).map_or(file, String::as_str);
        parameters.insert(name, dir.join(given).to_string_lossy().into_owned());
    }
    if let Some(value) = parameters.get_mut("unix_socket_directories") {
        *value = SocketDirs::resolve(value, &settings.data_dir).value();
    }
    for (name, value) in recovery_parameters(settings, version, recovery) {
        parameters.insert(name, value);
    }
    for (name, value) in &parameters {
        line(name, value);
    }
    text.insert_str(HEAD.len(), &format!("include {}\n\n", conf_value(include)));
    text
}

fn identity_parameters(settings: &ServerSettings) -> [(&'static str, String); 3] {
    [
        ("listen_addresses", settings.listen_addresses.clone()),
        ("port", settings.port.to_string()),
        ("cluster_name", settings.scope.clone()),
    ]
}

/// The parameters of recovery, all of which are set, so that no included file can slip one in.
#[must_use]
pub fn recovery_parameters(
    settings: &ServerSettings,
    version: Version,
    recovery: &Recovery,
) -> BTreeMap<&'static str, String> {
    let mut out = BTreeMap::new();
    let own = |out: &mut BTreeMap<&'static str, String>, from: &BTreeMap<String, String>| {
        for name in FROM_SETTINGS {
            if let Some(value) = from.get(name) {
                out.insert(name, value.clone());
            }
        }
    };
    match recovery {
        Recovery::AsFound => {}
        // Harmless for a primary; it keeps them for when it becomes a standby, and for pg_rewind to read.
        Recovery::None => own(&mut out, &settings.recovery),
        Recovery::Target(parameters) => {
            for name in RECOVERY {
                if let Some(value) = parameters.get(name) {
                    out.insert(name, value.clone());
                }
            }
            out.entry("recovery_target_action").or_insert_with(|| "promote".to_owned());
        }
        Recovery::StandbyAsFound(found) => {
            for name in RECOVERY {
                if let Some(value) = found.get(name) {
                    out.insert(name, value.clone());
                }
            }
            own(&mut out, &settings.recovery);
        }
        Recovery::Standby(upstream) => {
            own(&mut out, &settings.recovery);
            out.insert("recovery_target_timeline", "latest".to_owned());
            for target in ["", "_name", "_time", "_xid", "_lsn"] {
                let name =
                    RECOVERY.iter().find(|n| n.strip_prefix("recovery_target") == Some(target));
                out.extend(name.map(|name| (*name, String::new())));
            }
            let slot = upstream.as_ref().and_then(|u| u.slot.clone()).unwrap_or_default();
            let conninfo = upstream.as_ref().map(|u| standby_conninfo(settings, version, u));
            out.insert("primary_slot_name", slot);
            out.insert("primary_conninfo", conninfo.unwrap_or_default());
        }
    }
    out
}

/// How a standby reaches its upstream. The password is in the password file.
fn standby_conninfo(settings: &ServerSettings, version: Version, upstream: &Upstream) -> String {
    let mut words = connection_words(upstream, &settings.replication, version);
    words.insert("application_name".to_owned(), settings.name.clone());
    if settings.replication.password.is_some() {
        words.insert("passfile".to_owned(), settings.pgpass.to_string_lossy().into_owned());
    }
    if version.major >= 17 {
        // Only the slot synchronisation of these versions connects to a database.
        words.entry("dbname".to_owned()).or_insert_with(|| settings.database.clone());
    }
    conninfo(words.iter().map(|(keyword, value)| (keyword.as_str(), value.as_str())))
}

/// The libpq keywords for a connection to an upstream as an account, without the password.
#[must_use]
pub fn connection_words(
    upstream: &Upstream,
    account: &Account,
    version: Version,
) -> BTreeMap<String, String> {
    let mut words = BTreeMap::new();
    words.insert("sslmode".to_owned(), "prefer".to_owned());
    words.insert("gssencmode".to_owned(), "prefer".to_owned());
    if version.major >= 13 {
        words.insert("channel_binding".to_owned(), "prefer".to_owned());
    }
    words.extend(account.options.clone());
    words.extend(upstream.options.clone());
    words.insert("host".to_owned(), upstream.host.clone());
    words.insert("port".to_owned(), upstream.port.clone());
    words.insert("user".to_owned(), account.username.clone());
    words
}

/// The text of a password file for an account at some hosts; `None` where it has no password.
#[must_use]
pub fn pgpass(hosts: &str, ports: &str, account: &Account) -> Option<String> {
    let password = account.password.as_ref()?;
    let ports: Vec<&str> = ports.split(',').map(str::trim).collect();
    let mut text = String::new();
    let mut hosts: Vec<&str> = hosts.split(',').map(str::trim).collect();
    if hosts.iter().any(|host| host.starts_with('/')) {
        // libpq looks sockets in the default directory up by this name.
        hosts.push("localhost");
    }
    for (i, host) in hosts.iter().enumerate() {
        let port = ports.get(i).or(ports.last()).copied().unwrap_or_default();
        let _ = writeln!(
            text,
            "{}:{}:*:{}:{}",
            if host.is_empty() { "*".to_owned() } else { pgpass_field(host) },
            if port.is_empty() { "*" } else { port },
            pgpass_field(&account.username),
            pgpass_field(password.expose())
        );
    }
    Some(text)
}

/// A parameter that is started with more than is configured, since the primary had more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Raised {
    /// The parameter.
    pub name: String,
    /// What is configured; `None` for the server's default.
    pub configured: Option<String>,
    /// What it is started with.
    pub started_with: u64,
}

/// The parameters for the command line. A standby is given at least what its control file says that the primary ran
/// with: it would refuse to start with less.
#[must_use]
pub fn forced_parameters(
    settings: &ServerSettings,
    limits_of: Option<&ControlData>,
) -> (Vec<(String, String)>, Vec<Raised>) {
    let mut forced: BTreeMap<String, String> = identity_parameters(settings)
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    for name in FORCED {
        if let Some(value) = settings.parameter(name)
            && !forced.contains_key(name)
        {
            forced.insert(name.to_owned(), value.to_owned());
        }
    }
    let mut raised = Vec::new();
    for (name, least) in limits_of.iter().flat_map(|control| &control.limits) {
        let configured = forced.get(name).cloned();
        let have = configured.as_deref().and_then(|value| value.trim().parse::<u64>().ok());
        if have.is_none_or(|have| have < *least) {
            forced.insert(name.clone(), least.to_string());
            if have.is_some() {
                raised.push(Raised { name: name.clone(), configured, started_with: *least });
            }
        }
    }
    (forced.into_iter().collect(), raised)
}

/// The parameters of recovery that a configuration file sets.
#[must_use]
pub fn read_recovery(conf: &str) -> BTreeMap<String, String> {
    let entry = |line: &str| {
        let line = line.trim_start();
        let end = line.find(|c: char| c == '=' || c.is_whitespace())?;
        let name = line[..end].to_ascii_lowercase();
        let value = line[end..].trim_start();
        let value = value.strip_prefix('=').unwrap_or(value);
        RECOVERY.contains(&name.as_str()).then(|| (name, read_conf_value(value)))
    };
    conf.lines().filter_map(entry).collect()
}

/// `postgresql.auto.conf` without the parameters that only the agent may set; `None` where it has none.
#[must_use]
pub(super) fn without_recovery(auto_conf: &str) -> Option<String> {
    let sets_recovery = |line: &str| {
        let name = line.trim_start().split(|c: char| c == '=' || c.is_whitespace()).next();
        name.is_some_and(|name| RECOVERY.contains(&name.to_ascii_lowercase().as_str()))
    };
    auto_conf.lines().any(sets_recovery).then(|| {
        let kept = auto_conf.lines().filter(|line| !sets_recovery(line));
        kept.fold(String::new(), |text, line| text + line + "\n")
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::postgres::settings::{CallbackCommands, ServerLog};

    const PG15: Version = Version { major: 15, minor: 18 };

    pub(crate) fn settings() -> ServerSettings {
        ServerSettings {
            name: "pg-1".into(),
            scope: "batman".into(),
            bin_dir: None,
            data_dir: "/pg/data".into(),
            config_dir: None,
            custom_conf: None,
            listen_addresses: "0.0.0.0".into(),
            port: 5433,
            local: Vec::new(),
            database: "postgres".into(),
            superuser: Account::new("postgres", "p"),
            replication: Account::new("rep", "a:b"),
            rewind: None,
            pgpass: "/pg/pgpass".into(),
            parameters: BTreeMap::from([
                ("max_connections".into(), "50".into()),
                ("unix_socket_directories".into(), ".".into()),
                ("archive_command".into(), "cp '%p' \\x".into()),
            ]),
            pg_hba: None,
            pg_ident: None,
            recovery: BTreeMap::from([
                ("restore_command".into(), "cp a b".into()),
                ("primary_conninfo".into(), "host=elsewhere".into()),
            ]),
            os_user: None,
            log: ServerLog::Inherit,
            pg_ctl_timeout: Duration::from_secs(60),
            statement_timeout: Duration::from_secs(2),
            basebackup: Vec::new(),
            callbacks: CallbackCommands::default(),
        }
    }

    #[test]
    fn a_primarys_file() {
        let text = postgresql_conf(&settings(), PG15, "postgresql.base.conf", &Recovery::None);
        for line in [
            "include 'postgresql.base.conf'",
            "archive_command = 'cp ''%p'' \\\\x'",
            "cluster_name = 'batman'",
            "hba_file = '/pg/data/pg_hba.conf'",
            "unix_socket_directories = '/pg'",
            "restore_command = 'cp a b'",
            "port = '5433'",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
        assert!(!text.contains("primary_conninfo") && !text.contains("recovery_target"));
    }

    #[test]
    fn a_standbys_file_leaves_no_recovery_parameter_to_chance() {
        let upstream = Upstream::new("pg-0", "10.0.0.1", 5432).with_slot("pg_1");
        let recovery = Recovery::Standby(Some(upstream));
        let text = postgresql_conf(&settings(), PG15, "/etc/pg.conf", &recovery);
        let line = "primary_conninfo = 'application_name=pg-1 channel_binding=prefer gssencmode=prefer \
                    host=10.0.0.1 passfile=/pg/pgpass port=5432 sslmode=prefer user=rep'";
        assert!(text.lines().any(|l| l == line), "{text}");
        assert!(text.contains("primary_slot_name = 'pg_1'"));
        assert!(text.contains("recovery_target_timeline = 'latest'"));
        for name in ["recovery_target", "recovery_target_lsn", "recovery_target_time"] {
            assert!(text.lines().any(|l| l == format!("{name} = ''")), "{name}");
        }
        let alone = postgresql_conf(&settings(), PG15, "x", &Recovery::Standby(None));
        assert!(alone.contains("primary_conninfo = ''"), "{alone}");
        let new = Version { major: 17, minor: 0 };
        let upstream = Recovery::Standby(Some(Upstream::new("a", "b", 1)));
        assert!(postgresql_conf(&settings(), new, "x", &upstream).contains("dbname=postgres"));
    }

    #[test]
    fn a_standby_starts_with_no_less_than_its_primary() {
        let answer = "Database cluster state: in archive recovery\nmax_connections setting: 200\n\
                      max_worker_processes setting: 8\nmax_wal_senders setting: 10";
        let limits: BTreeMap<String, u64> = [("max_connections", 200), ("max_wal_senders", 10)]
            .map(|(name, value)| (name.to_owned(), value))
            .into();
        assert!(ControlData::parse(answer).is_err());
        let mut settings = settings();
        let control = control_with(limits);
        let (forced, raised) = forced_parameters(&settings, Some(&control));
        assert!(forced.contains(&("max_connections".into(), "200".into())), "{forced:?}");
        assert!(forced.contains(&("max_wal_senders".into(), "10".into())), "{forced:?}");
        assert_eq!(raised.len(), 1, "only what is configured lower is worth a restart");
        assert_eq!(raised[0].configured.as_deref(), Some("50"));
        settings.parameters.insert("max_connections".into(), "300".into());
        let (forced, raised) = forced_parameters(&settings, Some(&control));
        assert!(forced.contains(&("max_connections".into(), "300".into())) && raised.is_empty());
        assert!(forced_parameters(&settings, None).0.contains(&("port".into(), "5433".into())));
    }

    fn control_with(limits: BTreeMap<String, u64>) -> ControlData {
        use leaderpool::patroni::{Lsn, SystemId, Timeline};
        ControlData {
            state: crate::postgres::control::DataState::InArchiveRecovery,
            system_id: SystemId(1),
            checkpoint: Lsn(0),
            redo: Lsn(0),
            timeline: Timeline(1),
            previous_timeline: Timeline(1),
            min_recovery_end: Lsn(0),
            min_recovery_timeline: Timeline(0),
            backup_start: Lsn(0),
            wal_segment_size: 16 << 20,
            checksums: true,
            wal_log_hints: true,
            limits,
        }
    }

    #[test]
    fn a_password_file() {
        let account = settings().replication;
        assert_eq!(pgpass("h", "5432", &account).as_deref(), Some("h:5432:*:rep:a\\:b\n"));
        let two = pgpass("::1,/run", "1,2", &account).unwrap();
        assert_eq!(two, "\\:\\:1:1:*:rep:a\\:b\n/run:2:*:rep:a\\:b\nlocalhost:2:*:rep:a\\:b\n");
        let none = Account { password: None, ..account };
        assert_eq!(pgpass("h", "1", &none), None);
    }

    #[test]
    fn what_another_manager_wrote_is_read_back_and_kept() {
        let text = "work_mem = '1MB'\nprimary_conninfo = 'host=a password=o''x'\nPRIMARY_SLOT_NAME='s'\nrecovery_target_timeline latest\n";
        let found = read_recovery(text);
        assert_eq!(found["primary_conninfo"], "host=a password=o'x");
        assert_eq!((found["primary_slot_name"].as_str(), found.len()), ("s", 3));
        let kept = postgresql_conf(&settings(), PG15, "x", &Recovery::StandbyAsFound(found));
        for line in [
            "primary_conninfo = 'host=a password=o''x'",
            "primary_slot_name = 's'",
            "restore_command = 'cp a b'",
        ] {
            assert!(kept.lines().any(|l| l == line), "{line} is missing in\n{kept}");
        }
    }

    #[test]
    fn auto_conf_loses_recovery_only() {
        let text =
            "# Do not edit\nwork_mem = '8MB'\nPrimary_Conninfo = 'host=x'\nrestore_command='y'\n";
        assert_eq!(without_recovery(text).as_deref(), Some("# Do not edit\nwork_mem = '8MB'\n"));
        assert_eq!(without_recovery("work_mem = '8MB'\n"), None);
    }
}
