//! Opens files in folders that an instance's root can write to.
//!
//! Whoever is root inside may have put a link to the host's secrets, a pipe or a device where a file was. So no link
//! is followed, nothing outside the folder is reached, and only regular files are opened.

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

fn how(flags: OFlag, mode: Mode) -> OpenHow {
    OpenHow::new()
        // Not blocking: the open of a pipe would wait for its writer for ever.
        .flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
        .mode(mode)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS)
}

/// A folder that is ours; only what is in it is not.
pub fn folder(path: &Path) -> io::Result<OwnedFd> {
    Ok(File::open(path)?.into())
}

/// A regular file beneath `folder`, for reading.
pub fn open(folder: impl AsFd, name: &str) -> io::Result<File> {
    let file = File::from(openat2(folder, name, how(OFlag::O_RDONLY, Mode::empty()))?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is not a regular file")));
    }
    Ok(file)
}

/// Its first `most` bytes.
pub fn read(folder: impl AsFd, name: &str, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(folder, name)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Puts a new file in the place of whatever had the name.
pub fn replace(folder: impl AsFd, name: &str, bytes: &[u8]) -> io::Result<()> {
    match unlinkat(folder.as_fd(), name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    // Exclusive: what an instance puts there in between is not written through.
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
    let mut file = File::from(openat2(folder, name, how(flags, Mode::S_IRWXU))?);
    file.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_outside_is_reached() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("in");
        std::fs::create_dir(&inside).unwrap();
        std::fs::write(dir.path().join("secret"), "s").unwrap();
        std::fs::write(inside.join("plain"), "p").unwrap();
        symlink(dir.path().join("secret"), inside.join("file")).unwrap();
        symlink(dir.path(), inside.join("log")).unwrap();
        nix::unistd::mkfifo(&inside.join("pipe"), Mode::S_IRWXU).unwrap();
        let fd = folder(&inside).unwrap();
        assert_eq!(read(&fd, "plain", 10).unwrap(), b"p");
        replace(&fd, "file", b"new").unwrap();
        assert_eq!(read(&fd, "file", 10).unwrap(), b"new");
        assert_eq!(std::fs::read(dir.path().join("secret")).unwrap(), b"s");
        assert!(replace(&fd, "../secret", b"new").is_err());
        symlink(dir.path().join("secret"), inside.join("link")).unwrap();
        for name in ["link", "log/secret", "../secret", "pipe", "/etc/passwd", "missing"] {
            assert!(open(&fd, name).is_err(), "{name}");
        }
    }
}
