//! Volumes: folders that outlive the instances that mount them.

use super::{Disks, Error, NEW, Uid, busy, delete, discard, doing, make_folder, names, sync_folder};
use std::fs;
use std::path::PathBuf;

impl Disks {
    /// The volume's folder, made if it is not there.
    pub async fn volume(&self, uid: &Uid) -> Result<PathBuf, Error> {
        self.locked(uid, |store, uid, _| {
            let folder = store.volumes.join(uid.as_str());
            if !folder.exists() {
                let half = store.volumes.join(format!("{NEW}{uid}"));
                if half.exists() {
                    delete(&half)?;
                }
                make_folder(&half, 0o700)?;
                make_folder(&half.join("data"), 0o755)?;
                fs::rename(&half, &folder).map_err(doing("make", &folder))?;
                sync_folder(&store.volumes)?;
            }
            Ok(folder.join("data"))
        })
        .await
    }

    /// Idempotent. The only way in which a volume goes; whoever calls has its tombstone.
    pub async fn destroy_volume(&self, uid: &Uid) -> Result<(), Error> {
        busy::outwait(|| self.try_destroy_volume(uid)).await
    }

    async fn try_destroy_volume(&self, uid: &Uid) -> Result<(), Error> {
        self.locked(uid, |store, uid, _| {
            let folder = store.volumes.join(uid.as_str());
            if !folder.exists() {
                return Ok(());
            }
            if let Some(why) = busy::volume(&uid)? {
                return Err(Error::InUse(why));
            }
            discard(&store.volumes, &folder, uid.as_str())
        })
        .await
    }

    pub async fn list_volumes(&self) -> Result<Vec<Uid>, Error> {
        self.work(|store| {
            let mut uids: Vec<Uid> =
                names(&store.volumes)?.iter().filter_map(|name| Uid::parse(name)).collect();
            uids.sort();
            Ok(uids)
        })
        .await
    }
}
