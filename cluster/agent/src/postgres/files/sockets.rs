//! Where the server's Unix sockets go.
//!
//! A socket inside a data directory breaks `pg_rewind`, of every node that wants to rewind to this one: from version 14
//! on it copies all that lies there, stumbles over the socket ("No such device or address"), and leaves its target half
//! rewound. `unix_socket_directories: '.'` is exactly that, and is found in many a `patroni.yml`. So such a directory is
//! replaced by the one above the data directory.

use std::path::{Component, Path, PathBuf};

/// The value for `unix_socket_directories`, with absolute paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketDirs {
    /// The directories; none where sockets are off.
    pub dirs: Vec<PathBuf>,
    /// Those that lay in the data directory and were replaced by the one above it.
    pub moved: Vec<PathBuf>,
}

impl SocketDirs {
    /// Works out the directories of a configured value.
    #[must_use]
    pub fn resolve(value: &str, data_dir: &Path) -> Self {
        let (mut dirs, mut moved) = (Vec::new(), Vec::new());
        for entry in value.split(',') {
            let entry = entry.trim().trim_matches('"');
            if entry.is_empty() {
                continue;
            }
            // An abstract socket has no place in the file system.
            let dir = if entry.starts_with('@') {
                PathBuf::from(entry)
            } else {
                normal(&data_dir.join(entry))
            };
            let dir = match data_dir.parent() {
                Some(parent) if dir.starts_with(data_dir) => {
                    moved.push(dir);
                    parent.to_owned()
                }
                _ => dir,
            };
            if !dirs.contains(&dir) {
                dirs.push(dir);
            }
        }
        Self { dirs, moved }
    }

    /// The value.
    #[must_use]
    pub fn value(&self) -> String {
        let quoted = |dir: &PathBuf| {
            let text = dir.to_string_lossy();
            if text.contains([',', ' ', '"']) {
                format!("\"{}\"", text.replace('"', "\"\""))
            } else {
                text.into_owned()
            }
        };
        self.dirs.iter().map(quoted).collect::<Vec<_>>().join(", ")
    }
}

/// A path without `.` and `..`, by its words alone.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_the_data_directory_moves_up() {
        let data = Path::new("/var/lib/pg/data");
        for (value, dirs, moved) in [
            (".", "/var/lib/pg", 1),
            ("..", "/var/lib/pg", 0),
            ("./sock, /run/postgresql", "/var/lib/pg, /run/postgresql", 1),
            ("., ..", "/var/lib/pg", 1),
            ("/var/lib/pg/data2", "/var/lib/pg/data2", 0),
            ("@pg", "@pg", 0),
            ("", "", 0),
            ("\"/a b\"", "\"/a b\"", 0),
        ] {
            let sockets = SocketDirs::resolve(value, data);
            assert_eq!((sockets.value().as_str(), sockets.moved.len()), (dirs, moved), "{value}");
        }
    }
}
