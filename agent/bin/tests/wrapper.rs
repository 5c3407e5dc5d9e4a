//! The wrapper in front of the real runc: namespace, disk and limits are in place, and everything doubtful is refused.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use common::{can_run, private_mounts, read, tmpfs, tool, wait_until};
use enoki_helpers::{oom, overlay, record};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

const RUNC: &str = "/usr/sbin/runc";
const TOOLS: [&str; 6] =
    [RUNC, "/bin/busybox", "/sbin/ip", "/bin/mount", "/usr/bin/unshare", "/usr/bin/taskset"];
const CGROUPS: &str = "/sys/fs/cgroup";
const ROOT: &str = "/run/runc-test";

/// A host of the test's own, with a pinned instance network and one root disk.
struct Host {
    cgroup: String,
    netns: PathBuf,
    disk: PathBuf,
}

impl Host {
    fn new() -> Host {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        private_mounts();
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        tmpfs("/run", "mode=755");
        tmpfs("/var/lib", "mode=755");
        let cgroup =
            format!("/enoki-wrapper-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let netns = PathBuf::from("/run/enoki/netns/u1");
        fs::create_dir_all("/run/enoki/netns").expect("a folder");
        tool("ip netns add u1");
        File::create(&netns).expect("a pin");
        tool("mount --bind /run/netns/u1 /run/enoki/netns/u1");
        tool("ip -n u1 link add eth0 type veth peer name out");
        tool("ip -n u1 addr add 198.18.7.5/24 dev eth0");
        let disk = PathBuf::from("/var/lib/enoki/disks/d1");
        for folder in ["upper", "work", "root"] {
            fs::create_dir_all(disk.join(folder)).expect("a folder");
        }
        fs::create_dir(record::path(&id('0')).expect("a path").parent().expect("a folder"))
            .expect("the records' folder");
        fs::set_permissions("/var/lib/enoki/containers", PermissionsExt::from_mode(0o700)).expect("its mode");
        Host { cgroup, netns, disk }
    }

    fn record(&self) -> Value {
        json!({"version": 1, "instance": "default/web1", "uid": "u1", "epoch": 1, "netns": self.netns,
            "rootfs": {"disk": self.disk, "upper": self.disk.join("upper"), "work": self.disk.join("work"), "mountpoint": self.mountpoint()}})
    }

    fn mountpoint(&self) -> PathBuf {
        self.disk.join("root")
    }

    fn is_mounted(&self) -> bool {
        read("/proc/thread-self/mountinfo").contains(" /var/lib/enoki/disks/d1/root ")
    }

    fn owner(&self) -> String {
        read(self.disk.join("root.owner"))
    }

    fn write_record(&self, id: &str, record: &Value) -> PathBuf {
        let path = record::path(id).expect("a path");
        fs::write(&path, record.to_string()).expect("the record");
        fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("its mode");
        path
    }

    /// What Docker would prepare: an overlay of an image that says `version`, and a bundle that uses it.
    fn bundle(&self, id: &str, version: &str, args: &[&str]) -> PathBuf {
        let engine = PathBuf::from(format!("/var/lib/docker/overlay2/{}", &id[..12]));
        for folder in ["lower/bin", "init", "diff", "work", "merged"] {
            fs::create_dir_all(engine.join(folder)).expect("a folder");
        }
        fs::copy("/bin/busybox", engine.join("lower/bin/busybox")).expect("busybox");
        fs::write(engine.join("lower/version"), format!("{version}\n")).expect("a file");
        let e = engine.display();
        tool(&format!(
            "mount -t overlay overlay -o lowerdir={e}/init:{e}/lower,upperdir={e}/diff,workdir={e}/work {e}/merged"
        ));
        fs::write(engine.join("merged/only-docker"), "").expect("a file");
        let bundle = PathBuf::from(format!("/run/bundles/{}", &id[..12]));
        fs::create_dir_all(&bundle).expect("a folder");
        tool(&format!("runc spec --bundle {}", bundle.display()));
        let path = bundle.join("config.json");
        let mut config: Value = serde_json::from_str(&read(&path)).expect("a config");
        config["process"]["args"] = json!(args);
        config["process"]["terminal"] = json!(false);
        config["process"]["env"] = json!(["PATH=/bin"]);
        config["root"] = json!({"path": engine.join("merged"), "readonly": false});
        config["linux"]["cgroupsPath"] = json!(format!("{}/{id}", self.cgroup));
        fs::write(&path, config.to_string()).expect("the config");
        fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).expect("its mode");
        bundle
    }

