//! A private host for one test: the thread gets mount and network namespaces of its own, with empty /run and /var/lib. What it starts
//! inherits them; they vanish with the thread and its children.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// False (after telling why) where the test cannot run.
pub fn can_run(test: &str, tools: &[&str]) -> bool {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED {test}: needs root for namespaces and mounts");
        return false;
    }
    let missing = tools.iter().find(|tool| !Path::new(tool).exists());
    if let Some(tool) = missing {
        eprintln!("SKIPPED {test}: {tool} is not installed");
    }
    missing.is_none()
}

/// Gives the calling thread a mount namespace in which nothing spreads to the machine.
pub fn private_mounts() {
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    let (none, private) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
    mount(none, "/", none, private, none).expect("private mounts");
}

pub fn tmpfs(at: &str, options: &str) {
    mount(Some("test"), at, Some("tmpfs"), MsFlags::empty(), Some(options)).expect("a tmpfs");
}

/// Runs a tool that must succeed.
pub fn tool(line: &str) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let status = Command::new(words[0]).args(&words[1..]).status().expect(line);
    assert!(status.success(), "{line}: {status}");
}

/// Waits until `ready`, at most ten seconds.
pub fn wait_until(what: &str, mut ready: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !ready() {
        assert!(Instant::now() < until, "timed out waiting until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}
