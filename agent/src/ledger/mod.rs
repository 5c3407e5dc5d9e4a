//! The ledger: the orders that this host last accepted, on its own disk, with what was done about them.
//!
//! It is what a host runs on while no server answers, and what brings instances back into an empty store.
//!
//! ```text
//! ledger/UID.json             an order and its facts; stays until its tombstone is done, named by a server or not
//! ledger/UID.corrupt          a file that could not be read: kept for a human, its container is left alone
//! ledger/tombstones/UID.json  accepted, not done yet
//! ledger/overlays/UID.json    who is where on a network that spans hosts; the first start after its last instance clears it away
//! ```
//! Writes are synced before they return. On failure of a write the memory keeps the old value too: what is not on
//! disk was not accepted. A file is written by one thread at a time (the entry's lock), different files at once.

pub mod file;

use crate::instance::facts::Facts;
use enoki_api::instance::Tombstone;
use enoki_api::object::Uid;
use enoki_api::protocol::{Order, Overlay};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where the ledger is on a host.
pub const FOLDER: &str = "/var/lib/enoki/ledger";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read the ledger's folder {path}: {source}")]
    Folder { path: PathBuf, source: io::Error },
    /// A server that lost its memory, or a late one: following it could stop what a newer order started.
    #[error("the order for {name} has epoch {offered}, and this host has accepted {known}")]
    Stale { name: String, offered: u64, known: u64 },
}

/// One instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub order: Order,
    #[serde(default)]
    pub facts: Facts,
}

/// What an order did to the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    New,
    Changed,
    Same,
}

/// Shared by all tasks of the agent; its methods block on the disk (call them from a blocking thread).
pub struct Ledger {
    folder: PathBuf,
    entries: Mutex<BTreeMap<Uid, Arc<Mutex<Entry>>>>,
    tombstones: Mutex<BTreeMap<Uid, Tombstone>>,
    overlays: Mutex<BTreeMap<Uid, Overlay>>,
    /// See [`Ledger::intake`].
    intake: Mutex<()>,
    corrupt: BTreeSet<Uid>,
}

/// A thread that panicked while it held a lock left a whole value: entries are replaced, never edited.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ledger {
    /// Reads what is there. Only an unreadable folder is an error; an unreadable file is set aside.
    pub fn load(folder: &Path) -> Result<Self, Error> {
        let fail = |source| Error::Folder { path: folder.to_owned(), source };
        for part in ["tombstones", "overlays"] {
            file::folder(&folder.join(part)).map_err(fail)?;
        }
        let mut corrupt = BTreeSet::new();
        let entries = read_all::<Entry>(folder, &mut corrupt, |entry| entry.order.uid()).map_err(fail)?;
        let tombstones =
            read_all::<Tombstone>(&folder.join("tombstones"), &mut corrupt, |tombstone| &tombstone.uid)
                .map_err(fail)?;
        // One that cannot be read is no instance's harm: its entries are in the kernel, and a server tells it anew.
        let mut overlays =
            read_all::<Overlay>(&folder.join("overlays"), &mut BTreeSet::new(), |overlay| &overlay.network)
                .map_err(fail)?;
        for network in leftover(&overlays, &entries) {
            file::remove(&overlay_path(folder, &network)).map_err(fail)?;
            overlays.remove(&network);
        }
        let entries: BTreeMap<_, _> =
            entries.into_iter().map(|(uid, entry)| (uid, Arc::new(Mutex::new(entry)))).collect();
        // A set-aside file whose instance was accepted anew since is history.
        corrupt.retain(|uid| !entries.contains_key(uid));
        Ok(Ledger {
            folder: folder.to_owned(),
            entries: Mutex::new(entries),
            tombstones: Mutex::new(tombstones),
            overlays: Mutex::new(overlays),
            intake: Mutex::default(),
            corrupt,
        })
    }

    /// Instances whose file could not be read at the start.
    pub fn corrupt(&self) -> &BTreeSet<Uid> {
        &self.corrupt
    }

    pub fn uids(&self) -> Vec<Uid> {
        lock(&self.entries).keys().cloned().collect()
    }

    /// Whether there is an entry, without the copy that [`Self::get`] makes.
    pub fn has(&self, uid: &Uid) -> bool {
        lock(&self.entries).contains_key(uid)
    }

    pub fn get(&self, uid: &Uid) -> Option<Entry> {
        self.slot(uid).map(|slot| lock(&slot).clone())
    }

    fn slot(&self, uid: &Uid) -> Option<Arc<Mutex<Entry>>> {
        lock(&self.entries).get(uid).cloned()
    }

    /// Takes an order in. An equal one costs nothing.
    pub fn accept(&self, order: &Order) -> Result<Accepted, Error> {
        let Some(slot) = self.slot(order.uid()) else {
            let entry = Entry { order: order.clone(), facts: Facts::first(order) };
            self.write(&entry)?;
            lock(&self.entries).insert(order.uid().clone(), Arc::new(Mutex::new(entry)));
            return Ok(Accepted::New);
        };
        let mut entry = lock(&slot);
        let (offered, known) = (order.assignment.epoch, entry.order.assignment.epoch);
        if offered < known {
            return Err(Error::Stale { name: order.name(), offered, known });
        }
        if entry.order == *order {
            return Ok(Accepted::Same);
        }
        let changed = Entry { order: order.clone(), facts: entry.facts.clone() };
        self.write(&changed)?;
        *entry = changed;
        Ok(Accepted::Changed)
    }

    /// Remembers what is about to be done. Fine when the instance is gone.
    pub fn remember(&self, uid: &Uid, facts: &Facts) -> Result<(), Error> {
        let Some(slot) = self.slot(uid) else { return Ok(()) };
        let mut entry = lock(&slot);
        if entry.facts == *facts {
            return Ok(());
        }
        let changed = Entry { order: entry.order.clone(), facts: facts.clone() };
        self.write(&changed)?;
        *entry = changed;
        Ok(())
    }

    fn write(&self, entry: &Entry) -> Result<(), Error> {
        let path = self.folder.join(format!("{}.json", entry.order.uid()));
        file::write(&path, entry).map_err(|source| Error::Write { path, source })
    }

    /// Held while orders are taken in together with their tombstones. Nothing is buried meanwhile: a burial between the
    /// two would find the tombstone known and take it away, and leave the order of a deleted instance that then comes back.
    pub fn intake(&self) -> MutexGuard<'_, ()> {
        lock(&self.intake)
    }

    /// Takes a tombstone in; true when it is new.
    pub fn doom(&self, tombstone: &Tombstone) -> Result<bool, Error> {
        if lock(&self.tombstones).contains_key(&tombstone.uid) {
            return Ok(false);
        }
        let path = self.tombstone_path(&tombstone.uid);
        file::write(&path, tombstone).map_err(|source| Error::Write { path, source })?;
        Ok(lock(&self.tombstones).insert(tombstone.uid.clone(), tombstone.clone()).is_none())
    }

    pub fn tombstone(&self, uid: &Uid) -> Option<Tombstone> {
        lock(&self.tombstones).get(uid).cloned()
    }

    pub fn tombstones(&self) -> Vec<Tombstone> {
        lock(&self.tombstones).values().cloned().collect()
    }

    /// A tombstone is done: it goes, and for an instance its entry before it (the other way round a kill between
    /// the two would leave an instance that comes back).
    pub fn bury(&self, uid: &Uid) -> Result<(), Error> {
        let _alone = self.intake();
        let path = self.folder.join(format!("{uid}.json"));
        file::remove(&path).map_err(|source| Error::Write { path, source })?;
        lock(&self.entries).remove(uid);
        let path = self.tombstone_path(uid);
        file::remove(&path).map_err(|source| Error::Write { path, source })?;
        lock(&self.tombstones).remove(uid);
        Ok(())
    }

    /// Keeps who is where on a network. An equal word costs nothing.
    pub fn keep(&self, overlay: &Overlay) -> Result<(), Error> {
        let mut overlays = lock(&self.overlays);
        if overlays.get(&overlay.network) == Some(overlay) {
            return Ok(());
        }
        let path = overlay_path(&self.folder, &overlay.network);
        file::write(&path, overlay).map_err(|source| Error::Write { path, source })?;
        overlays.insert(overlay.network.clone(), overlay.clone());
        Ok(())
    }

    pub fn overlays(&self) -> Vec<Overlay> {
        lock(&self.overlays).values().cloned().collect()
    }

    fn tombstone_path(&self, uid: &Uid) -> PathBuf {
        self.folder.join("tombstones").join(format!("{uid}.json"))
    }
}

