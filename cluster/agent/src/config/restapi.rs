//! `restapi` and `ctl`: the HTTP API, and how members and the operator's tool call it.

use std::net::IpAddr;
use std::path::PathBuf;

use super::Secret;
use super::address::{HostPort, Listen, is_wildcard};
use super::diagnostics::{Code, Diagnostic, Severity};
use super::section::{Found, Reading, Section};

/// The HTTP API of this member.
#[derive(Debug, Clone, PartialEq)]
pub struct RestApi {
    /// Where it listens.
    pub listen: Listen,
    /// Where others reach it. Default: the address it listens on.
    pub connect_address: HostPort,
    /// What unsafe requests (PUT, POST, PATCH, DELETE) have to present.
    pub authentication: Option<BasicAuth>,
    /// Its certificate; plain HTTP where there is none.
    pub tls: Option<RestTls>,
    /// Who may make unsafe requests. Empty, and not [`RestApi::allow_members`]: everyone.
    pub allowlist: Vec<Allowed>,
    /// Whether the other members may make unsafe requests, from the hosts of their `api_url`.
    pub allow_members: bool,
    /// Headers added to each answer.
    pub http_headers: Vec<(String, String)>,
    /// Headers added to each answer over TLS, besides the above.
    pub https_headers: Vec<(String, String)>,
    /// How many connections may wait to be accepted. Default: 5, as for Patroni.
    pub request_queue_size: u32,
    /// What the `Server` header tells.
    pub server_tokens: ServerTokens,
}

impl RestApi {
    /// `http` or `https`: how `connect_address` is called.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// The address as the other members find it in this one's key, without its `/patroni`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme(), self.connect_address)
    }
}

/// A user name and a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BasicAuth {
    /// The user.
    pub username: String,
    /// The password.
    pub password: Secret,
}

/// Certificates of the HTTP API, all PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestTls {
    /// The certificate, with its chain; the key too where [`RestTls::key`] is missing.
    pub certificate: PathBuf,
    /// The private key.
    pub key: Option<PathBuf>,
    /// What decrypts the key.
    pub key_password: Option<Secret>,
    /// Who signs the certificates of clients.
    pub client_ca: Option<PathBuf>,
    /// Whether clients have to present one.
    pub verify_client: VerifyClient,
}

/// Whether clients have to present a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VerifyClient {
    /// No.
    None,
    /// For unsafe requests (PUT, POST, PATCH, DELETE).
    Optional,
    /// For every request.
    Required,
}

/// What the `Server` header tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServerTokens {
    /// Product and version of everything. Patroni's default.
    Original,
    /// Product and version.
    Minimal,
    /// The product alone.
    ProductOnly,
}

/// Who may make unsafe requests.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Allowed {
    /// A network; a single address has all its bits.
    Network {
        /// Its address.
        address: IpAddr,
        /// How many of the leading bits count.
        prefix: u8,
    },
    /// A host, by the addresses its name has when the request comes.
    Host(String),
}

/// How the members' APIs are called, by `leaderpoolctl` and by the members themselves.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ctl {
    /// What to present. Where there is none: the one of `restapi`.
    pub authentication: Option<BasicAuth>,
    /// Take any certificate.
    pub insecure: bool,
    /// Who signs the members' certificates. Where there is none: `restapi.cafile`.
    pub ca: Option<PathBuf>,
    /// The certificate to present.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// What decrypts the key.
    pub key_password: Option<Secret>,
}

const LISTEN_HELP: &str = "for example `listen: 0.0.0.0:8008`";

