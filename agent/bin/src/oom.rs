//! Whether the kernel killed in a container for its memory: asked at the end, of the kernel's own count.
//!
//! An engine learns of it by an event that races with the container's end: when the control group is gone before its watcher looks, the
//! event is lost and the engine calls a starved container merely killed. The count stays as long as the group does, so `delete` reads it
//! before runc removes the group, and keeps the answer beside the record.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::record;

/// runc's `--root` where the engine names none.
const RUNC_ROOT: &str = "/run/runc";

/// What runc keeps of a container, as far as this needs it.
#[derive(Deserialize)]
struct State {
    /// Folders by controller; under v2 one, by the empty name.
    cgroup_paths: BTreeMap<String, PathBuf>,
}

/// Keeps that the kernel killed in this container, if it did. Its control group must still be there; what cannot be read says nothing.
pub fn keep(container: &str, runc_root: Option<&Path>) {
    let root = runc_root.unwrap_or(Path::new(RUNC_ROOT));
    let Ok(path) = mark(container) else { return };
    let Ok(text) = fs::read(root.join(container).join("state.json")) else { return };
    let Ok(state) = serde_json::from_slice::<State>(&text) else { return };
    if kills(&state) > 0
        && let Err(why) = fs::write(&path, "")
    {
        eprintln!("enoki: cannot write {}: {why}", path.display());
    }
}

/// Whether the container's last run had a process killed for memory.
///
/// # Errors
/// What the file system said, but for a missing file.
pub fn kept(container: &str) -> io::Result<bool> {
    mark(container)?.try_exists()
}

/// For a new run, or when the container is gone.
///
/// # Errors
/// What the file system said, but for a missing file.
pub fn forget(container: &str) -> io::Result<()> {
    match fs::remove_file(mark(container)?) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// How many processes the kernel killed there, by version 1 (`memory.oom_control`) or 2 (`memory.events`).
fn kills(state: &State) -> u64 {
    let file = |controller, name| state.cgroup_paths.get(controller).map(|at: &PathBuf| at.join(name));
    let file = file("memory", "memory.oom_control").or_else(|| file("", "memory.events"));
    file.and_then(|file| fs::read_to_string(file).ok()).map_or(0, |text| count(&text))
}

fn count(text: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

fn mark(container: &str) -> io::Result<PathBuf> {
    let path = record::path(container).map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
    Ok(path.with_extension("oom"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_the_count_are_read() {
        assert_eq!(count("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"), 2);
        assert_eq!(count("low 0\nhigh 0\nmax 9\noom 1\noom_kill 1\noom_group_kill 0\n"), 1);
        assert_eq!(count("oom_kill_disable 1\nunder_oom 1\noom_kill 0\n"), 0);
        assert_eq!(count(""), 0, "a kernel that does not count");
    }

    #[test]
    fn the_group_is_found_in_either_version() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("memory.oom_control"), "oom_kill 1\n").expect("writes");
        fs::write(dir.path().join("memory.events"), "oom_kill 3\n").expect("writes");
        let state = |controller: &str| State {
            cgroup_paths: BTreeMap::from([(controller.to_owned(), dir.path().to_owned())]),
        };
        assert_eq!((kills(&state("memory")), kills(&state("")), kills(&state("cpu"))), (1, 3, 0));
    }
}
