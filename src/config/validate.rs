//! Refuses impossible values, by name. Files are opened at connect, not here.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use hyper::Uri;

use super::{
    BreakerConfig, ClusterConfig, Config, ConfigError, EtcdConfig, FixedConfig, PoolConfig,
    PostgresConfig, ProbeConfig, ReadConfig, RestConfig, RetryConfig, Secret, SslMode,
};
use crate::patroni::ServerAddress;

const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);
const LONGEST_LIFETIME: Duration = Duration::from_secs(30 * 24 * 60 * 60);
const MAX_SIZE: usize = 10_000;
/// A semaphore takes no arbitrary number, and nobody waits behind a million others.
const MAX_WAITING: usize = 1_000_000;

type Checked = Result<(), ConfigError>;

impl Config {
    /// Checks every value, alone and beside the others. The constructors and the builder have done so;
    /// it is for a `Config` that was deserialised or changed elsewhere.
    ///
    /// # Errors
    /// [`ConfigError::Field`] for the first field that has an impossible value.
    pub fn validate(&self) -> Result<(), ConfigError> {
        sources(self)?;
        cluster(&self.cluster, self.etcd.is_some())?;
        if let Some(section) = &self.etcd {
            etcd(section)?;
        }
        if let Some(section) = &self.rest {
            rest(section)?;
        }
        if let Some(section) = &self.fixed {
            fixed(section)?;
        }
        postgres(&self.postgres)?;
        pool(&self.pool, self.postgres.connect_timeout)?;
        probe(&self.probe)?;
        breaker(&self.breaker)?;
        read(&self.read)?;
        retry(&self.retry)
    }
}

fn sources(config: &Config) -> Checked {
    let patroni = config.etcd.is_some() || config.rest.is_some();
    match (&config.fixed, patroni) {
        (None, false) => refuse(
            "etcd",
            "nothing says where the cluster is: give `etcd.endpoints`, `rest.endpoints` or `fixed.hosts`",
        ),
        (Some(_), true) => refuse(
            "fixed",
            "is used alone: leave out either `fixed`, or `etcd` and `rest`, which know more",
        ),
        (None, true) | (Some(_), false) => Ok(()),
    }
}

fn cluster(section: &ClusterConfig, has_etcd: bool) -> Checked {
    let ClusterConfig { scope, namespace } = section;
    if has_etcd && scope.is_empty() {
        return refuse("cluster.scope", "is required with `etcd`: Patroni's `scope`");
    }
    if scope.contains('/') {
        return refuse(
            "cluster.scope",
            "must not contain `/`; the folder goes to `cluster.namespace`",
        );
    }
    for (field, text) in [("cluster.scope", scope), ("cluster.namespace", namespace)] {
        if text.contains(char::is_control) {
            return refuse(field, "holds a control character");
        }
        if text.trim() != text {
            return refuse(field, "has a space at an end");
        }
    }
    Ok(())
}

fn etcd(section: &EtcdConfig) -> Checked {
    let EtcdConfig {
        endpoints,
        username,
        password,
        ca_file,
        cert_file,
        key_file,
        server_name,
        timeout,
        verify_interval,
    } = section;
    let secure = urls("etcd.endpoints", "http://host:2379", endpoints)?;
    not_empty("etcd.username", username.as_deref())?;
    not_empty("etcd.password", password.as_ref().map(Secret::expose))?;
    pair(("etcd.username", username.is_some()), ("etcd.password", password.is_some()))?;
    files(&[
        ("etcd.ca_file", ca_file),
        ("etcd.cert_file", cert_file),
        ("etcd.key_file", key_file),
    ])?;
    pair(("etcd.cert_file", cert_file.is_some()), ("etcd.key_file", key_file.is_some()))?;
    not_empty("etcd.server_name", server_name.as_deref())?;
    if !secure {
        without_tls(
            "etcd.endpoints",
            &[
                ("etcd.ca_file", ca_file.is_some()),
                ("etcd.cert_file", cert_file.is_some()),
                ("etcd.server_name", server_name.is_some()),
            ],
        )?;
    }
    duration("etcd.timeout", *timeout)?;
    duration("etcd.verify_interval", *verify_interval)
}

