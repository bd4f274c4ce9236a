//! What the server is told.

use std::path::PathBuf;
use std::time::Duration;

use leaderpool::config::Secret;

use super::health::PrimaryRule;

/// How the REST API is served: the section `restapi` of `patroni.yml`.
#[derive(Debug, Clone, PartialEq)]
pub struct RestSettings {
    /// `host:port` to listen on; `*` or an empty host for all addresses. Default `127.0.0.1:8008`.
    pub listen: String,
    /// User and password for what changes something; none: anyone may.
    pub authentication: Option<(String, Secret)>,
    /// Addresses, networks (`10.0.0.0/8`) and names that may ask for what changes something; empty: all.
    pub allowlist: Vec<String>,
    /// Whether the hosts in the members' `api_url` may as well. Alone it makes an allowlist of them.
    pub allowlist_include_members: bool,
    /// Serve HTTPS.
    pub tls: Option<RestTls>,
    /// Headers to add to every answer.
    pub http_extra_headers: Vec<(String, String)>,
    /// Headers to add over HTTPS; they come before those of the same name above.
    pub https_extra_headers: Vec<(String, String)>,
    /// When `/primary` is answered 200. Default [`PrimaryRule::Proven`].
    pub primary_rule: PrimaryRule,
    /// Connections at once; a quarter of them from one address. Default 256. Further ones wait in the
    /// system's queue.
    pub max_connections: usize,
    /// Bytes in a request's body. Default 1 MiB.
    pub max_body: usize,
    /// How long a client may take over each of: the handshake, its request, reading the answer. Default 5 s.
    pub client_timeout: Duration,
    /// How long a command may take before its client is told that the outcome is unknown, where the request
    /// itself names no time. Default 5 min. The command goes on.
    pub command_timeout: Duration,
}

impl Default for RestSettings {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8008".into(),
            authentication: None,
            allowlist: Vec::new(),
            allowlist_include_members: false,
            tls: None,
            http_extra_headers: Vec::new(),
            https_extra_headers: Vec::new(),
            primary_rule: PrimaryRule::default(),
            max_connections: 256,
            max_body: 1 << 20,
            client_timeout: Duration::from_secs(5),
            command_timeout: Duration::from_secs(300),
        }
    }
}

/// Certificates, as paths of PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestTls {
    /// Our certificate, with its chain.
    pub certfile: PathBuf,
    /// Its key, unencrypted; in the same file where it is absent.
    pub keyfile: Option<PathBuf>,
    /// The authorities that clients' certificates are checked against.
    pub cafile: Option<PathBuf>,
    /// Who must show one.
    pub verify_client: VerifyClient,
}

/// Who must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VerifyClient {
    /// Nobody.
    #[default]
    None,
    /// Whoever asks for what changes something.
    Optional,
    /// Everyone.
    Required,
}