pub(super) fn read(mut section: Section<'_>, reading: &mut Reading) -> Option<RestApi> {
    let listen = match section.find("listen", reading) {
        Some(found) => found.listen(8008, reading),
        None => {
            let at = section.place("listen");
            reading.error(Code::Missing, &at, "this must be given", LISTEN_HELP);
            None
        }
    };
    let connect_address = match section.find("connect_address", reading) {
        Some(found) => found.connect_address(listen.as_ref().map_or(8008, |l| l.port), reading),
        None => listen.as_ref().and_then(|listen| listened(listen, &section, reading)),
    };
    let authentication = authentication(&mut section, reading);
    let tls = tls(&mut section, reading);
    let allowlist = section
        .texts("allowlist", true, reading)
        .unwrap_or_default()
        .into_iter()
        .map(|text| allowed(&text))
        .collect();
    if let Some(found) = section.find("ciphers", reading) {
        let message = "these are cipher suites by OpenSSL's names";
        let done = "TLS 1.2 and 1.3 with the suites of rustls, none of which is weak";
        reading.warning(Code::NoEffect, &found.at, message, done);
    }
    if let Some(found) = section.find("thread_pool_size", reading) {
        thread_pool(&found, reading);
    }
    let tokens = [
        ("original", ServerTokens::Original),
        ("minimal", ServerTokens::Minimal),
        ("productonly", ServerTokens::ProductOnly),
    ];
    let rest = RestApi {
        authentication,
        allowlist,
        allow_members: section.flag("allowlist_include_members", reading).unwrap_or(false),
        http_headers: headers("http_extra_headers", &mut section, reading),
        https_headers: headers("https_extra_headers", &mut section, reading),
        request_queue_size: section
            .number("request_queue_size", 0..=4096, reading)
            .and_then(|n| u32::try_from(n).ok())
            .unwrap_or(5),
        server_tokens: section
            .find("server_tokens", reading)
            .and_then(|found| found.word(&tokens, reading))
            .unwrap_or(ServerTokens::Original),
        tls,
        // Filled in below; without them there is a finding, and no configuration.
        listen: listen.clone().unwrap_or(Listen { hosts: Vec::new(), port: 0 }),
        connect_address: connect_address
            .clone()
            .unwrap_or(HostPort { host: String::new(), port: 0 }),
    };
    section.finish(reading);
    listen.and(connect_address).map(|_| rest)
}

/// A setting for Patroni's threads.
pub(super) fn thread_pool(found: &Found<'_>, reading: &mut Reading) {
    let message = "the agent has no pool of threads to size";
    reading.notice(Code::NoEffect, &found.at, message, "requests run as tasks of one runtime");
}

/// The address it listens on, as the one to connect to.
fn listened(listen: &Listen, section: &Section<'_>, reading: &mut Reading) -> Option<HostPort> {
    let host = listen.hosts.first()?;
    let address = HostPort { host: host.clone(), port: listen.port };
    let at = section.place("connect_address");
    if is_wildcard(host) {
        let message = "not given, and the address it listens on is no address to connect to";
        reading.push(
            Diagnostic::new(Severity::Warning, Code::LocalAddress, &at.origin, at.path, message)
                .done(format!("`{address}` is published"))
                .help("give the address by which the other members reach this one"),
        );
    }
    Some(address)
}

fn authentication(section: &mut Section<'_>, reading: &mut Reading) -> Option<BasicAuth> {
    let mut inner = section.section("authentication", reading);
    let username = inner.text("username", reading);
    let password = inner.secret("password", reading);
    let written = inner.is_written();
    inner.finish(reading);
    match (username, password) {
        (Some(username), Some(password)) => Some(BasicAuth { username, password }),
        _ if !written => None,
        _ => {
            // Half of it would leave the API open where the file asks for a lock.
            let help = "give both, or neither";
            let message = "`username` and `password` belong together";
            reading.error(Code::Missing, &section.place("authentication"), message, help);
            None
        }
    }
}

