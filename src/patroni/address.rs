//! Where a member's PostgreSQL listens.

use std::fmt;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use serde::{Deserialize, Serialize};

use super::values::ValueError;

/// What would end a host in a URL; a directory of sockets has slashes.
const IN_HOSTS: &AsciiSet = &CONTROLS.add(b'/').add(b'%').add(b'?').add(b'@').add(b'#');

/// Host and port of a PostgreSQL server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServerAddress {
    /// A name, an address, or a directory of Unix sockets (leading slash).
    pub host: String,
    /// The TCP port, or the number in the socket's name.
    pub port: u16,
}

impl ServerAddress {
    /// The address in a `postgres://[user[:password]@]host[:port][/database][?…]` URL.
    ///
    /// # Errors
    /// [`ValueError::BadConnUrl`] where the scheme, host or port is missing or wrong.
    pub fn from_conn_url(url: &str) -> Result<Self, ValueError> {
        let fail = |why| ValueError::BadConnUrl { url: without_password(url), why };
        let rest = url
            .strip_prefix("postgres://")
            .or_else(|| url.strip_prefix("postgresql://"))
            .ok_or_else(|| fail("it does not start with postgres://"))?;
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        let host_port = authority.rsplit_once('@').map_or(authority, |(_, after)| after);
        Self::from_host_port(host_port).map_err(fail)
    }

    /// The URL that names it, as member keys hold it.
    #[must_use]
    pub fn to_conn_url(&self) -> String {
        let host = utf8_percent_encode(&self.host, IN_HOSTS);
        let port = self.port;
        if self.host.contains(':') {
            format!("postgres://[{host}]:{port}/postgres")
        } else {
            format!("postgres://{host}:{port}/postgres")
        }
    }

    /// The address in `host[:port]`; an IPv6 address stands in brackets. The port defaults to 5432.
    pub(crate) fn from_host_port(text: &str) -> Result<Self, &'static str> {
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, after) = rest.split_once(']').ok_or("a bracket is not closed")?;
            match after.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if after.is_empty() => (host, None),
                None => return Err("text follows the bracket"),
            }
        } else {
            match text.split_once(':') {
                Some((_, port)) if port.contains(':') => {
                    return Err(
                        "an IPv6 address must stand in brackets, or there are several hosts",
                    );
                }
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            }
        };
        let host = percent_decode_str(host).decode_utf8().map_err(|_| "the host is not UTF-8")?;
        if host.is_empty() {
            return Err("the host is missing");
        }
        if host.contains(|c: char| c == ',' || c.is_control() || c.is_whitespace()) {
            return Err("the host holds a comma, a space or a control character");
        }
        let port = match port {
            None => 5432,
            Some(port) => match port.parse::<u16>() {
                Ok(port) if port != 0 => port,
                _ => return Err("the port is not a number from 1 to 65535"),
            },
        };
        Ok(Self { host: host.into_owned(), port })
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// What may be shown of a URL: nothing before the last `@`, and nothing after a `?`.
fn without_password(url: &str) -> String {
    let url = url.split('?').next().unwrap_or_default();
    let shown = match (url.rsplit_once('@'), url.split_once("://")) {
        (Some((_, after)), Some((scheme, _))) if !scheme.contains('@') => {
            format!("{scheme}://…@{after}")
        }
        (Some((_, after)), _) => format!("…@{after}"),
        (None, _) => url.to_owned(),
    };
    shown.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let good = [
            ("postgres://h/db", "h:5432"),
            ("postgres://u:p%40x@h:6000/db?application_name=x", "h:6000"),
            ("postgresql://[::1]:5433/db", "[::1]:5433"),
            ("postgres://%2Ftmp%2Fpg:5433/db", "/tmp/pg:5433"),
        ];
        for (url, address) in good {
            let read = ServerAddress::from_conn_url(url).expect(url);
            assert_eq!(read.to_string(), address);
            assert_eq!(ServerAddress::from_conn_url(&read.to_conn_url()), Ok(read));
        }
        let bad = [
            "",
            "http://h/",
            "postgres://",
            "postgres://:5432/",
            "postgres://h:0/",
            "postgres://h:99999/",
            "postgres://a,b/",
            "postgres://::1/",
            "postgres://[::1/",
            "postgres://%ff/",
        ];
        for url in bad {
            assert!(ServerAddress::from_conn_url(url).is_err(), "{url} must be refused");
        }
        let long = format!("postgres://u:{}secret@:1/", "x".repeat(300));
        for url in ["postgres://u:secret@:1/", "u:secret@h:1", "x://?password=secret", &long] {
            let error = ServerAddress::from_conn_url(url).expect_err("no good address");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
