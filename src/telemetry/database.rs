//! Which database a span is about, as the configuration names it.
//!
//! OpenTelemetry's `server.address` is the *configured* target, and stays the same whichever member serves a
//! call; that one is `network.peer.address`. A list of hosts is given as it is. Where a service is asked for
//! the members, its own address is given, with the cluster's name as a path.

use crate::config::Config;
use crate::patroni::{KeyPrefix, ServerAddress};

const DEFAULT_PORT: u16 = 5432;

/// What all spans of a pool say alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Database {
    /// The pool's name.
    pub(super) pool: String,
    /// `db.namespace`: the database, as it was given when the connection was made.
    pub(super) namespace: String,
    /// `server.address`.
    pub(super) address: String,
    /// `server.port`: only where all configured hosts have the same, and another one than the default.
    pub(super) port: Option<u16>,
}

impl Database {
    pub(crate) fn new(config: &Config) -> Self {
        let postgres = &config.postgres;
        let scope = &config.cluster.scope;
        let (address, port) = if let Some(etcd) = &config.etcd {
            let path = KeyPrefix::new(&config.cluster.namespace, scope);
            (discovered("etcd", &etcd.endpoints, path.as_str()), None)
        } else if let Some(fixed) = &config.fixed {
            hosts(&fixed.hosts)
        } else {
            let endpoints = config.rest.as_ref().map_or(&[][..], |rest| &rest.endpoints);
            (discovered("patroni", endpoints, scope), None)
        };
        Self {
            pool: pool_name(config).to_owned(),
            namespace: postgres.dbname.as_ref().unwrap_or(&postgres.user).clone(),
            address,
            port,
        }
    }
}

/// What metrics and traces call the pool.
pub(crate) fn pool_name(config: &Config) -> &str {
    config.pool.name.as_deref().unwrap_or(&config.cluster.scope)
}

/// `etcd://a:2379,b:2379/service/cluster`.
fn discovered(scheme: &str, endpoints: &[String], path: &str) -> String {
    let mut authorities: Vec<&str> = endpoints.iter().map(|url| authority(url)).collect();
    authorities.sort_unstable();
    let mut address = format!("{scheme}://{}", authorities.join(","));
    for part in path.split('/').filter(|part| !part.is_empty()) {
        address.push('/');
        address.push_str(part);
    }
    address
}

/// Host and port of a URL; a user in it, or more than a slash after them, the configuration refuses.
fn authority(url: &str) -> &str {
    url.split_once("://").map_or(url, |(_, rest)| rest).trim_end_matches('/')
}

fn hosts(hosts: &[String]) -> (String, Option<u16>) {
    // Validated with the configuration.
    let mut servers: Vec<ServerAddress> =
        hosts.iter().filter_map(|host| ServerAddress::from_host_port(host).ok()).collect();
    servers.sort();
    let port = servers.first().map_or(DEFAULT_PORT, |server| server.port);
    if servers.iter().any(|server| server.port != port) {
        let all: Vec<String> = servers.iter().map(ToString::to_string).collect();
        return (all.join(","), None);
    }
    let all: Vec<&str> = servers.iter().map(|server| server.host.as_str()).collect();
    (all.join(","), (port != DEFAULT_PORT).then_some(port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(source: &str) -> (String, Option<u16>) {
        let text = format!("{source}\n[postgres]\nuser = 'app'\ndbname = 'shop'");
        let database = Database::new(&Config::from_toml(&text).expect("a configuration"));
        assert_eq!(database.namespace, "shop");
        (database.address, database.port)
    }

    #[test]
    fn the_address_is_the_configured_one() {
        let cases = [
            (
                "[etcd]\nendpoints = ['http://b:2379', 'http://a:2379/']\n\
                 [cluster]\nscope = 'main'\nnamespace = '/db/'",
                "etcd://a:2379,b:2379/db/main",
                None,
            ),
            ("[rest]\nendpoints = ['https://[::1]:8008']", "patroni://[::1]:8008", None),
            ("[fixed]\nhosts = ['b', 'a:5432']", "a,b", None),
            ("[fixed]\nhosts = ['b:6432', 'a:6432']", "a,b", Some(6432)),
            ("[fixed]\nhosts = ['a', '[::1]:6432']", "[::1]:6432,a:5432", None),
            ("[fixed]\nhosts = ['[::1]:6432']", "::1", Some(6432)),
        ];
        for (source, address, port) in cases {
            assert_eq!(self::address(source), (address.to_owned(), port), "{source}");
        }
    }

    #[test]
    fn the_database_defaults_to_the_user_and_the_name_to_the_scope() {
        let text = "[cluster]\nscope = 's'\n[fixed]\nhosts = ['a']\n[postgres]\nuser = 'app'";
        let database = Database::new(&Config::from_toml(text).expect("a configuration"));
        assert_eq!((database.namespace.as_str(), database.pool.as_str()), ("app", "s"));
        let text = format!("{text}\n[pool]\nname = 'orders'");
        let database = Database::new(&Config::from_toml(&text).expect("a configuration"));
        assert_eq!(database.pool, "orders");
    }
}
