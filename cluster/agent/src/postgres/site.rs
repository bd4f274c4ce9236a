//! What every piece of work on a server needs: its settings, PostgreSQL's programs, and whom to run them as.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::binaries::{Binaries, BinariesError, Tool, Version};
use super::control::{ControlData, ControlError};
use super::files::{ConfigFiles, connection_words};
use super::process::{Identity, IdentityError};
use super::quote::conninfo;
use super::settings::{Account, ServerSettings, Upstream};

/// A server's place on this machine. Cheap to clone; it keeps the settings it was made with.
#[derive(Debug, Clone)]
pub struct Site {
    /// The settings.
    pub settings: Arc<ServerSettings>,
    /// PostgreSQL's programs.
    pub binaries: Arc<Binaries>,
    /// Whom they run as.
    pub identity: Identity,
}

/// Why PostgreSQL cannot be worked with here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SiteError {
    /// There is nobody to run it as.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// There are no programs.
    #[error(transparent)]
    Binaries(#[from] BinariesError),
}

impl Site {
    /// Looks for the account and the programs.
    ///
    /// # Errors
    /// When there are none.
    pub async fn find(settings: Arc<ServerSettings>) -> Result<Self, SiteError> {
        let identity = Identity::resolve(settings.os_user.as_deref())?;
        let bin_dir = settings.bin_dir.as_deref();
        let binaries = Binaries::find(bin_dir, &settings.data_dir, &identity).await?;
        Ok(Self { settings, binaries: Arc::new(binaries), identity })
    }

    /// The same with other settings.
    #[must_use]
    pub fn with_settings(&self, settings: Arc<ServerSettings>) -> Self {
        Self { settings, ..self.clone() }
    }

    /// The version of the programs.
    #[must_use]
    pub fn version(&self) -> Version {
        self.binaries.version()
    }

    /// The data directory.
    #[must_use]
    pub fn data_dir(&self) -> &Path {
        &self.settings.data_dir
    }

    /// The configuration files.
    #[must_use]
    pub fn files(&self) -> ConfigFiles<'_> {
        ConfigFiles::new(&self.settings, &self.identity, self.version())
    }

    /// Reads the control file.
    ///
    /// # Errors
    /// When there is none, or it makes no sense.
    pub async fn control(&self) -> Result<ControlData, ControlError> {
        ControlData::read(&self.binaries, &self.identity, self.data_dir()).await
    }

    /// One of PostgreSQL's programs.
    pub(crate) fn tool(&self, name: &str) -> Tool {
        Tool::new(self.binaries.program(name), &self.identity)
    }

    /// One that connects to another server as an account.
    pub(crate) fn connecting_tool(&self, name: &str, account: &Account) -> Tool {
        let tool = self.tool(name).env("PGOPTIONS", "-c statement_timeout=0");
        match &account.password {
            // In the environment nobody but the account and root can read it, and nothing of it is left behind.
            Some(password) => tool.env("PGPASSWORD", password.expose()),
            None => tool,
        }
    }

    /// The connection string to another server as an account, without the password.
    pub(crate) fn conninfo(
        &self,
        upstream: &Upstream,
        account: &Account,
        more: &[(&str, &str)],
    ) -> String {
        let mut words = connection_words(upstream, account, self.version());
        for (keyword, value) in more {
            words.insert((*keyword).to_owned(), (*value).to_owned());
        }
        words.entry("connect_timeout".to_owned()).or_insert_with(|| CONNECT_TIMEOUT.to_string());
        conninfo(words.iter().map(|(keyword, value)| (keyword.as_str(), value.as_str())))
    }
}

/// In seconds, the longest that libpq's programs try one address.
const CONNECT_TIMEOUT: u32 = 5;
/// The longest that a question to another server may take.
pub(crate) const ASK_DEADLINE: Duration = Duration::from_secs(15);