    /// The wrapper with containerd's flags. Its output is read from files: a container inherits the streams.
    fn wrapper(&self, words: &[&str]) -> Output {
        let _ = fs::remove_file("/run/log.json");
        let (out, err) =
            (File::create("/run/out").expect("a file"), File::create("/run/err").expect("a file"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_enoki-runtime"));
        command.args(["--root", ROOT, "--log", "/run/log.json", "--log-format", "json"]).args(words);
        let status = command.stdin(Stdio::null()).stdout(out).stderr(err).status().expect("the wrapper");
        Output { status, stdout: read("/run/out").into(), stderr: read("/run/err").into() }
    }

    fn create(&self, id: &str, bundle: &Path) -> Output {
        let bundle = bundle.to_string_lossy();
        self.wrapper(&["create", "--bundle", &bundle, "--pid-file", "/run/pid", id])
    }

    /// Creates and starts a sleeper, which must work.
    fn start(&self, id: &str, version: &str) {
        let bundle = self.bundle(id, version, &["/bin/busybox", "sleep", "100"]);
        ok(self.create(id, &bundle));
        ok(self.wrapper(&["start", id]));
    }

    fn exec(&self, id: &str, script: &str) -> String {
        ok(self.wrapper(&["exec", id, "/bin/busybox", "sh", "-c", script]))
    }

    fn delete(&self, id: &str) {
        ok(self.wrapper(&["delete", "--force", id]));
    }

    /// The create fails, tells `why` where Docker reads it, and leaves nothing behind.
    fn refuses(&self, what: &str, id: &str, bundle: &Path, why: &str) {
        let output = self.create(id, bundle);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{what}: {told}");
        let log: Value =
            serde_json::from_str(&read("/run/log.json")).unwrap_or_else(|e| panic!("{what}: {e}: {told}"));
        assert_eq!(log["level"], "error", "{what}");
        let message = log["msg"].as_str().expect("a message");
        assert!(
            message.starts_with("enoki: refused to start ") && message.contains(why),
            "{what}: {message}"
        );
        assert!(told.contains(message), "{what}: {told}");
        assert!(!self.is_mounted(), "{what}: a mount is left");
        assert!(!Path::new(ROOT).join(id).exists(), "{what}: runc knows it");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for entry in fs::read_dir(ROOT).into_iter().flatten().flatten() {
            let _ = Command::new(RUNC)
                .args(["--root", ROOT, "delete", "--force"])
                .arg(entry.file_name())
                .status();
        }
        for hierarchy in fs::read_dir(CGROUPS).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(hierarchy.path().join(&self.cgroup[1..]));
        }
    }
}

fn id(digit: char) -> String {
    digit.to_string().repeat(64)
}

fn ok(output: Output) -> String {
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {told} {}", output.status, read("/run/log.json"));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn a_container_gets_its_network_disk_and_limits_and_the_disk_outlives_it() {
    if !can_run("a_container_gets_its_network_disk_and_limits_and_the_disk_outlives_it", &TOOLS) {
        return;
    }
    let host = Host::new();
    let (first, second) = (id('a'), id('b'));
    let mut record = host.record();
    record["shm_bytes"] = json!(8 << 20);
    record["resources"] = json!({"cpu_quota_us": 50000, "cpu_period_us": 100_000, "cpuset": "0", "memory_bytes": 64 << 20, "pids": 77});
    host.write_record(&first, &record);
    host.start(&first, "one");

    assert!(host.exec(&first, "busybox ip -4 addr show eth0").contains("198.18.7.5/24"));
    assert_eq!(
        host.exec(&first, "busybox cat /version; busybox ls -d /only-docker || echo none").replace('\n', " "),
        "one none"
    );
    assert!(host.exec(&first, "busybox df -k /dev/shm").contains(" 8192 "));
    let cgroup = |group: &str, file: &str| {
        read(format!("{CGROUPS}/{group}{}/{first}/{file}", host.cgroup)).trim().to_owned()
    };
    if Path::new(CGROUPS).join("memory").exists() {
        assert_eq!(cgroup("cpu", "cpu.cfs_quota_us"), "50000");
        assert_eq!(cgroup("cpuset", "cpuset.cpus"), "0");
        assert_eq!(cgroup("memory", "memory.limit_in_bytes"), (64 << 20).to_string());
        assert_eq!(cgroup("pids", "pids.max"), "77");
    } else {
        eprintln!("SKIPPED the look into cgroup files: no cgroup v1 here");
    }
    assert_eq!(
        fs::metadata("/run/bundles/aaaaaaaaaaaa/config.json").expect("the config").permissions().mode()
            & 0o777,
        0o640
    );
    assert!(host.owner().contains(&first));

    // A start in the same place while the first one lives would share its disk.
    host.write_record(&second, &record);
    let bundle = host.bundle(&second, "two", &["/bin/busybox", "sleep", "100"]);
    let output = host.create(&second, &bundle);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(1) && told.contains("in use by container aaaaaaaaaaaa (running)"),
        "{told}"
    );
    assert!(host.is_mounted() && host.owner().contains(&first));

