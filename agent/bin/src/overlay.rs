//! The instance's root: one overlay of the image's layers and the instance's own upper directory.
//!
//! `index` and `metacopy` are off because the layers below change when the container is re-created from another image or with another
//! environment; with them the kernel refuses or misreads an upper directory that it met over other layers. `redirect_dir` is off for the
//! same reason: a renamed directory is copied (as with Docker) instead of pointing into a layer.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::Refusal;

/// What mount(2) copies of its options: one page, the last byte of which ends the text.
const PAGE: usize = 4096;

/// The call that mounts an overlay.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// The working directory to mount from, when the layers had to be shortened to fit a page.
    pub from: Option<PathBuf>,
    pub options: String,
}

/// Options for an overlay of `layers` (topmost first) under `upper`. All paths are absolute.
pub fn plan(layers: &[PathBuf], upper: &Path, work: &Path) -> Result<Plan, Refusal> {
    let upper = text(upper)?;
    let work = text(work)?;
    let texts = layers.iter().map(|p| text(p)).collect::<Result<Vec<_>, _>>()?;
    let options = |lower: &str| {
        format!("lowerdir={lower},upperdir={upper},workdir={work},index=off,metacopy=off,redirect_dir=off")
    };
    let whole = options(&texts.join(":"));
    if whole.len() < PAGE {
        return Ok(Plan { from: None, options: whole });
    }
    let base = common_parent(layers);
    let short = layers
        .iter()
        .map(|p| p.strip_prefix(&base).map_or_else(|_| text(p), text))
        .collect::<Result<Vec<_>, _>>()?;
    let short = options(&short.join(":"));
    if short.len() < PAGE {
        return Ok(Plan { from: Some(base), options: short });
    }
    Err(Refusal::new(format!(
        "the image has {} layers, whose names take {} bytes where the kernel takes {PAGE}: flatten the image",
        layers.len(),
        short.len()
    )))
}

/// Mounts the overlay at `at`. Changes the working directory for a moment: only for a process of one thread.
pub fn mount_at(plan: &Plan, at: &Path) -> Result<(), Refusal> {
    let before = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    if let Some(from) = &plan.from {
        std::env::set_current_dir(from)
            .map_err(|e| Refusal::new(format!("cannot enter {}: {e}", from.display())))?;
    }
    let mounted = mount(Some("enoki"), at, Some("overlay"), MsFlags::empty(), Some(plan.options.as_str()));
    if plan.from.is_some() {
        std::env::set_current_dir(&before)
            .map_err(|e| Refusal::new(format!("cannot go back to {}: {e}", before.display())))?;
    }
    mounted.map_err(|e| {
        Refusal::new(format!(
            "cannot mount the root disk at {}: {e}; the kernel log may tell more",
            at.display()
        ))
    })
}

/// Takes every mount off `at`, also one that somebody still looks at: it vanishes from the tree and ends with its last user.
pub fn unmount(at: &Path) -> Result<(), Refusal> {
    loop {
        let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
        match umount2(at, flags) {
            Ok(()) => {}
            // Not a mount point (any more), or not there at all.
            Err(nix::Error::EINVAL | nix::Error::ENOENT) => return Ok(()),
            Err(e) => {
                return Err(Refusal::new(format!("cannot unmount {}: {e}", at.display())));
            }
        }
    }
}

/// A path as mount options can tell it. The kernel could read the other characters escaped, but nothing of ours has them.
fn text(path: &Path) -> Result<&str, Refusal> {
    let refuse = || {
        Refusal::new(format!(
            "the path {path:?} has characters that overlay options cannot tell (comma, colon, backslash)"
        ))
    };
    path.to_str().filter(|t| !t.contains([',', ':', '\\'])).ok_or_else(refuse)
}

fn common_parent(paths: &[PathBuf]) -> PathBuf {
    let mut base = paths.first().and_then(|p| p.parent()).unwrap_or(Path::new("/")).to_owned();
    while !paths.iter().all(|p| p.starts_with(&base)) && base.pop() {}
    base
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(n: usize, dir: &str, leaf: &str) -> Vec<PathBuf> {
        (0..n).map(|i| PathBuf::from(format!("{dir}/{leaf}{i:03}"))).collect()
    }

    #[test]
    fn short_lists_stay_absolute() {
        let plan = plan(&layers(2, "/v/l", ""), Path::new("/u"), Path::new("/w")).expect("fits");
        assert_eq!(plan, Plan { from: None, options: "lowerdir=/v/l/000:/v/l/001,upperdir=/u,workdir=/w,index=off,metacopy=off,redirect_dir=off".into() });
    }

    #[test]
    fn as_many_layers_as_docker_allows_fit() {
        let all = layers(128, "/var/lib/docker/overlay2/l", "ABCDEFGHIJKLMNOPQRSTUVW");
        let upper = format!("/var/lib/enoki/disks/{}/fs/upper", "u".repeat(36));
        let plan = plan(&all, Path::new(&upper), Path::new(&upper)).expect("fits");
        assert_eq!(plan.from.as_deref(), Some(Path::new("/var/lib/docker/overlay2/l")));
        assert!(plan.options.len() < PAGE && plan.options.contains("lowerdir=ABCDEFGHIJKLMNOPQRSTUVW000:"));
    }

    #[test]
    fn too_long_is_a_clear_refusal() {
        let why = plan(&layers(128, "/v", &"x".repeat(40)), Path::new("/u"), Path::new("/w"))
            .expect_err("too long")
            .0;
        assert!(why.contains("128 layers"), "{why}");
    }

    #[test]
    fn paths_that_options_cannot_tell() {
        for bad in ["/a,b", "/a:b", "/a\\b"] {
            assert!(plan(&[bad.into()], Path::new("/u"), Path::new("/w")).is_err());
            assert!(plan(&["/l".into()], Path::new(bad), Path::new("/w")).is_err());
        }
    }

    #[test]
    fn common_parents() {
        assert_eq!(common_parent(&["/a/b/1".into(), "/a/b/2".into()]), Path::new("/a/b"));
        assert_eq!(common_parent(&["/a/b/1".into(), "/a/c/2".into()]), Path::new("/a"));
        assert_eq!(common_parent(&["/a/1".into(), "/b".into()]), Path::new("/"));
    }
}
