//! TLS and users of etcd.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;

use super::EtcdClient;
use crate::builder::EtcdSecurity;
use crate::http::Http;
use crate::tls::{Authority, Identity};

const ROOT: (&str, &str) = ("root", "etcd_root_password");
const READER: (&str, &str) = ("leaderpool", "leaderpool_etcd_password");

/// How to get in: for the servers, for the managers (all rights) and for clients (reading the cluster's keys only).
#[derive(Debug)]
pub(crate) struct Access {
    tls: Option<Tls>,
    users: bool,
}

#[derive(Debug)]
struct Tls {
    ca: PathBuf,
    server: Identity,
    client: Option<Identity>,
}

impl Access {
    pub(super) async fn create(
        security: EtcdSecurity,
        authority: Option<&Authority>,
    ) -> Result<Self> {
        let tls = match authority {
            Some(authority) if security.tls || security.client_certificates => Some(Tls {
                ca: authority.ca(),
                server: authority.server("etcd").await?,
                client: match security.client_certificates {
                    true => Some(authority.nameless_client("etcd-client").await?),
                    false => None,
                },
            }),
            _ => None,
        };
        Ok(Self { tls, users: security.users })
    }

    pub(crate) fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    pub(crate) fn ca(&self) -> Option<&Path> {
        self.tls.as_ref().map(|tls| tls.ca.as_path())
    }

    pub(crate) fn identity(&self) -> Option<&Identity> {
        self.tls.as_ref()?.client.as_ref()
    }

    /// The account with all rights.
    pub(crate) fn root(&self) -> Option<(&'static str, &'static str)> {
        self.users.then_some(ROOT)
    }

    /// The account that may read the cluster's keys.
    pub(crate) fn reader(&self) -> Option<(&'static str, &'static str)> {
        self.users.then_some(READER)
    }

    pub(super) fn server_args(&self) -> Vec<String> {
        let Some(tls) = &self.tls else { return Vec::new() };
        let mut args = vec![
            format!("--cert-file={}", tls.server.cert.display()),
            format!("--key-file={}", tls.server.key.display()),
        ];
        if tls.client.is_some() {
            args.push("--client-cert-auth".to_owned());
            args.push(format!("--trusted-ca-file={}", tls.ca.display()));
        }
        args
    }

    pub(super) fn http(&self, port: u16) -> Result<Http> {
        match &self.tls {
            None => Ok(Http::plain(port)),
            Some(tls) => {
                let identity = tls.client.as_ref().map(|id| (id.cert.as_path(), id.key.as_path()));
                Http::tls(port, &tls.ca, identity)
            }
        }
    }

    /// Makes the accounts and turns authentication on.
    pub(super) async fn enable_users(
        &self,
        client: EtcdClient,
        prefix: &str,
    ) -> Result<EtcdClient> {
        if !self.users {
            return Ok(client);
        }
        let (from, to) = EtcdClient::prefix_range(prefix);
        let (root, reader) = (ROOT, READER);
        let steps = [
            ("user/add", json!({"name": root.0, "password": root.1})),
            ("role/add", json!({"name": "root"})),
            ("user/grant", json!({"user": root.0, "role": "root"})),
            ("user/add", json!({"name": reader.0, "password": reader.1})),
            ("role/add", json!({"name": "reader"})),
            (
                "role/grant",
                json!({"name": "reader", "perm": {"permType": "READ", "key": from, "range_end": to}}),
            ),
            ("user/grant", json!({"user": reader.0, "role": "reader"})),
            ("enable", json!({})),
        ];
        for (path, body) in steps {
            let path = format!("/v3/auth/{path}");
            client.call(&path, &body).await.context("cannot set up etcd's users")?;
        }
        Ok(client.with_credentials(root.0, root.1))
    }
}
