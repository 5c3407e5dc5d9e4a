//! Root disks and volumes: folders and file systems of ours, which outlive every container.
//!
//! ```text
//! disks/<uid>/            upper/ work/ machine/          a disk without a size: bounded by the host's alone
//! disks/<uid>/disk.img    fs/{upper,work,machine}        a disk with one: a file system in a sparse file, mounted at fs/
//! disks/<uid>/root        where the runtime wrapper mounts the container's root
//! disks/<uid>/image       which image it was first made for
//! volumes/<uid>/data
//! ```
//!
//! Things come to be under another name (`.new-*`) and are renamed when they are whole; they go by being renamed
//! (`.trash-*`) and then deleted. What has a uid's own name was therefore complete once, and is never discarded
//! by anything but [`Disks::destroy`] of that uid.

mod busy;
mod filesystem;
mod loopback;
mod room;
mod volumes;

use crate::limits::device::Device;
use enoki_api::object::Uid;
use enoki_api::quantity::Bytes;
use filesystem::Kind;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no disk {0} on this host")]
    Missing(Uid),
    #[error("the disk has {now} and cannot shrink to {asked}: rebuild for a smaller one")]
    Shrink { now: Bytes, asked: Bytes },
    #[error("the disk was made without a size and cannot be given one: rebuild, or leave disk_size out")]
    NoImage,
    #[error(
        "no room for {asked} more: {free} are free under {at}, of which {promised} are promised to other disks"
    )]
    NoRoom { asked: Bytes, free: Bytes, promised: Bytes, at: String },
    #[error("{0}")]
    InUse(String),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
}

/// For `map_err`: what was being done, to what.
fn doing<E: Into<io::Error>>(what: &str, path: &Path) -> impl FnOnce(E) -> Error {
    let what = format!("{what} {}", path.display());
    move |why| Error::Io { what, source: why.into() }
}

/// Where a root disk's parts are. All exist, on one file system.
#[derive(Clone, Debug, PartialEq)]
pub struct Rootfs {
    /// The disk's own folder.
    pub disk: PathBuf,
    pub upper: PathBuf,
    pub work: PathBuf,
    /// Where the wrapper mounts the container's root.
    pub mountpoint: PathBuf,
    /// Logs, user data and its result: bound into the container.
    pub machine: PathBuf,
}

/// The image that a disk was first made for: what it stays on until it is rebuilt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pinned {
    pub id: String,
    pub name: String,
    /// The registry's name of what was imported, with which the image comes back when its name means another one. None:
    /// it was pulled, or pinned before this was written down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// A disk that lies on this host.
#[derive(Clone, Debug, PartialEq)]
pub struct Disk {
    pub uid: Uid,
    /// None: made without a size.
    pub size: Option<Bytes>,
    pub image: Option<Pinned>,
}

/// The host's disks and volumes. Calls for different uids run side by side, those for one uid in turn.
#[derive(Clone)]
pub struct Disks {
    store: Arc<Store>,
}

struct Store {
    disks: PathBuf,
    volumes: PathBuf,
    locks: Mutex<HashMap<Uid, Arc<Mutex<()>>>>,
    /// Held while room is counted and taken.
    room: Mutex<()>,
}

impl Disks {
    /// `root`: `/var/lib/enoki`. What was half made or half deleted when the host went down is deleted.
    pub async fn open(root: &Path) -> Result<Disks, Error> {
        let store = Store {
            disks: root.join("disks"),
            volumes: root.join("volumes"),
            locks: Mutex::new(HashMap::new()),
            room: Mutex::new(()),
        };
        let disks = Disks { store: Arc::new(store) };
        disks
            .work(|store| {
                for folder in [&store.disks, &store.volumes] {
                    make_folder(folder, 0o700)?;
                    for name in names(folder)? {
                        if name.starts_with(TRASH) {
                            delete_later(folder.join(name));
                        } else if name.starts_with(NEW) {
                            // Out of the way first: the same uid may be made anew while this is deleted.
                            filesystem::unmount_all(&folder.join(&name))?;
                            discard(folder, &folder.join(&name), &name)?;
                        }
                    }
                }
                Ok(())
            })
            .await?;
        Ok(disks)
    }

