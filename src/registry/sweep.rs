//! Freeing the disk of what nobody needs: repositories that no image and no instance names go, and then the blobs that
//! were in no other.
//!
//! Who deletes an image, or moves its name, means it: that goes at once. What is unnamed for any other reason (an import
//! that broke off, a store that was lost) stays for thirty days, in which somebody may put it right. The registry's own
//! program removes blobs, and must not do so while one is put: imports wait for it and it for them.

use super::{Registry, contents};
use crate::state::{Snapshot, State};
use anyhow::{Context, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// How often one looks without being asked.
const OFTEN: Duration = Duration::from_secs(600);
/// What nobody has released stays unnamed for this long: as tombstones do, for hosts that come back with orphans.
const UNNAMED: Duration = Duration::from_secs(30 * 24 * 3600);
/// The registry's program reads every manifest.
const LONGEST: Duration = Duration::from_secs(600);

/// PURE: the digests of the images that somebody still means.
pub fn needed(snapshot: &Snapshot) -> BTreeSet<String> {
    let images = snapshot.images.of(None).map(|row| row.object.spec.digest.clone());
    let instances = snapshot.instances.of(None).filter_map(|row| row.object.spec.resolved.clone());
    images.chain(instances.map(|imported| imported.digest)).collect()
}

/// PURE: which of what is kept goes now. `unnamed`: since when each is needed by nobody; kept up to date here.
fn doomed(
    kept: &BTreeSet<String>,
    needed: &BTreeSet<String>,
    released: &BTreeSet<String>,
    unnamed: &mut BTreeMap<String, Instant>,
    now: Instant,
) -> Vec<String> {
    unnamed.retain(|digest, _| kept.contains(digest) && !needed.contains(digest));
    let idle = kept.difference(needed);
    idle.filter(|digest| {
        let since = *unnamed.entry((*digest).clone()).or_insert(now);
        released.contains(*digest) || now.duration_since(since) >= UNNAMED
    })
    .cloned()
    .collect()
}

impl Registry {
    /// A name was taken from this image, on somebody's word: where nobody else means it, it goes.
    pub fn release(&self, digest: &str) {
        self.released().insert(digest.to_owned());
        self.shared.nudged.notify_one();
    }

    /// It is imported again.
    pub(super) fn reclaim(&self, digest: &str) {
        self.released().remove(digest);
    }

    fn released(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.shared.released.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Frees the disk until `stop`, once the store was read.
    pub async fn tend(&self, state: &State, stop: &CancellationToken) {
        let mut unnamed = BTreeMap::new();
        while !stop.is_cancelled() {
            if state.reached(0, OFTEN).await
                && let Err(error) = self.sweep(state, &mut unnamed).await
            {
                tracing::warn!(error = format!("{error:#}"), "the registry's disk is not freed");
            }
            // Cancel-safe: a nudge that came meanwhile is kept.
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.shared.nudged.notified() => {}
                () = tokio::time::sleep(OFTEN) => {}
            }
        }
    }

    async fn sweep(&self, state: &State, unnamed: &mut BTreeMap<String, Instant>) -> anyhow::Result<()> {
        let _alone = self.shared.sweeping.write().await;
        let folder = contents(&self.shared.folder);
        let kept = digests(&folder)?;
        let released = self.released().clone();
        // Looked at while no import is under way: what was put is named by now.
        let doomed = doomed(&kept, &needed(&state.snapshot()), &released, unnamed, Instant::now());
        for digest in &doomed {
            let repository = folder.join(digest.trim_start_matches("sha256:"));
            std::fs::remove_dir_all(&repository).with_context(|| repository.display().to_string())?;
        }
        if !doomed.is_empty() {
            self.collect().await?;
            tracing::info!(images = doomed.join(", "), "needed by nobody any more: removed");
        }
        // What is needed still is released anew, if ever, by who needs it.
        self.released().retain(|digest| kept.contains(digest) && !doomed.contains(digest));
        Ok(())
    }

    /// Has the registry's program remove the blobs that are in no repository.
    async fn collect(&self) -> anyhow::Result<()> {
        let run = tokio::process::Command::new("docker-registry")
            .arg("garbage-collect")
            .arg(&self.shared.configuration)
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(LONGEST, run)
            .await
            .context("docker-registry garbage-collect did not end in time")?
            .context("cannot run docker-registry")?;
        if !output.status.success() {
            bail!("docker-registry garbage-collect: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }
}

/// The images that the registry keeps; none where it has not kept any yet.
fn digests(folder: &Path) -> anyhow::Result<BTreeSet<String>> {
    match std::fs::read_dir(folder) {
        Ok(entries) => entries
            .map(|entry| Ok(format!("sha256:{}", entry?.file_name().to_string_lossy())))
            .collect::<std::io::Result<_>>()
            .with_context(|| folder.display().to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error).with_context(|| folder.display().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_is_released_goes_at_once_and_the_rest_after_thirty_days() {
        let (begin, mut unnamed) = (Instant::now(), BTreeMap::new());
        let kept = set(&["named", "released", "both", "torn"]);
        let released = set(&["released", "both"]);
        let needed = set(&["named", "both"]);
        let mut at = |needed: &BTreeSet<String>, days: u64| {
            let now = begin + Duration::from_secs(days * 24 * 3600);
            doomed(&kept, needed, &released, &mut unnamed, now)
        };
        assert_eq!(at(&needed, 0), ["released"]);
        assert_eq!(at(&needed, 29), ["released"]);
        assert_eq!(at(&needed, 30), ["released", "torn"]);
        // The last instance on it is gone: its name had been taken away before.
        assert_eq!(at(&set(&["named"]), 30), ["both", "released", "torn"]);
        // Named again in between: its days begin anew.
        assert_eq!(at(&set(&["named", "both", "torn"]), 31), ["released"]);
        assert_eq!(at(&needed, 32), ["released"]);
    }
}
