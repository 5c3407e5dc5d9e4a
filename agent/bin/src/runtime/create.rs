//! `create`: check everything, mount the instance's disk, put network, root and limits into config.json, and let runc create.
//!
//! Nothing is changed before all checks have passed. From the mount on, every failure, runc's included, takes the mount down again.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use enoki_helpers::args::Call;
use enoki_helpers::claim::{Claim, Owner};
use enoki_helpers::{Record, Refusal, edit, folders, lower, netns, oom, overlay, record, runc};
use serde_json::Value;

/// The error names whom it is about: the instance when the record could be read, else the container.
pub fn create(
    runc: &Path,
    call: &Call,
    words: &[OsString],
    bundle: Option<&Path>,
    id: &str,
) -> Result<ExitCode, (String, Refusal)> {
    let record =
        record::load(id).map_err(|why| (format!("container {}", id.get(..12).unwrap_or(id)), why))?;
    prepare_and_run(runc, call, words, bundle, id, &record).map_err(|why| (record.instance.clone(), why))
}

fn prepare_and_run(
    runc: &Path,
    call: &Call,
    words: &[OsString],
    bundle: Option<&Path>,
    id: &str,
    record: &Record,
) -> Result<ExitCode, Refusal> {
    netns::check(&record.netns)?;
    let mountpoint = check_disk(record)?;
    let bundle = bundle.unwrap_or(Path::new("."));
    let bundle = bundle
        .canonicalize()
        .map_err(|e| Refusal::new(format!("cannot find the bundle {}: {e}", bundle.display())))?;
    let path = bundle.join("config.json");
    let config = read_config(&path)?;
    let image = image_root(&config, &bundle)?;
    if image == mountpoint {
        return Err(Refusal::new("the bundle's root already is the instance's disk: it was edited before"));
    }
    let layers = lower::layers(&image)?;
    let plan = overlay::plan(&layers, &record.rootfs.upper, &record.rootfs.work)?;
    let config = edit::edit(config, record, &mountpoint)?;

    let mut claim = Claim::lock(&mountpoint)?;
    claim.evict(runc)?;
    claim.set_owner(Some(&Owner { container: id.to_owned(), runc_root: call.root.clone() }))?;
    // This container's last run is told of no more.
    if let Err(why) = oom::forget(id) {
        eprintln!("enoki: cannot forget how the last run ended: {why}");
    }
    let outcome =
        overlay::mount_at(&plan, &mountpoint).and_then(|()| write_config(&path, &config)).and_then(|()| {
            folders::make(&mountpoint, &record.drop_mounts);
            runc::wait_for(runc, words)
                .map_err(|e| Refusal::new(format!("cannot run {}: {e}", runc.display())))
        });
    if !outcome.as_ref().is_ok_and(|status| status.success())
        && let Err(why) = claim.release()
    {
        eprintln!("enoki: {why}");
    }
    outcome.map(|status| ExitCode::from(runc::code(status)))
}

/// All folders of the disk are there, and its image is mounted when it has one. Returns the mountpoint free of symbolic links, as runc
/// demands of a root.
fn check_disk(record: &Record) -> Result<PathBuf, Refusal> {
    let disk = &record.rootfs;
    for (what, path) in
        [("upper directory", &disk.upper), ("work directory", &disk.work), ("mountpoint", &disk.mountpoint)]
    {
        if !path.is_absolute() || !path.is_dir() {
            return Err(Refusal::new(format!(
                "the root disk's {what} {} is not there; the enoki agent makes or mounts it before a start",
                path.display()
            )));
        }
    }
    if disk.disk.join("disk.img").exists() {
        let fs = disk.disk.join("fs");
        let real =
            fs.canonicalize().map_err(|e| Refusal::new(format!("cannot find {}: {e}", fs.display())))?;
        if !lower::is_mounted(&real)? {
            return Err(Refusal::new(format!(
                "the root disk's image is not mounted at {}; the enoki agent does it before a start",
                fs.display()
            )));
        }
    }
    disk.mountpoint
        .canonicalize()
        .map_err(|e| Refusal::new(format!("cannot resolve {}: {e}", disk.mountpoint.display())))
}

fn read_config(path: &Path) -> Result<Value, Refusal> {
    let text = fs::read(path).map_err(|e| Refusal::new(format!("cannot read {}: {e}", path.display())))?;
    serde_json::from_slice(&text).map_err(|e| Refusal::new(format!("{} does not parse: {e}", path.display())))
}

/// The root that the engine prepared, absolute and free of symbolic links.
fn image_root(config: &Value, bundle: &Path) -> Result<PathBuf, Refusal> {
    let root = config["root"]["path"]
        .as_str()
        .ok_or_else(|| Refusal::new("the bundle's config.json has no root.path"))?;
    bundle
        .join(root)
        .canonicalize()
        .map_err(|e| Refusal::new(format!("cannot find the image's root {root}: {e}")))
}

/// Replaces config.json at once, with its owner and mode.
fn write_config(path: &Path, config: &Value) -> Result<(), Refusal> {
    let temporary = path.with_file_name(format!(".config.json.enoki-{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let meta = fs::metadata(path)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(&serde_json::to_vec(config)?)?;
        file.set_permissions(fs::Permissions::from_mode(meta.mode() & 0o7777))?;
        std::os::unix::fs::fchown(&file, Some(meta.uid()), Some(meta.gid()))?;
        fs::rename(&temporary, path)
    };
    write().map_err(|e| {
        let _ = fs::remove_file(&temporary);
        Refusal::new(format!("cannot write {}: {e}", path.display()))
    })
}
