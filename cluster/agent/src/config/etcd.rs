//! `etcd3` and `etcd`: the store that holds the cluster's keys. Both are taken as etcd's API v3.

use std::fmt;
use std::path::PathBuf;

use super::Secret;
use super::address::HostPort;
use super::diagnostics::{Code, Diagnostic, Severity};
use super::section::{At, Found, Reading, Section};

/// The etcd cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct Etcd {
    /// Its members, in the order to try them. Never empty.
    pub endpoints: Vec<EtcdEndpoint>,
    /// Whether only [`Etcd::endpoints`] may be used: they are proxies, so the addresses that etcd's members
    /// publish of themselves are not to be asked for.
    pub fixed: bool,
    /// The user, where etcd asks for one.
    pub username: Option<String>,
    /// The user's password.
    pub password: Option<Secret>,
    /// Who signs etcd's certificate. Where there is none: the system's authorities.
    pub ca: Option<PathBuf>,
    /// The certificate to present.
    pub certificate: Option<PathBuf>,
    /// Its key; in the certificate's file where there is none.
    pub key: Option<PathBuf>,
}

/// One member of the etcd cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EtcdEndpoint {
    /// Whether it is called over TLS.
    pub tls: bool,
    /// Where.
    pub address: HostPort,
}

impl fmt::Display for EtcdEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.address)
    }
}

const PORT: u16 = 2379;
const HELP: &str = "for example `hosts: [etcd1:2379, etcd2:2379, etcd3:2379]`";

pub(super) fn read(mut section: Section<'_>, reading: &mut Reading) -> Option<Etcd> {
    let protocol = section.find("protocol", reading);
    let tls = protocol
        .and_then(|found| found.word(&[("http", false), ("https", true)], reading))
        .unwrap_or(false);
    let mut user = section.text("username", reading);
    let mut password = section.secret("password", reading);
    let ca = section.text("cacert", reading).map(PathBuf::from);
    let certificate = section.text("cert", reading).map(PathBuf::from);
    let key = section.text("key", reading).map(PathBuf::from);
    let proxies = section.flag("use_proxies", reading).unwrap_or(false);
    let port = section
        .number("port", 1..=65535, reading)
        .and_then(|port| u16::try_from(port).ok())
        .unwrap_or(PORT);

    let srv = section.find_renamed("srv", &["discovery_srv", "srv_domain"], reading);
    let suffix = section.find("srv_suffix", reading);
    let errors = reading.diagnostics.count(Severity::Error);

    // Patroni takes the first of these, in this order.
    let mut endpoints = Vec::new();
    let mut fixed = proxies;
    let mut taken: Option<&str> = None;
    for name in ["proxy", "url", "hosts", "host"] {
        let Some(found) = section.find(name, reading) else { continue };
        if let Some(taken) = taken {
            let message = format!("`{taken}` is given too");
            reading.warning(Code::NoEffect, &found.at, message, format!("`{taken}` counts"));
            continue;
        }
        taken = Some(name);
        match name {
            "proxy" | "url" => {
                if let Some(url) = url(&found, reading) {
                    endpoints.push(url.endpoint);
                    user = url.username.or(user);
                    password = url.password.or(password);
                }
                fixed |= name == "proxy";
            }
            "hosts" => {
                for text in found.texts(true, reading).unwrap_or_default() {
                    endpoints.extend(endpoint(&text, tls, port, &found.at, reading));
                }
            }
            _ => {
                if let Some(text) = found.text(reading) {
                    endpoints.extend(endpoint(&text, tls, port, &found.at, reading));
                }
            }
        }
    }
    if let Some(found) = &srv {
        let message = "the agent does not look etcd up in DNS";
        reading.push(
            Diagnostic::new(
                Severity::Warning,
                Code::EtcdSrv,
                &found.at.origin,
                &found.at.path,
                message,
            )
            .done(if endpoints.is_empty() { "nothing" } else { "the other endpoints are used" })
            .help("list the endpoints under `hosts`"),
        );
    }
    if let Some(found) = &suffix {
        let message = "a suffix for a look-up in DNS, which the agent does not do";
        reading.warning(Code::EtcdSrv, &found.at, message, "ignored");
    }
    // Where an endpoint is wrong, that was said already.
    if endpoints.is_empty() && reading.diagnostics.count(Severity::Error) == errors {
        let message = match srv {
            Some(_) => "no endpoint of etcd is given but for the look-up in DNS",
            None => "no endpoint of etcd is given",
        };
        reading.error(Code::Missing, section.at(), message, HELP);
    }
    if endpoints.iter().any(|endpoint| endpoint.tls) && ca.is_none() {
        let message = "TLS without `cacert`: Patroni would not verify etcd's certificate";
        let done = "it is verified by the system's authorities";
        reading.notice(Code::EtcdVerified, section.at(), message, done);
    }
    if certificate.is_none() && key.is_some() {
        let message = "a key without its certificate";
        reading.warning(Code::NoEffect, &section.place("key"), message, "ignored");
    }
    section.finish(reading);
    (!endpoints.is_empty()).then_some(Etcd {
        endpoints,
        fixed,
        username: user,
        password,
        ca,
        certificate,
        key,
    })
}

