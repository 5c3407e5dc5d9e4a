//! Whether this machine can be a host, found out before anything is changed.
//!
//! [`gather`] asks the machine, [`check`] judges: pure, and it names everything that is wrong at once, each with what to do.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use super::daemon_json;
use super::docker::{self, Info};
use super::etcd::{self, Holder};
use super::service::{PATH, Plan, Service, find_program};
use crate::config::paths;

/// A program, and the Debian package that it comes from.
type Tool = (&'static str, &'static str);

const ALWAYS: [Tool; 8] = [
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("mkfs.ext4", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("losetup", "mount"),
    ("mount", "mount"),
    ("runc", "runc"),
];
const FOR_DOCKER: [Tool; 3] =
    [("dockerd", "docker.io"), ("containerd", "containerd"), ("iptables", "iptables")];
const FOR_ETCD: [Tool; 1] = [("etcd", "etcd-server")];
const FOR_REGISTRY: [Tool; 1] = [("docker-registry", "docker-registry")];

/// Controllers that instances are limited by; cgroup v2 calls the block one `io` and has no `freezer` among them.
const CONTROLLERS: [(&str, &str); 4] =
    [("cpu", "cpu"), ("memory", "memory"), ("pids", "pids"), ("blkio", "io")];

/// The oldest Docker API that everything here works with (Docker 20.10).
const OLDEST_API: (u32, u32) = (1, 41);

/// What was found. Everything is told as it is; judging is [`check`]'s.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub root: bool,
    /// Filesystems that the kernel has, built in or as a module.
    pub overlay: bool,
    pub ext4: bool,
    /// Why a bridge, a veth pair and an nftables table could not be made in a throw-away network namespace; `None`: they could.
    pub links_fault: Option<String>,
    /// cgroup controllers that are mounted or, on v2, available.
    pub controllers: Vec<String>,
    pub missing_tools: Vec<Tool>,
    pub missing_helpers: Vec<&'static str>,
    /// `None`: no dockerd answers.
    pub docker: Option<DockerFacts>,
    /// Text of daemon.json; `None` when there is none.
    pub daemon_json: Option<String>,
    pub docker_is_ours_to_start: bool,
    pub docker_socket: String,
    /// Strangers on etcd's ports; empty when our own etcd has them or nobody.
    pub port_holders: Vec<Holder>,
}

#[derive(Debug, Clone, Default)]
pub struct DockerFacts {
    pub info: Info,
    /// As told by the daemon; empty when it does not tell.
    pub api: String,
}

/// All reasons why this machine cannot be a host, in sentences. Empty: it can.
pub fn check(facts: &Facts) -> Vec<String> {
    let mut reasons = Vec::new();
    if !facts.root {
        // Nothing below can be told without it.
        return vec![
            "Enoki sets up containers, links and disks: run this as root (sudo enoki up)".to_owned(),
        ];
    }
    if !facts.overlay {
        reasons.push("the kernel has no overlay filesystem, which every root disk needs: load or build CONFIG_OVERLAY_FS".to_owned());
    }
    if !facts.ext4 {
        reasons.push(
            "the kernel has no ext4, which disks of a fixed size need: load or build CONFIG_EXT4_FS"
                .to_owned(),
        );
    }
    let missing: Vec<&str> = CONTROLLERS
        .iter()
        .filter(|(v1, v2)| !facts.controllers.iter().any(|c| c == v1 || c == v2))
        .map(|(v1, _)| *v1)
        .collect();
    if !missing.is_empty() {
        reasons.push(format!(
            "the cgroup controllers {} are not mounted under /sys/fs/cgroup: limits could not be set (Debian: cgroupfs-mount, or systemd)",
            missing.join(", ")
        ));
    }
    if !facts.missing_tools.is_empty() {
        let names: Vec<&str> = facts.missing_tools.iter().map(|(tool, _)| *tool).collect();
        let mut packages: Vec<&str> = facts.missing_tools.iter().map(|(_, package)| *package).collect();
        packages.sort_unstable();
        packages.dedup();
        reasons.push(format!(
            "not installed: {}. On Debian: apt-get install {}",
            names.join(", "),
            packages.join(" ")
        ));
    } else if let Some(e) = &facts.links_fault {
        reasons.push(format!("the kernel cannot make a bridge, a veth pair and an nftables table: {e}"));
    }
    if !facts.missing_helpers.is_empty() {
        reasons.push(format!(
            "{} missing: install Enoki first (make install)",
            facts.missing_helpers.join(" and ")
        ));
    }
    match &facts.docker {
        Some(docker) => check_docker(docker, &mut reasons),
        None => check_docker_to_be(facts, &mut reasons),
    }
    for holder in &facts.port_holders {
        reasons.push(format!(
            "{} is taken by {}: etcd needs it. Stop that process (Debian's own etcd: systemctl disable --now etcd), or name \
             another etcd in {}",
            holder.address,
            holder.who,
            paths::SERVER_TOML
        ));
    }
    reasons
}

