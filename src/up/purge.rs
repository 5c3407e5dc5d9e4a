//! `enoki down --purge`: removes all of ours from the machine, and nothing else.
//!
//! Ours is: containers with the label `enoki.uid`, images under `enoki/`, mounts and loop devices below our folders, links
//! named `ek` and eight hex digits, the nftables table `ip enoki`, our accepts in DOCKER-USER, our entries in daemon.json,
//! our unit files and our folders. Volumes, images and networks that were made with Docker alone stay.
//!
//! Every step may find its work done already, so an interrupted purge is finished by the next. A folder is removed only when
//! nothing is mounted below it: a disk that did not unmount is never deleted through.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::mount::{MntFlags, umount2};
use serde_json::Value;

use super::daemon_json::RUNTIME;
use super::docker::{self, call};
use super::process::until;
use super::service::{PATH, Plan, Service};
use super::{runtime, supervisor, systemd};
use crate::config::paths;

const DOCKER_USER: &str = "DOCKER-USER";
const CALL: Duration = Duration::from_secs(30);
/// Containers with our label, running or not; the filter is `{"label":["enoki.uid"]}`.
const OUR_CONTAINERS: &str = "/containers/json?all=1&filters=%7B%22label%22%3A%5B%22enoki.uid%22%5D%7D";

/// What a purge takes away, for the person who must agree to it.
#[derive(Debug, Default, PartialEq)]
pub struct Losses {
    pub instances: Vec<String>,
    pub disk_bytes: u64,
    pub volumes: usize,
    pub images: usize,
    /// `None`: the server does not answer, so nobody knows.
    pub networks: Option<usize>,
}

impl fmt::Display for Losses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "This will be lost for good:")?;
        let names = if self.instances.is_empty() {
            String::new()
        } else {
            format!(": {}", self.instances.join(", "))
        };
        writeln!(f, "  instances  {}{names}", self.instances.len())?;
        writeln!(f, "  disks      {:.1} MiB used", self.disk_bytes as f64 / f64::from(1 << 20))?;
        writeln!(f, "  volumes    {}", self.volumes)?;
        writeln!(f, "  images     {}", self.images)?;
        let networks = self
            .networks
            .map_or("all (the server does not answer, so they cannot be counted)".to_owned(), |n| {
                n.to_string()
            });
        write!(
            f,
            "  networks   {networks}\nand all state and configuration in {}, {} and {}",
            paths::STATE,
            paths::ETC,
            paths::LOG
        )
    }
}

/// Counts from the disk, so that it also works on a cloud that is down.
pub async fn losses(plan: &Plan) -> Losses {
    let networks = call(
        &plan.server.api_socket,
        "GET",
        "/v1/projects/default/networks?limit=1000",
        Duration::from_secs(5),
    )
    .await;
    Losses {
        instances: instances(Path::new(paths::CONTAINERS)),
        disk_bytes: used(Path::new(paths::DISKS)) + used(Path::new(paths::VOLUMES)),
        volumes: entries(Path::new(paths::VOLUMES)).len(),
        images: entries(&crate::registry::contents(Path::new(paths::REGISTRY))).len(),
        networks: networks.ok().and_then(|list| Some(list.get("items")?.as_array()?.len())),
    }
}

/// The names in the agent's records, one record a container.
fn instances(folder: &Path) -> Vec<String> {
    let name = |path: &PathBuf| {
        let record: Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        Some(record.get("instance")?.as_str()?.to_owned())
    };
    let mut names: Vec<String> = entries(folder).iter().filter_map(name).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).map(|dir| dir.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}

/// Bytes that a tree takes on its own filesystem; what is mounted in it counts where it is stored.
fn used(folder: &Path) -> u64 {
    let Ok(meta) = std::fs::symlink_metadata(folder) else {
        return 0;
    };
    let device = meta.dev();
    let (mut sum, mut waiting) = (0, vec![folder.to_owned()]);
    while let Some(path) = waiting.pop() {
        let Ok(meta) = std::fs::symlink_metadata(&path) else {
            continue;
        };
        if meta.dev() != device {
            continue;
        }
        sum += meta.blocks() * 512;
        if meta.is_dir() {
            waiting.extend(entries(&path));
        }
    }
    sum
}

