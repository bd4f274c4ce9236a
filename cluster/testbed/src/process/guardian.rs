//! The guardian: what sees to it that nothing is left when we die without a word.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

/// Waits for the end of its input, which comes however the parent ends, then kills whatever has no terminal and works
/// below DIR until nothing is left. It is told the directory, never a process id: those are reused.
const SCRIPT: &str = r#"
dir=$1; remove=$2
trap '' INT TERM HUP
while read -r line; do [ "$line" = dismissed ] && exit 0; done
round=0
while [ "$round" -lt 600 ]; do
  round=$((round + 1)); left=0
  for proc in /proc/[0-9]*; do
    cwd=$(readlink "$proc/cwd" 2>/dev/null) || continue
    case "$cwd" in "$dir"|"$dir"/*|"$dir (deleted)") ;; *) continue ;; esac
    read -r stat 2>/dev/null < "$proc/stat" || continue
    set -- ${stat##*) }
    [ "$1" = Z ] && continue
    [ "$5" = 0 ] || continue
    left=1
    kill -9 "${proc#/proc/}" 2>/dev/null
  done
  [ "$left" = 0 ] && break
  sleep 0.05
done
[ "$remove" = yes ] && rm -rf "$dir"
exit 0
"#;

/// Holds the guardian's input open for as long as we live.
#[derive(Debug)]
pub struct Guardian {
    child: Child,
    dir: PathBuf,
}

impl Guardian {
    /// Sets a guardian on `dir`; `remove` tells it to delete the directory after an unexpected end. It holds `lock` open
    /// for as long as it may still kill: no other cluster may begin in the directory before that.
    ///
    /// # Errors
    /// When `/bin/sh` cannot be started.
    pub fn set_on(dir: &Path, remove: bool, lock: &File) -> Result<Self> {
        let child = Command::new("setsid")
            .args(["/bin/sh", "-c", SCRIPT, "leaderpool-guardian"])
            .arg(dir)
            .arg(if remove { "yes" } else { "no" })
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(lock.try_clone()?)
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start the guardian (setsid /bin/sh)")?;
        Ok(Self { child, dir: dir.to_owned() })
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        use std::io::Write;
        // Only when all is swept: otherwise its input just ends and it does its work.
        if super::scan::under(&self.dir).is_empty()
            && let Some(mut input) = self.child.stdin.take()
        {
            let _ = input.write_all(b"dismissed\n");
        }
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