fn rest(section: &RestConfig) -> Checked {
    let RestConfig { endpoints, ca_file, cert_file, key_file, interval, timeout } = section;
    let secure = urls("rest.endpoints", "http://host:8008", endpoints)?;
    files(&[
        ("rest.ca_file", ca_file),
        ("rest.cert_file", cert_file),
        ("rest.key_file", key_file),
    ])?;
    pair(("rest.cert_file", cert_file.is_some()), ("rest.key_file", key_file.is_some()))?;
    if !secure {
        without_tls(
            "rest.endpoints",
            &[("rest.ca_file", ca_file.is_some()), ("rest.cert_file", cert_file.is_some())],
        )?;
    }
    duration("rest.interval", *interval)?;
    duration("rest.timeout", *timeout)
}

fn fixed(section: &FixedConfig) -> Checked {
    const FIELD: &str = "fixed.hosts";
    let FixedConfig { hosts } = section;
    if hosts.is_empty() {
        return refuse(FIELD, "is empty: give at least one server, such as \"host:5432\"");
    }
    let mut seen = BTreeSet::new();
    for text in hosts {
        let host = server(text).or_else(|why| {
            refuse(FIELD, format!("{:?} is not `host[:port]`: {why}", shown(text)))
        })?;
        if !seen.insert(host) {
            return refuse(FIELD, format!("{:?} is there twice", shown(text)));
        }
    }
    Ok(())
}

fn server(text: &str) -> Result<ServerAddress, &'static str> {
    if text.contains('@') {
        return Err("the user goes to `postgres.user`");
    }
    let address = ServerAddress::from_host_port(text)?;
    if address.host.contains('/') && !address.host.starts_with('/') {
        return Err("the host holds a `/`");
    }
    Ok(address)
}

fn postgres(section: &PostgresConfig) -> Checked {
    let PostgresConfig {
        user,
        password,
        password_file,
        dbname,
        sslmode,
        sslrootcert,
        sslcert,
        sslkey,
        application_name,
        options,
        connect_timeout,
        tcp_user_timeout,
        keepalive_idle,
        keepalive_interval,
    } = section;
    if user.is_empty() {
        return refuse("postgres.user", "is required");
    }
    let password = password.as_ref().map(Secret::expose);
    // The protocol ends each text with NUL.
    let texts = [
        ("postgres.user", Some(user.as_str())),
        ("postgres.password", password),
        ("postgres.dbname", dbname.as_deref()),
        ("postgres.application_name", Some(application_name)),
        ("postgres.options", options.as_deref()),
    ];
    if let Some((field, _)) = texts.iter().find(|(_, text)| text.is_some_and(|t| t.contains('\0')))
    {
        return refuse(field, "holds a NUL character");
    }
    not_empty("postgres.password", password)?;
    not_empty("postgres.dbname", dbname.as_deref())?;
    files(&[
        ("postgres.password_file", password_file),
        ("postgres.sslrootcert", sslrootcert),
        ("postgres.sslcert", sslcert),
        ("postgres.sslkey", sslkey),
    ])?;
    if password.is_some() && password_file.is_some() {
        return refuse(
            "postgres.password_file",
            "does not go with `postgres.password`: give one of them",
        );
    }
    pair(("postgres.sslcert", sslcert.is_some()), ("postgres.sslkey", sslkey.is_some()))?;
    if *sslmode == SslMode::Disable {
        for (field, given) in [
            ("postgres.sslrootcert", sslrootcert.is_some()),
            ("postgres.sslcert", sslcert.is_some()),
        ] {
            if given {
                return refuse(field, "has no effect with `postgres.sslmode = \"disable\"`");
            }
        }
    }
    duration("postgres.connect_timeout", *connect_timeout)?;
    duration("postgres.tcp_user_timeout", *tcp_user_timeout)?;
    // The kernel counts these two in whole seconds and refuses zero, at each connect.
    let second = Duration::from_secs(1);
    between("postgres.keepalive_idle", *keepalive_idle, second, LONGEST)?;
    between("postgres.keepalive_interval", *keepalive_interval, second, LONGEST)
}

