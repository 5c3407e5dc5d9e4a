//! User data: a script of the user's, run as root at the instance's first boot.
//!
//! Once an instance, as cloud-init does it: when its result file exists, it is never run again. A run that was cut short (the machine or
//! the container ended) left no result, only the `.started` marker; it is run again at the next start and the log says so, because a
//! half-prepared machine is worse than a step done twice. Scripts that must not repeat a step say so themselves.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use crate::child;
use crate::options::UserData;

/// What to do at this start.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// None was given, or it has finished before.
    Nothing,
    /// `again`: an earlier run did not finish.
    Run { words: Vec<OsString>, again: bool },
    /// It is there but cannot be read.
    Unreadable(String),
}

impl UserData {
    pub fn next(&self) -> Next {
        if self.result.exists() || !self.script.exists() {
            return Next::Nothing;
        }
        match child::interpreted(&self.script) {
            Ok(words) => Next::Run { words, again: self.marker().exists() },
            Err(error) => Next::Unreadable(format!("{}: {error}", self.script.display())),
        }
    }

    /// Marks that a run has begun.
    pub fn begin(&self) -> io::Result<()> {
        File::create(self.marker())?.sync_all()
    }

    /// Keeps the exit code, durably and at once.
    pub fn finish(&self, code: u8) -> io::Result<()> {
        let temporary = suffixed(&self.result, ".new");
        let mut file = File::create(&temporary)?;
        writeln!(file, "{code}")?;
        file.sync_all()?;
        fs::rename(&temporary, &self.result)?;
        if let Some(dir) = self.result.parent() {
            File::open(dir)?.sync_all()?;
        }
        let _ = fs::remove_file(self.marker());
        Ok(())
    }

    fn marker(&self) -> PathBuf {
        suffixed(&self.result, ".started")
    }
}

fn suffixed(path: &std::path::Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_and_again_only_when_it_never_finished() {
        let dir = tempfile::tempdir().expect("a folder");
        let data = UserData { script: dir.path().join("script"), result: dir.path().join("code") };
        assert_eq!(data.next(), Next::Nothing);
        fs::write(&data.script, "#!/bin/x y\n").expect("writes");
        let words = vec!["/bin/x".into(), "y".into(), data.script.clone().into()];
        assert_eq!(data.next(), Next::Run { words: words.clone(), again: false });
        data.begin().expect("marks");
        assert_eq!(data.next(), Next::Run { words, again: true });
        data.finish(137).expect("keeps");
        assert_eq!(data.next(), Next::Nothing);
        assert_eq!(fs::read_to_string(&data.result).expect("the code"), "137\n");
        let left: Vec<_> = fs::read_dir(dir.path()).expect("the folder").collect();
        assert_eq!(left.len(), 2, "script and code alone: {left:?}");
    }
}
