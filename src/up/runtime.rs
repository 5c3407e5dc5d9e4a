//! Making Docker know the runtime wrapper, and forget it again: daemon.json on disk, SIGHUP to a running dockerd.
//!
//! A running dockerd is never restarted. If it does not take the new file (a flag on its command line contradicts it, say),
//! the old file is put back, so that its next start is not broken by us either, and the reason is told.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::daemon_json::{self, Before, RUNTIME, Record, Undone, Wanted, merge};
use super::docker::{self, Info};
use super::process::{arguments, until};
use crate::config::{paths, write_atomic};

/// What `enoki up` changed outside of our own folders (`/var/lib/enoki/up.json`).
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    pub docker_json: Option<Record>,
    /// Docker's systemd units were enabled by us.
    pub docker_units: bool,
}

impl State {
    pub fn load() -> anyhow::Result<Self> {
        match std::fs::read(paths::UP_STATE) {
            Ok(text) => {
                serde_json::from_slice(&text).with_context(|| format!("{} is broken", paths::UP_STATE))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(e).with_context(|| format!("cannot read {}", paths::UP_STATE)),
        }
    }

    pub fn save(&self) -> anyhow::Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        write_atomic(Path::new(paths::UP_STATE), &text, 0o600)
            .with_context(|| format!("cannot write {}", paths::UP_STATE))
    }
}

/// The daemon's configuration file: Docker's usual one, or what its command line says.
async fn config_file(socket: &Path) -> PathBuf {
    let Some(pid) = docker::daemon_pid(socket).await else {
        return paths::DOCKER_JSON.into();
    };
    config_flag(&arguments(pid)).unwrap_or_else(|| paths::DOCKER_JSON.into())
}

fn config_flag(arguments: &[String]) -> Option<PathBuf> {
    let at = arguments.iter().position(|arg| arg == "--config-file" || arg.starts_with("--config-file="))?;
    match arguments[at].split_once('=') {
        Some((_, file)) => Some(file.into()),
        None => arguments.get(at + 1).map(PathBuf::from),
    }
}

fn read(file: &Path) -> anyhow::Result<Option<String>> {
    match std::fs::read_to_string(file) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", file.display())),
    }
}

/// What dockerd has from its command line must not stand in its file too: it would not load the file.
fn wanted(flags: &[String]) -> Wanted {
    let ours = format!("{RUNTIME}={}", paths::RUNTIME);
    Wanted {
        runtime: !flags.iter().any(|flag| flag.trim_start_matches("--add-runtime=") == ours),
        live_restore: !flags.iter().any(|flag| flag == "--live-restore" || flag == "--live-restore=true"),
    }
}

fn known(info: &Info) -> bool {
    info.runtime(RUNTIME).is_some() && info.live_restore_enabled
}

/// Puts our entries into daemon.json and has a running dockerd (`info`) take them. True: something was changed.
pub async fn register(socket: &Path, info: Option<&Info>) -> anyhow::Result<bool> {
    let file = config_file(socket).await;
    let old = read(&file)?;
    let flags = match docker::daemon_pid(socket).await {
        Some(pid) => arguments(pid),
        None => Vec::new(),
    };
    let wanted = wanted(&flags);
    let merged = merge(old.as_deref(), wanted)
        .with_context(|| format!("{} is not touched because it is not understood", file.display()))?;
    if let Some(text) = &merged.text {
        if let Some(old) = &old {
            let backup = backup_of(&file);
            // The first copy is the user's own file; a later merge must not replace it by one of ours.
            if !backup.exists() {
                write_atomic(&backup, old.as_bytes(), 0o600)
                    .with_context(|| format!("cannot write {}", backup.display()))?;
            }
        } else if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        // Recorded first: an interruption leaves a record of a change not made, which undoing tolerates; never the reverse.
        let mut state = State::load()?;
        state.docker_json = Some(merged.record.after(state.docker_json.take()));
        state.save()?;
        write_keeping_mode(&file, text)?;
    }
    let Some(info) = info else {
        return Ok(merged.text.is_some());
    };
    if merged.text.is_none() && known(info) {
        return Ok(false);
    }
    reload(socket).await?;
    let limit = Duration::from_secs(20);
    if !until(limit, || async { docker::info(socket).await.is_ok_and(|info| known(&info)) }).await {
        if merged.text.is_some() {
            put_back(&file, old.as_deref())?;
        }
        bail!(
            "dockerd does not take the runtime \"{RUNTIME}\" and live-restore from {} within {} s; the file is as it was. Its log says why \
             (often: the same setting is on its command line)",
            file.display(),
            limit.as_secs()
        );
    }
    Ok(true)
}

