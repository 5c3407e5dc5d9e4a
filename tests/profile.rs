//! The profile `machine`: what works in an instance of Debian as on a machine of one's own, and what does not.

#[path = "support/checks.rs"]
mod checks;

use enoki_harness::{Cloud, Output, eventually, is_root};
use std::time::Duration;

const WAIT: Duration = Duration::from_secs(90);

#[test]
fn profile() {
    if !is_root() {
        return;
    }
    let cloud = Cloud::start();
    cloud.import_debian();
    for (name, memory) in [("m1", "256Mi"), ("m2", "128Mi")] {
        // No command, and the image has none: a machine that stays up with its init alone.
        cloud.enoki(&["run", name, "--image", "enoki/debian:12", "--memory", memory, "--wait"]).ok();
    }
    let user = "useradd -m -s /bin/bash kim && echo 'kim ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/kim";
    sh(&cloud, user).ok();
    let failed = checks::run(
        &cloud,
        &[
            ("init", init),
            ("users", users),
            ("packages", packages),
            ("debugger", debugger),
            ("ping", ping),
            ("cron", cron),
            ("identity", identity),
            ("shared memory", shared_memory),
            ("console", console),
            ("what is not allowed", forbidden),
        ],
    );
    assert!(failed.is_empty(), "failed: {failed:?}");
}

fn sh(cloud: &Cloud, script: &str) -> Output {
    cloud.enoki(&["exec", "m1", "--", "sh", "-c", script])
}

#[track_caller]
fn refused(cloud: &Cloud, script: &str) {
    let out = sh(cloud, script);
    assert!(
        out.code() != 0 && out.code() != 127 && out.code() != 125,
        "must be refused by the kernel\n{out}"
    );
}

fn init(cloud: &Cloud) {
    let one = sh(cloud, "tr '\\0' ' ' < /proc/1/cmdline").ok();
    assert!(one.stdout.contains("init"), "{one}");
    // Orphans whose parent has gone end as children of init.
    let left =
        "for i in 1 2 3 4 5; do sh -c 'sleep 0.3 & exit 0'; done; ps -eo ppid,comm | grep -c '^ *1 sleep'";
    assert_ne!(sh(cloud, left).ok().text(), "0", "orphans become init's");
    eventually("no zombies", WAIT, || {
        let out = sh(cloud, "ps -eo stat,ppid,comm | awk '$1 ~ /^Z/'");
        if out.code() == 0 && out.stdout.is_empty() { Ok(()) } else { Err(out.to_string()) }
    });
}

fn users(cloud: &Cloud) {
    assert_eq!(sh(cloud, "su - kim -c 'id -un; sudo id -un'").ok().stdout, "kim\nroot\n");
    // The control: without the rule there is no way up.
    refused(cloud, "useradd lee && su lee -c 'sudo -n id -un'");
}

fn packages(cloud: &Cloud) {
    sh(cloud, "apt-get --version && dpkg -l sudo && apt-get -s check").ok();
    // A package made here goes in and out, with its scripts.
    let made = "mkdir -p /tmp/p/DEBIAN /tmp/p/usr/bin && printf 'Package: hi\\nVersion: 1\\nArchitecture: all\\n\
                Maintainer: a <a@example.com>\\nDescription: hi\\n' > /tmp/p/DEBIAN/control && \
                printf '#!/bin/sh\\necho hi\\n' > /tmp/p/usr/bin/hi && chmod 755 /tmp/p/usr/bin/hi && \
                dpkg-deb -b /tmp/p /tmp/hi.deb >/dev/null && apt-get install -y /tmp/hi.deb >/dev/null && hi && apt-get remove -y hi >/dev/null";
    let out = sh(cloud, made).ok();
    assert!(out.stdout.ends_with("hi\n"), "{out}");
}

