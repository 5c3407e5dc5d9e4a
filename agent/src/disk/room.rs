//! Room on the host. Images are sparse: their size is a promise, and no more is promised than there is.

use super::{Error, IMAGE_FILE, Store, doing};
use enoki_api::quantity::Bytes;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::PoisonError;

/// Left to the host itself, whatever is asked.
const RESERVE: u64 = 64 << 20;

impl Store {
    /// Makes the image (if it is not there) and lets it grow to `size`, if there is room. Never shorter.
    pub(super) fn extend(&self, image: &Path, size: Bytes) -> Result<(), Error> {
        let _counting = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        let open = fs::OpenOptions::new().write(true).create(true).truncate(false).open(image);
        let file = open.map_err(doing("make", image))?;
        let now = file.metadata().map_err(doing("look at", image))?.len();
        if size.0 <= now {
            return Ok(());
        }
        self.check(Bytes(size.0 - now))?;
        file.set_len(size.0).and_then(|()| file.sync_all()).map_err(doing("grow", image))
    }

    /// Whether there is room for `asked` more, beside what is promised already.
    pub(super) fn claim(&self, asked: Bytes) -> Result<(), Error> {
        let _counting = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        self.check(asked)
    }

    fn check(&self, asked: Bytes) -> Result<(), Error> {
        let seen = nix::sys::statvfs::statvfs(&self.disks).map_err(doing("look at", &self.disks))?;
        let free = seen.blocks_available().saturating_mul(seen.fragment_size());
        let mut promised: u64 = 0;
        for name in super::names(&self.disks)? {
            // What is being made counts; what is being deleted does not, and other folders have no image.
            if name.starts_with(super::TRASH) {
                continue;
            }
            if let Ok(image) = fs::metadata(self.disks.join(name).join(IMAGE_FILE)) {
                promised = promised.saturating_add(image.len().saturating_sub(image.blocks() * 512));
            }
        }
        if asked.0.saturating_add(promised).saturating_add(RESERVE) <= free {
            return Ok(());
        }
        let at = self.disks.display().to_string();
        Err(Error::NoRoom { asked, free: Bytes(free), promised: Bytes(promised), at })
    }
}
