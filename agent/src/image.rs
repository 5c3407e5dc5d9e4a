//! The image of a root disk: always there when a container is to be made, and always the same one.
//!
//! A disk stays on the image that it was first made for ([`crate::disk::Disks::pin`]): a name that moves changes
//! nothing until a rebuild. What is missing (pruned, or never here) is pulled by digest from the cloud's registry if it
//! was imported (a disk remembers its image's own digest), else by name; what comes in that way is used only if it is the
//! one that was wanted. Docker checks every byte of it against the digest.

pub mod mirror;
pub mod prepull;

use crate::disk::Pinned;
use crate::flights::Flights;
use crate::runtime::{self, ImageInfo, Runtime};
use enoki_api::image::Imported;
use enoki_api::protocol::repository;
use mirror::Source;
use std::io;
use std::sync::Arc;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Tried again later, since the image may come.
    #[error("{0}")]
    Missing(String),
    /// This machine has no address for Docker to pull from.
    #[error("image `{name}` has no place to pull from: {why}")]
    NoPlace { name: String, why: io::Error },
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
    pub imported: Option<&'a Imported>,
    /// Whether the name means that still.
    pub current: bool,
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
        self.pinned.map(|pin| pin.id.as_str()).or(self.imported.map(|imported| imported.image_id.as_str()))
    }

    /// The registry's name of the wanted image. The disk's own word lasts when its name means another image; a word from
    /// before there was a registry is none.
    fn digest(&self) -> Option<&'a str> {
        let imported = self.imported.filter(|imported| Some(imported.image_id.as_str()) == self.id());
        let imported = imported.map(|imported| imported.digest.as_str());
        let own = self.pinned.and_then(|pin| pin.digest.as_deref());
        own.filter(|digest| repository(digest).is_some()).or(imported)
    }

    /// What was imported, when it is the wanted image and the name's: one that stays on an older image must not take its
    /// name back.
    fn named(&self) -> Option<&'a Imported> {
        self.imported.filter(|imported| self.current && Some(imported.image_id.as_str()) == self.id())
    }
}

/// Brings images to this host; concurrent callers that want the same one wait for the first.
#[derive(Clone)]
pub struct Images {
    runtime: Arc<dyn Runtime>,
    source: Arc<dyn Source>,
    flights: Flights,
}

impl Images {
    pub fn new(runtime: Arc<dyn Runtime>, source: Arc<dyn Source>) -> Self {
        Images { runtime, source, flights: Flights::default() }
    }

    /// Makes it be in Docker. Dropping the future gives up; nothing half loaded counts.
    pub async fn ensure(&self, wanted: &Wanted<'_>) -> Result<ImageInfo, Error> {
        self.flights.alone(wanted.reference(), self.bring(wanted)).await
    }

    /// An imported image that is here has exactly its name: one without a name is the first that a prune takes.
    /// `seen`: the wanted image as Docker has just shown it.
    pub async fn restore_name(&self, wanted: &Wanted<'_>, seen: &ImageInfo) -> Result<(), Error> {
        let name = wanted.name;
        // A digest cannot be given to an image; whoever has the image has it under its digest.
        let Some(imported) = wanted.named().filter(|_| !name.contains('@')) else { return Ok(()) };
        if seen.id == imported.image_id && seen.names.iter().any(|has| has == name) {
            return Ok(());
        }
        let found = self.runtime.image(name).await.map_err(docker(name))?;
        if found.is_some_and(|info| info.id == imported.image_id) {
            return Ok(());
        }
        self.runtime.tag(&imported.image_id, name).await.map_err(docker(name))
    }

    async fn bring(&self, wanted: &Wanted<'_>) -> Result<ImageInfo, Error> {
        let name = wanted.name;
        let look = || async { self.runtime.image(wanted.reference()).await.map_err(docker(name)) };
        if let Some(info) = look().await? {
            self.restore_name(wanted, &info).await?;
            return Ok(info);
        }
        match wanted.digest() {
            Some(digest) => return self.fetch(wanted, digest).await,
            // By the name it was made under, should the instance's have been changed since.
            None => self.pull(wanted.pinned.map_or(name, |pin| pin.name.as_str())).await?,
        }
        let Some(info) = look().await? else {
            return Err(Error::Missing(match wanted.id() {
                None => format!("image `{name}` was pulled and is not there: was it removed meanwhile?"),
                Some(id) => format!(
                    "image `{name}` ({id}), which this disk was made for, is gone, and its name means another \
                     one now: import it again, or rebuild"
                ),
            }));
        };
        self.restore_name(wanted, &info).await?;
        Ok(info)
    }

    /// Pulls what was imported, by its digest. The name under which it comes is the mirror's, which nobody needs
    /// afterwards: the image gets its own, or keeps the mirror's where its own cannot be given.
    async fn fetch(&self, wanted: &Wanted<'_>, digest: &str) -> Result<ImageInfo, Error> {
        let name = wanted.name;
        let place = self.source.place(digest).await;
        let place = place.map_err(|why| Error::NoPlace { name: name.to_owned(), why })?;
        if let Err(why) = self.runtime.pull(&place.reference, Some(&place.login)).await {
            return Err(match (why, self.source.refusal(digest)) {
                (away @ runtime::Error::Unavailable(_), None) => docker(name)(away),
                (why, refusal) => {
                    let why = refusal.unwrap_or_else(|| why.to_string());
                    Error::Missing(format!("image `{name}` ({digest}) cannot be pulled: {why}"))
                }
            });
        }
        let look = self.runtime.image(wanted.reference()).await.map_err(docker(name))?;
        let Some(info) = look else {
            let id = wanted.reference();
            return Err(Error::Missing(format!("image `{name}` ({digest}) is not {id}: import it again")));
        };
        self.restore_name(wanted, &info).await?;
        self.drop_name(name, &info.id, &place.reference).await;
        Ok(info)
    }

    /// Takes the mirror's name away, unless it is the only one.
    async fn drop_name(&self, name: &str, id: &str, reference: &str) {
        let named = self.runtime.image(name).await.is_ok_and(|found| found.is_some_and(|info| info.id == id));
        if named && let Err(error) = self.runtime.untag(reference).await {
            tracing::debug!(reference, %error, "the name under which an image was pulled stays");
        }
    }

    async fn pull(&self, name: &str) -> Result<(), Error> {
        self.runtime.pull(name, None).await.map_err(|why| match why {
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