    host.exec(&first, "busybox touch /kept; busybox rm /version");
    host.delete(&first);
    assert!(!host.is_mounted() && host.owner().is_empty());
    assert!(host.disk.join("upper/kept").exists());

    // Another container from another image: the same disk over it.
    ok(host.create(&second, &bundle));
    ok(host.wrapper(&["start", &second]));
    assert_eq!(
        host.exec(&second, "busybox ls /kept; busybox ls /version || echo removed").replace('\n', " "),
        "/kept removed"
    );
    host.delete(&second);
    assert!(!host.is_mounted());
}

#[test]
fn a_late_delete_leaves_the_successor_alone_and_a_lost_record_still_unmounts() {
    if !can_run("a_late_delete_leaves_the_successor_alone_and_a_lost_record_still_unmounts", &TOOLS) {
        return;
    }
    let host = Host::new();
    let (old, new) = (id('c'), id('d'));
    host.write_record(&old, &host.record());
    host.start(&old, "one");
    let delete = host.wrapper(&["delete", &old]);
    assert!(!delete.status.success(), "runc deletes nothing that runs");
    assert!(host.is_mounted());
    ok(host.wrapper(&["kill", &old, "KILL"]));
    wait_until("the old one has stopped", || ok(host.wrapper(&["state", &old])).contains("\"stopped\""));

    host.write_record(&new, &host.record());
    host.start(&new, "two");
    host.delete(&old);
    assert!(host.is_mounted() && host.owner().contains(&new), "the mount is the new one's");
    assert_eq!(host.exec(&new, "busybox cat /version"), "two");
    record::remove(&new).expect("removes");
    host.delete(&new);
    assert!(!host.is_mounted() && host.owner().is_empty());
}

#[test]
fn a_container_that_was_killed_for_memory_is_known_by_the_kernels_count() {
    if !can_run("a_container_that_was_killed_for_memory_is_known_by_the_kernels_count", &TOOLS) {
        return;
    }
    let host = Host::new();
    let id = id('7');
    let mut record = host.record();
    record["resources"] = json!({"memory_bytes": 32 << 20, "memory_swap_bytes": 32 << 20});
    host.write_record(&id, &record);
    let stopped = || ok(host.wrapper(&["state", &id])).contains("\"stopped\"");

    let bundle = host.bundle(&id, "one", &["/bin/busybox", "tail", "-c", "90000000", "/dev/zero"]);
    ok(host.create(&id, &bundle));
    ok(host.wrapper(&["start", &id]));
    wait_until("it has filled its memory", stopped);
    assert!(!oom::kept(&id).expect("a look"), "told at the end");
    host.delete(&id);
    assert!(oom::kept(&id).expect("a look"));

    // The control: the next run, ended by the same signal from elsewhere.
    tool("umount /var/lib/docker/overlay2/777777777777/merged");
    fs::remove_dir_all(bundle).expect("removes");
    host.start(&id, "two");
    assert!(!oom::kept(&id).expect("a look"), "the new run");
    ok(host.wrapper(&["kill", &id, "KILL"]));
    wait_until("it was killed", stopped);
    host.delete(&id);
    assert!(!oom::kept(&id).expect("a look"), "killed by hand");
}