fn tls(section: &mut Section<'_>, reading: &mut Reading) -> Option<RestTls> {
    let certificate = section.text("certfile", reading).map(PathBuf::from);
    let key = section.text("keyfile", reading).map(PathBuf::from);
    let key_password = key_password(section, reading);
    let client_ca = section.text("cafile", reading).map(PathBuf::from);
    let words = [
        ("none", VerifyClient::None),
        ("optional", VerifyClient::Optional),
        ("required", VerifyClient::Required),
    ];
    let verify = section.find("verify_client", reading);
    let asked = verify.map(|found| {
        found.one_of(&words).unwrap_or_else(|message| {
            let help = "whether clients must present a certificate cannot be left open";
            reading.error(Code::InvalidValue, &found.at, message, help);
            VerifyClient::None
        })
    });
    let verify_client = asked.unwrap_or(VerifyClient::None);
    if verify_client != VerifyClient::None && (certificate.is_none() || client_ca.is_none()) {
        let at = section.place("verify_client");
        let message = "clients cannot be verified without `certfile` and `cafile`";
        reading.error(Code::Missing, &at, message, "give both");
    }
    let certificate = certificate?;
    Some(RestTls { certificate, key, key_password, client_ca, verify_client })
}

pub(super) fn key_password(section: &mut Section<'_>, reading: &mut Reading) -> Option<Secret> {
    let password = section.secret("keyfile_password", reading)?;
    let at = section.place("keyfile_password");
    let message = "the agent reads private keys that are not encrypted";
    reading.push(
        Diagnostic::new(Severity::Warning, Code::EncryptedKey, &at.origin, at.path, message)
            .done("kept; TLS fails if the key is encrypted")
            .help("decrypt it once, for the agent's user alone: `openssl pkey -in KEY -out NEW`"),
    );
    Some(password)
}

fn headers(
    key: &'static str,
    section: &mut Section<'_>,
    reading: &mut Reading,
) -> Vec<(String, String)> {
    let pairs = section.pairs(key, reading);
    let at = section.place(key);
    pairs
        .into_iter()
        .filter(|(name, value)| {
            let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
            let fine = !name.is_empty()
                && name.bytes().all(token)
                && value.bytes().all(|b| b == b'\t' || (b >= 32 && b != 127));
            if !fine {
                let message =
                    format!("`{}` and its value make no HTTP header", name.escape_debug());
                reading.warning(Code::InvalidValue, &at, message, "left out");
            }
            fine
        })
        .collect()
}

/// An address, a network, or a name.
fn allowed(text: &str) -> Allowed {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, prefix.parse::<u8>().ok()),
        None => (text, Some(u8::MAX)),
    };
    match (address.parse::<IpAddr>(), prefix) {
        (Ok(address), Some(prefix)) => {
            let bits = if address.is_ipv4() { 32 } else { 128 };
            Allowed::Network { address, prefix: prefix.min(bits) }
        }
        _ => Allowed::Host(text.to_owned()),
    }
}

pub(super) fn read_ctl(mut section: Section<'_>, reading: &mut Reading) -> Ctl {
    let ctl = Ctl {
        authentication: authentication(&mut section, reading),
        insecure: section.flag("insecure", reading).unwrap_or(false),
        ca: section.text("cacert", reading).map(PathBuf::from),
        certificate: section.text("certfile", reading).map(PathBuf::from),
        key: section.text("keyfile", reading).map(PathBuf::from),
        key_password: key_password(&mut section, reading),
    };
    section.finish(reading);
    ctl
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowlist_takes_addresses_networks_and_names() {
        let network =
            |address: &str, prefix| Allowed::Network { address: address.parse().unwrap(), prefix };
        for (text, expected) in [
            ("10.0.0.1", network("10.0.0.1", 32)),
            ("10.0.0.0/8", network("10.0.0.0", 8)),
            ("2001:db8::/32", network("2001:db8::", 32)),
            ("::1", network("::1", 128)),
            ("node1", Allowed::Host("node1".to_owned())),
            ("node1/24", Allowed::Host("node1/24".to_owned())),
        ] {
            assert_eq!(allowed(text), expected, "{text}");
        }
    }
}
