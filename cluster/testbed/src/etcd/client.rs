//! Keys by etcd's JSON gateway.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;
use serde_json::{Value, json};

use crate::http::{Answer, Http};

/// How long one member may take before the next is asked: a frozen one takes connections and says nothing.
const PATIENCE: Duration = Duration::from_secs(2);

/// A key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
    /// The revision of its creation.
    pub create_revision: i64,
    /// The revision of its last change.
    pub mod_revision: i64,
    /// The lease it hangs on, 0 for none.
    pub lease: i64,
}

/// A client for etcd's members, the last one that answered first.
#[derive(Debug)]
pub struct EtcdClient {
    members: Vec<Http>,
    good: AtomicUsize,
    credentials: Option<(String, String)>,
    token: Mutex<Option<String>>,
}

impl EtcdClient {
    /// A client of members that want no password.
    #[must_use]
    pub fn new(members: Vec<Http>) -> Self {
        Self { members, good: AtomicUsize::new(0), credentials: None, token: Mutex::new(None) }
    }

    pub(super) fn with_credentials(mut self, user: &str, password: &str) -> Self {
        self.credentials = Some((user.to_owned(), password.to_owned()));
        self
    }

    /// The value of a key.
    ///
    /// # Errors
    /// When no member answers.
    pub async fn get(&self, key: &str) -> Result<Option<KeyValue>> {
        let answer = self.call("/v3/kv/range", &json!({"key": encode(key)})).await?;
        Ok(key_values(&answer)?.pop())
    }

    /// All keys below a prefix.
    ///
    /// # Errors
    /// When no member answers.
    pub async fn get_prefix(&self, prefix: &str) -> Result<Vec<KeyValue>> {
        let (key, range_end) = Self::prefix_range(prefix);
        let body = json!({"key": key, "range_end": range_end});
        key_values(&self.call("/v3/kv/range", &body).await?)
    }

    /// Sets a key.
    ///
    /// # Errors
    /// When no member answers.
    pub async fn put(&self, key: &str, value: &str) -> Result<()> {
        let body = json!({"key": encode(key), "value": encode(value)});
        self.call("/v3/kv/put", &body).await.map(|_| ())
    }

    /// Deletes a key; whether there was one.
    ///
    /// # Errors
    /// When no member answers.
    pub async fn delete(&self, key: &str) -> Result<bool> {
        let answer = self.call("/v3/kv/deleterange", &json!({"key": encode(key)})).await?;
        Ok(number(&answer, "deleted") > 0)
    }

    /// Discards the history up to the present revision: what makes a watch that lags behind fail.
    ///
    /// # Errors
    /// When no member answers.
    pub async fn compact(&self) -> Result<()> {
        let answer = self.call("/v3/kv/range", &json!({"key": encode("\0")})).await?;
        let revision = number(&answer["header"], "revision");
        self.call("/v3/kv/compaction", &json!({"revision": revision, "physical": true})).await?;
        Ok(())
    }

    pub(super) fn prefix_range(prefix: &str) -> (String, String) {
        let mut end = prefix.as_bytes().to_vec();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        (encode(prefix), STANDARD.encode(end))
    }

    /// One call of the gateway, at the first member that answers it.
    pub(super) async fn call(&self, path: &str, body: &Value) -> Result<Value> {
        let mut last = anyhow!("no members");
        for _ in 0..self.members.len() {
            let index = self.good.load(Ordering::Relaxed);
            match self.call_at(index, path, body).await {
                Ok(answer) => return Ok(answer),
                Err(error) => last = error,
            }
            self.good.store((index + 1) % self.members.len(), Ordering::Relaxed);
        }
        Err(last.context("etcd does not answer"))
    }

    async fn call_at(&self, index: usize, path: &str, body: &Value) -> Result<Value> {
        let member = &self.members[index];
        let held = self.token.lock().expect("not poisoned").clone();
        let mut answer = send(member, path, body, held.as_deref()).await?;
        if answer.status != 200 && self.credentials.is_some() {
            // Tokens end after five minutes, and with the server's restart.
            let token = self.authenticate(member).await?;
            answer = send(member, path, body, Some(&token)).await?;
        }
        if answer.status != 200 {
            bail!("{path} answered {}: {}", answer.status, answer.body.trim());
        }
        answer.json()
    }

    async fn authenticate(&self, member: &Http) -> Result<String> {
        let (name, password) = self.credentials.as_ref().context("no credentials")?;
        let body = json!({"name": name, "password": password});
        let answer = send(member, "/v3/auth/authenticate", &body, None).await?;
        let token = answer.json().ok().and_then(|a| Some(a["token"].as_str()?.to_owned()));
        let token = token.with_context(|| format!("authentication failed: {}", answer.body))?;
        *self.token.lock().expect("not poisoned") = Some(token.clone());
        Ok(token)
    }
}

async fn send(member: &Http, path: &str, body: &Value, token: Option<&str>) -> Result<Answer> {
    member.request(Method::POST, path, Some(body), token, PATIENCE).await
}

fn encode(text: &str) -> String {
    STANDARD.encode(text)
}

fn key_values(answer: &Value) -> Result<Vec<KeyValue>> {
    let text = |kv: &Value, field: &str| -> Result<String> {
        let bytes = STANDARD.decode(kv[field].as_str().unwrap_or_default())?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let kvs = answer["kvs"].as_array().map(Vec::as_slice).unwrap_or_default();
    kvs.iter()
        .map(|kv| {
            Ok(KeyValue {
                key: text(kv, "key")?,
                value: text(kv, "value")?,
                create_revision: number(kv, "create_revision"),
                mod_revision: number(kv, "mod_revision"),
                lease: number(kv, "lease"),
            })
        })
        .collect()
}

/// The gateway writes 64-bit numbers as strings.
fn number(value: &Value, field: &str) -> i64 {
    value[field].as_str().and_then(|n| n.parse().ok()).unwrap_or_default()
}
