//! Freeing the disk of what nobody needs: repositories that no image and no instance names go, and then the blobs that
//! were in no other.
//!
//! Who deletes an image, or moves its name, means it: that goes at once. What is unnamed for any other reason (an import
//! that broke off, a store that was lost) stays for thirty days, in which somebody may put it right. An uploaded file that
//! nobody names stays for an hour: its user has it still. The registry's own program removes blobs, and must not do so
//! while one is put: imports wait for it and it for them.

use super::files::{self, Wanted};
use super::{Registry, contents, repositories};
use crate::state::{Snapshot, State};
use anyhow::{Context, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};
use tokio_util::sync::CancellationToken;

/// How often one looks without being asked.
const OFTEN: Duration = Duration::from_secs(600);
/// What nobody has released stays unnamed for this long: as tombstones do, for hosts that come back with orphans.
const UNNAMED: Duration = Duration::from_secs(30 * 24 * 3600);
/// A file may be named this long after it was uploaded or asked for.
const UNNAMED_FILE: Duration = Duration::from_secs(3600);
/// The registry's program reads every manifest.
const LONGEST: Duration = Duration::from_secs(600);

/// PURE: the digests of the images that somebody still means.
pub fn needed(snapshot: &Snapshot) -> BTreeSet<String> {
    let images = snapshot.images.of(None).map(|row| row.object.spec.digest.clone());
    let instances = snapshot.instances.of(None).filter_map(|row| row.object.spec.resolved.clone());
    images.chain(instances.map(|imported| imported.digest)).collect()
}

/// PURE: the files that somebody still means.
pub fn files_in_use(snapshot: &Snapshot) -> BTreeSet<Wanted> {
    let instances = snapshot.instances.of(None).flat_map(|row| {
        let project = row.object.project.as_deref().unwrap_or_default();
        row.object.spec.files.values().map(move |file| (project, &file.digest))
    });
    let jobs = snapshot.jobs.of(None).flat_map(|row| {
        let project = row.object.project.as_deref().unwrap_or_default();
        row.object.spec.all_files().map(move |file| (project, &file.digest))
    });
    let logs = snapshot
        .job_status
        .iter()
        .filter_map(|((project, _), stored)| Some((project.as_str(), &stored.status.log.as_ref()?.digest)));
    instances.chain(jobs).chain(logs).filter_map(|(project, digest)| Wanted::parse(project, digest)).collect()
}

/// PURE: which of the files that are kept, each with its age, go now.
fn stale(kept: &[(Wanted, Duration)], in_use: &BTreeSet<Wanted>) -> Vec<Wanted> {
    let idle = kept.iter().filter(|(file, age)| *age >= UNNAMED_FILE && !in_use.contains(file));
    idle.map(|(file, _)| file.clone()).collect()
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
        let snapshot = state.snapshot();
        let doomed = doomed(&kept, &needed(&snapshot), &released, unnamed, Instant::now());
        let files = stale(&self.files()?, &files_in_use(&snapshot));
        let repositories = doomed.iter().map(|digest| folder.join(digest.trim_start_matches("sha256:")));
        for repository in repositories.chain(files.iter().map(|file| self.folder_of(file))) {
            std::fs::remove_dir_all(&repository).with_context(|| repository.display().to_string())?;
        }
        if !doomed.is_empty() || !files.is_empty() {
            self.collect().await?;
            let files: Vec<String> = files.iter().map(Wanted::path).collect();
            let (images, files) = (doomed.join(", "), files.join(", "));
            tracing::info!(images, files, "needed by nobody any more: removed");
        }
        // What is needed still is released anew, if ever, by who needs it.
        self.released().retain(|digest| kept.contains(digest) && !doomed.contains(digest));
        Ok(())
    }

    /// The files that the registry keeps, with their ages.
    fn files(&self) -> anyhow::Result<Vec<(Wanted, Duration)>> {
        let mut kept = Vec::new();
        for project in names(&repositories(&self.shared.folder, files::ALL))? {
            let folder = repositories(&self.shared.folder, files::ALL).join(&project);
            for hex in names(&folder)? {
                let Some(wanted) = Wanted::parse(&project, &format!("sha256:{hex}")) else { continue };
                let path = folder.join(&hex);
                let since = path.metadata().and_then(|data| data.modified());
                let since = since.with_context(|| path.display().to_string())?;
                // One from the future is new.
                kept.push((wanted, SystemTime::now().duration_since(since).unwrap_or_default()));
            }
        }
        Ok(kept)
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
    Ok(names(folder)?.into_iter().map(|hex| format!("sha256:{hex}")).collect())
}

/// What is in a folder; nothing where there is none.
fn names(folder: &Path) -> anyhow::Result<Vec<String>> {
    match std::fs::read_dir(folder) {
        Ok(entries) => entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<std::io::Result<_>>()
            .with_context(|| folder.display().to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| folder.display().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use enoki_api::file::FileRef;
    use enoki_api::instance::InstanceSpec;
    use enoki_api::object::Object;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_file_goes_an_hour_after_somebody_cared() {
        let digest = |pair: &str| format!("sha256:{}", pair.repeat(32));
        let (a, b) = (digest("aa"), digest("bb"));
        let mut world = Snapshot::default();
        let file = FileRef { digest: a.clone(), size: 1 };
        let spec = InstanceSpec { files: [("job.py".to_owned(), file)].into(), ..InstanceSpec::new("x") };
        world.seed_instance(Object::new(
            Some("p"),
            "driver",
            Default::default(),
            spec,
            jiff::Timestamp::UNIX_EPOCH,
        ));
        let in_use = files_in_use(&world);
        let wanted = |project: &str, digest: &str| Wanted::parse(project, digest).unwrap();
        assert_eq!(in_use, [wanted("p", &a)].into());
        let (young, old) = (UNNAMED_FILE - Duration::from_secs(1), UNNAMED_FILE);
        for (project, digest, age, goes) in [
            ("p", &a, old, false),
            ("p", &b, young, false),
            ("p", &b, old, true),
            // Named, and by another project's instance.
            ("q", &a, young, false),
            ("q", &a, old, true),
        ] {
            let gone = stale(&[(wanted(project, digest), age)], &in_use);
            assert_eq!(!gone.is_empty(), goes, "{project} {digest} {age:?}");
        }
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
