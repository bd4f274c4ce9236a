//! Certificates: one place that reads files and builds `rustls` configurations, with the ring provider
//! named outright, since a process may hold a second one.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

use crate::config::ConfigError;

/// How far a server's certificate is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Not at all: encryption only.
    None,
    /// It must be signed by a known authority.
    Authority,
    /// It must also name the host.
    Full,
}

/// The files of one section of the configuration, each with its field's name.
pub(crate) struct Files<'a> {
    pub(crate) section: &'static str,
    pub(crate) ca: (&'static str, Option<&'a Path>),
    pub(crate) cert: (&'static str, Option<&'a Path>),
    pub(crate) key: (&'static str, Option<&'a Path>),
    pub(crate) trust: Trust,
}

/// The bytes of the file that `field` names.
pub(crate) fn read_file(field: &str, path: &Path) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|error| {
        ConfigError::field(field, format!("cannot read {}: {error}", path.display()))
    })
}

/// A client configuration from these files.
pub(crate) fn client_config(files: &Files<'_>) -> Result<ClientConfig, ConfigError> {
    let provider = Arc::new(ring::default_provider());
    let fail = |field: &str, problem: String| {
        ConfigError::field(format!("{}.{field}", files.section), problem)
    };
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| fail(files.ca.0, error.to_string()))?;
    let builder = match files.trust {
        Trust::None => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Lenient { provider, inner: None })),
        Trust::Authority => {
            let inner = WebPkiServerVerifier::builder_with_provider(
                Arc::new(roots(files)?),
                Arc::clone(&provider),
            )
            .build()
            .map_err(|error| fail(files.ca.0, error.to_string()))?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Lenient {
                provider,
                inner: Some(inner),
            }))
        }
        Trust::Full => builder.with_root_certificates(roots(files)?),
    };
    match (files.cert.1, files.key.1) {
        (Some(cert), Some(key)) => {
            let chain = certificates(files.section, files.cert.0, cert)?;
            let key = PrivateKeyDer::from_pem_slice(&read_file(
                &format!("{}.{}", files.section, files.key.0),
                key,
            )?)
            .map_err(|error| fail(files.key.0, format!("{}: {error}", key.display())))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| fail(files.cert.0, error.to_string()))
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

fn certificates(
    section: &str,
    field: &str,
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let name = format!("{section}.{field}");
    let found: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(&read_file(&name, path)?).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(ConfigError::field(name, format!("{} holds no certificate", path.display()))),
        Err(error) => Err(ConfigError::field(name, format!("{}: {error}", path.display()))),
    }
}

fn roots(files: &Files<'_>) -> Result<RootCertStore, ConfigError> {
    let mut store = RootCertStore::empty();
    match files.ca.1 {
        Some(path) => {
            for certificate in certificates(files.section, files.ca.0, path)? {
                store.add(certificate).map_err(|error| {
                    ConfigError::field(
                        format!("{}.{}", files.section, files.ca.0),
                        format!("{}: {error}", path.display()),
                    )
                })?;
            }
        }
        None => {
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    Ok(store)
}

/// Checks the authority where it has one, and never the name: libpq's `verify-ca` and `require`.
#[derive(Debug)]
struct Lenient {
    provider: Arc<CryptoProvider>,
    inner: Option<Arc<WebPkiServerVerifier>>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(inner) = &self.inner else { return Ok(ServerCertVerified::assertion()) };
        match inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The chain is checked before the name, so a wrong name means a good chain.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
