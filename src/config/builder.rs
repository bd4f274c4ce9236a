//! A configuration in code.

use std::path::PathBuf;
use std::time::Duration;

use super::{Config, ConfigError, Secret, SslMode, WhenNone};

/// Builds a [`Config`] step by step; [`build`](Self::build) checks it.
///
/// ```
/// use std::time::Duration;
/// use leaderpool::config::Config;
///
/// let config = Config::builder()
///     .scope("postgres-cluster")
///     .namespace("/db/")
///     .etcd(["http://10.0.0.1:2379", "http://10.0.0.2:2379", "http://10.0.0.3:2379"])
///     .user("app")
///     .password("…")
///     .max_size(32)
///     .configure(|config| config.probe.interval = Duration::from_millis(500))
///     .build()?;
/// # assert_eq!(config.pool.max_size, 32);
/// # Ok::<(), leaderpool::config::ConfigError>(())
/// ```
#[derive(Debug, Clone, Default)]
#[must_use = "a builder does nothing until `build`"]
pub struct ConfigBuilder {
    config: Config,
}

impl ConfigBuilder {
    /// `etcd.endpoints`: the URLs of the store's members. Replaces those given before.
    pub fn etcd(self, endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let endpoints = strings(endpoints);
        self.configure(|config| config.etcd.get_or_insert_default().endpoints = endpoints)
    }

    /// `etcd.username` and `etcd.password`.
    pub fn etcd_user(self, user: impl Into<String>, password: impl Into<Secret>) -> Self {
        self.configure(|config| {
            let etcd = config.etcd.get_or_insert_default();
            etcd.username = Some(user.into());
            etcd.password = Some(password.into());
        })
    }

    /// `etcd.ca_file`: the authority that signed the store's certificates. Without it, the system's own.
    pub fn etcd_ca_file(self, ca: impl Into<PathBuf>) -> Self {
        self.configure(|config| config.etcd.get_or_insert_default().ca_file = Some(ca.into()))
    }

    /// `etcd.cert_file` and `etcd.key_file`: who this client is.
    pub fn etcd_client_cert(self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.configure(|config| {
            let etcd = config.etcd.get_or_insert_default();
            etcd.cert_file = Some(cert.into());
            etcd.key_file = Some(key.into());
        })
    }

    /// `rest.endpoints`: the URLs of the members' REST API. Replaces those given before.
    pub fn rest(self, endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let endpoints = strings(endpoints);
        self.configure(|config| config.rest.get_or_insert_default().endpoints = endpoints)
    }

    /// `fixed.hosts`: the servers themselves, for clusters without Patroni. Replaces those given before.
    pub fn fixed(self, hosts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let hosts = strings(hosts);
        self.configure(|config| config.fixed.get_or_insert_default().hosts = hosts)
    }

    /// `cluster.scope`: the cluster's name.
    pub fn scope(self, scope: impl Into<String>) -> Self {
        self.configure(|config| config.cluster.scope = scope.into())
    }

    /// `cluster.namespace`: the folder of keys.
    pub fn namespace(self, namespace: impl Into<String>) -> Self {
        self.configure(|config| config.cluster.namespace = namespace.into())
    }

    /// `postgres.user`.
    pub fn user(self, user: impl Into<String>) -> Self {
        self.configure(|config| config.postgres.user = user.into())
    }

    /// `postgres.password`.
    pub fn password(self, password: impl Into<Secret>) -> Self {
        self.configure(|config| config.postgres.password = Some(password.into()))
    }

    /// `postgres.password_file`: a file whose first line is the password.
    pub fn password_file(self, path: impl Into<PathBuf>) -> Self {
        self.configure(|config| config.postgres.password_file = Some(path.into()))
    }

    /// `postgres.dbname`: the database.
    pub fn dbname(self, dbname: impl Into<String>) -> Self {
        self.configure(|config| config.postgres.dbname = Some(dbname.into()))
    }

    /// `postgres.sslmode`: how connections to PostgreSQL are encrypted.
    pub fn sslmode(self, mode: SslMode) -> Self {
        self.configure(|config| config.postgres.sslmode = mode)
    }

    /// `postgres.sslrootcert`: the authority that signed the servers' certificates.
    pub fn sslrootcert(self, ca: impl Into<PathBuf>) -> Self {
        self.configure(|config| config.postgres.sslrootcert = Some(ca.into()))
    }

    /// `postgres.sslcert` and `postgres.sslkey`: who this client is.
    pub fn ssl_client_cert(self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.configure(|config| {
            config.postgres.sslcert = Some(cert.into());
            config.postgres.sslkey = Some(key.into());
        })
    }

    /// `postgres.application_name`: what `pg_stat_activity` shows.
    pub fn application_name(self, name: impl Into<String>) -> Self {
        self.configure(|config| config.postgres.application_name = name.into())
    }

    /// `postgres.options`: settings for each session, such as `-c statement_timeout=5s`.
    pub fn options(self, options: impl Into<String>) -> Self {
        self.configure(|config| config.postgres.options = Some(options.into()))
    }

    /// `postgres.connect_timeout`: how long a new connection may take.
    pub fn connect_timeout(self, timeout: Duration) -> Self {
        self.configure(|config| config.postgres.connect_timeout = timeout)
    }

