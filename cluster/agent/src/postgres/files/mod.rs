//! The files by which a server is configured, kept as Patroni keeps them: what `initdb` wrote becomes
//! `postgresql.base.conf`, and a generated `postgresql.conf` includes it. So a node can be handed from one
//! manager to the other and back.

mod atomic;
mod conf;
mod sockets;

use std::fs;
use std::path::{Path, PathBuf};

pub use atomic::write_atomically;
use atomic::write_through_links;
pub(crate) use atomic::{remove_if_there, sync_dir};
pub use conf::{FORCED, RECOVERY, Raised, Recovery, connection_words, forced_parameters, pgpass};
pub use conf::{postgresql_conf, read_recovery, recovery_parameters};
pub use sockets::SocketDirs;

use super::binaries::Version;
use super::error::FileError;
use super::process::Identity;
use super::settings::{ServerSettings, Upstream};

const CONF: &str = "postgresql.conf";
const BASE: &str = "postgresql.base.conf";
const HBA: &str = "pg_hba.conf";
const IDENT: &str = "pg_ident.conf";
const AUTO: &str = "postgresql.auto.conf";
/// Says that a server is to follow; without it, it is a primary.
const STANDBY: &str = "standby.signal";
/// Says that a server is to recover to a target.
const TARGET: &str = "recovery.signal";
/// Touched to have a standby promoted.
pub(crate) const PROMOTE: &str = "promote";
/// PostgreSQL reads configuration with this mode, and initdb writes it so.
const MODE: u32 = 0o600;

/// What was changed by writing the configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// `postgresql.conf` (or what it would be overridden by).
    pub conf: bool,
    /// `pg_hba.conf`.
    pub hba: bool,
    /// `pg_ident.conf`.
    pub ident: bool,
}

impl Written {
    /// Whether anything was.
    #[must_use]
    pub fn any(self) -> bool {
        self.conf || self.hba || self.ident
    }
}

/// The configuration files of a server.
#[derive(Debug, Clone, Copy)]
pub struct ConfigFiles<'a> {
    settings: &'a ServerSettings,
    identity: &'a Identity,
    version: Version,
}

impl<'a> ConfigFiles<'a> {
    /// Those of a server with these settings.
    #[must_use]
    pub fn new(settings: &'a ServerSettings, identity: &'a Identity, version: Version) -> Self {
        Self { settings, identity, version }
    }

    /// `postgresql.conf`.
    #[must_use]
    pub fn conf(&self) -> PathBuf {
        self.settings.config_dir().join(CONF)
    }

    fn data(&self, name: &str) -> PathBuf {
        self.settings.data_dir.join(name)
    }

    /// Writes everything that a server with these settings and this kind of recovery reads; what has not changed
    /// is not touched.
    ///
    /// # Errors
    /// When a file cannot be written. Those before it are.
    pub fn write(&self, recovery: &Recovery) -> Result<Written, FileError> {
        let include = match &self.settings.custom_conf {
            Some(path) => path.to_string_lossy().into_owned(),
            None => self.keep_base().map(|()| BASE.to_owned())?,
        };
        let text = postgresql_conf(self.settings, self.version, &include, recovery);
        if let Recovery::Standby(Some(upstream)) = recovery {
            self.write_pgpass(upstream)?;
        }
        // The signal files first: with the new configuration and the old role, a crash would leave a standby that
        // starts as a primary.
        self.write_signals(recovery)?;
        let mut written = Written {
            conf: write_through_links(&self.conf(), &text, MODE, self.identity)?,
            ..Written::default()
        };
        if *recovery != Recovery::AsFound {
            written.conf |= self.clean_auto_conf()?;
        }
        let lines = |lines: &Vec<String>| lines.join("\n") + "\n";
        if let Some(hba) = self.settings.pg_hba.as_ref().filter(|_| !self.is_elsewhere("hba_file"))
        {
            let path = self.settings.config_dir().join(HBA);
            written.hba = write_through_links(&path, &lines(hba), MODE, self.identity)?;
        }
        if let Some(ident) =
            self.settings.pg_ident.as_ref().filter(|_| !self.is_elsewhere("ident_file"))
        {
            let path = self.settings.config_dir().join(IDENT);
            written.ident = write_through_links(&path, &lines(ident), MODE, self.identity)?;
        }
        Ok(written)
    }

    /// Whether a parameter says that the file is one that others write.
    fn is_elsewhere(&self, parameter: &str) -> bool {
        self.settings.parameters.contains_key(parameter)
    }