    /// Makes the disk if it is not there, mounts it if it has a size, finishes a growth that broke off.
    /// A disk that is larger than `size` stays as it is.
    pub async fn ensure(&self, uid: &Uid, size: Option<Bytes>) -> Result<Rootfs, Error> {
        self.ensure_on(uid, size, None).await
    }

    /// The same; one that has to be made remembers `image` from the first, as [`Disks::pin`] would have it.
    pub async fn ensure_on(
        &self,
        uid: &Uid,
        size: Option<Bytes>,
        image: Option<Pinned>,
    ) -> Result<Rootfs, Error> {
        self.locked(uid, move |store, uid, folder| {
            if !folder.exists() {
                store.make(uid, &folder, size, image.as_ref())?;
            }
            let image = folder.join(IMAGE_FILE);
            match (image.exists(), size) {
                (false, None) => {}
                (false, Some(_)) => return Err(Error::NoImage),
                (true, size) => {
                    if let Some(size) = size {
                        store.extend(&image, Kind::of(&image)?.image_length(size))?;
                    }
                    filesystem::mount(&folder)?;
                }
            }
            let parts = if image.exists() { folder.join(FS) } else { folder.clone() };
            let mountpoint = folder.join("root");
            if !mountpoint.exists() {
                make_folder(&mountpoint, 0o700)?;
            }
            Ok(Rootfs {
                upper: parts.join("upper"),
                work: parts.join("work"),
                machine: parts.join("machine"),
                mountpoint,
                disk: folder,
            })
        })
        .await
    }

    /// Live. Returns the size as read back.
    pub async fn grow(&self, uid: &Uid, size: Bytes) -> Result<Bytes, Error> {
        self.locked(uid, move |store, uid, folder| {
            if !folder.exists() {
                return Err(Error::Missing(uid.clone()));
            }
            let image = folder.join(IMAGE_FILE);
            if !image.exists() {
                return Err(Error::NoImage);
            }
            let now = filesystem::size_of_image(&image)?;
            if size < now {
                return Err(Error::Shrink { now, asked: size });
            }
            store.extend(&image, Kind::of(&image)?.image_length(size))?;
            filesystem::mount(&folder)?;
            filesystem::size(&folder)
        })
        .await
    }

    /// As the file system itself says. None: made without a size.
    pub async fn size(&self, uid: &Uid) -> Result<Option<Bytes>, Error> {
        self.locked(uid, |_, uid, folder| {
            if !folder.exists() {
                return Err(Error::Missing(uid.clone()));
            }
            if !folder.join(IMAGE_FILE).exists() {
                return Ok(None);
            }
            filesystem::size(&folder).map(Some)
        })
        .await
    }

    /// The block devices that limits on reading and writing this disk (and `volumes`) have to name.
    pub async fn devices(&self, uid: &Uid, volumes: &[PathBuf]) -> Result<Vec<Device>, Error> {
        let volumes = volumes.to_vec();
        self.locked(uid, move |_, uid, folder| {
            if !folder.exists() {
                return Err(Error::Missing(uid.clone()));
            }
            let mut devices = std::collections::BTreeSet::new();
            let mut add = |path: &Path| -> Result<(), Error> {
                devices.extend(Device::under(path).map_err(doing("look under", path))?);
                Ok(())
            };
            add(&folder)?;
            let fs = folder.join(FS);
            if fs.exists() {
                add(&fs)?;
            }
            for volume in &volumes {
                add(volume)?;
            }
            Ok(devices.into_iter().collect())
        })
        .await
    }

    /// Idempotent. The only way in which a disk goes; whoever calls has its tombstone.
    pub async fn destroy(&self, uid: &Uid) -> Result<(), Error> {
        busy::outwait(|| self.try_destroy(uid)).await
    }

    async fn try_destroy(&self, uid: &Uid) -> Result<(), Error> {
        self.locked(uid, |store, uid, folder| {
            let half = store.disks.join(format!("{NEW}{uid}"));
            if half.exists() {
                filesystem::unmount_all(&half)?;
                delete(&half)?;
            }
            if !folder.exists() {
                return Ok(());
            }
            if let Some(why) = busy::disk(&uid)? {
                return Err(Error::InUse(why));
            }
            filesystem::unmount_all(&folder)?;
            discard(&store.disks, &folder, uid.as_str())
        })
        .await
    }

