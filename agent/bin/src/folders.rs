//! Folders that an image declares as volumes and does not hold: Docker makes them for the volumes that are dropped here, so the root
//! disk gets them instead, empty and root's.
//!
//! The root is the instance's, and whatever is in it may be a trap: no symbolic link is followed, so nothing outside is ever touched. A
//! folder that cannot be made that way (a link in its path, a full disk) is left out; it is no reason not to start.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

/// Makes each of `paths`, absolute inside `root`, where it is missing.
pub fn make(root: &Path, paths: &[String]) {
    for path in paths {
        if let Err(why) = make_one(root, Path::new(path)) {
            eprintln!("enoki: the folder {path} of an image's volume was not made: {why}");
        }
    }
}

fn make_one(root: &Path, path: &Path) -> io::Result<()> {
    let mut folder = open(root)?;
    for part in path.components() {
        let Component::Normal(name) = part else {
            if part == Component::RootDir {
                continue;
            }
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a plain absolute path"));
        };
        // Relative to the folder that is held open, whatever its path is by now.
        let next = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
        match fs::create_dir(&next) {
            Err(why) if why.kind() != io::ErrorKind::AlreadyExists => return Err(why),
            _ => folder = open(&next)?,
        }
    }
    Ok(())
}

fn open(folder: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_ones_are_made_and_no_link_is_followed() {
        let home = std::env::temp_dir().join(format!("enoki-folders-{}", std::process::id()));
        let (root, outside) = (home.join("root"), home.join("outside"));
        fs::create_dir_all(root.join("there")).expect("makes");
        fs::create_dir_all(&outside).expect("makes");
        fs::write(root.join("there/file"), "kept").expect("writes");
        std::os::unix::fs::symlink(&outside, root.join("link")).expect("links");
        let paths = ["/data", "/there", "/deep/er/", "/link/in", "/../up", "/there/file/x"];
        make(&root, &paths.map(String::from));
        assert!(root.join("data").is_dir() && root.join("deep/er").is_dir());
        assert_eq!(fs::read_to_string(root.join("there/file")).expect("reads"), "kept");
        assert_eq!(fs::read_dir(&outside).expect("lists").count(), 0);
        assert!(!home.join("up").exists());
        fs::remove_dir_all(&home).expect("removes");
    }
}
