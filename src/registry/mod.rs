//! Imported images and uploaded files: into the registry once, and from there to every host that needs them, by digest.
//!
//! ```text
//!  enoki image import ─▶ upload ─▶ archive (pure) ─▶ blobs, manifest ─▶ docker-registry ─▶ the image's spec names the digest
//!                                                                            │
//!  dockerd ─▶ agent (loopback) ─▶ our server: who may (pull) ────────────────┘
//! ```
//! The registry is Debian's `docker-registry`, on a socket of root's alone. One repository an image, `images/HEX`, named
//! by its manifest's digest: what a repository holds never changes, so whoever may read it may read all of it. A name
//! that moves makes another repository; the old one stays as long as an instance needs it ([`sweep`]). Uploaded files have
//! repositories of their own, one a project and file ([`files`]).

pub mod archive;
pub mod client;
pub mod files;
pub mod pull;
pub mod sweep;
mod tar;

use archive::{Found, Room, digest_of};
use client::{Blob, Client};
use enoki_api::error::{Code, Problem};
use enoki_api::image::Imported;
use enoki_api::protocol::repository;
use enoki_api::quantity::Bytes;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::{Notify, OwnedRwLockReadGuard, RwLock};

/// Where the registry keeps a repository, or those below a name, in its folder.
fn repositories(folder: &Path, name: &str) -> PathBuf {
    folder.join("docker/registry/v2/repositories").join(name)
}

/// Where the registry keeps the repositories of images, in its folder.
pub fn contents(folder: &Path) -> PathBuf {
    repositories(folder, "images")
}

/// Why an image was not imported, or a file not kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Archive(#[from] archive::Error),
    #[error(transparent)]
    Registry(#[from] client::Error),
    #[error("it could not be kept: {0}")]
    Io(#[from] io::Error),
}

impl Error {
    /// As users are told.
    pub fn problem(&self) -> Problem {
        match self {
            Error::Archive(archive::Error::NotAnImage(why)) => {
                Problem::new(Code::InvalidField, why).field("content")
            }
            Error::Registry(client::Error::Away(_)) => {
                Problem::new(Code::RegistryUnavailable, self.to_string())
                    .hint("nothing was changed: try again")
            }
            Error::Io(full) | Error::Archive(archive::Error::Io(full))
                if full.kind() == io::ErrorKind::StorageFull =>
            {
                Problem::new(Code::TooLarge, self.to_string())
            }
            Error::Registry(client::Error::Refused { .. })
            | Error::Io(_)
            | Error::Archive(archive::Error::Io(_)) => Problem::new(Code::Internal, self.to_string()),
        }
    }
}

/// What an import found and put.
pub struct Import {
    pub imported: Imported,
    /// Bytes of its layers and its configuration.
    pub size: u64,
    /// SHA-256 of what was sent.
    pub source: String,
    /// Nothing is swept before the image is named in the store.
    _kept: OwnedRwLockReadGuard<()>,
}

/// This machine's registry, and the folder in which uploads are received. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    folder: PathBuf,
    configuration: PathBuf,
    uploads: PathBuf,
    largest_file: Bytes,
    /// Written by a sweep, read by imports.
    sweeping: Arc<RwLock<()>>,
    /// Digests that a name was taken from, on somebody's word.
    released: Mutex<BTreeSet<String>>,
    nudged: Notify,
}

impl Registry {
    /// `folder`: what it keeps; `configuration`: what its own program is told; `uploads` is made; `largest_file`: of what
    /// users upload for their jobs.
    pub fn new(
        socket: &Path,
        folder: &Path,
        configuration: &Path,
        uploads: &Path,
        largest_file: Bytes,
    ) -> io::Result<Self> {
        std::fs::create_dir_all(uploads)?;
        Ok(Registry {
            shared: Arc::new(Shared {
                client: Client::new(socket),
                folder: folder.to_owned(),
                configuration: configuration.to_owned(),
                uploads: uploads.to_owned(),
                largest_file,
                sweeping: Arc::default(),
                released: Mutex::default(),
                nudged: Notify::new(),
            }),
        })
    }

    /// A file to receive an upload in. It has no name, so it goes with whoever holds it.
    pub fn receive(&self) -> io::Result<Room> {
        Ok(Room::new(tempfile::tempfile_in(&self.shared.uploads)?))
    }

    /// Puts what was received into the registry. Nothing names it before all of it is there; the same bytes again store
    /// nothing, and mend what is damaged.
    pub async fn import(&self, upload: Room) -> Result<Import, Error> {
        let kept = self.shared.sweeping.clone().read_owned().await;
        let registry = self.clone();
        let read = tokio::task::spawn_blocking(move || archive::read(upload.file, || registry.receive()));
        let found = read.await.map_err(io::Error::other)??;
        let manifest = found.manifest();
        let digest = digest_of(&manifest);
        let image_id = found.image_id();
        let repository = repository(&digest).ok_or_else(|| io::Error::other("a digest has no name"))?;
        self.put_blobs(&repository, &found).await?;
        if self.must_put(&repository, &digest, Part::Manifest).await? {
            self.shared.client.put_manifest(&repository, &digest, manifest).await?;
        }
        self.reclaim(&digest);
        Ok(Import {
            size: found.size(),
            imported: Imported { image_id, digest },
            source: found.source,
            _kept: kept,
        })
    }

    async fn put_blobs(&self, repository: &str, found: &Found) -> Result<(), Error> {
        let client = &self.shared.client;
        let mut done = BTreeSet::new();
        for layer in &found.layers {
            // Empty layers are often there twice.
            if done.insert(&layer.digest) && self.must_put(repository, &layer.digest, Part::Blob).await? {
                let mut file = tokio::fs::File::from_std(found.file.try_clone()?);
                file.seek(io::SeekFrom::Start(layer.span.offset)).await?;
                let bytes = file.take(layer.span.length);
                client.put_blob(repository, &layer.digest, layer.span.length, bytes).await?;
            }
        }
        let image_id = found.image_id();
        if self.must_put(repository, &image_id, Part::Blob).await? {
            let config = found.config.clone();
            let length = config.len() as u64;
            client.put_blob(repository, &image_id, length, io::Cursor::new(config)).await?;
        }
        Ok(())
    }

    /// Whether it is not there yet. What is kept under its name and is not it is taken away first: the registry would
    /// keep that, also for another image that has it.
    async fn must_put(&self, repository: &str, digest: &str, part: Part) -> Result<bool, Error> {
        match self.shared.client.look(repository, digest, part).await? {
            Blob::Whole => return Ok(false),
            Blob::Absent | Blob::Damaged => {}
        }
        let hex = digest.trim_start_matches("sha256:");
        let data = format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]);
        let (data, digest) = (self.shared.folder.join(data), digest.to_owned());
        let mended = tokio::task::spawn_blocking(move || {
            let kept = match std::fs::File::open(&data) {
                Ok(file) => archive::digest(&mut io::BufReader::new(file))?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            };
            if kept != digest {
                tracing::error!(digest, "what the registry keeps is damaged, and is put anew");
                std::fs::remove_file(&data)?;
            }
            Ok(())
        });
        mended.await.map_err(io::Error::other)??;
        Ok(true)
    }
}

/// What of an image is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Manifest,
    Blob,
}

impl Part {
    /// As it stands in a path.
    pub fn word(self) -> &'static str {
        match self {
            Part::Manifest => "manifests",
            Part::Blob => "blobs",
        }
    }
}