/// `host:port`, with or without a scheme.
fn endpoint(
    text: &str,
    tls: bool,
    port: u16,
    at: &At,
    reading: &mut Reading,
) -> Option<EtcdEndpoint> {
    let (tls, rest) = match text.split_once("://") {
        Some(("http", rest)) => (false, rest),
        Some(("https", rest)) => (true, rest),
        Some(_) => {
            let help = "`http://` or `https://`, or none with `protocol`";
            reading.error(Code::InvalidAddress, at, "an unknown scheme", help);
            return None;
        }
        None => (tls, text),
    };
    let node = super::yaml::Node::text(rest.trim_end_matches('/'), &at.origin);
    let found = Found { node: &node, at: at.clone() };
    let address = found.host_port(Some(port), reading)?;
    Some(EtcdEndpoint { tls, address })
}

struct Url {
    endpoint: EtcdEndpoint,
    username: Option<String>,
    password: Option<Secret>,
}

/// `http(s)://(user:password@)host:port`.
fn url(found: &Found<'_>, reading: &mut Reading) -> Option<Url> {
    let text = found.text_or_error(HELP, reading)?;
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", &text));
    let tls = match scheme {
        "http" => false,
        "https" => true,
        _ => {
            let help = "`http://host:2379` or `https://host:2379`";
            reading.error(Code::InvalidAddress, &found.at, "an unknown scheme", help);
            return None;
        }
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    let (userinfo, host) = match authority.rsplit_once('@') {
        Some((userinfo, host)) => (Some(userinfo), host),
        None => (None, authority),
    };
    let endpoint = endpoint(host, tls, PORT, &found.at, reading)?;
    let (username, password) = match userinfo.map(|u| u.split_once(':').unwrap_or((u, ""))) {
        Some((user, password)) => (
            Some(decode(user)).filter(|u| !u.is_empty()),
            Some(decode(password)).filter(|p| !p.is_empty()).map(Secret::from),
        ),
        None => (None, None),
    };
    Some(Url { endpoint, username, password })
}

/// `%40` and the like.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = (*first == b'%')
            .then(|| tail.get(..2))
            .flatten()
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match hex {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::diagnostics::{Origin, Severity};
    use crate::config::yaml::{Map, Node};

    fn section(pairs: &[(&str, &str)]) -> (Option<Etcd>, Reading) {
        let map = Map {
            entries: pairs
                .iter()
                .map(|(key, value)| crate::config::yaml::Entry {
                    key: (*key).to_owned(),
                    origin: Origin::Default,
                    node: Node::text(*value, &Origin::Default),
                })
                .collect(),
        };
        let node = Node::map(map, &Origin::Default);
        let mut reading = Reading::default();
        let at = At { path: "etcd3".to_owned(), origin: Origin::Default };
        let section = Section::new(Some(&node), at, &mut reading);
        (read(section, &mut reading), reading)
    }

    #[test]
    fn endpoints_come_in_many_forms() {
        for (pairs, expected) in [
            (&[("hosts", "etcd:2379")][..], &["http://etcd:2379"][..]),
            (&[("hosts", "a, b:1,'c:2'")], &["http://a:2379", "http://b:1", "http://c:2"]),
            (&[("host", "a"), ("protocol", "https")], &["https://a:2379"]),
            (&[("host", "a"), ("port", "4001")], &["http://a:4001"]),
            (&[("hosts", "https://a:2379,b")], &["https://a:2379", "http://b:2379"]),
            (&[("url", "https://[::1]:2379/")], &["https://[::1]:2379"]),
            (&[("proxy", "http://p:80"), ("hosts", "a")], &["http://p:80"]),
        ] {
            let (etcd, reading) = section(pairs);
            let etcd = etcd.unwrap_or_else(|| panic!("{pairs:?}: {}", reading.diagnostics));
            let endpoints: Vec<_> = etcd.endpoints.iter().map(ToString::to_string).collect();
            assert_eq!(endpoints, expected, "{pairs:?}");
        }
        let (etcd, _) = section(&[("url", "http://us%40er:p%3Aw@etcd:2379")]);
        let etcd = etcd.unwrap();
        assert_eq!(etcd.username.as_deref(), Some("us@er"));
        assert_eq!(etcd.password, Some(Secret::from("p:w")));
        assert!(section(&[("proxy", "http://p:80")]).0.unwrap().fixed);
    }

    #[test]
    fn no_endpoint_is_an_error_that_says_what_to_write() {
        for pairs in [
            &[][..],
            &[("srv", "example.org")],
            &[("hosts", "")],
            &[("url", "ftp://x")],
            &[("host", "a:b:c")],
        ] {
            let (etcd, reading) = section(pairs);
            assert_eq!(etcd, None, "{pairs:?}");
            let found = reading.diagnostics.iter().find(|d| d.severity == Severity::Error);
            assert!(found.is_some_and(|d| d.help.is_some()), "{pairs:?}");
        }
    }
}
