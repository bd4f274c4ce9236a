//! The sections of the configuration.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::duration;
use super::secret::Secret;

/// `[cluster]`: which cluster.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a section, [cluster]")]
#[non_exhaustive]
pub struct ClusterConfig {
    /// The cluster's name, Patroni's `scope`. Required with `etcd`.
    pub scope: String,
    /// The folder of keys, Patroni's `namespace`. Default `service`, as Patroni's. Slashes around it do
    /// not matter.
    pub namespace: String,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self { scope: String::new(), namespace: "service".into() }
    }
}

/// `[etcd]`: the store that holds the cluster's keys (the v3 API).
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a section, [etcd]")]
#[non_exhaustive]
pub struct EtcdConfig {
    /// URLs of the store's members, `http://host:2379` or `https://host:2379`. All of them should be given: the
    /// pool follows one and moves on to the next when that one fails. Required.
    pub endpoints: Vec<String>,
    /// The user, where the store asks for one. Goes with `password`.
    pub username: Option<String>,
    /// The user's password.
    pub password: Option<Secret>,
    /// The authority (PEM) that signed the servers' certificates. Default: the system's own. Only with
    /// `https`.
    pub ca_file: Option<PathBuf>,
    /// The client's certificate (PEM). Goes with `key_file`; only with `https`.
    pub cert_file: Option<PathBuf>,
    /// The client's private key (PEM).
    pub key_file: Option<PathBuf>,
    /// The name to expect in the servers' certificates. Default: the host of each endpoint.
    pub server_name: Option<String>,
    /// How long one request may take. Default 1.5 s. A store that is frozen rather than closed is noticed
    /// after `verify_interval` plus this.
    #[serde(deserialize_with = "duration::required")]
    pub timeout: Duration,
    /// How often the view is checked by a linearizable read, since the renewals of a lease make no watch
    /// events and silence proves nothing. Default 1 s.
    #[serde(deserialize_with = "duration::required")]
    pub verify_interval: Duration,
}

impl Default for EtcdConfig {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            username: None,
            password: None,
            ca_file: None,
            cert_file: None,
            key_file: None,
            server_name: None,
            timeout: Duration::from_millis(1500),
            verify_interval: Duration::from_secs(1),
        }
    }
}

/// `[rest]`: the members' REST API.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a section, [rest]")]
#[non_exhaustive]
pub struct RestConfig {
    /// URLs of the members, `http://host:8008` or `https://host:8008`. Required.
    pub endpoints: Vec<String>,
    /// The authority (PEM) that signed the servers' certificates. Default: the system's own. Only with
    /// `https`.
    pub ca_file: Option<PathBuf>,
    /// The client's certificate (PEM). Goes with `key_file`; only with `https`.
    pub cert_file: Option<PathBuf>,
    /// The client's private key (PEM).
    pub key_file: Option<PathBuf>,
    /// How often the members are asked. Default 1 s.
    #[serde(deserialize_with = "duration::required")]
    pub interval: Duration,
    /// How long one answer may take. Default 2 s.
    #[serde(deserialize_with = "duration::required")]
    pub timeout: Duration,
}

impl Default for RestConfig {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            ca_file: None,
            cert_file: None,
            key_file: None,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(2),
        }
    }
}

/// `[fixed]`: a list of hosts. The servers alone say who leads, which is weaker than the leader key: a
/// former primary that nobody fenced is told apart only by its older timeline.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a section, [fixed]")]
#[non_exhaustive]
pub struct FixedConfig {
    /// `host:port` of each server; the port defaults to 5432. Required.
    pub hosts: Vec<String>,
}

/// How a connection to PostgreSQL is encrypted, in libpq's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum SslMode {
    /// Never.
    Disable,
    /// Where the server offers it; the certificate is not checked.
    #[default]
    Prefer,
    /// Always; the certificate is checked against `sslrootcert` where that is given, and not otherwise.
    Require,
    /// Always, and the certificate must be signed by a known authority.
    VerifyCa,
    /// As `verify-ca`, and the certificate must name the host.
    VerifyFull,
}

