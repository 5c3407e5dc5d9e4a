//! `enoki up`, `down` and the supervisor against real containerd, dockerd and etcd, in namespaces of the test's own.
//!
//! Each cloud has its own network namespace and, over the paths that Enoki uses, folders of its own: nothing of the machine
//! is touched. Needs root, Debian's docker.io, docker-registry, etcd-server, etcd-client and busybox-static.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Overlays take what is written to folders of the machine; what Docker lives in must be a plain filesystem.
const SETUP: &str = r#"
set -e
# Copies of the mounts of a cloud that runs on this machine: hidden below ours, and yet in the kernel's list.
awk '$5 ~ "^/(run|var/lib/docker|var/lib/containerd|var/lib/enoki)/" { print length($5), $5 }' /proc/self/mountinfo |
    sort -rn | cut -d' ' -f2- | while read -r at; do umount -l "$(printf '%b' "$at")" 2>/dev/null || true; done
for d in /etc /var/lib /var/log /usr/local; do
    mkdir -p "$T/over$d" "$T/work$d"
    mount -t overlay overlay -o "lowerdir=$d,upperdir=$T/over$d,workdir=$T/work$d" $d
done
for d in /run /etc/docker /etc/enoki /var/lib/docker /var/lib/containerd /var/lib/enoki /var/log/enoki /usr/local/lib/enoki; do
    mkdir -p "$T/own$d" $d
    mount --bind "$T/own$d" $d