fn check_docker(docker: &DockerFacts, reasons: &mut Vec<String>) {
    let info = &docker.info;
    let has = |name: &str| {
        info.security_options.iter().any(|o| o.split(',').next() == Some(&format!("name={name}")))
    };
    if has("rootless") {
        reasons.push(
            "this dockerd runs rootless: it cannot hand a container a network namespace or a disk of ours. Use a dockerd run by root".into(),
        );
    } else if has("userns") {
        reasons.push(
            "this dockerd runs with userns-remap: files on root disks and volumes would belong to nobody. Remove \"userns-remap\" from \
             /etc/docker/daemon.json and restart Docker"
                .into(),
        );
    }
    if info.docker_root_dir.starts_with("/var/snap/") {
        reasons.push(
            "this Docker is a snap: it is confined and cannot run the runtime wrapper. Remove it and install Debian's docker.io".into(),
        );
    }
    if !matches!(info.os_type.as_str(), "" | "linux") {
        reasons.push(format!("this Docker runs {} containers, not linux ones", info.os_type));
    }
    if info.in_swarm() {
        reasons.push(
            "this Docker belongs to a swarm: it refuses live-restore, so its restart would stop every instance. Leave the swarm \
             (docker swarm leave) or use another machine"
                .into(),
        );
    }
    if api_version(&docker.api).is_some_and(|version| version < OLDEST_API) {
        reasons.push(format!(
            "this Docker speaks API {}; at least {}.{} (Docker 20.10) is needed",
            docker.api, OLDEST_API.0, OLDEST_API.1
        ));
    }
}

/// A dockerd that we are about to start, judged by its configuration.
fn check_docker_to_be(facts: &Facts, reasons: &mut Vec<String>) {
    if !facts.docker_is_ours_to_start {
        reasons.push(format!(
            "no dockerd answers on {}, which {} names: start it, or remove the line",
            facts.docker_socket,
            paths::AGENT_TOML
        ));
        return;
    }
    let text = facts.daemon_json.as_deref().unwrap_or_default();
    if daemon_json::has(text, "userns-remap") {
        reasons.push("/etc/docker/daemon.json sets userns-remap, with which root disks would belong to nobody: remove it".into());
    }
}

/// "1.41" as numbers that compare.
fn api_version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Asks the machine; changes nothing. Every question has a deadline.
pub async fn gather(plan: &Plan) -> Facts {
    if !nix::unistd::geteuid().is_root() {
        return Facts::default();
    }
    let docker_is_ours_to_start = plan.runs(Service::Dockerd);
    let docker = docker_facts(&plan.docker_socket).await;
    let mut tools: Vec<Tool> = ALWAYS.to_vec();
    if docker.is_none() && docker_is_ours_to_start {
        tools.extend(FOR_DOCKER);
    }
    let mut port_holders = Vec::new();
    if plan.runs(Service::Etcd)
        && super::process::find(Service::Etcd.name()).is_none()
        && !plan.answers(Service::Etcd).await
    {
        tools.extend(FOR_ETCD);
        port_holders = etcd::port_holders();
    }
    if plan.runs(Service::Registry) {
        tools.extend(FOR_REGISTRY);
    }
    let helpers = [paths::RUNTIME, paths::INIT];
    Facts {
        root: true,
        overlay: has_filesystem("overlay"),
        ext4: has_filesystem("ext4"),
        links_fault: try_links().await,
        controllers: controllers(),
        missing_tools: tools.into_iter().filter(|(tool, _)| !find_program(tool).is_absolute()).collect(),
        missing_helpers: helpers.into_iter().filter(|helper| !Path::new(helper).is_file()).collect(),
        docker,
        daemon_json: std::fs::read_to_string(paths::DOCKER_JSON).ok(),
        docker_is_ours_to_start,
        docker_socket: plan.docker_socket.display().to_string(),
        port_holders,
    }
}

/// Facts of a running daemon. One that hangs counts as absent here; the wait for it later tells so.
async fn docker_facts(socket: &Path) -> Option<DockerFacts> {
    if !docker::answers(socket).await {
        return None;
    }
    let info = docker::info(socket).await.ok()?;
    let version = docker::call(socket, "GET", "/version", Duration::from_secs(5)).await.ok();
    let api = version.and_then(|v| v.get("ApiVersion")?.as_str().map(str::to_owned)).unwrap_or_default();
    Some(DockerFacts { info, api })
}

/// Built in or loaded, or loadable on its first mount.
fn has_filesystem(name: &str) -> bool {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.split_ascii_whitespace().next_back() == Some(name)) {
        return true;
    }
    let Ok(release) = std::fs::read_to_string("/proc/sys/kernel/osrelease") else {
        return false;
    };
    let modules =
        std::fs::read_to_string(format!("/lib/modules/{}/modules.dep", release.trim())).unwrap_or_default();
    modules
        .lines()
        .any(|line| line.split(':').next().is_some_and(|path| path.contains(&format!("/{name}.ko"))))
}

