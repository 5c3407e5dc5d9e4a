//! Where an image comes from, and that it is never another one.

use super::*;
use crate::image::mirror::Place;
use crate::runtime::Login;
use crate::runtime::simulated::{Call, Daemon, Simulated};
use async_trait::async_trait;
use sha2::{Digest, Sha256};
use std::time::Duration;

const NAME: &str = "enoki/tiny:1";

fn info(id: &str) -> ImageInfo {
    ImageInfo { id: id.to_owned(), ..ImageInfo::default() }
}

fn pin(id: &str) -> Pinned {
    Pinned { id: id.to_owned(), name: NAME.to_owned(), digest: None }
}

/// Where Docker is told to pull from.
struct Fixed;

#[async_trait]
impl Source for Fixed {
    async fn place(&self, digest: &str) -> io::Result<Place> {
        // Long enough for others to come for the same.
        tokio::time::sleep(Duration::from_millis(20)).await;
        Ok(Place { reference: at(digest), login: Login { user: "u".into(), password: "p".into() } })
    }

    fn refusal(&self, _digest: &str) -> Option<String> {
        Some("told so".to_owned())
    }
}

fn at(digest: &str) -> String {
    format!("mirror/{digest}")
}

fn bench() -> (Images, Simulated) {
    let docker = Simulated::default();
    (Images::new(Arc::new(docker.clone()), Arc::new(Fixed)), docker)
}

/// An image told apart by `word`, in the registry from now on.
fn put(docker: &Simulated, word: &str) -> Imported {
    let imported = imported(word);
    docker.add_to_registry(&at(&imported.digest), info(&imported.image_id));
    imported
}

fn imported(word: &str) -> Imported {
    let hash = |text: &str| {
        let hex: String = Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256:{hex}")
    };
    Imported { image_id: hash(word), digest: hash(&format!("manifest of {word}")) }
}

async fn ensure(
    images: &Images,
    imported: Option<&Imported>,
    pinned: Option<&Pinned>,
) -> Result<ImageInfo, Error> {
    images.ensure(&Wanted { name: NAME, imported, current: true, pinned }).await
}

async fn named(docker: &Simulated) -> String {
    docker.image(NAME).await.unwrap().unwrap().id
}

#[tokio::test]
async fn by_name_from_docker_or_its_registry() {
    let (images, docker) = bench();
    let missing = ensure(&images, None, None).await;
    assert!(matches!(&missing, Err(Error::Missing(why)) if why.contains(NAME)), "{missing:?}");
    docker.add_to_registry(NAME, info("sha256:a"));
    assert_eq!(ensure(&images, None, None).await.unwrap().id, "sha256:a");
    // The registry's has moved: what is here is good enough for a new disk.
    docker.add_to_registry(NAME, info("sha256:b"));
    assert_eq!(ensure(&images, None, None).await.unwrap().id, "sha256:a");
    docker.set_daemon(Daemon::Down);
    let away = ensure(&images, None, None).await.unwrap_err();
    assert!(matches!(away, Error::Runtime { why: runtime::Error::Unavailable(_), .. }));
    assert!(away.to_string().contains(NAME), "{away}");
}

#[tokio::test]
async fn by_digest_under_exactly_its_name() {
    let (images, docker) = bench();
    let one = imported("one");
    docker.add_image(NAME, info("sha256:older"));
    // The registry does not have it: its own words are told, and what is there under the name is not passed off.
    let missing = ensure(&images, Some(&one), None).await;
    assert!(matches!(&missing, Err(Error::Missing(why)) if why.contains("told so")), "{missing:?}");
    put(&docker, "one");
    let got = ensure(&images, Some(&one), None).await.unwrap();
    assert_eq!(
        (got.id.as_str(), named(&docker).await.as_str()),
        (one.image_id.as_str(), one.image_id.as_str())
    );
    // The name that it came under is gone.
    assert_eq!(docker.image(&at(&one.digest)).await.unwrap(), None);
    // Here already: nothing is pulled, and a name that was taken away is put back.
    docker.add_image(NAME, info("sha256:older"));
    let pulls = docker.calls(Call::Pull);
    ensure(&images, Some(&one), None).await.unwrap();
    assert_eq!((named(&docker).await, docker.calls(Call::Pull)), (one.image_id.clone(), pulls));
    // Pruned: it comes back.
    docker.forget_image(&one.image_id);
    ensure(&images, Some(&one), None).await.unwrap();
    // Another image under its digest is not passed off as this one.
    let two = imported("two");
    docker.add_to_registry(&at(&two.digest), info("sha256:other"));
    let wrong = ensure(&images, Some(&two), None).await;
    assert!(matches!(&wrong, Err(Error::Missing(why)) if why.contains("is not")), "{wrong:?}");
}