done
ip link set lo up
cp "$ENOKI" /usr/local/bin/enoki
printf '#!/bin/sh\nexec runc "$@"\n' > /usr/local/lib/enoki/runtime
cp /usr/local/lib/enoki/runtime /usr/local/lib/enoki/init
chmod 755 /usr/local/lib/enoki/*
printf '{"cgroup-parent": "/%s", "bridge": "none", "iptables": false, "debug": false}' "$CGROUP" > /etc/docker/daemon.json
touch "$T/made"
exec sleep 600
"#;

/// A machine of its own, as far as Enoki can see. Dropping it ends all that runs in it.
struct Machine {
    folder: tempfile::TempDir,
    sleeper: std::process::Child,
    cgroup: String,
}

impl Machine {
    fn new(name: &str) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test makes namespaces and runs dockerd: run it as root"
        );
        let folder = tempfile::Builder::new().prefix("enoki-up-").tempdir().unwrap();
        let cgroup = format!("enoki-up-{name}-{}", std::process::id());
        let sleeper = Command::new("unshare")
            .args(["--mount", "--net", "--propagation", "private", "bash", "-c", SETUP])
            .env("T", folder.path())
            .env("ENOKI", env!("CARGO_BIN_EXE_enoki"))
            .env("CGROUP", &cgroup)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let machine = Machine { folder, sleeper, cgroup };
        until("the namespaces", || machine.folder.path().join("made").exists());
        machine
    }

    fn command(&self, script: &str) -> Output {
        let pid = self.sleeper.id().to_string();
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--target", &pid, "--mount", "--net", "bash", "-c", script]).stdin(Stdio::null());
        nsenter.output().unwrap()
    }

    /// Output of a script that must succeed.
    #[track_caller]
    fn run(&self, script: &str) -> String {
        let output = self.command(script);
        assert!(
            output.status.success(),
            "{script}\n{}{}",
            text(&output.stdout),
            self.logs(&text(&output.stderr))
        );
        text(&output.stdout).trim().to_owned()
    }

    /// Exit code and standard error of a script.
    fn fails(&self, script: &str) -> (Option<i32>, String) {
        let output = self.command(script);
        (output.status.code(), text(&output.stderr))
    }

    fn logs(&self, error: &str) -> String {
        let log = self.command("tail -n 20 /var/log/enoki/*.log 2>/dev/null");
        format!("{error}\n{}", text(&log.stdout))
    }

    fn own(&self, path: &str) -> PathBuf {
        self.folder.path().join("own").join(path.trim_start_matches('/'))
    }

    /// The pid in a service's pid file, if that process lives.
    fn pid(&self, service: &str) -> Option<i32> {
        let pid = std::fs::read_to_string(self.own(&format!("/run/enoki/{service}.pid")))
            .ok()?
            .trim()
            .parse()
            .ok()?;
        alive(pid).then_some(pid)
    }

    fn pids(&self) -> Vec<(&'static str, Option<i32>)> {
        ["supervisor", "containerd", "dockerd", "etcd", "registry", "server", "agent"]
            .map(|s| (s, self.pid(s)))
            .into()
    }

    fn kill(&self, service: &str) -> i32 {
        let pid = self.pid(service).unwrap_or_else(|| panic!("{service} does not run"));
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        until("the killed process to end", || !alive(pid));
        pid
    }

    fn etcd_answers(&self) -> bool {
        self.command("set -a; . /etc/enoki/etcdctl.env; etcdctl get --prefix /test").status.success()
    }

    fn docker_answers(&self) -> bool {
        self.command("docker -H unix:///var/run/docker.sock ps").status.success()
    }

    fn busybox(&self) -> String {
        self.run(
            "mkdir -p /run/image && cp /bin/busybox /run/image/ && tar -C /run/image -c . | docker -H unix:///var/run/docker.sock import - box:1 && \
             docker -H unix:///var/run/docker.sock run -d --name one --label enoki.uid=u1 --runtime enoki --network none box:1 /busybox sleep 600",
        );
        self.run("docker -H unix:///var/run/docker.sock inspect -f '{{.State.Pid}}' one")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.command("enoki down");
        // Whoever is left in our mount namespace was started by this test.
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        let own = namespace(&self.sleeper.id().to_string());
        for _ in 0..20 {
            let mut left = 0;
            for entry in std::fs::read_dir("/proc").unwrap().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let Ok(pid) = name.parse::<i32>() else { continue };
                if own.is_some()
                    && namespace(&name) == own
                    && pid.cast_unsigned() != self.sleeper.id()
                    && alive(pid)
                {
                    left += 1;
                    let _ = nix::sys::signal::kill(
                        nix::unistd::Pid::from_raw(pid),
                        nix::sys::signal::Signal::SIGKILL,
                    );
                }
            }
            // Containers have namespaces of their own; their cgroup names them.
            for procs in cgroup_files(&self.cgroup, "cgroup.procs") {
                for pid in
                    std::fs::read_to_string(procs).unwrap_or_default().lines().filter_map(|l| l.parse().ok())
                {
                    left += 1;
                    let _ = nix::sys::signal::kill(
                        nix::unistd::Pid::from_raw(pid),
                        nix::sys::signal::Signal::SIGKILL,
                    );
                }
            }
            if left == 0 {
                break;
            }
            sleep(Duration::from_millis(100));
        }
        let _ = self.sleeper.kill();
        let _ = self.sleeper.wait();
        for procs in cgroup_files(&self.cgroup, "cgroup.procs") {
            let _ = std::fs::remove_dir(procs.parent().unwrap());
        }
    }
}

/// The file in every folder of a cgroup, the deepest first.
fn cgroup_files(cgroup: &str, file: &str) -> Vec<PathBuf> {
    let mut waiting: Vec<PathBuf> = vec![Path::new("/sys/fs/cgroup").join(cgroup)];
    waiting.extend(std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|e| e.path().join(cgroup)));
    let mut found = Vec::new();
    while let Some(folder) = waiting.pop() {
        if !folder.is_dir() {
            continue;
        }
        found.push(folder.join(file));
        let inner = std::fs::read_dir(&folder).map(|d| d.flatten().map(|e| e.path()).collect::<Vec<_>>());
        waiting.extend(inner.unwrap_or_default().into_iter().filter(|path| path.is_dir()));
    }
    found.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    found
}

fn alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !matches!(stat.rsplit_once(") ").map(|(_, tail)| &tail[..1]), None | Some("Z" | "X"))
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < end, "{what}: not within 60 s");
        sleep(Duration::from_millis(100));
    }
}

#[test]
fn no_service_dies_with_another_and_each_comes_back() {
    let machine = Machine::new("kill");
    machine.run("enoki up");
    let first = machine.pids();
    assert!(first.iter().all(|(_, pid)| pid.is_some()), "{first:?}");
    machine.run("set -a; . /etc/enoki/etcdctl.env; etcdctl put /test/a b");
    let container: i32 = machine.busybox().parse().unwrap();

    // Again changes nothing, also when two do it at once.
    machine.run("enoki up & enoki up; r=$?; wait $! && exit $r");
    assert_eq!(machine.pids(), first);

    // A killed supervisor takes nobody along, and nobody notices its successor.
    machine.kill("supervisor");
    assert_eq!(machine.pids()[1..], first[1..]);
    machine.run("enoki up");
    assert_ne!(machine.pids()[0], first[0]);
    assert_eq!(machine.pids()[1..], first[1..]);

    // Adopted or started, what is killed comes back, alone.
    for service in ["etcd", "dockerd", "containerd", "registry", "server", "agent", "etcd"] {
        let before = machine.pids();
        let killed = machine.kill(service);
        until(service, || machine.pid(service).is_some_and(|pid| pid != killed));
        // Whole again before the next blow: a dockerd that is just starting does give up without containerd.
        until("etcd", || machine.etcd_answers());
        until("dockerd", || machine.docker_answers());
        for ((name, old), (_, new)) in before.iter().zip(machine.pids()) {
            assert!(*name == service || *old == new, "{name} changed when {service} was killed");
        }
        assert!(alive(container), "{service} took the container along");
    }
    until("etcd", || machine.etcd_answers());
    assert!(machine.run("set -a; . /etc/enoki/etcdctl.env; etcdctl get /test/a").ends_with('b'));
    until("exec", || {
        machine.command("docker -H unix:///var/run/docker.sock exec one /busybox true").status.success()
    });

    // Down and up again: the container has the same process.
    machine.run("enoki down");
    assert!(machine.pids().iter().all(|(_, pid)| pid.is_none()), "{:?}", machine.pids());
    assert!(alive(container));
    machine.run("enoki down");
    machine.run("enoki up");
    assert_eq!(
        machine.run("docker -H unix:///var/run/docker.sock inspect -f '{{.State.Pid}}' one"),
        container.to_string()
    );
    machine.run("docker -H unix:///var/run/docker.sock exec one /busybox true");

    // A crash loop is slowed down.
    let mut deaths = 0;
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        if machine.pid("server").is_some() {
            machine.kill("server");
            deaths += 1;
        }
        sleep(Duration::from_millis(20));
    }
    assert!((2..=6).contains(&deaths), "{deaths} starts in 4 s");
    machine.run("enoki up");
}

#[test]
fn a_running_dockerd_learns_the_wrapper_without_a_restart_and_forgets_it() {
    let machine = Machine::new("hup");
    let before = std::fs::read_to_string(machine.own("/etc/docker/daemon.json")).unwrap();
    machine.run(
        "cd /; setsid containerd </dev/null >/run/c.log 2>&1 & \
         sleep 1; cd /; setsid dockerd --containerd /run/containerd/containerd.sock </dev/null >/run/d.log 2>&1 & true",
    );
    until("dockerd", || machine.docker_answers());
    let dockerd = machine.run("cat /var/run/docker.pid");

    // What is not understood is refused with its place, and left as it is.
    std::fs::write(machine.own("/etc/docker/daemon.json"), "{\n  oops\n}").unwrap();
    let (code, error) = machine.fails("enoki up");
    assert_eq!(code, Some(1));
    assert!(error.contains("daemon.json") && error.contains("line 2, column 3"), "{error}");
    assert_eq!(std::fs::read_to_string(machine.own("/etc/docker/daemon.json")).unwrap(), "{\n  oops\n}");
    std::fs::write(machine.own("/etc/docker/daemon.json"), &before).unwrap();

    machine.run("enoki up");
    let info = "docker -H unix:///var/run/docker.sock info -f '{{(index .Runtimes \"enoki\").Path}} {{.LiveRestoreEnabled}}'";
    assert_eq!(machine.run(info), "/usr/local/lib/enoki/runtime true");
    assert_eq!(machine.run("cat /var/run/docker.pid"), dockerd);
    assert_eq!(std::fs::read_to_string(machine.own("/etc/docker/daemon.json.enoki-backup")).unwrap(), before);
    assert_eq!((machine.pid("dockerd"), machine.pid("containerd")), (None, None), "not ours");

    // Down leaves a Docker that it did not start.
    machine.run("enoki down");
    assert_eq!(machine.run("cat /var/run/docker.pid"), dockerd);
    assert!(machine.docker_answers());

    // Purge wants to be meant; then it removes ours and leaves the user's.
    let (code, error) = machine.fails("enoki down --purge");
    assert_eq!(code, Some(2), "{error}");
    let container: i32 = machine.busybox().parse().unwrap();
    machine.run(
        "docker -H unix:///var/run/docker.sock run -d --name theirs --network none box:1 /busybox sleep 600",
    );
    machine.run(
        "mkdir -p /var/lib/enoki/disks/a/fs /run/enoki/netns && truncate -s 16M /var/lib/enoki/disks/a/disk.img && \
         mkfs.ext4 -q /var/lib/enoki/disks/a/disk.img && mount -o loop /var/lib/enoki/disks/a/disk.img /var/lib/enoki/disks/a/fs && \
         touch /run/enoki/netns/x && unshare --net mount --bind /proc/self/ns/net /run/enoki/netns/x",
    );
    machine.run("enoki down --purge --yes");
    assert!(!alive(container));
    assert_eq!(machine.run("docker -H unix:///var/run/docker.sock ps -a --format '{{.Names}}'"), "theirs");
    let left = machine.run("grep -E 'enoki/(disks|netns)' /proc/self/mountinfo; find /var/lib/enoki /etc/enoki /run/enoki -mindepth 1 2>/dev/null; true");
    assert_eq!(left, "");
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert_eq!(
        json(&std::fs::read_to_string(machine.own("/etc/docker/daemon.json")).unwrap()),
        json(&before)
    );
    assert_eq!(
        machine
            .run("docker -H unix:///var/run/docker.sock info -f '{{len .Runtimes}} {{.LiveRestoreEnabled}}'"),
        "1 false"
    );
    assert_eq!(machine.run("cat /var/run/docker.pid"), dockerd);
}

#[test]
fn a_taken_port_is_told_with_its_holder_before_anything_is_started() {
    let machine = Machine::new("port");
    let (code, error) = machine.fails(
        "python3 -c 'import socket,time; s=socket.create_server((\"127.0.0.1\",2379)); time.sleep(5)' & sleep 1; enoki up",
    );
    assert_eq!(code, Some(1));
    assert!(error.contains("127.0.0.1:2379 is taken by python3") && error.contains("pid"), "{error}");
    assert!(machine.pids().iter().all(|(_, pid)| pid.is_none()));
}

#[test]
fn a_replaced_binary_replaces_server_and_agent_alone() {
    let machine = Machine::new("replace");
    machine.run("enoki up");
    let first = machine.pids();
    // The same bytes under a new inode are no change.
    machine.run("cp /usr/local/bin/enoki /usr/local/bin/new && mv /usr/local/bin/new /usr/local/bin/enoki && enoki up");
    assert_eq!(machine.pids(), first);
    machine.run("cp /usr/local/bin/enoki /usr/local/bin/new && echo >> /usr/local/bin/new && mv /usr/local/bin/new /usr/local/bin/enoki && enoki up");
    for ((name, old), (_, new)) in first.iter().zip(machine.pids()) {
        let replaced = ["supervisor", "server", "agent"].contains(name);
        assert!(new.is_some() && (*old != new) == replaced, "{name}: {old:?} then {new:?}");
    }
}