/// Controllers under /sys/fs/cgroup: folders of v1, or the file of v2.
fn controllers() -> Vec<String> {
    let root = Path::new("/sys/fs/cgroup");
    if let Ok(text) = std::fs::read_to_string(root.join("cgroup.controllers")) {
        return text.split_ascii_whitespace().map(str::to_owned).collect();
    }
    let Ok(text) = std::fs::read_to_string("/proc/self/mountinfo") else {
        return Vec::new();
    };
    let options = text.lines().filter(|l| l.contains(" - cgroup ")).filter_map(|l| l.rsplit(' ').next());
    options.flat_map(|o| o.split(',')).map(str::to_owned).collect()
}

/// Makes the kinds of link that networks are made of, in a network namespace that ends with the probe. Modules get loaded
/// on the way, as they would later.
async fn try_links() -> Option<String> {
    let script = "ip link add enoki-b type bridge && ip link add enoki-v type veth peer name enoki-w && nft add table ip enoki";
    let probe = tokio::process::Command::new("unshare")
        .args(["--net", "sh", "-c", script])
        .env("PATH", PATH)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(Duration::from_secs(10), probe).await {
        Ok(Ok(output)) if output.status.success() => None,
        Ok(Ok(output)) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Ok(Err(e)) => Some(format!("cannot run unshare: {e}")),
        Err(_) => Some("the probe did not end within 10 s".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn well() -> Facts {
        Facts {
            root: true,
            overlay: true,
            ext4: true,
            controllers: ["cpu", "memory", "pids", "blkio"].map(String::from).into(),
            docker_is_ours_to_start: true,
            ..Facts::default()
        }
    }

    fn with(change: impl FnOnce(&mut Facts)) -> Vec<String> {
        let mut facts = well();
        change(&mut facts);
        check(&facts)
    }

    fn with_docker(change: impl FnOnce(&mut DockerFacts)) -> Vec<String> {
        with(|facts| {
            let mut docker = DockerFacts { api: "1.41".into(), ..DockerFacts::default() };
            docker.info.docker_root_dir = "/var/lib/docker".into();
            docker.info.security_options = vec!["name=seccomp,profile=default".into()];
            change(&mut docker);
            facts.docker = Some(docker);
        })
    }

    #[test]
    fn a_good_machine_passes_with_and_without_docker() {
        assert_eq!(with(|_| {}), Vec::<String>::new());
        assert_eq!(with_docker(|_| {}), Vec::<String>::new());
        assert_eq!(
            with(|f| f.controllers = ["cpu", "io", "memory", "pids"].map(String::from).into()),
            Vec::<String>::new()
        );
    }

    #[test]
    fn each_fault_is_told_in_one_sentence() {
        for (reasons, wanted) in [
            (with(|f| f.root = false), "as root"),
            (with(|f| f.overlay = false), "overlay"),
            (with(|f| f.ext4 = false), "ext4"),
            (
                with(|f| f.links_fault = Some("Operation not supported".into())),
                "nftables table: Operation not supported",
            ),
            (with(|f| f.controllers.clear()), "cpu, memory, pids, blkio"),
            (
                with(|f| f.missing_tools = vec![FOR_DOCKER[0], FOR_ETCD[0]]),
                "apt-get install docker.io etcd-server",
            ),
            (
                with(|f| f.missing_tools = vec![("mkfs.xfs", "xfsprogs")]),
                "mkfs.xfs. On Debian: apt-get install xfsprogs",
            ),
            (with(|f| f.missing_helpers = vec![paths::RUNTIME]), "/usr/local/lib/enoki/runtime missing"),
            (with(|f| f.daemon_json = Some(r#"{"userns-remap":"default"}"#.into())), "userns-remap"),
            (with(|f| f.docker_is_ours_to_start = false), "no dockerd answers"),
            (
                with(|f| {
                    f.port_holders =
                        vec![Holder { address: "127.0.0.1:2379".into(), who: "etcd (pid 7)".into() }]
                }),
                "127.0.0.1:2379 is taken by etcd (pid 7)",
            ),
            (with_docker(|d| d.info.security_options.push("name=rootless".into())), "rootless"),
            (with_docker(|d| d.info.security_options.push("name=userns".into())), "userns-remap"),
            (
                with_docker(|d| d.info.docker_root_dir = "/var/snap/docker/common/var-lib-docker".into()),
                "snap",
            ),
            (with_docker(|d| d.info.swarm.local_node_state = "active".into()), "swarm"),
            (with_docker(|d| d.info.os_type = "windows".into()), "windows"),
            (with_docker(|d| d.api = "1.40".into()), "API 1.40"),
        ] {
            assert_eq!(reasons.len(), 1, "{reasons:?}");
            assert!(reasons[0].contains(wanted), "{reasons:?} lacks {wanted:?}");
        }
    }

    #[test]
    fn all_faults_are_told_at_once() {
        let reasons = with(|f| {
            f.overlay = false;
            f.missing_tools = vec![FOR_ETCD[0]];
            f.controllers.pop();
        });
        assert_eq!(reasons.len(), 3, "{reasons:?}");
    }
}
