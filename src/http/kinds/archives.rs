//! Images of the version before there was a registry: their archives lie as files, and their specs name no digest. Each
//! archive goes into the registry once, after which its images are like all others and the file is removed.

use super::image::settle;
use crate::admission::key;
use crate::http::App;
use crate::http::commit::{Step, commit};
use crate::registry::Import;
use crate::registry::archive::Room;
use crate::state::At;
use crate::store::Txn;
use crate::store::keys::Key;
use anyhow::Context;
use std::fs::File;
use std::path::Path;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The registry is up soon after the server, and a disk may be mended.
const AGAIN: Duration = Duration::from_secs(10);

/// Takes over what lies in `folder`, until that is done or `stop`.
pub async fn take_over(app: App, folder: &Path, stop: &CancellationToken) {
    while folder.exists() && !stop.is_cancelled() {
        if app.state.reached(0, AGAIN).await {
            match all(&app, folder).await {
                Ok(()) => return,
                Err(error) => tracing::warn!(error = format!("{error:#}"), "images of an older version wait"),
            }
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

async fn all(app: &App, folder: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        // What an import that was cut off has left has another ending, and is nobody's.
        if path.extension().is_some_and(|ending| ending == "tar") {
            one(app, &path).await.with_context(|| path.display().to_string())?;
        }
        std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
    }
    std::fs::remove_dir(folder).with_context(|| folder.display().to_string())
}

async fn one(app: &App, path: &Path) -> anyhow::Result<()> {
    let import = app.registry.import(Room::new(File::open(path)?)).await?;
    let snapshot = app.state.snapshot();
    let same = |spec: &enoki_api::image::ImageSpec| {
        spec.digest.is_empty() && spec.image_id == import.imported.image_id
    };
    let images: Vec<At> =
        snapshot.images.of(None).filter(|row| same(&row.object.spec)).map(|row| row.at()).collect();
    for at in images {
        give(app, &at, &import).await?;
        settle(app, &at).await;
        tracing::info!(
            image = at.1,
            digest = import.imported.digest,
            "an image of an older version is in the registry"
        );
    }
    Ok(())
}

async fn give(app: &App, at: &At, import: &Import) -> anyhow::Result<()> {
    commit(app, at, |snapshot| {
        let row = snapshot.images.at(at).filter(|row| row.object.spec.digest.is_empty());
        let Some(row) = row else { return Ok(Step::Nothing(())) };
        let mut new = row.object.clone();
        new.spec.digest.clone_from(&import.imported.digest);
        let spec_key = key(Key::spec("images", Some(&at.0), &at.1))?;
        let txn = Txn::new().when_unchanged(spec_key.clone(), row.object.revision);
        Ok(Step::Write(txn.put(spec_key, row.encode(&new)), ()))
    })
    .await
    .map(drop)
    .map_err(|problem| anyhow::anyhow!("{problem}"))
}
