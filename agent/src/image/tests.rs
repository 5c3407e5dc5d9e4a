//! Where an image comes from, and that it is never another one.

use super::*;
use crate::runtime::simulated::{Call, Daemon, Simulated};
use sha2::{Digest, Sha256};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const NAME: &str = "enoki/tiny:1";

fn info(id: &str) -> ImageInfo {
    ImageInfo { id: id.to_owned(), ..ImageInfo::default() }
}

fn pin(id: &str) -> Pinned {
    Pinned { id: id.to_owned(), name: NAME.to_owned(), digest: None }
}

/// Archives by digest, and how often one was asked for.
#[derive(Default)]
struct Kept {
    bytes: Mutex<HashMap<String, Vec<u8>>>,
    fetched: AtomicUsize,
}

impl Kept {
    fn put(&self, digest: &str, bytes: &[u8]) {
        self.bytes.lock().unwrap().insert(digest.to_owned(), bytes.to_vec());
    }

    fn lose(&self, digest: &str) {
        self.bytes.lock().unwrap().remove(digest);
    }
}

#[async_trait]
impl Archives for Kept {
    async fn open(&self, digest: &str) -> io::Result<Bytes> {
        self.fetched.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(20)).await;
        let bytes = self.bytes.lock().unwrap().get(digest).cloned();
        Ok(Box::new(io::Cursor::new(bytes.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?)))
    }
}

fn bench() -> (Images, Simulated, Arc<Kept>) {
    let (docker, kept) = (Simulated::default(), Arc::new(Kept::default()));
    (Images::new(Arc::new(docker.clone()), kept.clone()), docker, kept)
}

/// A `docker save` archive whose image is told apart by `word`; its digest is the word.
fn saved(word: &str) -> (Archive, Vec<u8>) {
    let config = serde_json::json!({"config": {"Cmd": [word]}}).to_string();
    let manifest = serde_json::json!([{"Config": "c.json", "RepoTags": null}]).to_string();
    let mut archive = tar::Builder::new(Vec::new());
    for (path, text) in [("c.json", &config), ("manifest.json", &manifest)] {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        archive.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    let id: String = Sha256::digest(&config).iter().map(|byte| format!("{byte:02x}")).collect();
    let image_id = format!("sha256:{id}");
    (Archive { image_id, digest: word.to_owned() }, archive.into_inner().unwrap())
}

async fn ensure(
    images: &Images,
    archive: Option<&Archive>,
    pinned: Option<&Pinned>,
) -> Result<ImageInfo, Error> {
    images.ensure(&Wanted { name: NAME, archive, pinned }).await
}

async fn named(docker: &Simulated) -> String {
    docker.image(NAME).await.unwrap().unwrap().id
}

#[tokio::test]
async fn by_name_from_docker_or_its_registry() {
    let (images, docker, _) = bench();
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
async fn from_its_archive_under_exactly_its_name() {
    let (images, docker, kept) = bench();
    let (archive, bytes) = saved("one");
    kept.put("one", &bytes);
    docker.add_image(NAME, info("sha256:older"));
    assert_eq!(ensure(&images, Some(&archive), None).await.unwrap().id, archive.image_id);
    assert_eq!(named(&docker).await, archive.image_id);
    // Here already: nothing is fetched, and a name that was taken away is put back.
    kept.lose("one");
    docker.add_image(NAME, info("sha256:older"));
    ensure(&images, Some(&archive), None).await.unwrap();
    assert_eq!(named(&docker).await, archive.image_id);
    // Pruned: it comes back.
    docker.forget_image(&archive.image_id);
    let failed = ensure(&images, Some(&archive), None).await;
    assert!(matches!(failed, Err(Error::Fetch { .. })));
    kept.put("one", &bytes);
    ensure(&images, Some(&archive), None).await.unwrap();
    // Bytes of another image are not passed off as this one.
    let (other, _) = saved("two");
    kept.put("two", &saved("three").1);
    let wrong = ensure(&images, Some(&other), None).await;
    assert!(matches!(&wrong, Err(Error::Missing(why)) if why.contains("does not hold")), "{wrong:?}");
}

#[tokio::test]
async fn a_disk_stays_on_its_image() {
    let (images, docker, kept) = bench();
    let (archive, bytes) = saved("new");
    docker.add_image("old:1", info("sha256:old"));
    docker.add_image(NAME, info("sha256:new"));
    // Re-imported under the same name since: the disk stays, and the name is left to the new one.
    let got = ensure(&images, Some(&archive), Some(&pin("sha256:old"))).await.unwrap();
    assert_eq!((got.id.as_str(), named(&docker).await.as_str()), ("sha256:old", "sha256:new"));
    // Pruned, and the name means another one now: never that one.
    docker.forget_image("sha256:old");
    docker.add_to_registry(NAME, info("sha256:newest"));
    let gone = ensure(&images, Some(&archive), Some(&pin("sha256:old"))).await;
    assert!(matches!(&gone, Err(Error::Missing(why)) if why.contains("rebuild")), "{gone:?}");
    docker.add_to_registry(NAME, info("sha256:old"));
    assert_eq!(ensure(&images, None, Some(&pin("sha256:old"))).await.unwrap().id, "sha256:old");
    // Made for what was imported: back from the archive, also where the pin does not tell which.
    kept.put("new", &bytes);
    let got = ensure(&images, Some(&archive), Some(&pin(&archive.image_id))).await.unwrap();
    assert_eq!(got.id, archive.image_id);
}

#[tokio::test]
async fn a_pruned_image_comes_back_after_its_name_moved() {
    let (images, docker, kept) = bench();
    let ((old, old_bytes), (new, new_bytes)) = (saved("old"), saved("new"));
    kept.put("old", &old_bytes);
    kept.put("new", &new_bytes);
    let pinned = Pinned { digest: Some("old".to_owned()), ..pin(&old.image_id) };
    ensure(&images, Some(&new), None).await.unwrap();
    // By the digest that the disk remembers; the name stays where it moved.
    let got = ensure(&images, Some(&new), Some(&pinned)).await.unwrap();
    assert_eq!((got.id, named(&docker).await), (old.image_id.clone(), new.image_id));
    // Also when nothing is imported under the name any more.
    docker.forget_image(&old.image_id);
    assert_eq!(ensure(&images, None, Some(&pinned)).await.unwrap().id, old.image_id);
}

#[tokio::test]
async fn many_callers_one_transfer() {
    let (images, docker, kept) = bench();
    let (archive, bytes) = saved("one");
    kept.put("one", &bytes);
    let calls = (0..20).map(|_| {
        let (images, archive) = (images.clone(), archive.clone());
        tokio::spawn(async move { ensure(&images, Some(&archive), None).await })
    });
    for call in futures::future::join_all(calls).await {
        call.unwrap().unwrap();
    }
    assert_eq!(kept.fetched.load(Ordering::SeqCst), 1);
    assert!(images.flights.lock().unwrap().is_empty());
    // A failure is not everybody's: the next one tries again.
    docker.forget_image(&archive.image_id);
    docker.fail_next(Call::Load, runtime::Error::Unavailable("gone".into()));
    assert!(ensure(&images, Some(&archive), None).await.is_err());
    ensure(&images, Some(&archive), None).await.unwrap();
}
