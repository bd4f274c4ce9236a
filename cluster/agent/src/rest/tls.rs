//! Certificates of the server.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::server::RestError;
use super::settings::{RestTls, VerifyClient};

/// The server's side of TLS.
pub(super) fn server_config(tls: &RestTls) -> Result<ServerConfig, RestError> {
    let provider = Arc::new(ring::default_provider());
    let chain = certificates("certfile", &tls.certfile)?;
    let keyfile = tls.keyfile.as_deref().unwrap_or(&tls.certfile);
    let key = PrivateKeyDer::from_pem_slice(&read("keyfile", keyfile)?).map_err(|error| {
        let hint = "an encrypted key must be decrypted first";
        fail("keyfile", keyfile, format!("{error} ({hint})"))
    })?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| fail("certfile", &tls.certfile, error.to_string()))?;
    let builder = match tls.verify_client {
        VerifyClient::None => builder.with_no_client_auth(),
        verify => {
            let Some(cafile) = &tls.cafile else {
                return Err(RestError::Settings(
                    "restapi.verify_client needs restapi.cafile".into(),
                ));
            };
            let mut roots = RootCertStore::empty();
            for certificate in certificates("cafile", cafile)? {
                roots
                    .add(certificate)
                    .map_err(|error| fail("cafile", cafile, error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = match verify {
                VerifyClient::Optional => verifier.allow_unauthenticated(),
                _ => verifier,
            };
            let verifier =
                verifier.build().map_err(|error| fail("cafile", cafile, error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| fail("certfile", &tls.certfile, error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec(), b"http/1.0".to_vec()];
    Ok(config)
}

fn certificates(field: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, RestError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(field, path)?).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(fail(field, path, "it holds no certificate".into())),
        Err(error) => Err(fail(field, path, error.to_string())),
    }
}

fn read(field: &str, path: &Path) -> Result<Vec<u8>, RestError> {
    std::fs::read(path).map_err(|error| fail(field, path, error.to_string()))
}

fn fail(field: &str, path: &Path, problem: String) -> RestError {
    RestError::Settings(format!("restapi.{field}: {}: {problem}", path.display()))
}
