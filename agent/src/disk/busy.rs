//! Who uses a disk or a volume: told by the mount tables of the processes themselves, not by any daemon.

use super::{Error, doing};
use crate::mounts::{Mount, table};
use enoki_api::object::Uid;
use std::collections::HashSet;
use std::fs;
use std::future::Future;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// A container's last processes are gone from the kernel only moments after Docker has told of its end.
const LINGER: Duration = Duration::from_secs(2);
const FIRST_LOOK: Duration = Duration::from_millis(5);
/// Each look reads a file of every process on the host.
const SLOWEST_LOOK: Duration = Duration::from_millis(160);

/// Tries again while something is in use, for as long as what ends anyway may take.
pub async fn outwait<T, F: Future<Output = Result<T, Error>>>(attempt: impl Fn() -> F) -> Result<T, Error> {
    let until = Instant::now() + LINGER;
    let mut pause = FIRST_LOOK;
    loop {
        match attempt().await {
            Err(Error::InUse(_)) if Instant::now() + pause < until => {}
            done => return done,
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(SLOWEST_LOOK);
    }
}

/// Why the root disk is in use. None: no container runs on it.
pub fn disk(uid: &Uid) -> Result<Option<String>, Error> {
    let part = format!("/disks/{uid}/");
    find(move |mount| {
        let upper = mount
            .options
            .split(',')
            .any(|option| option.strip_prefix("upperdir=").is_some_and(|path| path.contains(&part)));
        upper && mount.point == Path::new("/")
    })
}

/// Why the volume is in use.
pub fn volume(uid: &Uid) -> Result<Option<String>, Error> {
    let part = format!("/volumes/{uid}/data");
    find(move |mount| mount.root.to_string_lossy().ends_with(&part))
}

/// Looks through the mount namespaces of all processes but our own: a container lives in one of its own.
fn find(uses: impl Fn(&Mount) -> bool) -> Result<Option<String>, Error> {
    let proc = Path::new("/proc");
    let namespace = |pid: &str| fs::read_link(proc.join(pid).join("ns/mnt")).ok();
    let mut seen = HashSet::new();
    seen.extend(namespace("self"));
    for entry in fs::read_dir(proc).map_err(doing("list", proc))?.flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if !pid.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        // A process that ends while we look uses nothing.
        let Some(namespace) = namespace(&pid) else { continue };
        if !seen.insert(namespace.clone()) {
            continue;
        }
        let Ok(text) = fs::read_to_string(entry.path().join("mountinfo")) else {
            // Ended between the two looks: another process of its namespace may still be there.
            seen.remove(&namespace);
            continue;
        };
        if let Some(mount) = table(&text).iter().find(|mount| uses(mount)) {
            return Ok(Some(format!("process {pid} has it mounted at {}", mount.point.display())));
        }
    }
    Ok(None)
}
