//! A small HTTP client for the members' REST API: Patroni answers HTTP/1.0 and closes.

use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::time::timeout;

use crate::config::{ConfigError, RestConfig};
use crate::error::with_causes;
use crate::tls;

/// No answer of this API comes near it; a server that sends more is not one of ours.
const BODY_LIMIT: usize = 4 << 20;

/// GET over HTTP or HTTPS, with one deadline for all of it.
#[derive(Debug, Clone)]
pub struct HttpClient {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    timeout: Duration,
}

impl HttpClient {
    /// A client with the certificates and the timeout of `config`.
    ///
    /// # Errors
    /// Where a file with a certificate or key cannot be read or used.
    pub fn new(config: &RestConfig) -> Result<Self, ConfigError> {
        let tls = tls::client_config(&tls::Files {
            section: "rest",
            ca: ("ca_file", config.ca_file.as_deref()),
            cert: ("cert_file", config.cert_file.as_deref()),
            key: ("key_file", config.key_file.as_deref()),
            trust: tls::Trust::Full,
        })?;
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(config.timeout));
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let client =
            Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
        Ok(Self { client, timeout: config.timeout })
    }

    /// The status and body of `url`.
    ///
    /// # Errors
    /// A sentence that says why there is no answer. Cancel-safe.
    pub async fn get(&self, url: &str) -> Result<(StatusCode, Bytes), String> {
        let uri: Uri = url.parse().map_err(|error| format!("not a URL: {error}"))?;
        let request = Request::get(uri).body(Empty::new()).map_err(|error| error.to_string())?;
        let exchange = async {
            let answer = self.client.request(request).await.map_err(|error| with_causes(&error))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), BODY_LIMIT)
                .collect()
                .await
                .map_err(|error| format!("reading the body: {error}"))?;
            Ok((status, body.to_bytes()))
        };
        timeout(self.timeout, exchange)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {:?}", self.timeout)))
    }
}