/// Removes everything but the folders. Our processes are stopped by now; Docker is needed, and is started if it is ours.
pub async fn run(plan: &Plan) -> anyhow::Result<()> {
    let socket = &plan.docker_socket;
    if !docker::answers(socket).await
        && plan.runs(Service::Dockerd)
        && !entries(Path::new(paths::CONTAINERS)).is_empty()
    {
        start_docker(plan).await?;
    }
    // Each step is tried whatever became of the others: less is left for the next attempt.
    let mut failures = Vec::new();
    let mut step = |result: anyhow::Result<()>| failures.extend(result.err().map(|e| format!("{e:#}")));
    if docker::answers(socket).await {
        step(remove_containers(socket).await);
        step(remove_images(socket).await);
    }
    step(network().await);
    step(unmount_below(&[paths::STATE, paths::RUN]));
    match containers_naming_runtime(socket).await {
        0 => step(runtime::unregister(socket).await),
        n => {
            eprintln!("daemon.json keeps the runtime \"{RUNTIME}\": {n} containers that are not ours name it")
        }
    }
    if systemd::is_pid_1() {
        step(systemd::remove().await);
    }
    if !failures.is_empty() {
        bail!(
            "not everything could be removed; state and configuration are kept, run this again:\n  - {}",
            failures.join("\n  - ")
        );
    }
    Ok(())
}

/// Docker was stopped by an earlier `down`: only it can take away containers whose shims still run.
async fn start_docker(plan: &Plan) -> anyhow::Result<()> {
    for service in [Service::Containerd, Service::Dockerd] {
        if !plan.answers(service).await {
            supervisor::launch_unsupervised(service)?;
        }
        if !until(Duration::from_secs(60), || plan.answers(service)).await {
            bail!(
                "{} is needed to remove containers and does not start; read {}",
                service.name(),
                service.log().display()
            );
        }
    }
    Ok(())
}

async fn remove_containers(socket: &Path) -> anyhow::Result<()> {
    let list = call(socket, "GET", OUR_CONTAINERS, CALL).await.context("cannot list our containers")?;
    for container in list.as_array().into_iter().flatten() {
        let Some(id) = container.get("Id").and_then(Value::as_str) else {
            continue;
        };
        match call(socket, "DELETE", &format!("/containers/{id}?force=1&v=1"), CALL).await {
            Ok(_) | Err(docker::Error::Refused { status: 404, .. }) => {}
            Err(e) => return Err(e).with_context(|| format!("cannot remove the container {id}")),
        }
    }
    Ok(())
}

/// Our own images. One that a container of the user's needs stays: Docker refuses, and is right.
async fn remove_images(socket: &Path) -> anyhow::Result<()> {
    let list = call(socket, "GET", "/images/json", CALL).await.context("cannot list images")?;
    let tags =
        list.as_array().into_iter().flatten().filter_map(|image| image.get("RepoTags")?.as_array()).flatten();
    let digests = list
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|image| image.get("RepoDigests")?.as_array())
        .flatten();
    let pulled = digests.filter_map(Value::as_str).filter(|name| is_our_pull(name));
    for name in tags.filter_map(Value::as_str).filter(|tag| tag.starts_with("enoki/")).chain(pulled) {
        match call(socket, "DELETE", &format!("/images/{name}"), CALL).await {
            Ok(_) | Err(docker::Error::Refused { status: 404, .. }) => {}
            Err(e) => eprintln!("image {name}: left, {e}"),
        }
    }
    Ok(())
}

/// Whether an image has this name from a pull through an agent: `127.0.0.1:PORT/images/HEX@sha256:HEX`.
fn is_our_pull(name: &str) -> bool {
    let digest = name.strip_prefix("127.0.0.1:").and_then(|rest| rest.split_once('@'));
    digest.is_some_and(|(place, digest)| {
        let own = enoki_api::protocol::repository(digest);
        place.split_once('/').is_some_and(|(port, repository)| {
            port.bytes().all(|b| b.is_ascii_digit()) && own.as_deref() == Some(repository)
        })
    })
}

/// How many containers still name our runtime; the wrapper must stay registered for them to start.
async fn containers_naming_runtime(socket: &Path) -> usize {
    let Ok(list) = call(socket, "GET", "/containers/json?all=1", CALL).await else {
        return 0;
    };
    let mut count = 0;
    for id in list.as_array().into_iter().flatten().filter_map(|c| c.get("Id")?.as_str()) {
        if let Ok(container) = call(socket, "GET", &format!("/containers/{id}/json"), CALL).await
            && container.pointer("/HostConfig/Runtime").and_then(Value::as_str) == Some(RUNTIME)
        {
            count += 1;
        }
    }
    count
}

