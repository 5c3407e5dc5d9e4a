//! Uploaded files on this host: each once, by its digest, and linked into a folder of each instance that names it.
//!
//! ```text
//!  registry ─▶ server ─▶ files/HEX.part ─▶ files/HEX (synced, never written again) ─▶ instances/UID/job/NAME
//! ```
//! A file counts when all of it is here and has its digest; what broke off is begun anew. The links keep the bytes for
//! as long as the instance's folder is there, whatever becomes of the servers and of `files`. Instances see the folder
//! read-only and cannot change that: one that could would write to everybody's.

use crate::disk::Disks;
use crate::flights::Flights;
use crate::ledger::file;
use crate::session::socket::Dialer;
use enoki_api::error::Problem;
use enoki_api::file::{FileRef, hex};
use enoki_api::protocol::FILES_PATH;
use enoki_api::quantity::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

/// An answer's head from the server. It waits for its registry, and for other servers.
const ANSWER: Duration = Duration::from_secs(20);
/// Between two pieces of a file.
const STALL: Duration = Duration::from_secs(20);
const REFUSAL_MAX: usize = 4 << 10;
/// What is not named is left alone for so long: somebody may be about to be told to use it.
const FRESH: Duration = Duration::from_secs(60);
const PART: &str = "part";

/// The files that are here, and the way to those that are not. Cheap to clone.
#[derive(Clone)]
pub struct Delivery {
    folder: PathBuf,
    dialer: Dialer,
    /// Whose room it is that files take.
    disks: Disks,
    flights: Flights,
}

/// Whether all of these are in the folder of an instance, as they are to be. Blocks.
pub fn is_whole(files: &BTreeMap<String, FileRef>, job: &Path) -> io::Result<bool> {
    for (name, file) in files {
        if length(&job.join(name))? != Some(file.size) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// None: it is not there, or no file.
fn length(path: &Path) -> io::Result<Option<u64>> {
    match fs::symlink_metadata(path) {
        Ok(data) => Ok(data.is_file().then_some(data.len())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl Delivery {
    /// `folder`: where files are kept; made when missing.
    pub fn new(folder: &Path, dialer: Dialer, disks: Disks) -> io::Result<Self> {
        file::folder(folder)?;
        Ok(Delivery { folder: folder.to_owned(), dialer, disks, flights: Flights::default() })
    }

    /// Makes these files of a project be in `job`, the folder of an instance, whole; what is missing is fetched.
    ///
    /// # Errors
    /// Which file could not be had, from where, and why; those before it are here, and the next try goes on.
    pub async fn deliver(
        &self,
        project: &str,
        files: &BTreeMap<String, FileRef>,
        job: &Path,
    ) -> Result<(), String> {
        for (name, file) in files {
            let brought = match hex(&file.digest) {
                None => Err(format!("`{}` is no digest", file.digest)),
                Some(hex) => self.flights.alone(hex, self.bring(project, file, hex)).await,
            };
            let blob = brought.map_err(|why| format!("file {name} ({}) is not here: {why}", file.digest))?;
            let (job, name) = (job.to_owned(), name.clone());
            let linked =
                tokio::task::spawn_blocking(move || link(&blob, &job, &name).map_err(|why| (name, why)));
            match linked.await {
                Ok(Ok(())) => {}
                Ok(Err((name, why))) => {
                    return Err(format!("file {name} cannot be put into its folder: {why}"));
                }
                Err(why) => return Err(why.to_string()),
            }
        }
        Ok(())
    }

    async fn bring(&self, project: &str, file: &FileRef, hex: &str) -> Result<PathBuf, String> {
        let blob = self.folder.join(hex);
        if length(&blob).map_err(|why| why.to_string())? == Some(file.size) {
            return Ok(blob);
        }
        self.disks.claim(Bytes(file.size)).await.map_err(|why| why.to_string())?;
        let part = blob.with_extension(PART);
        let digest = self.fetch(project, file, &part).await?;
        if digest != hex {
            return Err(format!("what the server gave is sha256:{digest}"));
        }
        fs::set_permissions(&part, fs::Permissions::from_mode(0o644))
            .and_then(|()| fs::rename(&part, &blob))
            .and_then(|()| file::sync_folder(&blob))
            .map_err(|why| format!("{}: {why}", blob.display()))?;
        Ok(blob)
    }

    /// Writes it to `part`, synced. Gives the digest of what came.
    async fn fetch(&self, project: &str, file: &FileRef, part: &Path) -> Result<String, String> {
        let kept = |why: io::Error| format!("{}: {why}", part.display());
        let answer = self.ask(&format!("{FILES_PATH}/{project}/{}", file.digest)).await?;
        let mut out = tokio::fs::File::create(part).await.map_err(kept)?;
        let (mut body, mut hasher, mut length) = (answer.into_body(), Sha256::new(), 0);
        loop {
            let frame =
                timeout(STALL, body.frame()).await.map_err(|_| format!("nothing came for {STALL:?}"))?;
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|why| format!("it broke off after {length} bytes: {why}"))?;
            let Ok(piece) = frame.into_data() else { continue };
            length += piece.len() as u64;
            if length > file.size {
                return Err(format!("the server gave more than its {} bytes", file.size));
            }
            hasher.update(&piece);
            out.write_all(&piece).await.map_err(kept)?;
        }
        out.flush().await.map_err(kept)?;
        out.sync_data().await.map_err(kept)?;
        Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    async fn ask(&self, path: &str) -> Result<Response<Incoming>, String> {
        let mut request = Request::new(Full::default());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = path.parse().map_err(|why| format!("{path}: {why}"))?;
        let late = |_| format!("no server gives it: no answer within {ANSWER:?}");
        let answer = timeout(ANSWER, self.dialer.request(request)).await.map_err(late)?;
        let answer = answer.map_err(|why| format!("no server gives it: {why}"))?;
        let status = answer.status();
        if status == StatusCode::OK {
            return Ok(answer);
        }
        let text = timeout(ANSWER, Limited::new(answer.into_body(), REFUSAL_MAX).collect()).await;
        let text =
            text.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let words = serde_json::from_slice::<Problem>(&text).map(|problem| problem.to_string());
        Err(format!("the server answered {status}: {}", words.unwrap_or_default()))
    }

    /// Removes what none of these files is. Blocks.
    pub fn prune<'a>(&self, named: impl Iterator<Item = &'a FileRef>) -> io::Result<()> {
        let named: BTreeSet<&str> = named.filter_map(|file| hex(&file.digest)).collect();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let hex = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            let age = SystemTime::now().duration_since(path.metadata()?.modified()?).unwrap_or_default();
            if !named.contains(hex) && age >= FRESH {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }
}

/// Makes it be there under this name.
fn link(blob: &Path, job: &Path, name: &str) -> io::Result<()> {
    fs::create_dir_all(job)?;
    // For whatever user the instance's program is, whatever the agent's umask.
    fs::set_permissions(job, fs::Permissions::from_mode(0o755))?;
    match fs::hard_link(blob, job.join(name)) {
        // All that is put here is whole, and a name has one content for ever; what has not was put by somebody else.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let same = fs::symlink_metadata(job.join(name))?.len() == fs::metadata(blob)?.len();
            if same {
                return Ok(());
            }
            fs::remove_file(job.join(name))?;
            fs::hard_link(blob, job.join(name))
        }
        done => done,
    }
}