    pub async fn list(&self) -> Result<Vec<Disk>, Error> {
        self.work(|store| {
            let mut disks = Vec::new();
            for uid in names(&store.disks)?.iter().filter_map(|name| Uid::parse(name)) {
                let folder = store.disks.join(uid.as_str());
                let image = folder.join(IMAGE_FILE);
                let size = image.exists().then(|| filesystem::size_of_image(&image)).transpose()?;
                disks.push(Disk { uid, size, image: read_pin(&folder)? });
            }
            disks.sort_by(|a, b| a.uid.cmp(&b.uid));
            Ok(disks)
        })
        .await
    }

    /// Writes down which image the disk is made for. The first word stands: later ones only add the archive that
    /// the same image can be had from.
    pub async fn pin(&self, uid: &Uid, image: Pinned) -> Result<Pinned, Error> {
        self.locked(uid, move |_, uid, folder| {
            if !folder.exists() {
                return Err(Error::Missing(uid.clone()));
            }
            if let Some(pinned) = read_pin(&folder)? {
                let adds = pinned.id == image.id && pinned.digest.is_none() && image.digest.is_some();
                if !adds {
                    return Ok(pinned);
                }
            }
            let text = encode(&image, &folder)?;
            let (half, whole) = (folder.join(".image"), folder.join(PIN_FILE));
            write_file(&half, &text, 0o600)?;
            fs::rename(&half, &whole).map_err(doing("write", &whole))?;
            sync_folder(&folder)?;
            Ok(image)
        })
        .await
    }

    /// None: nothing was ever run on this disk (or there is none).
    pub async fn pinned(&self, uid: &Uid) -> Result<Option<Pinned>, Error> {
        self.locked(uid, |_, _, folder| read_pin(&folder)).await
    }

    /// Runs `work` off the async threads.
    /// Whether the host has room for `asked` more, beside what its disks are promised.
    pub async fn claim(&self, asked: Bytes) -> Result<(), Error> {
        self.work(move |store| store.claim(asked)).await
    }

    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let store = self.store.clone();
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        done.unwrap_or_else(|why| {
            Err(Error::Io { what: "work on disks".to_owned(), source: io::Error::other(why) })
        })
    }

    /// The same, in turn with everything else of this uid; `work` gets the uid's folder.
    async fn locked<T: Send + 'static>(
        &self,
        uid: &Uid,
        work: impl FnOnce(&Store, Uid, PathBuf) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let uid = uid.clone();
        self.work(move |store| {
            let lock = store.lock(&uid);
            let held = lock.lock().unwrap_or_else(PoisonError::into_inner);
            let folder = store.disks.join(uid.as_str());
            let done = work(store, uid.clone(), folder);
            drop(held);
            store.unlock(&uid, lock);
            done
        })
        .await
    }
}

const NEW: &str = ".new-";
const TRASH: &str = ".trash-";
const IMAGE_FILE: &str = "disk.img";
const PIN_FILE: &str = "image";
const FS: &str = "fs";

impl Store {
    fn lock(&self, uid: &Uid) -> Arc<Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.entry(uid.clone()).or_default().clone()
    }

    /// The last one out takes the entry along.
    fn unlock(&self, uid: &Uid, lock: Arc<Mutex<()>>) {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        // The table's own and ours.
        if Arc::strong_count(&lock) <= 2 {
            locks.remove(uid);
        }
    }

    fn make(
        &self,
        uid: Uid,
        folder: &Path,
        size: Option<Bytes>,
        image: Option<&Pinned>,
    ) -> Result<(), Error> {
        let half = self.disks.join(format!("{NEW}{uid}"));
        if half.exists() {
            // It never had its own name, so nothing ever ran on it.
            filesystem::unmount_all(&half)?;
            delete(&half)?;
        }
        make_folder(&half, 0o700)?;
        make_folder(&half.join("root"), 0o700)?;
        if let Some(image) = image {
            write_file(&half.join(PIN_FILE), &encode(image, &half)?, 0o600)?;
        }
        match size {
            Some(size) => {
                let (image, kind) = (half.join(IMAGE_FILE), Kind::new());
                self.extend(&image, kind.image_length(size))?;
                kind.format(&image, &uid)?;
                make_folder(&half.join(FS), 0o700)?;
                // Stays mounted through the change of its name.
                filesystem::mount(&half)?;
                fill(&half.join(FS), &uid)?;
                sync_folder(&half)?;
            }
            None => {
                self.claim(Bytes(0))?;
                fill(&half, &uid)?;
            }
        }
        fs::rename(&half, folder).map_err(doing("make", folder))?;
        sync_folder(&self.disks)
    }
}

