//! One instance of the sample service as a process, and a client for it.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{HeaderMap, Request};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use leaderpool_testbed::{Cluster, wait};
use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::sync::OnceCell;
use tokio::time::timeout;

pub(crate) const EVERY: Duration = Duration::from_millis(20);
pub(crate) const LIMIT: Duration = Duration::from_secs(30);
pub(crate) const TOKEN: &str = "x-causal-token";
pub(crate) const JSON: (&str, &str) = ("content-type", "application/json");

/// A client of one instance.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) port: u16,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Api {
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<Answer> {
        let what = || format!("{method} {path} on port {}", self.port);
        let mut request =
            Request::builder().method(method).uri(format!("http://127.0.0.1:{}{path}", self.port));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body.to_owned())))?;
        let exchange = async {
            let response = self.client.request(request).await?;
            let (head, body) = response.into_parts();
            let body = String::from_utf8(body.collect().await?.to_bytes().to_vec())?;
            anyhow::Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
        };
        timeout(Duration::from_secs(60), exchange).await.with_context(what)?.with_context(what)
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Answer> {
        self.send("GET", path, &[], "").await
    }

    pub(crate) async fn post(&self, event: &Value) -> Result<Answer> {
        self.send("POST", "/events", &[JSON], &event.to_string()).await
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> String {
        let value = self.headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.headers.contains_key(name)
    }

    pub(crate) fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| format!("{self:?}"))
    }

    pub(crate) fn code(&self) -> String {
        let body = self.json().unwrap_or_default();
        body["error"]["code"].as_str().unwrap_or("no code").to_owned()
    }

    /// The one shape of errors.
    pub(crate) fn is_error(&self, status: u16, code: &str) -> Result<()> {
        ensure!(self.status == status && self.code() == code, "not {status} {code}: {self:?}");
        let body = self.json()?;
        ensure!(body["error"]["message"].as_str().is_some_and(|text| !text.is_empty()), "{self:?}");
        ensure!(self.header("content-type") == "application/json", "{self:?}");
        ensure!(self.has("x-instance") && self.has("x-request-id"), "{self:?}");
        ensure!(self.has("retry-after") == (status == 503), "{self:?}");
        if status == 503 {
            ensure!((1..=60).contains(&self.retry_after()?), "{self:?}");
        }
        Ok(())
    }

    pub(crate) fn retry_after(&self) -> Result<u64> {
        self.header("retry-after").parse().with_context(|| format!("{self:?}"))
    }

    pub(crate) fn token(&self) -> Result<String> {
        ensure!(self.has(TOKEN), "no token: {self:?}");
        Ok(self.header(TOKEN))
    }
}

/// One instance, as a process; it goes with this value.
pub(crate) struct App {
    pub(crate) api: Api,
    child: Child,
    log: PathBuf,
}

impl std::ops::Deref for App {
    type Target = Api;

    fn deref(&self) -> &Api {
        &self.api
    }
}

impl App {
    pub(crate) async fn start(
        cluster: &Cluster,
        index: usize,
        arguments: &[&str],
        variables: &[(&str, String)],
    ) -> Result<Self> {
        let port = cluster.ports().backend(index);
        // Taken by nobody: the block is reserved. This finds a leftover early.
        drop(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).context("the port is in use")?);
        let log = cluster.dir().join("logs").join(format!("app{index}.log"));
        let child = Command::new(binary().await?)
            .arg("--config")
            .arg(cluster.dir().join("leaderpool.toml"))
            .args(["--port", &port.to_string()])
            .args(arguments)
            .envs(variables.iter().map(|(name, value)| (name, value)))
            // Inside the run directory, so that the testbed's guardian takes it down too.
            .current_dir(cluster.dir())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log)?)
            .kill_on_drop(true)
            .spawn()?;
        // A connection for each request: a pooled one that ends with the server would blur the tests.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
        Ok(Self { api: Api { port, client }, child, log })
    }

    pub(crate) fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(&self.log)?)
    }

    pub(crate) async fn wait_serving(&self) -> Result<()> {
        let serving = async || self.get("/health").await.map(|_| ());
        let waited = wait::until("the instance serves", LIMIT, EVERY, serving).await;
        waited.with_context(|| self.log().unwrap_or_default())
    }

    pub(crate) async fn wait_ready(&self) -> Result<()> {
        self.wait_serving().await?;
        let ready = async || {
            let answer = self.get("/ready").await?;
            ensure!(answer.status == 200, "{answer:?}");
            Ok(())
        };
        let waited = wait::until("the instance is ready", LIMIT, EVERY, ready).await;
        waited.with_context(|| self.log().unwrap_or_default())
    }

    /// SIGTERM.
    pub(crate) async fn signal(&self) -> Result<()> {
        let pid = self.child.id().context("it has ended already")?;
        let kill = Command::new("kill").args(["-TERM", &pid.to_string()]).status().await?;
        ensure!(kill.success());
        Ok(())
    }

    /// Its end, in order and soon.
    pub(crate) async fn ended(mut self) -> Result<()> {
        let status = timeout(Duration::from_secs(5), self.child.wait())
            .await
            .context("it does not end")??;
        let log = self.log()?;
        ensure!(status.success() && log.contains("ended"), "{status}: {log}");
        Ok(())
    }

    pub(crate) async fn terminate(self) -> Result<()> {
        self.signal().await?;
        self.ended().await
    }
}

/// The example, beside this test: `target/debug/examples/backend`. `cargo test` builds it, but `cargo test
/// --test backend` would run an old one.
pub(crate) async fn binary() -> Result<&'static Path> {
    static BINARY: OnceCell<PathBuf> = OnceCell::const_new();
    let find = async || {
        let test = std::env::current_exe()?;
        let profile = test.ancestors().nth(2).context("no target directory")?;
        let binary = profile.join("examples").join("backend");
        let built = binary.metadata().and_then(|meta| meta.modified()).ok();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let newest = newest(&root.join("examples/backend"))?.max(newest(&root.join("src"))?);
        if built.is_none_or(|built| built < newest) {
            let mut cargo = Command::new(env!("CARGO"));
            cargo.args(["build", "--example", "backend", "--target-dir"]).current_dir(root);
            cargo.arg(profile.parent().context("no target directory")?);
            cargo.args(profile.ends_with("release").then_some("--release"));
            // What cargo tells a test about its package; to ring's build script it would be a change.
            for (name, _) in std::env::vars_os() {
                if name.as_encoded_bytes().starts_with(b"CARGO_PKG_")
                    || name.as_encoded_bytes().starts_with(b"CARGO_MANIFEST_")
                {
                    cargo.env_remove(name);
                }
            }
            ensure!(cargo.status().await?.success(), "cannot build the example");
        }
        Ok(binary)
    };
    BINARY.get_or_try_init(find).await.map(PathBuf::as_path)
}

fn newest(dir: &Path) -> Result<SystemTime> {
    let mut newest = SystemTime::UNIX_EPOCH;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if path.is_dir() {
            newest = newest.max(self::newest(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            newest = newest.max(entry.metadata()?.modified()?);
        }
    }
    Ok(newest)
}