/// `[postgres]`: how to connect to PostgreSQL. Hosts and ports come from the topology.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a section, [postgres]")]
#[non_exhaustive]
pub struct PostgresConfig {
    /// The user. Required. With the role `pg_monitor` it sees a replica's timeline itself; without, the
    /// members' keys are believed.
    pub user: String,
    /// The password. Not together with `password_file`.
    pub password: Option<Secret>,
    /// A file whose first line is the password.
    pub password_file: Option<PathBuf>,
    /// The database. Default: the name of the user.
    pub dbname: Option<String>,
    /// How the connection is encrypted. Default `prefer`.
    pub sslmode: SslMode,
    /// The authority (PEM) that signed the servers' certificates. Default: the system's own. Not with
    /// `sslmode = "disable"`.
    pub sslrootcert: Option<PathBuf>,
    /// The client's certificate (PEM). Goes with `sslkey`.
    pub sslcert: Option<PathBuf>,
    /// The client's private key (PEM).
    pub sslkey: Option<PathBuf>,
    /// What `pg_stat_activity` shows. Default `leaderpool`.
    pub application_name: String,
    /// Settings for each session, as in libpq's `options`: `-c statement_timeout=5s`.
    pub options: Option<String>,
    /// How long a new connection may take, from TCP to the end of authentication. Default 2 s. At most
    /// `pool.write_timeout` and `pool.read_timeout`.
    #[serde(deserialize_with = "duration::required")]
    pub connect_timeout: Duration,
    /// How long sent data may stay unacknowledged before the kernel gives the connection up (Linux).
    /// Default 10 s. It bounds the wait for a host that is gone, not for a server that hangs: there the
    /// kernel still acknowledges, and `pool.cut_dead_after` is what ends the wait.
    #[serde(deserialize_with = "duration::required")]
    pub tcp_user_timeout: Duration,
    /// How long a connection is idle before the kernel probes it, in whole seconds. Default 15 s.
    #[serde(deserialize_with = "duration::required")]
    pub keepalive_idle: Duration,
    /// The time between two such probes, in whole seconds; three unanswered ones end the connection, or
    /// fewer where `tcp_user_timeout` has passed by then. Default 5 s.
    #[serde(deserialize_with = "duration::required")]
    pub keepalive_interval: Duration,
}

impl Default for PostgresConfig {
    fn default() -> Self {
        Self {
            user: String::new(),
            password: None,
            password_file: None,
            dbname: None,
            sslmode: SslMode::default(),
            sslrootcert: None,
            sslcert: None,
            sslkey: None,
            application_name: "leaderpool".into(),
            options: None,
            connect_timeout: Duration::from_secs(2),
            tcp_user_timeout: Duration::from_secs(10),
            keepalive_idle: Duration::from_secs(15),
            keepalive_interval: Duration::from_secs(5),
        }
    }
}