#[test]
fn what_is_doubtful_is_refused() {
    if !can_run("what_is_doubtful_is_refused", &TOOLS) {
        return;
    }
    let host = Host::new();
    let id = id('e');
    let bundle = host.bundle(&id, "one", &["/bin/busybox", "sleep", "100"]);

    host.refuses("no record", &id, &bundle, "there is no record");
    host.refuses("a short id", "web1", &bundle, "is not a Docker container id");

    let path = host.write_record(&id, &host.record());
    fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).expect("its mode");
    host.refuses("a world-readable record", &id, &bundle, "is open to others");
    fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("its mode");
    chown(&path, Some(1), None).expect("its owner");
    host.refuses("another user's record", &id, &bundle, "belongs to uid 1");
    fs::rename(&path, "/var/lib/enoki/containers/elsewhere").expect("moves");
    chown("/var/lib/enoki/containers/elsewhere", Some(0), None).expect("its owner");
    symlink("/var/lib/enoki/containers/elsewhere", &path).expect("a link");
    host.refuses("a linked record", &id, &bundle, "cannot open the record");
    fs::remove_file(&path).expect("removes");
    fs::set_permissions("/var/lib/enoki/containers", PermissionsExt::from_mode(0o777)).expect("its mode");
    host.write_record(&id, &host.record());
    host.refuses("an open folder", &id, &bundle, "must belong to root");
    fs::set_permissions("/var/lib/enoki/containers", PermissionsExt::from_mode(0o700)).expect("its mode");

    let with = |key: &str, value: Value| {
        let mut record = host.record();
        *record.pointer_mut(key).expect(key) = value;
        host.write_record(&id, &record);
    };
    with("/version", json!(2));
    host.refuses("a newer record", &id, &bundle, "has version 2");
    with("/rootfs/upper", json!("/var/lib/nowhere"));
    host.refuses("no upper directory", &id, &bundle, "upper directory /var/lib/nowhere is not there");
    fs::write(host.disk.join("disk.img"), "").expect("a file");
    fs::create_dir(host.disk.join("fs")).expect("a folder");
    with("/epoch", json!(2));
    host.refuses("an image that is not mounted", &id, &bundle, "image is not mounted");
    fs::remove_file(host.disk.join("disk.img")).expect("removes");
    tool("umount /var/lib/docker/overlay2/eeeeeeeeeeee/merged");
    host.refuses("an image root that is not mounted", &id, &bundle, "is empty");

    let run = host.wrapper(&["run", "--bundle", &bundle.to_string_lossy(), &id]);
    assert!(run.status.code() == Some(1) && String::from_utf8_lossy(&run.stderr).contains("not by run"));
}

#[test]
fn only_an_instances_own_network_is_joined() {
    if !can_run("only_an_instances_own_network_is_joined", &TOOLS) {
        return;
    }
    let host = Host::new();
    let id = id('f');
    let bundle = host.bundle(&id, "one", &["/bin/busybox", "sleep", "100"]);
    let refuses = |what: &str, netns: &Path, why: &str| {
        let mut record = host.record();
        record["netns"] = json!(netns);
        host.write_record(&id, &record);
        host.refuses(what, &id, &bundle, why);
    };
    let pin = |name: &str, namespace: &str| {
        let pin = PathBuf::from(format!("/run/enoki/netns/{name}"));
        File::create(&pin).expect("a pin");
        tool(&format!("mount --bind {namespace} {}", pin.display()));
        pin
    };
    refuses("nothing", Path::new("/run/enoki/netns/none"), "cannot be opened");
    File::create("/run/enoki/netns/plain").expect("a file");
    refuses("a plain file", Path::new("/run/enoki/netns/plain"), "is a plain file");
    symlink(&host.netns, "/run/enoki/netns/link").expect("a link");
    refuses("a link", Path::new("/run/enoki/netns/link"), "cannot be opened");
    refuses("our own", &pin("own", "/proc/thread-self/ns/net"), "is the runtime's own");
    refuses(
        "the fabric",
        &{
            tool("ip netns add fabric");
            pin("fabric", "/run/netns/fabric")
        },
        "is the fabric",
    );

    let (mut holder, mounts) = pinned_mounts();
    refuses("a mount namespace", &mounts, "not of the network kind");
    holder.kill().and_then(|()| holder.wait()).expect("the holder ends");

    // This process's first thread is where the test was started, which is the host's network unless somebody put it elsewhere.
    let network = |of: &str| {
        fs::metadata(format!("/proc/{of}/net/dev")).map(|m| std::os::unix::fs::MetadataExt::ino(&m)).ok()
    };
    if network("1") == network("self") {
        refuses("PID 1's", &pin("host", &format!("/proc/{}/ns/net", std::process::id())), "is PID 1's");
    } else {
        eprintln!("SKIPPED the pin of PID 1's network: this test does not run in it");
    }
}