/// Takes our entries out again. Called when no container names the runtime any more.
pub async fn unregister(socket: &Path) -> anyhow::Result<()> {
    let mut state = State::load()?;
    // Without our record only the entry that names our own program is certainly ours.
    let record =
        state.docker_json.take().unwrap_or(Record { runtime: Some(Before::Absent), ..Record::default() });
    let file = config_file(socket).await;
    let Some(text) = read(&file)? else {
        return Ok(());
    };
    let undone =
        daemon_json::undo(&text, &record).with_context(|| format!("{} is not touched", file.display()))?;
    let left = match &undone {
        Undone::Unchanged => return Ok(()),
        Undone::Remove => "",
        Undone::Text(text) => text,
    };
    if docker::answers(socket).await {
        write_keeping_mode(&file, &daemon_json::spelled_out(left)?)?;
        reload(socket).await?;
        // Waited for, because whoever stops dockerd next asks it whether live-restore is still in force.
        let forgot =
            || async { docker::info(socket).await.is_ok_and(|info| info.runtime(RUNTIME).is_none()) };
        if !until(Duration::from_secs(10), forgot).await {
            eprintln!(
                "dockerd keeps the runtime \"{RUNTIME}\" in memory until its next start; its file is clean"
            );
        }
    }
    match undone {
        Undone::Text(text) => write_keeping_mode(&file, &text)?,
        _ => std::fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?,
    }
    state.save()?;
    match std::fs::remove_file(backup_of(&file)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("cannot remove {}", backup_of(&file).display()));
        }
        _ => {}
    }
    Ok(())
}

fn backup_of(file: &Path) -> PathBuf {
    let mut backup = file.as_os_str().to_owned();
    backup.push(".enoki-backup");
    backup.into()
}

/// SIGHUP makes dockerd read its file again and touches no container.
async fn reload(socket: &Path) -> anyhow::Result<()> {
    let pid = docker::daemon_pid(socket)
        .await
        .context("cannot tell which process dockerd is; send it SIGHUP and try again")?;
    kill(Pid::from_raw(pid), Signal::SIGHUP)
        .with_context(|| format!("cannot send SIGHUP to dockerd (pid {pid})"))
}

fn put_back(file: &Path, old: Option<&str>) -> anyhow::Result<()> {
    match old {
        Some(old) => write_keeping_mode(file, old),
        None => std::fs::remove_file(file).with_context(|| format!("cannot remove {}", file.display())),
    }
}

fn write_keeping_mode(file: &Path, text: &str) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(file).map_or(0o644, |m| m.permissions().mode() & 0o777);
    write_atomic(file, text.as_bytes(), mode).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_on_the_command_line_is_not_wanted_in_the_file() {
        let wanted = |flags: &[&str]| {
            let wanted = super::wanted(&flags.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>());
            (wanted.runtime, wanted.live_restore)
        };
        assert_eq!(wanted(&["dockerd", "-H", "fd://"]), (true, true));
        assert_eq!(
            wanted(&["dockerd", "--add-runtime", "enoki=/usr/local/lib/enoki/runtime"]),
            (false, true)
        );
        assert_eq!(
            wanted(&["dockerd", "--add-runtime=enoki=/usr/local/lib/enoki/runtime", "--live-restore"]),
            (false, false)
        );
        assert_eq!(wanted(&["dockerd", "--add-runtime=other=/x", "--live-restore=false"]), (true, true));
    }

    #[test]
    fn the_config_file_is_taken_from_dockerds_flags() {
        let flag = |args: &[&str]| config_flag(&args.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>());
        assert_eq!(flag(&["dockerd", "-D"]), None);
        assert_eq!(flag(&["dockerd", "--config-file=/a"]), Some("/a".into()));
        assert_eq!(flag(&["dockerd", "--config-file", "/b", "-D"]), Some("/b".into()));
        assert_eq!(flag(&["dockerd", "--config-file"]), None);
    }
}
