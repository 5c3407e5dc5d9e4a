//! The agent's record of a container: which instance it is, and what the wrapper puts under it at `create`.
//!
//! One JSON file a container, `/var/lib/enoki/containers/<64 hex digits>.json`, root's alone. The agent writes it between Docker's
//! create and start and again on each resize, and removes it after Docker has removed the container. Fields that this version does not know are ignored, so a newer agent can add optional ones;
//! whatever an older wrapper must not ignore gets a new [`VERSION`].

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{RECORDS, Refusal};

/// The only version that this wrapper understands.
pub const VERSION: u32 = 1;
/// A record is a few hundred bytes; what is larger is not one.
const MAX_BYTES: u64 = 1024 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`].
    pub version: u32,
    /// `project/name`, for messages.
    pub instance: String,
    pub uid: String,
    pub epoch: u64,
    /// Pin of the instance's network namespace. Must be an nsfs file of a network namespace that is neither the host's nor the fabric's.
    pub netns: PathBuf,
    pub rootfs: Rootfs,
    /// Image volumes: where Docker mounts an anonymous volume that nobody wants. The path is part of the root disk instead.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drop_mounts: Vec<String>,
    #[serde(default)]
    pub resources: Resources,
    /// Size of /dev/shm. None: as Docker has it (64 MiB).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shm_bytes: Option<u64>,
}

/// The root disk. All paths are absolute and exist before the container starts; `upper` and `work` share one filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rootfs {
    /// The disk's folder. When it holds `disk.img`, that image must be mounted at `fs/` in it.
    pub disk: PathBuf,
    pub upper: PathBuf,
    pub work: PathBuf,
    /// Where the wrapper mounts the overlay. Beside it, `<mountpoint>.owner` names the container that has it.
    pub mountpoint: PathBuf,
}

/// Limits as the kernel takes them. None: no limit of ours, Docker's own value (none) stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_quota_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_period_us: Option<u64>,
    /// Relative weight, 2 to 262144; the kernel's default is 1024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_shares: Option<u64>,
    /// As in `0-1,3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpuset: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Memory and swap together. None where the kernel does not account swap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_swap_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub io: Vec<IoLimit>,
}

/// Limits on one block device, a second.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoLimit {
    pub major: u32,
    pub minor: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bps: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_bps: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_iops: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_iops: Option<u64>,
}

/// The record's file. Only ids of Docker's form are taken, so that no id can name another file.
pub fn path(id: &str) -> Result<PathBuf, Refusal> {
    let well_formed = id.len() == 64 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if !well_formed {
        return Err(Refusal::new(format!("{id:?} is not a Docker container id (64 hex digits)")));
    }
    Ok(Path::new(RECORDS).join(format!("{id}.json")))
}

/// Reads a container's record, refusing one that anybody but root could have written or read.
pub fn load(id: &str) -> Result<Record, Refusal> {
    let path = path(id)?;
    let at = path.display();
    let dir = fs::metadata(RECORDS).map_err(|e| {
        Refusal::new(format!("cannot read {RECORDS}: {e}; is the enoki agent set up on this host?"))
    })?;
    if dir.uid() != 0 || dir.mode() & 0o022 != 0 {
        return Err(Refusal::new(format!(
            "{RECORDS} must belong to root and be writable by root alone (chown root, chmod 700)"
        )));
    }
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&path).map_err(
            |e| {
                Refusal::new(match e.kind() {
                    io::ErrorKind::NotFound => format!(
                        "there is no record {at}: this container was not made by the enoki agent of this host"
                    ),
                    _ => format!("cannot open the record {at}: {e}"),
                })
            },
        )?;
    check_private(&file).map_err(|why| Refusal::new(format!("the record {at} {why}")))?;
    let mut text = String::new();
    file.take(MAX_BYTES)
        .read_to_string(&mut text)
        .map_err(|e| Refusal::new(format!("cannot read the record {at}: {e}")))?;
    parse(&text).map_err(|why| Refusal::new(format!("the record {at} {why}")))
}

