//! A small HTTP client for REST APIs and etcd's JSON gateway: one connection a request, always with a deadline.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// When it is not JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body)
            .with_context(|| format!("not JSON ({}): {}", self.status, self.body))
    }
}

/// A client for one address on this machine.
#[derive(Clone)]
pub struct Http {
    port: u16,
    tls: Option<TlsConnector>,
}

impl std::fmt::Debug for Http {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http").field("port", &self.port).field("tls", &self.tls.is_some()).finish()
    }
}

impl Http {
    /// Plain HTTP to a port of this machine.
    #[must_use]
    pub fn plain(port: u16) -> Self {
        Self { port, tls: None }
    }

    /// HTTPS, trusting `ca` and showing a client certificate where given.
    ///
    /// # Errors
    /// When a file cannot be read or does not hold what it should.
    pub fn tls(port: u16, ca: &Path, identity: Option<(&Path, &Path)>) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for cert in CertificateDer::pem_file_iter(ca)? {
            roots.add(cert?)?;
        }
        let provider = Arc::new(crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let config = match identity {
            None => config.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = CertificateDer::pem_file_iter(cert)?.collect::<Result<Vec<_>, _>>()?;
                config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key)?)?
            }
        };
        Ok(Self { port, tls: Some(TlsConnector::from(Arc::new(config))) })
    }

    /// GET.
    ///
    /// # Errors
    /// When there is no answer within `deadline`; an answer of any status is `Ok`.
    pub async fn get(&self, path: &str, deadline: Duration) -> Result<Answer> {
        self.request(Method::GET, path, None, None, deadline).await
    }

    /// POST with a JSON body.
    ///
    /// # Errors
    /// As for [`Http::get`].
    pub async fn post(&self, path: &str, body: &Value, deadline: Duration) -> Result<Answer> {
        self.request(Method::POST, path, Some(body), None, deadline).await
    }

    /// Any method, with a JSON body and an `Authorization` header where given.
    ///
    /// # Errors
    /// As for [`Http::get`].
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        authorization: Option<&str>,
        deadline: Duration,
    ) -> Result<Answer> {
        let what = format!("{method} 127.0.0.1:{}{path}", self.port);
        let exchange = async {
            let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
            match &self.tls {
                None => exchange(stream, method, path, body, authorization).await,
                Some(tls) => {
                    let name = ServerName::try_from("localhost")?;
                    let stream = tls.connect(name, stream).await?;
                    exchange(stream, method, path, body, authorization).await
                }
            }
        };
        match tokio::time::timeout(deadline, exchange).await {
            Ok(answer) => answer.with_context(|| what),
            Err(_) => bail!("{what}: no answer within {deadline:?}"),
        }
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    method: Method,
    path: &str,
    body: Option<&Value>,
    authorization: Option<&str>,
) -> Result<Answer> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Dropped with the request, so that an abandoned exchange leaves no task behind.
    let mut connection = std::pin::pin!(connection);
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("content-type", "application/json")
        .header("connection", "close");
    if let Some(token) = authorization {
        request = request.header("authorization", token);
    }
    let bytes = body.map(|b| Bytes::from(b.to_string())).unwrap_or_default();
    let request = request.body(Full::new(bytes))?;
    let reply = async {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await?.to_bytes();
        anyhow::Ok(Answer { status, body: String::from_utf8_lossy(&bytes).into_owned() })
    };
    let mut reply = std::pin::pin!(reply);
    tokio::select! {
        biased;
        answer = &mut reply => answer,
        // The connection may close as soon as it has delivered everything.
        end = &mut connection => { end?; reply.await }
    }
}