fn encode(image: &Pinned, at: &Path) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(image).map_err(doing("encode the image of", at))
}

/// What a new disk holds, synced with the folder that it is in.
fn fill(parts: &Path, uid: &Uid) -> Result<(), Error> {
    for (part, mode) in [("upper", 0o755), ("upper/etc", 0o755), ("work", 0o700), ("machine", 0o700)] {
        make_folder(&parts.join(part), mode)?;
    }
    let machine_id = parts.join("upper/etc/machine-id");
    write_file(&machine_id, format!("{}\n", uid.hex()).as_bytes(), 0o444)?;
    for part in ["upper/etc", "upper", ""] {
        sync_folder(&parts.join(part))?;
    }
    Ok(())
}

fn length(image: &Path) -> Result<Bytes, Error> {
    Ok(Bytes(fs::metadata(image).map_err(doing("look at", image))?.len()))
}

fn read_pin(folder: &Path) -> Result<Option<Pinned>, Error> {
    let path = folder.join(PIN_FILE);
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(doing("read", &path)),
        Err(why) if why.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(why) => Err(doing("read", &path)(why)),
    }
}

fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let entries = fs::read_dir(folder).map_err(doing("list", folder))?;
    let names: io::Result<Vec<String>> =
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect();
    names.map_err(doing("list", folder))
}

/// With the folders above it. Never for a place where an instance's own root may be mounted: it sets the mode.
fn make_folder(path: &Path, mode: u32) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(doing("make", path))?;
    // The process's umask must not decide what an instance can reach.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
    fs::set_permissions(path, mode).map_err(doing("make", path))
}

fn write_file(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let write = || -> io::Result<()> {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
        file.write_all(bytes)?;
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
        file.sync_all()
    };
    write().map_err(doing("write", path))
}

fn sync_folder(path: &Path) -> Result<(), Error> {
    fs::File::open(path).and_then(|folder| folder.sync_all()).map_err(doing("sync", path))
}

/// Takes a thing's name away at once; its bytes go in the background.
fn discard(parent: &Path, folder: &Path, name: &str) -> Result<(), Error> {
    // A second thing of the same name may go while the first is still being deleted.
    let trash = (0..)
        .map(|count: u32| parent.join(format!("{TRASH}{name}-{count}")))
        .find(|path| !path.exists())
        .unwrap_or_else(|| parent.join(format!("{TRASH}{name}")));
    fs::rename(folder, &trash).map_err(doing("take away", folder))?;
    sync_folder(parent)?;
    delete_later(trash);
    Ok(())
}

/// What fails is tried again when the agent starts next.
fn delete_later(path: PathBuf) {
    std::thread::spawn(move || {
        if let Err(error) = delete(&path) {
            tracing::warn!(%error, "what was discarded could not be deleted");
        }
    });
}

/// By `rm`, which takes trees of any depth (an instance decides how deep its own is) and never leaves the
/// file system that it starts on.
fn delete(path: &Path) -> Result<(), Error> {
    tool(Command::new("rm").args(["-rf", "--one-file-system", "--"]).arg(path)).map(|_| ())
}

/// Runs a tool to its end; its last words are the error.
fn tool(command: &mut Command) -> Result<String, Error> {
    let what = command.get_program().to_string_lossy().into_owned();
    let run = command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C").output();
    let output = run.map_err(|source| Error::Io { what: what.clone(), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let words = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
    Err(Error::Io { what: format!("{what} ({})", output.status), source: io::Error::other(words.to_owned()) })
}
