//! What the session is told.

use std::path::PathBuf;
use std::time::Duration;

use etcd_client::{Certificate, Identity, TlsOptions};
use leaderpool::config::Secret;
use leaderpool::patroni::KeyPrefix;

use super::error::DcsError;

/// How to reach etcd, and in whose name.
#[derive(Debug, Clone)]
pub struct DcsSettings {
    /// `http://` or `https://` URLs, one of each member; all of one kind.
    pub endpoints: Vec<String>,
    /// The user, where etcd wants one.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
    /// Certificates for `https://` endpoints.
    pub tls: DcsTls,
    /// Where the cluster's keys lie.
    pub prefix: KeyPrefix,
    /// This member's name.
    pub name: String,
    /// What the lease and the operations are timed by; changed later by
    /// [`Session::set_timing`](super::Session::set_timing).
    pub timing: DcsTiming,
}

/// Certificates, as paths of PEM files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DcsTls {
    /// The authorities that etcd's certificates are checked against; the system's where it is absent.
    pub ca_file: Option<PathBuf>,
    /// Our certificate, where etcd asks for one; needs `key_file`.
    pub cert_file: Option<PathBuf>,
    /// Its key.
    pub key_file: Option<PathBuf>,
    /// The name in etcd's certificates, where it is not the one in the URL.
    pub server_name: Option<String>,
}

/// How long things may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DcsTiming {
    /// How long the lease lives unrenewed; whole seconds, as etcd counts. Default 30 s.
    pub ttl: Duration,
    /// How long one operation is tried, over all endpoints. Default 10 s.
    pub retry_timeout: Duration,
}

impl Default for DcsTiming {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(30), retry_timeout: Duration::from_secs(10) }
    }
}

impl DcsTiming {
    /// How often the lease is renewed: a tenth of it, so that etcd always holds nearly a full one.
    #[must_use]
    pub fn renew_every(&self) -> Duration {
        (self.ttl / 10).max(Duration::from_millis(100))
    }

    /// How long one renewal may take before another endpoint is asked.
    #[must_use]
    pub fn renew_within(&self) -> Duration {
        (self.ttl / 10).clamp(Duration::from_millis(300), Duration::from_secs(2))
    }

    /// How often the watched keys are proven by a linearizable read.
    #[must_use]
    pub fn verify_every(&self) -> Duration {
        (self.ttl / 10).clamp(Duration::from_millis(500), Duration::from_secs(3))
    }

    /// How long one endpoint of `count` may take over one operation.
    #[must_use]
    pub fn attempt_within(&self, count: usize) -> Duration {
        let share = self.retry_timeout / u32::try_from(count + 2).unwrap_or(u32::MAX);
        share.clamp(Duration::from_millis(300), Duration::from_secs(2))
    }
}

impl DcsSettings {
    /// Settings without user and certificates, at the default timing.
    #[must_use]
    pub fn new(endpoints: Vec<String>, prefix: KeyPrefix, name: &str) -> Self {
        Self {
            endpoints,
            username: None,
            password: None,
            tls: DcsTls::default(),
            prefix,
            name: name.to_owned(),
            timing: DcsTiming::default(),
        }
    }

    /// The certificates, read; `None` for endpoints without TLS.
    ///
    /// # Errors
    /// [`DcsError::Settings`] for settings that cannot work and files that cannot be read.
    pub(super) fn tls_options(&self) -> Result<Option<TlsOptions>, DcsError> {
        let fail = |problem: String| Err(DcsError::Settings(problem));
        if self.endpoints.is_empty() {
            return fail("no endpoint of etcd is named".into());
        }
        if self.name.is_empty() {
            return fail("the member has no name".into());
        }
        if self.username.is_some() != self.password.is_some() {
            return fail("a user of etcd needs a password, and a password a user".into());
        }
        let secure =
            self.endpoints.iter().filter(|endpoint| endpoint.starts_with("https://")).count();
        if secure == 0 {
            return Ok(None);
        }
        if secure < self.endpoints.len() {
            return fail("endpoints of etcd must be all https:// or all http://".into());
        }
        let read = |field: &str, path: &PathBuf| {
            std::fs::read(path).map_err(|error| {
                DcsError::Settings(format!("{field}: cannot read {}: {error}", path.display()))
            })
        };
        let mut tls = match &self.tls.ca_file {
            Some(path) => {
                TlsOptions::new().ca_certificate(Certificate::from_pem(read("cacert", path)?))
            }
            None => TlsOptions::new().with_native_roots(),
        };
        if let Some(name) = &self.tls.server_name {
            tls = tls.domain_name(name);
        }
        match (&self.tls.cert_file, &self.tls.key_file) {
            (Some(cert), Some(key)) => {
                tls = tls.identity(Identity::from_pem(read("cert", cert)?, read("key", key)?));
            }
            (None, None) => {}
            _ => {
                return fail(
                    "a certificate for etcd needs its key, and a key its certificate".into(),
                );
            }
        }
        Ok(Some(tls))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timing_follows_the_ttl() {
        let at = |ttl, retry| DcsTiming {
            ttl: Duration::from_secs(ttl),
            retry_timeout: Duration::from_secs(retry),
        };
        assert_eq!(at(30, 10).renew_every(), Duration::from_secs(3));
        assert_eq!(at(5, 3).renew_every(), Duration::from_millis(500));
        assert_eq!(at(30, 10).attempt_within(3), Duration::from_secs(2));
        assert_eq!(at(5, 3).attempt_within(3), Duration::from_millis(600));
        // Within one ttl there is time to find several endpoints silent and still renew.
        for ttl in 2..=120 {
            let timing = at(ttl, 3);
            assert!(timing.renew_every() + 3 * timing.renew_within() < timing.ttl, "{ttl}");
        }
    }

    #[test]
    fn impossible_settings_are_named() {
        let good = DcsSettings::new(vec!["http://h:1".into()], KeyPrefix::new("", "c"), "pg0");
        assert!(good.tls_options().expect("good").is_none());
        let refused = |change: &dyn Fn(&mut DcsSettings)| {
            let mut settings = good.clone();
            change(&mut settings);
            settings.tls_options().expect_err("must be refused").to_string()
        };
        assert!(refused(&|s| s.endpoints.clear()).contains("no endpoint"));
        assert!(refused(&|s| s.username = Some("u".into())).contains("password"));
        assert!(refused(&|s| s.endpoints.push("https://h:2".into())).contains("all https://"));
        let missing = refused(&|s| {
            s.endpoints = vec!["https://h:2".into()];
            s.tls.ca_file = Some("/nowhere/ca.crt".into());
        });
        assert!(missing.contains("cacert: cannot read /nowhere/ca.crt"), "{missing}");
    }
}
