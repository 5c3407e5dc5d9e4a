//! The registry of this machine's server: where it listens and what it keeps.
//!
//! It listens on a socket of root's alone, so that nobody but our server asks it: who may have which image is decided
//! there ([`crate::registry`]). It remembers nothing in memory about what it keeps, since what nobody needs any more is
//! removed beside it.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use anyhow::Context;

use crate::config::{paths, write_atomic};

/// Makes its folder and writes its configuration.
pub fn prepare() -> anyhow::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(paths::REGISTRY)
        .with_context(|| format!("cannot make {}", paths::REGISTRY))?;
    write_atomic(Path::new(paths::REGISTRY_YML), config().as_bytes(), 0o600)
        .with_context(|| format!("cannot write {}", paths::REGISTRY_YML))
}

/// Unfinished uploads (their sender died) go after a day.
fn config() -> String {
    format!(
        "version: 0.1\n\
         log: {{level: error, accesslog: {{disabled: true}}}}\n\
         storage:\n  \
           filesystem: {{rootdirectory: {}}}\n  \
           delete: {{enabled: false}}\n  \
           maintenance: {{uploadpurging: {{enabled: true, age: 24h, interval: 1h, dryrun: false}}}}\n\
         http: {{net: unix, addr: {}, relativeurls: true}}\n",
        paths::REGISTRY,
        paths::REGISTRY_SOCKET
    )
}
