//! Whom PostgreSQL runs as, and whose the data directory is.
//!
//! PostgreSQL refuses to run as root. Where the agent is root (as in most containers), it starts every program of
//! PostgreSQL through `setpriv`, which takes on the account, its groups and no capabilities, and then *becomes* the
//! program: the process id stays that of the agent's direct child. An ordinary agent runs them as itself.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::postgres::error::FileError;

/// The account that PostgreSQL's programs run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    user: String,
    uid: u32,
    gid: u32,
    home: Option<String>,
    drop_privileges: bool,
}

/// Why PostgreSQL cannot be run as anybody.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// There is no such account.
    #[error(
        "PostgreSQL is to run as the user {0:?}, and there is none: install the package postgresql, or name another user"
    )]
    NoSuchUser(String),
    /// The account is root's.
    #[error("PostgreSQL refuses to run as root, and the user {0:?} is root: name another user")]
    Root(String),
    /// An ordinary user cannot become another.
    #[error(
        "PostgreSQL is to run as {wanted:?}, but the agent runs as uid {own} and only root can become another user: run the agent as root or as {wanted:?}"
    )]
    NotRoot {
        /// The account that was asked for.
        wanted: String,
        /// Whom the agent runs as.
        own: u32,
    },
    /// The account database cannot be asked.
    #[error("cannot look up the user {user:?} (by getent): {source}")]
    Lookup {
        /// The account that was asked for.
        user: String,
        /// Why.
        source: std::io::Error,
    },
}

/// Why a directory cannot be the data directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataDirError {
    /// It cannot be looked at, made or changed.
    #[error(transparent)]
    File(#[from] FileError),
    /// Something that is no directory has its name.
    #[error("the data directory {} is not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// It belongs to somebody else and has something in it.
    #[error(
        "the data directory {} belongs to uid {owner}, but PostgreSQL runs as {user} (uid {uid}): if its content is this server's, `chown -R {user}` it; it was not touched",
        path.display()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Whom PostgreSQL runs as.
        user: String,
        /// The same as a number.
        uid: u32,
    },
    /// The account cannot get there.
    #[error(
        "the user {user} cannot enter {}, which the data directory lies under: `chmod o+x` it, or choose another place",
        dir.display()
    )]
    Unreachable {
        /// The directory that shuts it out.
        dir: PathBuf,
        /// Whom PostgreSQL runs as.
        user: String,
    },
}

impl Identity {
    /// Finds the account: where the agent is root, `os_user` (or `postgres`); otherwise the agent's own, and
    /// `os_user` may only name that one.
    ///
    /// # Errors
    /// When there is no such account, or the agent cannot take it on.
    pub fn resolve(os_user: Option<&str>) -> Result<Self, IdentityError> {
        let own = rustix::process::geteuid();
        let wanted = match os_user {
            Some(user) => user.to_owned(),
            None if own.is_root() => "postgres".to_owned(),
            None => own.as_raw().to_string(),
        };
        let found = passwd_entry(&wanted)
            .map_err(|source| IdentityError::Lookup { user: wanted.clone(), source })?;
        let Some((user, uid, gid, home)) = found else {
            if os_user.is_none() && !own.is_root() {
                // A uid without an entry, as some container platforms hand out.
                let gid = rustix::process::getegid().as_raw();
                let (user, uid) = (wanted, own.as_raw());
                return Ok(Self { user, uid, gid, home: None, drop_privileges: false });
            }
            return Err(IdentityError::NoSuchUser(wanted));
        };
        if uid == 0 {
            return Err(IdentityError::Root(user));
        }
        if !own.is_root() && own.as_raw() != uid {
            return Err(IdentityError::NotRoot { wanted: user, own: own.as_raw() });
        }
        Ok(Self { user, uid, gid, home: Some(home), drop_privileges: own.is_root() })
    }

