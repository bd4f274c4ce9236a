//! Lines of `pg_hba.conf` and `pg_ident.conf`.
//!
//! They go into the files as they are written, in their order. One line that PostgreSQL does not understand keeps
//! the server from starting, so they are looked at here, where the line's number in the configuration is known.

use std::fmt;
use std::net::IpAddr;
use std::ops::Deref;

use super::diagnostics::{Code, Diagnostic, Severity};
use super::section::{At, Found, Reading};
use super::yaml::Data;

/// Lines of a file. `Debug` tells only how many: an LDAP line has a password in it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Lines(pub Vec<String>);

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} lines", self.0.len())
    }
}

impl Deref for Lines {
    type Target = [String];

    fn deref(&self) -> &[String] {
        &self.0
    }
}

/// The lines that `found` holds: a list, or one text with several lines.
pub(super) fn lines(found: &Found<'_>, reading: &mut Reading) -> Lines {
    let lines = texts(found, reading)
        .into_iter()
        .map(|(at, line)| {
            let (line, fault) = check(&line);
            if let Some(fault) = fault {
                reading.push(fault.diagnostic(&at));
            }
            line
        })
        .collect();
    Lines(lines)
}

/// Lines of `pg_ident.conf`: nothing to check.
pub(super) fn ident_lines(found: &Found<'_>, reading: &mut Reading) -> Lines {
    Lines(texts(found, reading).into_iter().map(|(_, line)| line).collect())
}

fn texts(found: &Found<'_>, reading: &mut Reading) -> Vec<(At, String)> {
    if let Data::Scalar(scalar) = &found.node.data {
        let message = "a list of lines is wanted, and this is one text";
        reading.notice(Code::WrongType, &found.at, message, "each of its lines is one line");
        return scalar.as_str().lines().map(|line| (found.at.clone(), line.to_owned())).collect();
    }
    found
        .items()
        .into_iter()
        .filter(|item| !item.node.is_null())
        .filter_map(|item| Some((item.at.clone(), item.text(reading)?)))
        // A folded text may hold several.
        .flat_map(|(at, text)| {
            text.lines().map(|line| (at.clone(), line.to_owned())).collect::<Vec<_>>()
        })
        .collect()
}

#[derive(Debug, PartialEq)]
enum Fault {
    /// A host name with a mask; the mask was taken away.
    HostMask(String),
    Type(String),
    Short,
    Mask(String),
    Method(String),
}

impl Fault {
    fn diagnostic(self, at: &At) -> Diagnostic {
        let new = |code, message: String| {
            Diagnostic::new(Severity::Warning, code, &at.origin, &at.path, message)
        };
        let kept = "kept as it is; PostgreSQL will not start with it";
        match self {
            Fault::HostMask(address) => {
                let message = format!(
                    "`{address}`: PostgreSQL takes a mask with an address, not with a host name, and \
                     would not start"
                );
                let name = address.split('/').next().unwrap_or_default().to_owned();
                new(Code::HbaHostMask, message)
                    .done(format!("written as `{name}`"))
                    .help("take the mask out")
            }
            Fault::Type(word) => new(Code::HbaLine, format!("a line does not begin with `{word}`"))
                .done(kept)
                .help("local, host, hostssl, hostnossl, hostgssenc or hostnogssenc"),
            Fault::Short => new(Code::HbaLine, "the line has too few words".to_owned())
                .done(kept)
                .help("TYPE DATABASE USER ADDRESS METHOD, without ADDRESS for `local`"),
            Fault::Mask(word) => {
                new(Code::HbaLine, format!("an address without a mask, and then `{word}`"))
                    .done(kept)
                    .help("one address is `10.0.0.1/32`")
            }
            Fault::Method(word) => {
                new(Code::HbaLine, format!("`{word}` is no method of authentication"))
                    .done(kept)
                    .help("for example scram-sha-256, md5, peer, cert, trust, reject")
            }
        }
    }
}

const METHODS: [&str; 14] = [
    "trust",
    "reject",
    "scram-sha-256",
    "md5",
    "password",
    "gss",
    "sspi",
    "ident",
    "peer",
    "pam",
    "bsd",
    "ldap",
    "radius",
    "cert",
];