fn pool(section: &PoolConfig, connect_timeout: Duration) -> Checked {
    let PoolConfig {
        name,
        max_size,
        write_timeout,
        read_timeout,
        max_waiting,
        start_timeout,
        close_timeout,
        max_lifetime,
        idle_timeout,
        cut_on_demotion: _,
        cut_dead_after,
        hung_after,
        keepalive_interval,
        leak_after,
        min_idle,
    } = section;
    not_empty("pool.name", name.as_deref())?;
    if name.as_ref().is_some_and(|name| name.contains(char::is_control)) {
        return refuse("pool.name", "holds a control character");
    }
    count("pool.max_size", *max_size, MAX_SIZE)?;
    count("pool.max_waiting", *max_waiting, MAX_WAITING)?;
    if let Some(write_timeout) = write_timeout {
        duration("pool.write_timeout", *write_timeout)?;
        at_most(
            ("postgres.connect_timeout", connect_timeout),
            ("pool.write_timeout", *write_timeout),
        )?;
    }
    duration("pool.read_timeout", *read_timeout)?;
    at_most(("postgres.connect_timeout", connect_timeout), ("pool.read_timeout", *read_timeout))?;
    duration("pool.start_timeout", *start_timeout)?;
    duration("pool.close_timeout", *close_timeout)?;
    between("pool.max_lifetime", *max_lifetime, SHORTEST, LONGEST_LIFETIME)?;
    duration("pool.idle_timeout", *idle_timeout)?;
    at_most(("pool.idle_timeout", *idle_timeout), ("pool.max_lifetime", *max_lifetime))?;
    if let Some(bound) = cut_dead_after {
        unless_off("pool.cut_dead_after", *bound, Duration::from_secs(1))?;
    }
    for (field, value) in [
        ("pool.hung_after", hung_after),
        ("pool.keepalive_interval", keepalive_interval),
        ("pool.leak_after", leak_after),
    ] {
        unless_off(field, *value, SHORTEST)?;
    }
    if min_idle > max_size {
        return refuse(
            "pool.min_idle",
            format!("{min_idle} is more than `pool.max_size`, {max_size}"),
        );
    }
    Ok(())
}

fn breaker(section: &BreakerConfig) -> Checked {
    let BreakerConfig {
        connect_failures: _,
        timeouts: _,
        error_percent,
        min_samples,
        window,
        open_for,
        open_at_most,
        trials,
    } = section;
    if *error_percent > 100 {
        return refuse("breaker.error_percent", format!("{error_percent} is more than 100"));
    }
    count("breaker.min_samples", *min_samples as usize, MAX_WAITING)?;
    duration("breaker.window", *window)?;
    duration("breaker.open_for", *open_for)?;
    duration("breaker.open_at_most", *open_at_most)?;
    at_most(("breaker.open_for", *open_for), ("breaker.open_at_most", *open_at_most))?;
    count("breaker.trials", *trials as usize, 1000)
}

fn probe(section: &ProbeConfig) -> Checked {
    let ProbeConfig { interval, watchful_interval, urgent_interval, timeout } = section;
    let interval = ("probe.interval", *interval);
    let watchful = ("probe.watchful_interval", *watchful_interval);
    let urgent = ("probe.urgent_interval", *urgent_interval);
    for (field, value) in [interval, watchful, urgent, ("probe.timeout", *timeout)] {
        duration(field, value)?;
    }
    at_most(watchful, interval)?;
    at_most(urgent, watchful)
}

fn read(section: &ReadConfig) -> Checked {
    let ReadConfig { max_behind, max_bytes_behind: _, when_none: _, prefer_tag } = section;
    if let Some(max_behind) = max_behind {
        duration("read.max_behind", *max_behind)?;
    }
    let Some(tag) = prefer_tag else { return Ok(()) };
    match tag.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() && !value.trim().is_empty() => Ok(()),
        _ => refuse("read.prefer_tag", format!("{tag:?} is not `name=value`, such as \"zone=b\"")),
    }
}

fn retry(section: &RetryConfig) -> Checked {
    let RetryConfig { max_attempts, min_per_second, budget_percent } = section;
    count("retry.max_attempts", *max_attempts as usize, 1000)?;
    if *min_per_second > 100_000 {
        return refuse("retry.min_per_second", format!("{min_per_second} is more than 100000"));
    }
    if *budget_percent > 100 {
        return refuse("retry.budget_percent", format!("{budget_percent} is more than 100"));
    }
    Ok(())
}

fn refuse<T>(field: &str, problem: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError::field(field, problem))
}