    /// The account's name.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The account's number.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.uid
    }

    pub(crate) fn home(&self) -> Option<&str> {
        self.home.as_deref().filter(|_| self.drop_privileges)
    }

    /// What stands before a program so that it runs as this account; nothing where the agent is that account.
    /// With `die_with_us` the program is killed when the agent dies.
    pub(crate) fn prefix(&self, die_with_us: bool) -> Vec<OsString> {
        let mut words: Vec<OsString> = Vec::new();
        if self.drop_privileges {
            let (uid, gid) = (self.uid.to_string(), self.gid.to_string());
            words.extend(["--reuid".into(), uid.into(), "--regid".into(), gid.into()]);
            words.extend(["--init-groups".into(), "--inh-caps=-all".into()]);
        }
        if die_with_us {
            words.extend(["--pdeathsig".into(), "KILL".into()]);
        }
        if !words.is_empty() {
            words.insert(0, "setpriv".into());
            words.push("--".into());
        }
        words
    }

    /// Gives a file or directory to the account, where the agent is root.
    ///
    /// # Errors
    /// When the owner cannot be changed.
    pub fn own(&self, path: &Path) -> Result<(), FileError> {
        if self.drop_privileges {
            chown(path, Some(self.uid), Some(self.gid))
                .map_err(|e| FileError::new("change the owner of", path, e))?;
        }
        Ok(())
    }

    /// Makes the data directory where there is none, owned by the account and closed to all others; an existing one
    /// is closed, and given to the account if it is empty.
    ///
    /// # Errors
    /// When that cannot be done, or it belongs to somebody else.
    pub fn prepare_data_dir(&self, path: &Path) -> Result<(), DataDirError> {
        match fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let mut builder = fs::DirBuilder::new();
                builder.recursive(true);
                if let Some(parent) = path.parent() {
                    // Parents are made as `mkdir -p` makes them; only the directory itself is closed.
                    builder.create(parent).map_err(|e| FileError::new("create", parent, e))?;
                }
                fs::DirBuilder::new()
                    .mode(0o700)
                    .create(path)
                    .map_err(|e| FileError::new("create", path, e))?;
                self.own(path)?;
            }
            Err(error) => return Err(FileError::new("look at", path, error).into()),
            Ok(meta) if !meta.is_dir() => return Err(DataDirError::NotADirectory(path.to_owned())),
            Ok(meta) => {
                if meta.uid() != self.uid {
                    let empty = fs::read_dir(path)
                        .map_err(|e| FileError::new("read", path, e))?
                        .next()
                        .is_none();
                    if !empty || !self.drop_privileges {
                        return Err(DataDirError::Foreign {
                            path: path.to_owned(),
                            owner: meta.uid(),
                            user: self.user.clone(),
                            uid: self.uid,
                        });
                    }
                    self.own(path)?;
                }
                // PostgreSQL also accepts 0750 (initdb --allow-group-access); anything wider it refuses.
                if meta.mode() & 0o027 != 0 || meta.mode() & 0o700 != 0o700 {
                    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
                        .map_err(|e| FileError::new("change the mode of", path, e))?;
                }
            }
        }
        self.check_can_reach(path)
    }

    fn check_can_reach(&self, path: &Path) -> Result<(), DataDirError> {
        for dir in path.ancestors().skip(1) {
            let Ok(meta) = dir.metadata() else { continue };
            let may = if meta.uid() == self.uid {
                meta.mode() & 0o100
            } else if meta.gid() == self.gid {
                meta.mode() & 0o010
            } else {
                meta.mode() & 0o001
            };
            // A group that is not the primary one may still open it; only the plain case is certain.
            if may == 0 && meta.mode() & 0o010 == 0 && self.drop_privileges {
                let user = self.user.clone();
                return Err(DataDirError::Unreachable { dir: dir.to_owned(), user });
            }
        }
        Ok(())
    }
}

/// Name, uid, gid and home, by name or number. `getent` knows all sources that the system is set up for.
fn passwd_entry(user: &str) -> std::io::Result<Option<(String, u32, u32, String)>> {
    let output = Command::new("getent").args(["passwd", "--", user]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let fields: Vec<&str> = text.trim().split(':').collect();
    let [name, _, uid, gid, _, home, ..] = fields[..] else { return Ok(None) };
    let (Ok(uid), Ok(gid)) = (uid.parse(), gid.parse()) else { return Ok(None) };
    Ok(Some((name.to_owned(), uid, gid, home.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_never_taken() {
        let error = Identity::resolve(Some("root")).unwrap_err();
        assert!(matches!(error, IdentityError::Root(_)), "{error}");
        let error = Identity::resolve(Some("no-such-user-here")).unwrap_err().to_string();
        assert!(error.contains("no-such-user-here"), "{error}");
    }

    #[test]
    fn a_data_directory_is_made_closed_and_an_empty_one_taken_over() {
        let identity = Identity::resolve(None).unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let data = dir.path().join("a/b/data");
        identity.prepare_data_dir(&data).unwrap();
        let meta = fs::metadata(&data).unwrap();
        assert_eq!((meta.mode() & 0o777, meta.uid()), (0o700, identity.uid()));
        fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
        identity.prepare_data_dir(&data).unwrap();
        assert_eq!(fs::metadata(&data).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_strangers_directory_is_refused_and_not_touched() {
        let identity = Identity::resolve(None).unwrap();
        if !identity.drop_privileges {
            return; // Only root can make a directory that is a stranger's.
        }
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(dir.path().join("theirs"), "x").unwrap();
        let error = identity.prepare_data_dir(dir.path()).unwrap_err();
        assert!(matches!(error, DataDirError::Foreign { owner: 0, .. }), "{error}");
        assert_eq!(fs::metadata(dir.path()).unwrap().uid(), 0);
    }

    #[test]
    fn a_directory_that_shuts_the_account_out_is_named() {
        let identity = Identity::resolve(None).unwrap();
        if !identity.drop_privileges {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let shut = dir.path().join("shut");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::DirBuilder::new().mode(0o700).create(&shut).unwrap();
        let error = identity.prepare_data_dir(&shut.join("data")).unwrap_err().to_string();
        assert!(error.contains("cannot enter") && error.contains("shut"), "{error}");
    }
}