/// Words with their places in `line`, quotes and what follows a `#` as PostgreSQL has it.
fn words(line: &str) -> Vec<(usize, &str)> {
    let mut words = Vec::new();
    let mut start = None;
    let mut quoted = false;
    // A blank after a comma continues a list.
    let mut comma = false;
    for (place, c) in line.char_indices() {
        if c == '#' && !quoted {
            if let Some(start) = start.take() {
                words.push((start, line[start..place].trim_end()));
            }
            return words;
        }
        if c == '"' {
            quoted = !quoted;
        }
        if c.is_whitespace() && !quoted {
            if !comma && let Some(start) = start.take() {
                words.push((start, &line[start..place]));
            }
            continue;
        }
        comma = c == ',' && !quoted;
        start.get_or_insert(place);
    }
    if let Some(start) = start {
        words.push((start, &line[start..]));
    }
    words
}

/// The line as it is to be written, and what is wrong with it.
fn check(line: &str) -> (String, Option<Fault>) {
    let words = words(line);
    let word = |index: usize| words.get(index).map(|(_, word)| word.trim_matches('"'));
    let plain = |fault| (line.to_owned(), fault);
    let Some(kind) = word(0) else { return plain(None) };
    let method = match kind {
        "include" | "include_if_exists" | "include_dir" => return plain(None),
        "local" => 3,
        "host" | "hostssl" | "hostnossl" | "hostgssenc" | "hostnogssenc" => {
            let Some((place, address)) = words.get(3).copied() else {
                return plain(Some(Fault::Short));
            };
            let bare = address.trim_matches('"');
            let (name, mask) = match bare.split_once('/') {
                Some((name, mask)) => (name, Some(mask)),
                None => (bare, None),
            };
            let numeric = name.parse::<IpAddr>().is_ok();
            let looks_numeric =
                name.contains(':') || name.bytes().all(|b| b.is_ascii_digit() || b == b'.');
            match (numeric || looks_numeric, mask) {
                (false, Some(_)) => {
                    let repaired = line[..place].to_owned() + name + &line[place + address.len()..];
                    return (repaired, Some(Fault::HostMask(bare.to_owned())));
                }
                (true, None) => match word(4) {
                    Some(mask) if mask.parse::<IpAddr>().is_ok() => 5,
                    Some(other) => return plain(Some(Fault::Mask(other.to_owned()))),
                    None => return plain(Some(Fault::Short)),
                },
                _ => 4,
            }
        }
        other => return plain(Some(Fault::Type(other.to_owned()))),
    };
    match word(method) {
        None => plain(Some(Fault::Short)),
        Some(name) if METHODS.contains(&name) || name == "oauth" => plain(None),
        Some(name) => plain(Some(Fault::Method(name.to_owned()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_lines_stay_as_they_are() {
        for line in [
            "host replication replicator 127.0.0.1/32 md5",
            "host all all 0.0.0.0/0 md5",
            "host all all ::1/128 scram-sha-256",
            "host all all node1 md5",
            "host all all .example.org trust",
            "host all all samenet md5",
            "host all all all reject",
            "host all all 10.0.0.0 255.0.0.0 md5",
            "local all all peer map=users",
            "local\tall\t\"some user\"\tpeer",
            "local a, b all peer",
            "hostssl all all 0.0.0.0/0 cert clientcert=verify-full # all of them",
            "# a comment",
            "",
            "include_if_exists extra.conf",
            "host all all 0.0.0.0/0 oauth issuer=x",
        ] {
            assert_eq!(check(line), (line.to_owned(), None), "{line}");
        }
    }

    #[test]
    fn a_mask_behind_a_host_name_is_taken_away() {
        let address = "patroni-master/32";
        let (line, fault) = check("host  replication replicator patroni-master/32  md5");
        assert_eq!(line, "host  replication replicator patroni-master  md5");
        assert_eq!(fault, Some(Fault::HostMask(address.to_owned())));
    }

    #[test]
    fn lines_that_would_stop_the_server_are_named() {
        let word = ToOwned::to_owned;
        for (line, fault) in [
            ("hots all all 0.0.0.0/0 md5", Fault::Type(word("hots"))),
            ("host all all", Fault::Short),
            ("host all all 0.0.0.0/0", Fault::Short),
            ("local all all", Fault::Short),
            ("host all all 10.0.0.1 md5", Fault::Mask(word("md5"))),
            ("host all all 0.0.0.0/0 sha256", Fault::Method(word("sha256"))),
        ] {
            assert_eq!(check(line), (line.to_owned(), Some(fault)), "{line}");
        }
    }
}