fn not_empty(field: &str, text: Option<&str>) -> Checked {
    match text {
        Some("") => refuse(field, "is empty: leave it out"),
        _ => Ok(()),
    }
}

fn files(given: &[(&str, &Option<PathBuf>)]) -> Checked {
    given
        .iter()
        .try_for_each(|(field, path)| not_empty(field, path.as_deref().and_then(|p| p.to_str())))
}

fn pair(a: (&str, bool), b: (&str, bool)) -> Checked {
    match (a, b) {
        ((given, true), (missing, false)) | ((missing, false), (given, true)) => {
            refuse(given, format!("needs `{missing}` beside it"))
        }
        _ => Ok(()),
    }
}

fn without_tls(endpoints: &str, given: &[(&str, bool)]) -> Checked {
    match given.iter().find(|(_, given)| *given) {
        Some((field, _)) => {
            refuse(field, format!("has no effect: none of `{endpoints}` is an https URL"))
        }
        None => Ok(()),
    }
}

fn count(field: &str, value: usize, most: usize) -> Checked {
    match value {
        0 => refuse(field, "must not be 0"),
        _ if value > most => refuse(field, format!("{value} is too many: at most {most}")),
        _ => Ok(()),
    }
}

fn duration(field: &str, value: Duration) -> Checked {
    between(field, value, SHORTEST, LONGEST)
}

/// For those of which zero means never.
fn unless_off(field: &str, value: Duration, least: Duration) -> Checked {
    if value.is_zero() { Ok(()) } else { between(field, value, least, LONGEST) }
}

fn between(field: &str, value: Duration, least: Duration, most: Duration) -> Checked {
    if value < least {
        return refuse(field, format!("{} is too short: at least {}", Text(value), Text(least)));
    }
    if value > most {
        return refuse(field, format!("{} is too long: at most {}", Text(value), Text(most)));
    }
    Ok(())
}

/// Names both: either may be the one that was meant otherwise.
fn at_most((small, less): (&str, Duration), (large, more): (&str, Duration)) -> Checked {
    if less > more {
        let problem = format!("{} is longer than `{large}`, {}", Text(less), Text(more));
        return refuse(small, problem);
    }
    Ok(())
}

struct Text(Duration);

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

/// Whether the URLs are https.
fn urls(field: &str, example: &str, list: &[String]) -> Result<bool, ConfigError> {
    let mut seen = BTreeSet::new();
    let mut is_secure = None;
    for text in list {
        let (secure, address) = url(text)
            .or_else(|why| refuse(field, format!("{:?} {why}: write {example:?}", shown(text))))?;
        if *is_secure.get_or_insert(secure) != secure {
            return refuse(field, "mixes http and https");
        }
        if !seen.insert(address) {
            return refuse(field, format!("{:?} is there twice", shown(text)));
        }
    }
    is_secure.ok_or_else(|| {
        ConfigError::field(field, format!("is empty: give a URL such as {example:?}"))
    })
}

/// Whether it is https, with host and port.
fn url(text: &str) -> Result<(bool, String), &'static str> {
    // Before anything that could repeat it.
    if text.contains('@') {
        return Err("must not hold a user or password");
    }
    let secure = text.starts_with("https://");
    if !secure && !text.starts_with("http://") {
        return Err("does not start with http:// or https://");
    }
    let uri: Uri = text.parse().map_err(|_| "is not a URL with a host")?;
    let authority = uri.authority().ok_or("has no host")?;
    let host = authority.host();
    if host.is_empty() || host == "[]" {
        return Err("has no host");
    }
    let port = match authority.port_u16() {
        Some(0) => return Err("has port 0"),
        Some(port) => port,
        None if authority.as_str() != host => return Err("has no valid port after its host"),
        None => [80, 443][usize::from(secure)],
    };
    if uri.path() != "/" || uri.query().is_some() || text.contains('#') {
        return Err("goes on after host and port");
    }
    Ok((secure, format!("{}:{port}", host.to_ascii_lowercase())))
}

/// An entry of a list, without what may be a password in it.
fn shown(text: &str) -> String {
    let text = text.rfind('@').map_or_else(|| text.to_owned(), |at| format!("…{}", &text[at..]));
    match text.split_once('?') {
        Some((before, _)) => format!("{before}?…"),
        None => text,
    }
}