fn overlay_path(folder: &Path, network: &Uid) -> PathBuf {
    folder.join("overlays").join(format!("{network}.json"))
}

/// PURE: networks that no instance here is on any more.
fn leftover(overlays: &BTreeMap<Uid, Overlay>, entries: &BTreeMap<Uid, Entry>) -> Vec<Uid> {
    let used: BTreeSet<&Uid> = entries
        .values()
        .flat_map(|entry| entry.order.networks.values())
        .map(|network| &network.uid)
        .collect();
    overlays.keys().filter(|network| !used.contains(network)).cloned().collect()
}

/// Every `UID.json` that holds what its name says; others are set aside as `UID.corrupt`.
fn read_all<T: for<'de> Deserialize<'de>>(
    folder: &Path,
    corrupt: &mut BTreeSet<Uid>,
    named: impl Fn(&T) -> &Uid,
) -> io::Result<BTreeMap<Uid, T>> {
    let mut found = BTreeMap::new();
    for file in fs::read_dir(folder)? {
        let path = file?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).and_then(Uid::parse);
        let (Some(uid), Some(extension)) = (stem, path.extension().and_then(|text| text.to_str())) else {
            continue;
        };
        match extension {
            "json" => {}
            "corrupt" => {
                corrupt.insert(uid);
                continue;
            }
            // A write that was cut off: the value before it stands in the `.json`.
            "new" => {
                fs::remove_file(&path)?;
                continue;
            }
            _ => continue,
        }
        let read = fs::read(&path)
            .map_err(|error| error.to_string())
            .and_then(|bytes| serde_json::from_slice::<T>(&bytes).map_err(|error| error.to_string()))
            .and_then(
                |value| if *named(&value) == uid { Ok(value) } else { Err("names another uid".into()) },
            );
        match read {
            Ok(value) => {
                found.insert(uid, value);
            }
            Err(error) => {
                tracing::error!(path = %path.display(), error, "a ledger file cannot be read: set aside, its instance is left alone");
                fs::rename(&path, path.with_extension("corrupt"))?;
                corrupt.insert(uid);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
