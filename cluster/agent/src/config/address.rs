//! Addresses: where to listen, and where others connect to.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::diagnostics::Code;
use super::section::{Found, Reading};

/// A host and a port that others connect to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// A name or an address; IPv6 without its brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

impl fmt::Display for HostPort {
    /// As in a URL: IPv6 in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Addresses to listen on, all with the same port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Listen {
    /// Names or addresses; `*` is every one, `0.0.0.0` every IPv4 one, `::` every IPv6 one.
    pub hosts: Vec<String>,
    /// The TCP port.
    pub port: u16,
}

impl Listen {
    /// As PostgreSQL's `listen_addresses`.
    #[must_use]
    pub fn addresses(&self) -> String {
        self.hosts.join(",")
    }

    /// The host by which the machine itself reaches what listens here: `localhost` where that is among the
    /// addresses, otherwise the first of them.
    #[must_use]
    pub fn local_host(&self) -> &str {
        let anywhere = |host: &String| {
            matches!(host.as_str(), "*" | "0.0.0.0" | "127.0.0.1")
                || host.eq_ignore_ascii_case("localhost")
        };
        if self.hosts.iter().any(anywhere) {
            "localhost"
        } else {
            self.hosts.first().map_or("localhost", |host| if host == "::" { "::1" } else { host })
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<String> = self
            .hosts
            .iter()
            .map(|host| if host.contains(':') { format!("[{host}]") } else { host.clone() })
            .collect();
        write!(f, "{}:{}", hosts.join(","), self.port)
    }
}

/// Whether nobody but this machine can reach `host`.
fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether `host` stands for all of the machine's addresses.
pub(super) fn is_wildcard(host: &str) -> bool {
    host == "*" || host.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified())
}

/// Why a text is no address.
#[derive(Debug, PartialEq)]
enum Fault {
    Port(String),
    Host(String),
    Empty,
    NoPort,
    WildcardAmongOthers,
}

impl Fault {
    fn message(&self) -> String {
        match self {
            Fault::Port(port) => format!("`{port}` is not a port between 1 and 65535"),
            Fault::Host(host) => format!("`{host}` is neither a name nor an address"),
            Fault::Empty => "there is no host in it".to_owned(),
            Fault::NoPort => "there is no port in it".to_owned(),
            Fault::WildcardAmongOthers => {
                "`*` stands for all addresses, so it stands alone".to_owned()
            }
        }
    }
}

fn port(text: &str) -> Result<u16, Fault> {
    text.trim()
        .parse::<u16>()
        .ok()
        .filter(|port| *port > 0)
        .ok_or_else(|| Fault::Port(text.trim().to_owned()))
}

fn host(text: &str) -> Result<String, Fault> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    if bare.is_empty() {
        return Err(Fault::Empty);
    }
    if bare.contains(':') {
        // A zone (`fe80::1%eth0`) is no part of the address proper.
        let address = bare.split('%').next().unwrap_or(bare);
        return match address.parse::<Ipv6Addr>() {
            Ok(_) => Ok(bare.to_owned()),
            Err(_) => Err(Fault::Host(text.to_owned())),
        };
    }
    let numeric = bare.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if numeric && bare.parse::<Ipv4Addr>().is_err() {
        return Err(Fault::Host(text.to_owned()));
    }
    let fine = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
    if bare == "*" || bare.chars().all(fine) {
        Ok(bare.to_owned())
    } else {
        Err(Fault::Host(text.to_owned()))
    }
}

/// Splits off the port: what follows the last colon, where that colon is not inside of an address.
fn split(text: &str) -> Result<(&str, Option<u16>), Fault> {
    let text = text.trim();
    let Some((hosts, tail)) = text.rsplit_once(':') else {
        return Ok((text, None));
    };
    // `[::1]` and `::1` without a port.
    if tail.contains(']') {
        return Ok((text, None));
    }
    let last = hosts.rsplit(',').next().unwrap_or(hosts).trim();
    let bare = last.contains(':') && !last.ends_with(']');
    if bare && host(last).is_err() {
        return Ok((text, None));
    }
    Ok((hosts, Some(port(tail)?)))
}

/// `host:port`, `[::1]:port`.
fn host_port(text: &str, default_port: Option<u16>) -> Result<HostPort, Fault> {
    let (hosts, port) = split(text)?;
    let port = port.or(default_port).ok_or(Fault::NoPort)?;
    Ok(HostPort { host: host(hosts)?, port })
}

/// `host,host:port`.
fn listen(text: &str, default_port: u16) -> Result<(Listen, bool), Fault> {
    let (hosts, port) = split(text)?;
    let hosts = hosts
        .split(',')
        .filter(|part| !part.trim().is_empty())
        .map(host)
        .collect::<Result<Vec<_>, _>>()?;
    if hosts.is_empty() {
        return Err(Fault::Empty);
    }
    if hosts.len() > 1 && hosts.iter().any(|host| host == "*") {
        return Err(Fault::WildcardAmongOthers);
    }
    Ok((Listen { hosts, port: port.unwrap_or(default_port) }, port.is_some()))
}

