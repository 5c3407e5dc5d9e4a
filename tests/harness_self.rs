//! The harness tested with plain containerd and dockerd: clouds are isolated from each other and from the machine, and
//! nothing of them stays, whatever way their test ends.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use enoki_harness::{Cloud, Signal, eventually, is_root, leftovers_at, sweep_dead};

/// The line of `leftovers` that begins with a word, to tell that it sees such things at all.
fn mentions(left: &[String], word: &str) -> bool {
    left.iter().any(|line| line.starts_with(word))
}

#[test]
fn two_clouds_with_docker_are_isolated_and_leave_nothing() {
    if !is_root() {
        return;
    }
    let host_name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let links = std::fs::read_dir("/sys/class/net").unwrap().count();
    let (one, two) = (Cloud::bare(), Cloud::bare());
    for cloud in [&one, &two] {
        cloud.start_docker();
        cloud.docker_import_tiny();
        // The same name, port and address in both: only namespaces of their own allow it.
        let run = ["run", "-d", "--name", "same", "-p", "8080:80", "--memory", "64m", "enoki/tiny:1"];
        cloud.docker(&[&run[..], &["httpd", "-f", "-h", "/etc"]].concat()).ok();
        eventually("the container's web server", Duration::from_secs(20), || {
            let out = cloud.run(&["curl", "-sf", "--max-time", "2", "http://198.18.0.1:8080/passwd"]);
            if out.stdout.contains("root:") { Ok(()) } else { Err(out.to_string()) }
        });
    }

    // The container's limits are where `cgroup` looks, by id and by process.
    let id = one.docker(&["inspect", "--format", "{{.Id}}", "same"]).ok().text().to_owned();
    let pid: i32 =
        one.docker(&["inspect", "--format", "{{.State.Pid}}", "same"]).ok().text().parse().unwrap();
    let file =
        if Path::new("/sys/fs/cgroup/memory").is_dir() { "memory.limit_in_bytes" } else { "memory.max" };
    assert_eq!(one.cgroup(id.as_str(), "memory", file), "67108864");
    assert_eq!(one.cgroup(pid, "memory", file), "67108864");

    // Neither sees the other's containers, files or names; the machine sees none of them.
    one.docker(&["rename", "same", "first"]).ok();
    assert_eq!(two.docker(&["ps", "--format", "{{.Names}}"]).ok().text(), "same");
    one.sh("touch /run/mark /etc/mark /usr/local/bin/mark /var/lib/enoki/mark /var/lib/mark").ok();
    for path in ["/run/mark", "/etc/mark", "/usr/local/bin/mark", "/var/lib/enoki/mark", "/var/lib/mark"] {
        assert!(one.path(path).exists(), "{path} in its own cloud");
        assert!(!two.path(path).exists(), "{path} in another cloud");
        assert!(!Path::new(path).exists(), "{path} on the machine");
    }
    assert_eq!(one.run(&["hostname"]).ok().text(), "testhost");
    assert_eq!(std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), host_name);
    assert_eq!(std::fs::read_dir("/sys/class/net").unwrap().count(), links);
    assert_ne!(one.pid("dockerd"), two.pid("dockerd"));
    assert_ne!(one.pid("containerd"), two.pid("containerd"));

    // A loop device with a mounted filesystem, as a root disk has it.
    one.sh("truncate -s 8M /var/lib/enoki/disk.img && mkfs.ext4 -q /var/lib/enoki/disk.img && mount -o loop /var/lib/enoki/disk.img /mnt")
        .ok();

    // The positive control: what is looked for afterwards is seen while it is there.
    let before = one.leftovers();
    for word in ["process", "cgroup", "loop device", "folder"] {
        assert!(mentions(&before, word), "no {word} among {before:#?}");
    }
    let (first, second) = (one.folder().to_owned(), two.folder().to_owned());
    assert_eq!(one.purge(), Vec::<String>::new());
    assert_eq!(leftovers_at(&first), Vec::<String>::new());

    // The other goes on as if nothing had been.
    let out = two.run(&["curl", "-sf", "--max-time", "2", "http://198.18.0.1:8080/passwd"]).ok();
    assert!(out.stdout.contains("root:"), "{out}");
    drop(two);
    assert_eq!(leftovers_at(&second), Vec::<String>::new());
}

#[test]
fn killed_daemons_are_found_dead_and_started_again() {
    if !is_root() {
        return;
    }
    let cloud = Cloud::bare();
    assert_eq!(cloud.find("dockerd"), None);
    cloud.start_docker();
    let old = cloud.kill("dockerd", Signal::SIGKILL);
    assert_eq!(cloud.find("dockerd"), None);
    cloud.start_dockerd(&[]);
    assert_ne!(cloud.pid("dockerd"), old);
}

#[test]
fn a_failing_test_leaves_nothing() {
    if !is_root() {
        return;
    }
    let folder = std::sync::Mutex::new(PathBuf::new());
    let failed = std::panic::catch_unwind(|| {
        let cloud = Cloud::bare();
        cloud.daemon("sleep", &["1000"]);
        *folder.lock().unwrap() = cloud.folder().to_owned();
        panic!("on purpose");
    });
    assert!(failed.is_err());
    assert_eq!(leftovers_at(&folder.into_inner().unwrap()), Vec::<String>::new());
}

/// Set in a copy of this program that makes a cloud and waits to be stopped.
const VICTIM: &str = "HARNESS_VICTIM";

/// Starts `test` of this program again, as a process of its own that makes a cloud; returns it and the cloud's folder.
fn victim(test: &str) -> (Child, PathBuf) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let folder =
        lines.map_while(Result::ok).find_map(|line| line.split("cloud at ").nth(1).map(PathBuf::from));
    (child, folder.expect("the victim names its folder"))
}

/// In the copy: makes a cloud with a detached process and never returns.
fn be_the_victim() -> bool {
    if std::env::var_os(VICTIM).is_none() {
        return false;
    }
    let cloud = Cloud::bare();
    cloud.daemon("sleep", &["1000"]);
    println!("\ncloud at {}", cloud.folder().display());
    std::thread::sleep(Duration::from_secs(100));
    true
}

#[test]
fn sweeps_up_after_killed_runs() {
    if !is_root() || be_the_victim() {
        return;
    }
    let living = Cloud::bare();
    let (mut child, folder) = victim("sweeps_up_after_killed_runs");
    child.kill().unwrap();
    child.wait().unwrap();
    let before = leftovers_at(&folder);
    assert!(mentions(&before, "process") && mentions(&before, "folder"), "{before:#?}");

    assert_eq!(sweep_dead(), Vec::<String>::new());
    assert_eq!(leftovers_at(&folder), Vec::<String>::new());
    // Whose owner lives is left alone.
    assert_eq!(living.run(&["hostname"]).ok().text(), "testhost");
}

#[test]
fn a_test_that_is_told_to_stop_leaves_nothing() {
    if !is_root() || be_the_victim() {
        return;
    }
    let (mut child, folder) = victim("a_test_that_is_told_to_stop_leaves_nothing");
    // Safety: a plain system call on our own child, which has not been waited for.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    let status = child.wait().unwrap();
    assert_eq!((status.code(), status.signal()), (Some(143), None));
    assert_eq!(leftovers_at(&folder), Vec::<String>::new());
}
