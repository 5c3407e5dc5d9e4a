//! The folders that every part stands in, with their modes.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use anyhow::Context;

use crate::config::paths;

/// /run/enoki lets others through to the API socket, which has permissions of its own; the rest is root's alone.
const FOLDERS: [(&str, u32); 4] =
    [(paths::ETC, 0o700), (paths::RUN, 0o755), (paths::STATE, 0o700), (paths::LOG, 0o750)];

/// Makes what is missing and narrows what is too wide; never touches what is in them.
pub fn make() -> anyhow::Result<()> {
    for (folder, mode) in FOLDERS {
        let path = Path::new(folder);
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(path)
            .with_context(|| format!("cannot make {folder}"))?;
        let present =
            std::fs::metadata(path).with_context(|| format!("cannot read {folder}"))?.permissions().mode()
                & 0o777;
        if present & !mode != 0 {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(present & mode))
                .with_context(|| format!("cannot set the mode of {folder}"))?;
        }
    }
    Ok(())
}