#[tokio::test]
async fn a_disk_stays_on_its_image() {
    let (images, docker) = bench();
    let new = Imported { image_id: "sha256:new".to_owned(), ..imported("new") };
    docker.add_image("old:1", info("sha256:old"));
    docker.add_image(NAME, info("sha256:new"));
    // Re-imported under the same name since: the disk stays, and the name is left to the new one.
    let got = ensure(&images, Some(&new), Some(&pin("sha256:old"))).await.unwrap();
    assert_eq!((got.id.as_str(), named(&docker).await.as_str()), ("sha256:old", "sha256:new"));
    // Pruned, and the name means another one now: never that one.
    docker.forget_image("sha256:old");
    docker.add_to_registry(NAME, info("sha256:newest"));
    let gone = ensure(&images, Some(&new), Some(&pin("sha256:old"))).await;
    assert!(matches!(&gone, Err(Error::Missing(why)) if why.contains("rebuild")), "{gone:?}");
    docker.add_to_registry(NAME, info("sha256:old"));
    assert_eq!(ensure(&images, None, Some(&pin("sha256:old"))).await.unwrap().id, "sha256:old");
    // Made for what was imported: back by its digest, also where the pin does not tell which, or tells it in the words
    // of a version without a registry.
    docker.add_to_registry(&at(&new.digest), info("sha256:new"));
    let older = Pinned { digest: Some("ab".repeat(32)), ..pin(&new.image_id) };
    for pinned in [pin(&new.image_id), older] {
        docker.forget_image(&new.image_id);
        assert_eq!(ensure(&images, Some(&new), Some(&pinned)).await.unwrap().id, new.image_id);
    }
}

#[tokio::test]
async fn a_pruned_image_comes_back_after_its_name_moved() {
    let (images, docker) = bench();
    let (old, new) = (put(&docker, "old"), put(&docker, "new"));
    let pinned = Pinned { digest: Some(old.digest.clone()), ..pin(&old.image_id) };
    ensure(&images, Some(&new), None).await.unwrap();
    // By the digest that the disk remembers; the name stays where it moved.
    let got = ensure(&images, Some(&new), Some(&pinned)).await.unwrap();
    assert_eq!((got.id, named(&docker).await), (old.image_id.clone(), new.image_id));
    // As an instance of its own says that was made before the name moved.
    docker.forget_image(&old.image_id);
    let earlier = Wanted { name: NAME, imported: Some(&old), current: false, pinned: None };
    let got = images.ensure(&earlier).await.unwrap();
    assert_eq!((got.id, named(&docker).await), (old.image_id.clone(), imported("new").image_id));
    // Also when nothing is imported under the name any more.
    docker.forget_image(&old.image_id);
    assert_eq!(ensure(&images, None, Some(&pinned)).await.unwrap().id, old.image_id);
}

#[tokio::test]
async fn many_callers_one_transfer() {
    let (images, docker) = bench();
    let one = put(&docker, "one");
    let calls = (0..20).map(|_| {
        let (images, one) = (images.clone(), one.clone());
        tokio::spawn(async move { ensure(&images, Some(&one), None).await })
    });
    for call in futures::future::join_all(calls).await {
        call.unwrap().unwrap();
    }
    assert_eq!(docker.calls(Call::Pull), 1);
    assert!(images.flights.is_empty());
    // A failure is not everybody's: the next one tries again.
    docker.forget_image(&one.image_id);
    docker.fail_next(Call::Pull, runtime::Error::Unavailable("gone".into()));
    assert!(ensure(&images, Some(&one), None).await.is_err());
    ensure(&images, Some(&one), None).await.unwrap();
}