    /// `pool.name`: what metrics and traces call the pool. Without it, the scope.
    pub fn name(self, name: impl Into<String>) -> Self {
        self.configure(|config| config.pool.name = Some(name.into()))
    }

    /// `pool.max_size`: connections to each member at most.
    pub fn max_size(self, connections: usize) -> Self {
        self.configure(|config| config.pool.max_size = connections)
    }

    /// `pool.write_timeout`: how long a write waits for its connection. Without it, as long as a
    /// failover takes.
    pub fn write_timeout(self, timeout: Duration) -> Self {
        self.configure(|config| config.pool.write_timeout = Some(timeout))
    }

    /// `pool.read_timeout`: how long a read waits for its connection.
    pub fn read_timeout(self, timeout: Duration) -> Self {
        self.configure(|config| config.pool.read_timeout = timeout)
    }

    /// `pool.max_waiting`: callers that may wait at once.
    pub fn max_waiting(self, callers: usize) -> Self {
        self.configure(|config| config.pool.max_waiting = callers)
    }

    /// `read.max_behind`: how stale a replica may be.
    pub fn max_behind(self, bound: Duration) -> Self {
        self.configure(|config| config.read.max_behind = Some(bound))
    }

    /// `read.when_none`: what a read does where no replica qualifies.
    pub fn when_none(self, what: WhenNone) -> Self {
        self.configure(|config| config.read.when_none = what)
    }

    /// `read.prefer_tag`: a tag whose members are preferred.
    pub fn prefer_tag(self, name: impl AsRef<str>, value: impl AsRef<str>) -> Self {
        let tag = format!("{}={}", name.as_ref(), value.as_ref());
        self.configure(|config| config.read.prefer_tag = Some(tag))
    }

    /// Everything that has no method of its own here.
    pub fn configure(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(&mut self.config);
        self
    }

    /// Checks the configuration and hands it out.
    ///
    /// # Errors
    /// As [`Config::validate`].
    pub fn build(self) -> Result<Config, ConfigError> {
        self.config.validate()?;
        Ok(self.config)
    }
}

fn strings(items: impl IntoIterator<Item = impl Into<String>>) -> Vec<String> {
    items.into_iter().map(Into::into).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_the_same_as_the_file() {
        let built = Config::builder()
            .etcd_user("reader", "etcd-pw")
            .etcd(["https://a:2379", "https://b:2379"])
            .etcd_ca_file("/tls/etcd-ca.pem")
            .etcd_client_cert("/tls/etcd.pem", "/tls/etcd.key")
            .rest(["http://a:8008"])
            .scope("main")
            .namespace("/db/")
            .user("app")
            .password("pg-pw".to_owned())
            .dbname("shop")
            .sslmode(SslMode::VerifyFull)
            .sslrootcert("/tls/pg-ca.pem")
            .ssl_client_cert("/tls/pg.pem", "/tls/pg.key")
            .application_name("orders")
            .options("-c statement_timeout=5s")
            .connect_timeout(Duration::from_secs(1))
            .name("orders")
            .max_size(8)
            .write_timeout(Duration::from_secs(20))
            .read_timeout(Duration::from_secs(3))
            .max_waiting(64)
            .max_behind(Duration::from_secs(2))
            .when_none(WhenNone::Wait)
            .prefer_tag("zone", "b")
            .configure(|config| config.probe.interval = Duration::from_secs(2))
            .build()
            .expect("valid");
        let read = Config::from_toml(
            r#"
            [cluster]
            scope = "main"
            namespace = "/db/"
            [etcd]
            endpoints = ["https://a:2379", "https://b:2379"]
            username = "reader"
            password = "etcd-pw"
            ca_file = "/tls/etcd-ca.pem"
            cert_file = "/tls/etcd.pem"
            key_file = "/tls/etcd.key"
            [rest]
            endpoints = ["http://a:8008"]
            [postgres]
            user = "app"
            password = "pg-pw"
            dbname = "shop"
            sslmode = "verify-full"
            sslrootcert = "/tls/pg-ca.pem"
            sslcert = "/tls/pg.pem"
            sslkey = "/tls/pg.key"
            application_name = "orders"
            options = "-c statement_timeout=5s"
            connect_timeout = "1s"
            [pool]
            name = "orders"
            max_size = 8
            write_timeout = "20s"
            read_timeout = "3s"
            max_waiting = 64
            [read]
            max_behind = "2s"
            when_none = "wait"
            prefer_tag = "zone=b"
            [probe]
            interval = "2s"
            "#,
        )
        .expect("valid");
        assert_eq!(built, read);

        let fixed = Config::builder().fixed(["a", "b:5433"]).user("app").password_file("/run/pw");
        let config = fixed.clone().build().expect("valid");
        assert_eq!(config.fixed.expect("fixed").hosts, ["a", "b:5433"]);
        assert_eq!(config.postgres.password_file, Some(PathBuf::from("/run/pw")));
        fixed.password("both").build().expect_err("a password and a file for it");
    }

    #[test]
    fn build_checks_and_debug_is_silent() {
        let builder = Config::builder().etcd_user("reader", "hunter2").password("hunter3");
        let shown = format!("{builder:?}");
        assert!(!shown.contains("hunter"), "{shown}");
        builder.build().expect_err("no endpoints");
    }
}