fn check_private(file: &File) -> Result<(), String> {
    let meta = file.metadata().map_err(|e| format!("cannot be examined: {e}"))?;
    if !meta.is_file() {
        return Err("is not a regular file".into());
    }
    if meta.uid() != 0 {
        return Err(format!("belongs to uid {}, not to root", meta.uid()));
    }
    if meta.mode() & 0o077 != 0 {
        return Err(format!("is open to others (mode {:o}); it must be 600", meta.mode() & 0o7777));
    }
    Ok(())
}

/// The text of a record. The error continues "the record PATH ...".
pub fn parse(text: &str) -> Result<Record, String> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    // The version first: a newer record may have fields of another shape, and that must not read as damage.
    let head: Head = serde_json::from_str(text).map_err(|e| format!("does not parse: {e}"))?;
    if head.version != VERSION {
        return Err(format!(
            "has version {}, this runtime reads version {VERSION}: install the runtime that belongs to the agent",
            head.version
        ));
    }
    serde_json::from_str(text).map_err(|e| format!("does not parse: {e}"))
}

/// Writes a container's record durably (file and folder synced) and at once: a reader sees the old one or the new one.
/// The folder is made when it is missing.
pub fn save(id: &str, record: &Record) -> io::Result<()> {
    let path = path(id).map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
    if !Path::new(RECORDS).is_dir() {
        fs::create_dir_all(RECORDS)?;
        fs::set_permissions(RECORDS, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    }
    let temporary = path.with_extension("json.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(&serde_json::to_vec_pretty(record)?)?;
    file.sync_all()?;
    fs::rename(&temporary, &path)?;
    File::open(RECORDS)?.sync_all()
}

/// Removes a container's record; one that is gone is no error. Only after Docker has removed the container.
pub fn remove(id: &str) -> io::Result<()> {
    let path = path(id).map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = r#"{"version": 1, "instance": "default/web1", "uid": "u", "epoch": 3, "netns": "/run/enoki/netns/u", "from_the_future": {"a": 1},
        "rootfs": {"disk": "/d", "upper": "/d/upper", "work": "/d/work", "mountpoint": "/d/root", "new": true}, "drop_mounts": ["/data"],
        "resources": {"cpu_quota_us": 50000, "cpu_period_us": 100000, "cpuset": "0-1", "memory_bytes": 1, "memory_swap_bytes": 1, "pids": 200,
        "io": [{"major": 254, "minor": 0, "read_bps": 1, "write_bps": 1, "read_iops": 1, "write_iops": 1}]}, "shm_bytes": 134217728}"#;

    #[test]
    fn unknown_fields_are_tolerated_and_all_known_ones_read() {
        let record = parse(FULL).expect("parses");
        assert_eq!(record.resources.io[0].write_iops, Some(1));
        assert_eq!(record.shm_bytes, Some(134_217_728));
        let again = serde_json::to_string(&record).expect("prints");
        assert_eq!(parse(&again).expect("parses"), record);
    }

    #[test]
    fn the_smallest_record() {
        let record = parse(
            r#"{"version": 1, "instance": "i", "uid": "u", "epoch": 0, "netns": "/n", "rootfs": {"disk": "/d", "upper": "/u", "work": "/w", "mountpoint": "/r"}}"#,
        );
        assert_eq!(record.expect("parses").resources, Resources::default());
    }

    #[test]
    fn a_newer_version_is_refused_by_name() {
        let why = parse(r#"{"version": 2, "netns": {"shape": "new"}}"#).expect_err("refused");
        assert!(why.contains("has version 2"), "{why}");
        assert!(parse("{}").expect_err("refused").contains("version"));
    }

    #[test]
    fn only_docker_ids_name_a_file() {
        assert!(path(&"a".repeat(64)).is_ok());
        for id in [
            "",
            "web1",
            "../../etc/passwd",
            &"A".repeat(64),
            &"a".repeat(63),
            &format!("{}/", "a".repeat(63)),
        ] {
            assert!(path(id).is_err(), "{id:?}");
        }
    }
}
