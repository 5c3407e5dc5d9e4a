//! The log files of the services, bounded in size.
//!
//! A service writes to its file directly, not through a pipe: a pipe would block it, or kill it, when its reader dies.
//! All files are opened for appending, so the supervisor can empty one under a running service: the tail is kept as `.1`.
//! Lines written in the instant between copying and emptying are lost; these are diagnostics, not records.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A log takes twice this at most.
pub const MAX_BYTES: u64 = 16 << 20;

pub fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

/// Moves a log over the limit aside. A log that is not there is within it.
pub fn bound(path: &Path, max: u64) -> std::io::Result<()> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.len() > max => {}
        Ok(_) => return Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    }
    let mut log = OpenOptions::new().read(true).write(true).open(path)?;
    let length = log.metadata()?.len();
    // What came in faster than the limit is looked at is cut: the newest lines are the interesting ones.
    log.seek(SeekFrom::Start(length.saturating_sub(max)))?;
    let mut old = OpenOptions::new().create(true).write(true).truncate(true).mode(0o640).open(older(path))?;
    std::io::copy(&mut (&log).take(max), &mut old)?;
    log.set_len(0)
}

/// Where the previous part of a log is kept.
pub fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

/// The last lines of a log, for an error message; empty when there is none.
pub fn tail(path: &Path, lines: usize) -> String {
    let Ok(mut log) = File::open(path) else {
        return String::new();
    };
    let length = log.metadata().map_or(0, |m| m.len());
    let mut bytes = Vec::new();
    if log.seek(SeekFrom::Start(length.saturating_sub(16 << 10))).is_err()
        || log.read_to_end(&mut bytes).is_err()
    {
        return String::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_log_is_bounded_under_its_writer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.log");
        bound(&path, 10).unwrap();
        let mut writer = open(&path).unwrap();
        writer.write_all(b"0123456789").unwrap();
        bound(&path, 10).unwrap();
        assert!(!older(&path).exists());
        writer.write_all(b"ab\nlast\n").unwrap();
        assert_eq!(tail(&path, 1), "last");
        bound(&path, 10).unwrap();
        assert_eq!(std::fs::read_to_string(older(&path)).unwrap(), "89ab\nlast\n");
        writer.write_all(b"next\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "next\n");
        assert_eq!(tail(&folder.path().join("none"), 3), "");
    }
}
