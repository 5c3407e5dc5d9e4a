//! The image of a root disk: always there when a container is to be made, and always the same one.
//!
//! A disk stays on the image that it was first made for ([`crate::disk::Disks::pin`]): a name that moves changes
//! nothing until a rebuild. What is missing (pruned, or never here) is loaded from the archive that was imported
//! (a disk remembers its image's own), or pulled by name; what comes in that way is used only if it is the one that
//! was wanted.

use crate::disk::Pinned;
use crate::runtime::{self, ImageInfo, Runtime};
use async_trait::async_trait;
use enoki_api::protocol::Archive;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::AsyncRead;

/// An archive's bytes, as `docker save` writes them.
pub type Bytes = Box<dyn AsyncRead + Send + Unpin>;

/// Where archives come from: the server over the agent's socket, or a test's memory.
#[async_trait]
pub trait Archives: Send + Sync + 'static {
    async fn open(&self, digest: &str) -> io::Result<Bytes>;
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Tried again later, since the image may come.
    #[error("{0}")]
    Missing(String),
    /// The archive could not be fetched from the control plane.
    #[error("the archive of image `{name}` could not be fetched: {why}")]
    Fetch { name: String, why: io::Error },
    #[error("image `{name}`: {why}")]
    Runtime { name: String, why: runtime::Error },
}

/// For `map_err`: which image Docker did not give.
fn docker(name: &str) -> impl Fn(runtime::Error) -> Error {
    move |why| Error::Runtime { name: name.to_owned(), why }
}

/// What is asked for, by name and by what is known of it beyond.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// As the instance's spec has it.
    pub name: &'a str,
    /// What was imported under this name, if it was.
    pub archive: Option<&'a Archive>,
    /// What the disk was made for, if it has been run on before.
    pub pinned: Option<&'a Pinned>,
}

impl<'a> Wanted<'a> {
    /// What Docker is asked for: the image that the disk was made for, else the imported one, else whatever has the
    /// name now.
    pub fn reference(&self) -> &'a str {
        self.id().unwrap_or(self.name)
    }

    fn id(&self) -> Option<&'a str> {
        self.pinned.map(|pin| pin.id.as_str()).or(self.archive.map(|archive| archive.image_id.as_str()))
    }

    /// Digest of the kept bytes of the wanted image. The disk's own word lasts when its name means another image.
    fn digest(&self) -> Option<&'a str> {
        let imported = self.imported().map(|archive| archive.digest.as_str());
        self.pinned.and_then(|pin| pin.digest.as_deref()).or(imported)
    }

    /// The archive, when the wanted image is the one in it: only then is the name that image's. A disk that stays on
    /// an older image must not take its name back.
    fn imported(&self) -> Option<&'a Archive> {
        self.archive.filter(|archive| Some(archive.image_id.as_str()) == self.id())
    }
}

/// Brings images to this host; concurrent callers that want the same one wait for the first.
#[derive(Clone)]
pub struct Images {
    runtime: Arc<dyn Runtime>,
    archives: Arc<dyn Archives>,
    flights: Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>,
}

impl Images {
    pub fn new(runtime: Arc<dyn Runtime>, archives: Arc<dyn Archives>) -> Self {
        Images { runtime, archives, flights: Arc::default() }
    }

    /// Makes it be in Docker. Dropping the future gives up; nothing half loaded counts.
    pub async fn ensure(&self, wanted: &Wanted<'_>) -> Result<ImageInfo, Error> {
        let key = wanted.reference();
        let flight = self.board(key);
        let landed = {
            let _first = flight.lock().await;
            self.bring(wanted).await
        };
        self.leave(key, flight);
        landed
    }

    /// An imported image that is here has exactly its name: one without a name is the first that a prune takes.
    /// `seen`: the wanted image as Docker has just shown it.
    pub async fn restore_name(&self, wanted: &Wanted<'_>, seen: &ImageInfo) -> Result<(), Error> {
        let name = wanted.name;
        // A digest cannot be given to an image; whoever has the image has it under its digest.
        let Some(archive) = wanted.imported().filter(|_| !name.contains('@')) else { return Ok(()) };
        if seen.id == archive.image_id && seen.names.iter().any(|has| has == name) {
            return Ok(());
        }
        let found = self.runtime.image(name).await.map_err(docker(name))?;
        if found.is_some_and(|info| info.id == archive.image_id) {
            return Ok(());
        }
        self.runtime.tag(&archive.image_id, name).await.map_err(docker(name))
    }

    fn board(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.entry(key.to_owned()).or_default().clone()
    }

    /// The last one out takes the entry along. One whose caller gave up leaves it for the next.
    fn leave(&self, key: &str, flight: Arc<tokio::sync::Mutex<()>>) {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        // The table's own and ours.
        if Arc::strong_count(&flight) <= 2 {
            flights.remove(key);
        }
    }

    async fn bring(&self, wanted: &Wanted<'_>) -> Result<ImageInfo, Error> {
        let name = wanted.name;
        let look = || async { self.runtime.image(wanted.reference()).await.map_err(docker(name)) };
        if let Some(info) = look().await? {
            self.restore_name(wanted, &info).await?;
            return Ok(info);
        }
        match wanted.digest() {
            Some(digest) => {
                let fetched = self.archives.open(digest).await;
                let bytes = fetched.map_err(|why| Error::Fetch { name: name.to_owned(), why })?;
                self.runtime.load(bytes).await.map_err(docker(name))?;
            }
            // By the name it was made under, should the instance's have been changed since.
            None => self.pull(wanted.pinned.map_or(name, |pin| pin.name.as_str())).await?,
        }
        let Some(info) = look().await? else {
            return Err(Error::Missing(match (wanted.id(), wanted.digest()) {
                (None, _) => format!("image `{name}` was pulled and is not there: was it removed meanwhile?"),
                (Some(id), Some(_)) => {
                    format!("the archive of image `{name}` does not hold {id}: import it again")
                }
                (Some(id), None) => format!(
                    "image `{name}` ({id}), which this disk was made for, is gone, and its name means another \
                     one now: import it again, or rebuild"
                ),
            }));
        };
        self.restore_name(wanted, &info).await?;
        Ok(info)
    }

    async fn pull(&self, name: &str) -> Result<(), Error> {
        self.runtime.pull(name).await.map_err(|why| match why {
            runtime::Error::NotFound(why) | runtime::Error::Refused(why) | runtime::Error::Conflict(why) => {
                Error::Missing(format!(
                    "image `{name}` is not on this host and cannot be pulled: {why}; import it with \
                     `enoki image import`"
                ))
            }
            away @ runtime::Error::Unavailable(_) => docker(name)(away),
        })
    }
}

#[cfg(test)]
mod tests;