    /// Adds lines to `pg_hba.conf`, where it is not written as a whole.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn append_hba(&self, lines: &[String]) -> Result<(), FileError> {
        if lines.is_empty() || self.settings.pg_hba.is_some() || self.is_elsewhere("hba_file") {
            return Ok(());
        }
        let path = self.settings.config_dir().join(HBA);
        let old = fs::read_to_string(&path).map_err(|e| FileError::new("read", &path, e))?;
        let text = format!("{}\n{}\n", old.trim_end(), lines.join("\n"));
        write_through_links(&path, &text, MODE, self.identity).map(|_| ())
    }

    /// Writes the password file for replicating from an upstream.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_pgpass(&self, upstream: &Upstream) -> Result<(), FileError> {
        let account = &self.settings.replication;
        if let Some(text) = pgpass(&upstream.host, &upstream.port, account) {
            write_atomically(&self.settings.pgpass, &text, 0o600, self.identity)?;
        }
        Ok(())
    }

    /// The first time, what `initdb` (or the package) wrote becomes the base that is included.
    fn keep_base(&self) -> Result<(), FileError> {
        let dir = self.settings.config_dir();
        let (base, conf) = (dir.join(BASE), self.conf());
        if base.exists() {
            return Ok(());
        }
        let mut text = String::new();
        for path in [&conf, &self.data(CONF)] {
            match fs::read_to_string(path) {
                // One that includes the base is not the base: that was lost.
                Ok(found) if !found.contains(BASE) => {
                    text = found;
                    break;
                }
                Ok(_) => {
                    tracing::warn!(path = %base.display(), "it is lost; an empty one is written");
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(FileError::new("read", path, error)),
            }
        }
        write_atomically(&base, &text, MODE, self.identity).map(|_| ())
    }

    fn write_signals(&self, recovery: &Recovery) -> Result<(), FileError> {
        let (standby, target) = (self.data(STANDBY), self.data(TARGET));
        let want = match recovery {
            Recovery::AsFound => return Ok(()),
            Recovery::None => None,
            Recovery::Standby(_) | Recovery::StandbyAsFound(_) => Some(&standby),
            Recovery::Target(_) => Some(&target),
        };
        if let Some(path) = want {
            write_atomically(path, "", MODE, self.identity)?;
        }
        for path in [&standby, &target] {
            if Some(path) != want {
                remove_if_there(path)?;
            }
        }
        // Left behind by a promotion that was cut short, it would promote the next standby.
        remove_if_there(&self.data(PROMOTE)).map(|_| ())
    }

    /// Whether the files say that this is a standby.
    #[must_use]
    pub fn is_standby(&self) -> bool {
        self.data(STANDBY).exists()
    }

    /// What the files say about recovery: of a server that was started by another agent, or another manager.
    #[must_use]
    pub fn recovery_as_found(&self) -> Recovery {
        if !self.is_standby() {
            return Recovery::None;
        }
        let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
        let mut found = read_recovery(&read(self.conf()));
        found.extend(read_recovery(&read(self.data(AUTO))));
        Recovery::StandbyAsFound(found)
    }

    /// Removes the files that say so.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub(crate) fn remove_signals(&self) -> Result<(), FileError> {
        self.write_signals(&Recovery::None)
    }

    fn clean_auto_conf(&self) -> Result<bool, FileError> {
        let path = self.data(AUTO);
        let Ok(text) = fs::read_to_string(&path) else { return Ok(false) };
        let Some(cleaned) = conf::without_recovery(&text) else { return Ok(false) };
        tracing::warn!(path = %path.display(), "parameters of recovery are removed from it: the agent sets those");
        write_atomically(&path, &cleaned, MODE, self.identity)
    }

    /// Copies the configuration into the data directory, as `NAME.backup`: a base backup then has it even where
    /// the files are kept elsewhere.
    ///
    /// # Errors
    /// When a copy cannot be written.
    pub fn save_copies(&self) -> Result<(), FileError> {
        for name in [CONF, BASE, HBA, IDENT] {
            if let Ok(text) = fs::read_to_string(self.settings.config_dir().join(name)) {
                let copy = self.data(&format!("{name}.backup"));
                write_atomically(&copy, &text, MODE, self.identity)?;
            }
        }
        Ok(())
    }

    /// After a copy of the data was made: what is missing of the configuration is taken from what
    /// [`save_copies`](Self::save_copies) left in them.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn restore_copies(&self) -> Result<(), FileError> {
        for name in [CONF, BASE, HBA, IDENT] {
            let path = self.settings.config_dir().join(name);
            if path.exists() {
                continue;
            }
            match fs::read_to_string(self.data(&format!("{name}.backup"))) {
                Ok(text) => {
                    write_atomically(&path, &text, MODE, self.identity)?;
                }
                // The server refuses to start without one.
                Err(_) if name == IDENT => {
                    write_atomically(&path, "", MODE, self.identity)?;
                }
                Err(_) => {}
            }
        }
        Ok(())
    }
}

/// Says what about the sockets was changed, once, for the log.
pub(crate) fn warn_of_moved_sockets(settings: &ServerSettings) {
    let Some(value) = settings.parameter("unix_socket_directories") else { return };
    let sockets = SocketDirs::resolve(value, &settings.data_dir);
    for dir in &sockets.moved {
        tracing::warn!(
            configured = %dir.display(),
            used = %sockets.value(),
            "unix_socket_directories lies in the data directory, where a socket makes pg_rewind fail on \
             every node that rewinds to this one: the directory above is used"
        );
    }
}

/// The first of the server's socket directories that can be connected to; `None` where it has none that is configured.
#[must_use]
pub fn socket_dir(settings: &ServerSettings) -> Option<PathBuf> {
    let value = settings.parameter("unix_socket_directories")?;
    let absolute = |dir: &PathBuf| Path::is_absolute(dir);
    SocketDirs::resolve(value, &settings.data_dir).dirs.into_iter().find(absolute)
}