impl Found<'_> {
    /// An address to connect to.
    pub(super) fn host_port(
        &self,
        default_port: Option<u16>,
        reading: &mut Reading,
    ) -> Option<HostPort> {
        let help = "write `host:port`, an IPv6 address in brackets: `[2001:db8::1]:5432`";
        let text = self.text_or_error(help, reading)?;
        match host_port(&text, default_port) {
            Ok(address) => Some(address),
            Err(fault) => {
                reading.error(Code::InvalidAddress, &self.at, fault.message(), help);
                None
            }
        }
    }

    /// An address that the other members use: one that only this machine can reach is reported.
    pub(super) fn connect_address(
        &self,
        default_port: u16,
        reading: &mut Reading,
    ) -> Option<HostPort> {
        let address = self.host_port(Some(default_port), reading)?;
        warn_if_local(&address, self, reading);
        Some(address)
    }

    /// Addresses to listen on.
    pub(super) fn listen(&self, default_port: u16, reading: &mut Reading) -> Option<Listen> {
        let help = "write `host:port`; `0.0.0.0:8008`, `*:8008` and `[::]:8008` are every address";
        let text = self.text_or_error(help, reading)?;
        match listen(&text, default_port) {
            Ok((listen, with_port)) => {
                if !with_port {
                    let done = format!("{default_port} is used");
                    reading.notice(Code::InvalidAddress, &self.at, "there is no port in it", done);
                }
                Some(listen)
            }
            Err(fault) => {
                reading.error(Code::InvalidAddress, &self.at, fault.message(), help);
                None
            }
        }
    }
}

fn warn_if_local(address: &HostPort, found: &Found<'_>, reading: &mut Reading) {
    let message = if is_wildcard(&address.host) {
        "an address to listen on, not one to connect to: no other member can reach it"
    } else if is_loopback(&address.host) {
        "only this machine reaches this address: fine for a trial on one machine, and for nothing else"
    } else {
        return;
    };
    reading.warning(Code::LocalAddress, &found.at, message, "published as it is");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_listen_is_read() {
        for (text, hosts, port, local) in [
            ("0.0.0.0:8008", &["0.0.0.0"][..], 8008, "localhost"),
            ("*:8008", &["*"], 8008, "localhost"),
            ("[::]:8008", &["::"], 8008, "::1"),
            (":::8008", &["::"], 8008, "::1"),
            ("node1", &["node1"], 5432, "node1"),
            ("node1:6000", &["node1"], 6000, "node1"),
            ("127.0.0.1,127.0.0.2:5433", &["127.0.0.1", "127.0.0.2"], 5433, "localhost"),
            ("10.0.0.1, 10.0.0.2", &["10.0.0.1", "10.0.0.2"], 5432, "10.0.0.1"),
            ("::1", &["::1"], 5432, "::1"),
            ("[::1]", &["::1"], 5432, "::1"),
            ("fe80::1:5433", &["fe80::1"], 5433, "fe80::1"),
            ("a.b,[2001:db8::1]:5433", &["a.b", "2001:db8::1"], 5433, "a.b"),
            ("10.0.0.1,::1:5433", &["10.0.0.1", "::1"], 5433, "10.0.0.1"),
        ] {
            let (listen, _) = listen(text, 5432).unwrap_or_else(|f| panic!("{text}: {f:?}"));
            assert_eq!(listen.hosts, hosts, "{text}");
            assert_eq!((listen.port, listen.local_host()), (port, local), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_named() {
        for (text, fault) in [
            ("", Fault::Empty),
            (":5432", Fault::Empty),
            ("host:", Fault::Port(String::new())),
            ("host:0", Fault::Port("0".to_owned())),
            ("host:70000", Fault::Port("70000".to_owned())),
            ("host:http", Fault::Port("http".to_owned())),
            ("1.2.3:5432", Fault::Host("1.2.3".to_owned())),
            ("a b:5432", Fault::Host("a b".to_owned())),
            ("*,10.0.0.1:5432", Fault::WildcardAmongOthers),
        ] {
            assert_eq!(listen(text, 5432).err(), Some(fault), "{text}");
        }
        assert_eq!(host_port("node1", None), Err(Fault::NoPort));
    }

    #[test]
    fn an_address_prints_as_in_a_url() {
        let address = host_port("[2001:db8::1]:5432", None).unwrap();
        assert_eq!(address.to_string(), "[2001:db8::1]:5432");
        assert_eq!(listen("a,::1:5433", 1).unwrap().0.to_string(), "a,[::1]:5433");
    }
}