fn debugger(cloud: &Cloud) {
    let out = sh(
        cloud,
        "su - kim -c 'sleep 60 & p=$!; sleep 0.3; gdb -p $p -batch -ex \"info registers\" 2>&1 | grep -ciE \"^[re](ip|sp|ax)\"; kill $p'",
    );
    assert_ne!(out.ok().text(), "0");
}

fn ping(cloud: &Cloud) {
    let gateway = "ip route show default | cut -d' ' -f3";
    sh(cloud, &format!("g=$({gateway}); su - kim -c \"ping -c 1 -W 2 $g\"")).ok();
}

fn cron(cloud: &Cloud) {
    sh(cloud, "printf '* * * * * root id -un > /root/cron-ran\\n' > /etc/cron.d/test && chmod 644 /etc/cron.d/test && cron").ok();
    eventually("the job", WAIT, || {
        let out = sh(cloud, "cat /root/cron-ran");
        if out.stdout == "root\n" { Ok(()) } else { Err(out.to_string()) }
    });
}

fn identity(cloud: &Cloud) {
    let ids =
        ["m1", "m2"].map(|name| cloud.enoki(&["exec", name, "--", "cat", "/etc/machine-id"]).ok().stdout);
    assert_eq!((ids[0].trim().len(), ids[1].trim().len()), (32, 32), "{ids:?}");
    assert_ne!(ids[0], ids[1]);
    assert_ne!(Some(ids[0].clone()), std::fs::read_to_string("/etc/machine-id").ok(), "the host's own");
    let names = ["m1", "m2"].map(|name| cloud.enoki(&["exec", name, "--", "hostname"]).ok().stdout);
    assert_eq!(names, ["m1\n", "m2\n"]);
    cloud.enoki(&["restart", "m2"]).ok();
    assert_eq!(cloud.enoki(&["exec", "m2", "--", "cat", "/etc/machine-id"]).ok().stdout, ids[1], "it stays");
}

fn shared_memory(cloud: &Cloud) {
    let size = sh(cloud, "df -B1 --output=size /dev/shm | tail -n 1").ok();
    assert_eq!(size.text(), (128u64 << 20).to_string(), "half of the memory");
}

fn console(cloud: &Cloud) {
    let typed = "tty; id -un; shopt -q login_shell && echo a login shell; stty size; exit 3\n";
    cloud.sh(&format!("printf %s '{typed}' > /run/typed")).ok();
    let out =
        cloud.sh("(sleep 1; cat /run/typed; sleep 3) | timeout 30 script -qec 'enoki console m1' /dev/null");
    let text = out.clone().exits(3).stdout;
    assert!(text.contains("/dev/pts/") && text.contains("root") && text.contains("a login shell\r"), "{out}");
}

fn forbidden(cloud: &Cloud) {
    refused(cloud, "dmesg");
    refused(cloud, "mount -t tmpfs none /mnt");
    refused(cloud, "mount --bind /etc /mnt");
    refused(cloud, "unshare --mount true");
    refused(cloud, "test -e /var/run/docker.sock -o -e /run/docker.sock -o -e /run/enoki");
    refused(cloud, "mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk");
    refused(cloud, "echo 1 > /proc/sys/kernel/panic");
    refused(cloud, "hostname other");
    refused(cloud, "ip link add x0 type veth");
    refused(cloud, "nsenter -t 1 -n true");
    refused(cloud, "date -s @0");
    // Namespaces of its own, all of them.
    for name in ["mnt", "net", "pid", "ipc", "uts"] {
        let inside = sh(cloud, &format!("readlink /proc/self/ns/{name}")).ok();
        let outside = cloud.sh(&format!("readlink /proc/self/ns/{name}")).ok();
        assert_ne!(inside.text(), outside.text(), "{name}");
    }
    let docker = cloud.docker(&["inspect", "enoki.default.m1"]).ok().json();
    let host = &docker[0]["HostConfig"];
    assert_eq!(host["Privileged"], false);
    for mode in ["NetworkMode", "PidMode", "IpcMode", "UTSMode"] {
        assert_ne!(host[mode], "host", "{mode}");
    }
}
