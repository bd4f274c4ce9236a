//! A certificate authority of the cluster's own, made with the `openssl` command.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use crate::process::RunAs;

const NAMELESS: &str = "/O=leaderpool-testbed";

/// A certificate authority in a directory.
#[derive(Debug, Clone)]
pub struct Authority {
    dir: PathBuf,
    run_as: RunAs,
}

/// A certificate and its key.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate, PEM.
    pub cert: PathBuf,
    /// The private key, PEM, readable by the servers' account only.
    pub key: PathBuf,
}

impl Authority {
    /// Makes one in `dir`.
    ///
    /// # Errors
    /// When `openssl` is missing or fails.
    pub async fn create(dir: &Path, run_as: &RunAs) -> Result<Self> {
        tokio::fs::create_dir_all(dir).await?;
        run_as.own(dir)?;
        let authority = Self { dir: dir.to_owned(), run_as: run_as.clone() };
        let new_key = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 \
            -subj /CN=leaderpool-testbed-ca -addext basicConstraints=critical,CA:TRUE \
            -addext keyUsage=critical,keyCertSign,cRLSign -keyout ca.key -out ca.crt";
        authority.openssl(new_key).await?;
        Ok(authority)
    }

    /// The authority's certificate.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// A certificate for a server on 127.0.0.1 and localhost. It serves as a client's too: etcd's gateway dials its own
    /// server with it.
    ///
    /// # Errors
    /// When `openssl` fails.
    pub async fn server(&self, name: &str) -> Result<Identity> {
        self.issue(name, NAMELESS, "serverAuth,clientAuth").await
    }

    /// A certificate for a client whose common name is `name`.
    ///
    /// # Errors
    /// When `openssl` fails.
    pub async fn client(&self, name: &str) -> Result<Identity> {
        self.issue(name, &format!("/CN={name}"), "clientAuth").await
    }

    /// A certificate for a client of etcd, without a common name: with users on, etcd takes the name for a user's, and its
    /// JSON gateway, which Patroni talks to, refuses a certificate that has one.
    ///
    /// # Errors
    /// When `openssl` fails.
    pub async fn nameless_client(&self, file: &str) -> Result<Identity> {
        self.issue(file, NAMELESS, "clientAuth").await
    }

    async fn issue(&self, name: &str, subject: &str, usage: &str) -> Result<Identity> {
        let extensions = format!(
            "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage={usage}\nbasicConstraints=CA:FALSE\n"
        );
        tokio::fs::write(self.dir.join(format!("{name}.ext")), extensions).await?;
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj {subject} \
             -keyout {name}.key -out {name}.csr"
        ))
        .await?;
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 \
             -extfile {name}.ext -out {name}.crt"
        ))
        .await?;
        let key = self.dir.join(format!("{name}.key"));
        self.run_as.own(&key)?;
        Ok(Identity { cert: self.dir.join(format!("{name}.crt")), key })
    }

    async fn openssl(&self, args: &str) -> Result<()> {
        let output = tokio::process::Command::new("openssl")
            .args(args.split_whitespace())
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .context("cannot run openssl: install the package openssl")?;
        if !output.status.success() {
            bail!("openssl {args} failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}