/// `[pool]`: sizes and deadlines.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a section, [pool]")]
#[non_exhaustive]
pub struct PoolConfig {
    /// What metrics and traces call this pool. Default: `cluster.scope`. Pools of one process need names of
    /// their own, or the gauges of one overwrite those of the other.
    pub name: Option<String>,
    /// Connections to each member at most. Default 16. The server's `max_connections` must hold this for
    /// every process, plus one each for its probe.
    pub max_size: usize,
    /// How long [`write`](crate::LeaderPool::write) waits in all: for a leader, a free connection, and its
    /// handshake. Default: the cluster's own `ttl` plus 15 s, so that a failover fits. At least
    /// `postgres.connect_timeout`.
    #[serde(deserialize_with = "duration::optional")]
    pub write_timeout: Option<Duration>,
    /// The same for [`read`](crate::LeaderPool::read). Default 5 s. At least `postgres.connect_timeout`.
    #[serde(deserialize_with = "duration::required")]
    pub read_timeout: Duration,
    /// Callers that may wait at once; one more is refused at once. Default 1024.
    pub max_waiting: usize,
    /// How long [`connect`](crate::LeaderPool::connect) waits for the first view of the cluster. Default
    /// 10 s.
    #[serde(deserialize_with = "duration::required")]
    pub start_timeout: Duration,
    /// How long [`close`](crate::LeaderPool::close) waits for connections that are out. Default 10 s.
    #[serde(deserialize_with = "duration::required")]
    pub close_timeout: Duration,
    /// The age at which a connection is not lent out again; each gets up to 2.5 % less, so that they do
    /// not end together. Default 30 min.
    #[serde(deserialize_with = "duration::required")]
    pub max_lifetime: Duration,
    /// The idle time after which a connection is not lent out again. Default 10 min. At most
    /// `max_lifetime`.
    #[serde(deserialize_with = "duration::required")]
    pub idle_timeout: Duration,
    /// Whether work in flight on a node that is known to be demoted or foreign is cut, rather than left to
    /// finish or hang. Default true.
    pub cut_on_demotion: bool,
    /// For how long a member may be down before the work in flight on it is cut, rather than left to hang
    /// until TCP gives up: such a statement then ends with an unknown outcome. It counts from when the
    /// member was found to be down, which takes two unanswered probes or one refusal; a member that answers
    /// its probes is never cut. Default: three times `probe.interval` and `probe.timeout` together, which is
    /// 6 s, and 1 s at least; `0s`: never. At least 1 s.
    #[serde(deserialize_with = "duration::optional")]
    pub cut_dead_after: Option<Duration>,
    /// How long a statement may run before its member is probed every `probe.watchful_interval`, over the
    /// probe's own connection: so that its death is noticed soon, and slow work is left alone. Default 5 s;
    /// `0s`: never.
    #[serde(deserialize_with = "duration::required")]
    pub hung_after: Duration,
    /// After how much idle time a connection is asked for a sign of life, so that no firewall forgets it; one
    /// that does not answer is dropped. In the background, never at a checkout. Default 2 min; `0s`: never.
    #[serde(deserialize_with = "duration::required")]
    pub keepalive_interval: Duration,
    /// How long a connection may be out before a warning tells where it was taken, by the caller's span.
    /// Default `0s`: never. It costs each checkout a lock and a look at the clock.
    #[serde(deserialize_with = "duration::required")]
    pub leak_after: Duration,
    /// Idle connections that are kept ready on the leader and on its likeliest successor, so that neither a
    /// burst nor a failover waits for handshakes. They are made in the background, one a second at most, and
    /// are not ended for being idle. Default 1; at most `max_size`.
    pub min_idle: usize,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            name: None,
            max_size: 16,
            write_timeout: None,
            read_timeout: Duration::from_secs(5),
            max_waiting: 1024,
            start_timeout: Duration::from_secs(10),
            close_timeout: Duration::from_secs(10),
            max_lifetime: Duration::from_secs(30 * 60),
            idle_timeout: Duration::from_secs(10 * 60),
            cut_on_demotion: true,
            cut_dead_after: None,
            hung_after: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(2 * 60),
            leak_after: Duration::ZERO,
            min_idle: 1,
        }
    }
}

/// `[probe]`: how often each member is asked for its role, timeline and position, over a connection of
/// its own.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a section, [probe]")]
#[non_exhaustive]
pub struct ProbeConfig {
    /// In the steady state. Default 1 s. Reads that ask for a bound on staleness shorten it to a quarter of
    /// that bound while they go on.
    #[serde(deserialize_with = "duration::required")]
    pub interval: Duration,
    /// For the leader while etcd is away, and for a member that has just failed. Default 250 ms. At most
    /// `interval`.
    #[serde(deserialize_with = "duration::required")]
    pub watchful_interval: Duration,
    /// For the member whose promotion writers wait for. Default 20 ms. At most `watchful_interval`.
    #[serde(deserialize_with = "duration::required")]
    pub urgent_interval: Duration,
    /// How long one answer may take. Default 1 s. Two in a row without an answer make a member down.
    #[serde(deserialize_with = "duration::required")]
    pub timeout: Duration,
}