#[test]
fn a_create_that_runc_fails_leaves_no_mount_and_other_verbs_pass() {
    if !can_run("a_create_that_runc_fails_leaves_no_mount_and_other_verbs_pass", &TOOLS) {
        return;
    }
    let host = Host::new();
    let id = id('9');
    let bundle = host.bundle(&id, "one", &["/no/such/program"]);
    host.write_record(&id, &host.record());
    let output = host.create(&id, &bundle);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        read("/run/log.json").contains("/no/such/program"),
        "runc's own reason: {}",
        read("/run/log.json")
    );
    assert!(!host.is_mounted() && host.owner().is_empty());

    assert!(ok(host.wrapper(&["--version"])).contains("runc version"));
    assert_eq!(ok(host.wrapper(&["list", "--quiet"])), "");
    ok(host.wrapper(&["delete", "--force", "nobody"]));
    assert_eq!(host.wrapper(&["state", "nobody"]).status.code(), Some(1));
}

#[test]
fn an_image_of_very_many_layers_is_mounted() {
    if !can_run("an_image_of_very_many_layers_is_mounted", &TOOLS) {
        return;
    }
    let host = Host::new();
    let layers: Vec<PathBuf> = (0..120)
        .map(|n| format!("/var/lib/docker/overlay2/l/LAYERWITHANAMEOFDOCKERS{n:03}").into())
        .collect();
    for layer in &layers {
        fs::create_dir_all(layer).expect("a folder");
        fs::write(layer.join(layer.file_name().expect("a name")), "").expect("a file");
    }
    let plan = overlay::plan(&layers, &host.disk.join("upper"), &host.disk.join("work"));
    let before = std::env::current_dir().expect("a folder");
    overlay::mount_at(&plan.expect("fits"), &host.mountpoint()).expect("mounts");
    assert_eq!(std::env::current_dir().expect("a folder"), before);
    assert_eq!(fs::read_dir(host.mountpoint()).expect("the root").count(), 120);
    overlay::unmount(&host.mountpoint()).expect("unmounts");
    assert!(!host.is_mounted());
}

/// A pin of a mount namespace, and the process that holds it. The kernel binds only one with a higher number than the
/// namespace that it is bound in (so that no two hold each other), and recent ones number them by CPU: on the CPU that
/// ours was made on, a later one is higher; which that was, nobody tells.
fn pinned_mounts() -> (Child, PathBuf) {
    let pin = PathBuf::from("/run/enoki/netns/mounts");
    File::create(&pin).expect("a pin");
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    for cpu in 0..cpus {
        let cpu = cpu.to_string();
        let mut holder = Command::new("taskset")
            .args(["-c", &cpu, "unshare", "-m", "sleep", "100"])
            .spawn()
            .expect("taskset");
        wait_until("the holder sleeps", || read(format!("/proc/{}/comm", holder.id())).starts_with("sleep"));
        let namespace = format!("/proc/{}/ns/mnt", holder.id());
        let bound = Command::new("mount").args(["--bind", &namespace]).arg(&pin).output().expect("mount");
        if bound.status.success() {
            return (holder, pin);
        }
        holder.kill().and_then(|()| holder.wait()).expect("the holder ends");
    }
    panic!("no mount namespace can be bound on any of {cpus} CPUs");
}