/// Our links, tables and rules on the host. The fabric and the instances' namespaces end with their pins.
async fn network() -> anyhow::Result<()> {
    // Not from /sys, which may show another namespace's links.
    let links = nix::net::if_::if_nameindex().context("cannot list links")?;
    let names: Vec<String> = links.iter().map(|link| link.name().to_string_lossy().into_owned()).collect();
    for name in names {
        if is_our_link(&name) {
            tool("ip", &["link", "delete", &name]).await?;
        }
    }
    if tool("nft", &["list", "table", "ip", "enoki"]).await.is_ok() {
        tool("nft", &["delete", "table", "ip", "enoki"]).await?;
    }
    let Ok(listing) = tool("iptables", &["-w", "5", "-S", DOCKER_USER]).await else {
        return Ok(());
    };
    // By number, the last one first: a rule as printed cannot be split into arguments again where its comment has spaces.
    for number in our_rules(&listing).into_iter().rev() {
        tool("iptables", &["-w", "5", "-D", DOCKER_USER, &number.to_string()]).await?;
    }
    Ok(())
}

fn is_our_link(name: &str) -> bool {
    name.strip_prefix("ek").is_some_and(|rest| rest.len() == 8 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// The numbers (from 1) of the rules that accept for all of our links at once, in what `iptables -S DOCKER-USER` prints.
fn our_rules(listing: &str) -> Vec<usize> {
    let rules = listing.lines().filter(|line| line.starts_with("-A "));
    let ours =
        |rule: &str| (rule.contains(" -i ek+ ") || rule.contains(" -o ek+ ")) && rule.ends_with(" -j ACCEPT");
    rules.enumerate().filter(|(_, rule)| ours(rule)).map(|(index, _)| index + 1).collect()
}

/// Unmounts everything below the folders, the last mounted first, and lets go of loop devices whose files are there.
fn unmount_below(folders: &[&str]) -> anyhow::Result<()> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").context("cannot read the mount table")?;
    for target in below(&table, folders).into_iter().rev() {
        // Lazily where it is busy: a process that holds a file there must not keep the purge, and keeps only its own view.
        if umount2(&target, MntFlags::UMOUNT_NOFOLLOW).is_err() {
            umount2(&target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
                .with_context(|| format!("cannot unmount {}", target.display()))?;
        }
    }
    detach_loops(folders)
}

/// Lets go of loop devices whose files are below the folders. Compared by inode: the kernel tells a file's path as its
/// opener saw it, and another mount namespace has the same paths.
fn detach_loops(folders: &[&str]) -> anyhow::Result<()> {
    let losetup = |args: &[&str]| {
        std::process::Command::new("losetup").args(args).env("PATH", PATH).stdin(Stdio::null()).output()
    };
    let list = losetup(&["--list", "--noheadings", "--raw", "--output", "NAME,BACK-INO,BACK-FILE"])
        .context("cannot run losetup")?;
    for line in String::from_utf8_lossy(&list.stdout).lines() {
        let mut fields = line.splitn(3, ' ');
        let (Some(device), Some(inode), Some(file)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let file = Path::new(file);
        let same = std::fs::metadata(file).is_ok_and(|meta| meta.ino().to_string() == inode);
        if same && folders.iter().any(|folder| file.starts_with(folder)) {
            let output = losetup(&["--detach", device]).context("cannot run losetup")?;
            if !output.status.success() {
                bail!("cannot detach {device}: {}", String::from_utf8_lossy(&output.stderr).trim());
            }
        }
    }
    Ok(())
}

/// Mount points strictly below the folders, in the order of mounting (proc(5), mountinfo field 5, octal escapes).
fn below(table: &str, folders: &[&str]) -> Vec<PathBuf> {
    let point = |line: &str| Some(PathBuf::from(unescape(line.split(' ').nth(4)?)));
    let ours =
        |path: &PathBuf| folders.iter().any(|folder| path.starts_with(folder) && path != Path::new(folder));
    table.lines().filter_map(point).filter(ours).collect()
}

fn unescape(text: &str) -> String {
    let mut plain = text.to_owned();
    for (code, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        plain = plain.replace(code, character);
    }
    plain
}

/// Our folders, last of all. Where one is a mount of its own, its content goes and it stays.
pub fn remove_folders() -> anyhow::Result<()> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").context("cannot read the mount table")?;
    let folders = [paths::STATE, paths::ETC, paths::LOG, paths::RUN];
    if let Some(mounted) = below(&table, &folders).first() {
        bail!(
            "{} is still mounted; nothing below it was deleted. Unmount it and run this again",
            mounted.display()
        );
    }
    for folder in folders {
        for entry in entries(Path::new(folder)) {
            let is_folder = std::fs::symlink_metadata(&entry).is_ok_and(|m| m.is_dir());
            let removed =
                if is_folder { std::fs::remove_dir_all(&entry) } else { std::fs::remove_file(&entry) };
            match removed {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => {
                    return Err(e).with_context(|| format!("cannot remove {}", entry.display()));
                }
            }
        }
        match std::fs::remove_dir(folder) {
            Ok(()) => {}
            Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ResourceBusy) => {
            }
            Err(e) => return Err(e).with_context(|| format!("cannot remove {folder}")),
        }
    }
    Ok(())
}

async fn tool(program: &str, args: &[&str]) -> anyhow::Result<String> {
    let run = tokio::process::Command::new(program)
        .args(args)
        .env("PATH", PATH)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let words = format!("{program} {}", args.join(" "));
    let output = tokio::time::timeout(Duration::from_secs(20), run)
        .await
        .with_context(|| format!("{words} did not end within 20 s"))?
        .with_context(|| format!("cannot run {words}"))?;
    if !output.status.success() {
        bail!("{words}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_images_that_came_through_an_agent_are_ours() {
        let (hex, other) = ("ab".repeat(32), "cd".repeat(32));
        for (name, ours) in [
            (format!("127.0.0.1:4321/images/{hex}@sha256:{hex}"), true),
            (format!("127.0.0.1:4321/images/{other}@sha256:{hex}"), false),
            (format!("127.0.0.1:4321/shop@sha256:{hex}"), false),
            (format!("198.18.0.1:4321/images/{hex}@sha256:{hex}"), false),
            ("127.0.0.1:4321/images/x:1".to_owned(), false),
        ] {
            assert_eq!(is_our_pull(&name), ours, "{name}");
        }
    }

    #[test]
    fn only_our_links_and_rules_are_ours() {
        for (name, ours) in [
            ("ek0a1b2c3d", true),
            ("ek0a1b2c3", false),
            ("eknotahex0", false),
            ("eth0", false),
            ("ek0a1b2c3d4", false),
        ] {
            assert_eq!(is_our_link(name), ours, "{name}");
        }
        let listing = "-N DOCKER-USER\n-A DOCKER-USER -i eth0 -j DROP\n-A DOCKER-USER -i ek+ -m comment --comment \"a b\" -j ACCEPT\n\
                       -A DOCKER-USER -o ek+ -j ACCEPT\n-A DOCKER-USER -i ek0 -j ACCEPT\n-A DOCKER-USER -i ek+ -j DROP\n-A DOCKER-USER -j RETURN\n";
        assert_eq!(our_rules(listing), [2, 3]);
        assert_eq!(our_rules(""), Vec::<usize>::new());
    }

    #[test]
    fn mounts_below_our_folders_are_found_and_the_folders_themselves_left() {
        let table = "30 1 0:1 / / rw - ext4 /dev/vda rw\n\
                     31 30 0:1 /x /var/lib/enoki rw - ext4 /dev/vda rw\n\
                     32 31 7:0 / /var/lib/enoki/disks/a/fs rw - ext4 /dev/loop0 rw\n\
                     33 32 0:9 / /var/lib/enoki/disks/a/with\\040space rw - overlay overlay rw\n\
                     34 30 0:4 net:[1] /run/enoki/netns/b rw - nsfs nsfs rw\n\
                     35 30 0:1 / /var/lib/enoki2/x rw - ext4 /dev/vda rw\n";
        assert_eq!(
            below(table, &["/var/lib/enoki", "/run/enoki"]),
            ["/var/lib/enoki/disks/a/fs", "/var/lib/enoki/disks/a/with space", "/run/enoki/netns/b"]
                .map(PathBuf::from)
        );
    }

    #[test]
    fn losses_are_read_from_the_disk_and_told() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.json"), r#"{"instance":"default/web1"}"#).unwrap();
        std::fs::write(folder.path().join("b.json"), "torn").unwrap();
        assert_eq!(instances(folder.path()), ["default/web1"]);
        assert_eq!(instances(Path::new("/nonexistent")), Vec::<String>::new());
        assert_eq!(used(Path::new("/nonexistent")), 0);
        let losses = Losses {
            instances: vec!["default/web1".into()],
            disk_bytes: 3 << 19,
            volumes: 1,
            images: 2,
            networks: Some(1),
        };
        let text = losses.to_string();
        assert!(
            text.contains("instances  1: default/web1")
                && text.contains("1.5 MiB used")
                && text.contains("networks   1"),
            "{text}"
        );
    }
}