impl ProbeConfig {
    /// The default of `pool.cut_dead_after`: so long that neither a blip nor a lost probe looks like a death.
    pub(crate) fn dead_after(&self) -> Duration {
        (self.interval + self.timeout).saturating_mul(3).max(Duration::from_secs(1))
    }
}

impl Default for ProbeConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(1),
            watchful_interval: Duration::from_millis(250),
            urgent_interval: Duration::from_millis(20),
            timeout: Duration::from_secs(1),
        }
    }
}

/// `[breaker]`: when reads are kept off a member that fails, for how long, and how it is taken back. Each
/// member has a breaker of its own. It never refuses a writer, nor a read that has nowhere else to go.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a section, [breaker]")]
#[non_exhaustive]
pub struct BreakerConfig {
    /// Connections in a row that could not be made, of callers and of the probe, that open it. Default 3;
    /// 0: none do.
    pub connect_failures: u32,
    /// Questions in a row that were not answered in time that open it. Default 3; 0: none do.
    pub timeouts: u32,
    /// Failures in percent of the calls of the last `window` that open it. Default 50; 0: none do.
    pub error_percent: u32,
    /// Calls in the window below which the percentage means nothing. Default 20.
    pub min_samples: u32,
    /// What counts as recent. Default 10 s.
    #[serde(deserialize_with = "duration::required")]
    pub window: Duration,
    /// How long it is open the first time; a random part of up to a half less, so that many pools do not come
    /// back at the same moment. Each opening soon after another lasts twice as long. Default 1 s.
    #[serde(deserialize_with = "duration::required")]
    pub open_for: Duration,
    /// How long it is open at most. Default 30 s. At least `open_for`.
    #[serde(deserialize_with = "duration::required")]
    pub open_at_most: Duration,
    /// Calls on trial, one at a time, that must succeed before the member is used as before. Default 1.
    pub trials: u32,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            connect_failures: 3,
            timeouts: 3,
            error_percent: 50,
            min_samples: 20,
            window: Duration::from_secs(10),
            open_for: Duration::from_secs(1),
            open_at_most: Duration::from_secs(30),
            trials: 1,
        }
    }
}

/// What a read does where no replica qualifies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WhenNone {
    /// Go to the leader.
    #[default]
    Leader,
    /// Wait for one, to the call's deadline.
    Wait,
    /// Fail at once.
    Error,
}

/// `[read]`: where [`read`](crate::LeaderPool::read) goes.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "a section, [read]")]
#[non_exhaustive]
pub struct ReadConfig {
    /// How stale a replica may be. Default: any.
    #[serde(deserialize_with = "duration::optional")]
    pub max_behind: Option<Duration>,
    /// How many bytes of WAL a replica may be behind. Default: any.
    pub max_bytes_behind: Option<u64>,
    /// What to do where no replica qualifies. Default `leader`.
    pub when_none: WhenNone,
    /// A tag, as `name=value`, whose members are preferred while any of them qualifies: `zone=b`.
    pub prefer_tag: Option<String>,
}

/// `[retry]`: how often work is tried again, where that is safe.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct RetryConfig {
    /// Attempts of one call in all, the first one included; the call's deadline counts too. Default 10.
    pub max_attempts: u32,
    /// Retries that the whole pool may make per second, however few calls there are. Default 10.
    pub min_per_second: u32,
    /// Retries beside that, as a percentage of the calls of the last 10 s: so that retries never multiply an
    /// overload. Default 20, at most 100.
    pub budget_percent: u32,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self { max_attempts: 10, min_per_second: 10, budget_percent: 20 }
    }
}
