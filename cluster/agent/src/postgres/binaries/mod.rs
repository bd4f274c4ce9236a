//! PostgreSQL's programs: where they are, what version they are, and running them to their end.

mod tool;
mod version;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use tool::{Tool, scrub_for_server};
pub use tool::{ToolError, ToolFailure};
pub use version::{NEWEST, OLDEST, Version};

use super::process::Identity;

/// Where Debian's packages put each major version's programs.
const PACKAGED: &str = "/usr/lib/postgresql";

/// PostgreSQL's programs of one version.
#[derive(Debug, Clone)]
pub struct Binaries {
    dir: PathBuf,
    version: Version,
}

/// Why there are no programs to work with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BinariesError {
    /// None was found.
    #[error(
        "no program `postgres` in {looked}: install the package postgresql, or set bin_dir to the directory it is in"
    )]
    NotFound {
        /// Where it was looked for.
        looked: String,
    },
    /// It cannot be run.
    #[error("cannot ask {} for its version: {source}", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: ToolError,
    },
    /// Its answer makes no sense.
    #[error("{} -V answers {answer:?}, which names no version", program.display())]
    Strange {
        /// The program.
        program: PathBuf,
        /// What it said.
        answer: String,
    },
    /// It is too old.
    #[error("{} is PostgreSQL {version}; the agent works with {OLDEST} and later", dir.display())]
    TooOld {
        /// Where it is.
        dir: PathBuf,
        /// What it is.
        version: Version,
    },
    /// The data were made by another major version.
    #[error(
        "the data in {} are of PostgreSQL {data}, the programs in {} of {programs}: set bin_dir to version {data}'s, or upgrade the data with pg_upgrade",
        data_dir.display(), dir.display()
    )]
    OtherMajor {
        /// The data directory.
        data_dir: PathBuf,
        /// Its version.
        data: u32,
        /// Where the programs are.
        dir: PathBuf,
        /// Their version.
        programs: Version,
    },
}

impl Binaries {
    /// Finds the programs: in `bin_dir`; where it is not set, those of the data's own version, else in the PATH, else
    /// the newest that Debian's packages have put below `/usr/lib/postgresql`.
    ///
    /// # Errors
    /// When there are none, or they are too old, or of another major version than the data.
    pub async fn find(
        bin_dir: Option<&Path>,
        data_dir: &Path,
        identity: &Identity,
    ) -> Result<Self, BinariesError> {
        let data = data_version(data_dir);
        let dir = match bin_dir {
            Some(dir) => dir.join("postgres").is_file().then(|| dir.to_owned()),
            None => search(data),
        };
        let dir = dir.ok_or_else(|| BinariesError::NotFound {
            looked: match bin_dir {
                Some(dir) => format!("bin_dir ({})", dir.display()),
                None => format!("the PATH, nor below {PACKAGED}"),
            },
        })?;
        let program = dir.join("postgres");
        let output = Tool::new(&program, identity)
            .arg("-V")
            .deadline(Duration::from_secs(20))
            .run()
            .await
            .map_err(|source| BinariesError::Run { program: program.clone(), source })?;
        let version = Version::parse(&output.stdout)
            .ok_or(BinariesError::Strange { program, answer: output.stdout })?;
        if version.major < OLDEST {
            return Err(BinariesError::TooOld { dir, version });
        }
        if version.major > NEWEST {
            tracing::warn!(%version, newest = NEWEST, "this PostgreSQL is newer than any the agent was written for");
        }
        let found = Self { dir, version };
        found.check_data(data_dir)?;
        Ok(found)
    }

    /// Their version.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Where they are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// One of them.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Checks that data, where there are any, are of this major version.
    ///
    /// # Errors
    /// When they are of another.
    pub fn check_data(&self, data_dir: &Path) -> Result<(), BinariesError> {
        match data_version(data_dir) {
            Some(data) if data != self.version.major => Err(BinariesError::OtherMajor {
                data_dir: data_dir.to_owned(),
                data,
                dir: self.dir.clone(),
                programs: self.version,
            }),
            _ => Ok(()),
        }
    }
}

/// The major version of the data in a directory; `None` where there are none.
#[must_use]
pub fn data_version(data_dir: &Path) -> Option<u32> {
    let text = std::fs::read_to_string(data_dir.join("PG_VERSION")).ok()?;
    Version::parse_number(text.trim()).map(|version| version.major)
}

fn search(data: Option<u32>) -> Option<PathBuf> {
    let has_postgres = |dir: &PathBuf| dir.join("postgres").is_file();
    if let Some(major) = data {
        let dir = PathBuf::from(format!("{PACKAGED}/{major}/bin"));
        if has_postgres(&dir) {
            return Some(dir);
        }
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(dir) = std::env::split_paths(&path).find(has_postgres) {
        // A link such as /usr/bin/postgres has none of the other programs beside it.
        let real = dir.join("postgres").canonicalize().ok();
        return real.and_then(|p| Some(p.parent()?.to_owned())).or(Some(dir));
    }
    let installed = std::fs::read_dir(PACKAGED).into_iter().flatten().flatten();
    installed
        .filter_map(|entry| {
            let major = entry.file_name().to_str()?.parse::<u32>().ok()?;
            Some((major, entry.path().join("bin")))
        })
        .filter(|(_, dir)| has_postgres(dir))
        .max()
        .map(|(_, dir)| dir)
}
