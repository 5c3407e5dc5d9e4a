//! Where the things under test are: the binary, the helpers and the base images, and what to run when they are not.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::bounded;

/// The helpers as Cargo names them, and as they are installed.
pub(crate) const HELPERS: [(&str, &str); 2] = [("enoki-runtime", "runtime"), ("enoki-init", "init")];

/// The `enoki` that Cargo built for this test: beside the folder that the test itself stands in.
pub(crate) fn enoki_binary() -> Result<PathBuf, String> {
    let test = std::env::current_exe().map_err(|error| error.to_string())?;
    // A test stands in `deps`, a program beside it.
    let found =
        test.ancestors().skip(1).take(2).map(|folder| folder.join("enoki")).find(|path| path.is_file());
    found.ok_or_else(|| {
        format!("`enoki` is not built beside {}: run `cargo build` or `make test`", test.display())
    })
}

/// The folder of the static helpers: named by `ENOKI_TEST_HELPERS`, or where `make helpers` puts them.
pub(crate) fn helpers() -> Result<PathBuf, String> {
    let named = std::env::var_os("ENOKI_TEST_HELPERS").map(PathBuf::from);
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
    let usual = fs::read_dir(target.join("static"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("release"))
        .find(|folder| folder.join("enoki-runtime").is_file());
    let hint = "run `make helpers`, or the tests by `make test`";
    let folder =
        named.clone().or(usual).ok_or_else(|| format!("the static helpers are not built: {hint}"))?;
    let mut youngest = SystemTime::UNIX_EPOCH;
    for (name, _) in HELPERS {
        let built = fs::metadata(folder.join(name)).and_then(|meta| meta.modified());
        let built = built.map_err(|error| format!("{}: {error}: {hint}", folder.join(name).display()))?;
        youngest = youngest.max(built);
    }
    // Named by the Makefile, they were built a moment ago; found, they may be yesterday's. A change to one of the two
    // leaves the other as it was, so the younger counts.
    if named.is_none() && youngest < newest(&repository().join("agent/bin/src")) {
        return Err(format!("the static helpers are older than their sources: {hint}"));
    }
    Ok(folder)
}

/// When the youngest file below a folder was changed.
fn newest(folder: &Path) -> SystemTime {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => newest(&entry.path()),
            Ok(meta) => meta.modified().unwrap_or(SystemTime::UNIX_EPOCH),
            Err(_) => SystemTime::UNIX_EPOCH,
        })
        .max()
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Builds an image by its script, or finds it built; the path of its tar, the same inside a cloud.
pub(crate) fn image(name: &str, version: Option<&str>) -> String {
    let script = repository().join("deploy/images").join(format!("{name}.sh"));
    bounded(Command::new(script).args(version), b"", Duration::from_secs(1200)).ok().text().to_owned()
}
