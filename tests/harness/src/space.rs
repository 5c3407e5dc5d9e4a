//! One test's namespaces and the folder on disk that stands behind them.
//!
//! [`Space::make`] starts a sleeper in new mount, network and UTS namespaces, in which `space.sh` puts private folders on
//! the fixed paths. Whoever wants in enters the sleeper's namespaces. A file `owner` in the folder names the process that
//! made it, so that what a killed test leaves can be told from what a living one uses.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::{Output, bounded, eventually};

/// Where spaces stand: on a real disk, which `/tmp` need not be.
pub(crate) const PARENT: &str = "/var/tmp";
pub(crate) const PREFIX: &str = "enoki-test-";

/// Programs that a space can't do without.
const NEEDED: [&str; 8] = ["unshare", "nsenter", "mount", "umount", "ip", "hostname", "awk", "sleep"];

/// Found in every command that enters: what a login shell of root would have.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The namespaces' name, folder and sleeper. Copies name the same space.
#[derive(Clone, Debug)]
pub(crate) struct Space {
    /// What follows the prefix in the folder's name; no two spaces share it.
    pub id: String,
    /// `/var/tmp/enoki-test-ID`.
    pub root: PathBuf,
    /// The process whose namespaces these are; 0 when it is not known (a space found on disk).
    pub sleeper: i32,
}

impl Space {
    /// Makes the namespaces; the child is the sleeper, to be waited for after the purge.
    ///
    /// # Panics
    /// When a program is missing or a mount is refused, with what the set-up said; nothing is left behind then.
    pub fn make() -> (Self, Child) {
        for program in NEEDED {
            let found = PATH.split(':').any(|folder| Path::new(folder).join(program).exists());
            assert!(found, "`{program}` is missing on this machine: run `make setup`");
        }
        let mut space = Self::folder();
        // Known to the signal handler before anything is started in it.
        crate::signals::register(&space);
        let log = fs::File::create(space.root.join("log")).expect("create the space's log");
        let mut child = Command::new("unshare")
            .args([
                "--mount",
                "--net",
                "--uts",
                "--propagation",
                "private",
                "sh",
                "-c",
                include_str!("space.sh"),
                "sh",
            ])
            .arg(&space.root)
            .env("PATH", PATH)
            .current_dir("/")
            // A signal to the test's group is the test's to answer.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::from(log.try_clone().expect("duplicate a file descriptor")))
            .stderr(Stdio::from(log))
            .spawn()
            .expect("run unshare");
        space.sleeper = child.id() as i32;

        let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually("the test's namespaces", Duration::from_secs(20), || {
                if space.root.join("ready").exists() {
                    return Ok(());
                }
                let said = fs::read_to_string(space.root.join("log")).unwrap_or_default();
                match child.try_wait() {
                    Ok(None) => Err(said),
                    ended => {
                        panic!("the set-up of the test's namespaces failed ({ended:?}):\n{said}")
                    }
                }
            });
        }));
        if let Err(panic) = made {
            let _ = child.kill();
            let _ = child.wait();
            crate::sweep::purge(&space);
            crate::signals::forget(&space);
            std::panic::resume_unwind(panic);
        }
        (space, child)
    }

    /// The empty folder with what the set-up needs. The owner comes first: a folder without one belongs to nobody.
    fn folder() -> Self {
        let made = tempfile::Builder::new()
            .prefix(PREFIX)
            .rand_bytes(10)
            .tempdir_in(PARENT)
            .unwrap_or_else(|error| panic!("make a folder in {PARENT}: {error}"))
            .keep();
        let name = made.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let id = name.trim_start_matches(PREFIX).to_owned();
        let space = Self { id, root: made, sleeper: 0 };
        let own = std::process::id() as i32;
        let owner = format!("{own} {}\n", started_at(own).unwrap_or_default());
        fs::write(space.root.join("owner"), owner).expect("write the owner's mark");
        // Addresses for benchmarks (RFC 2544), so that Docker never picks one that is in use; 198.19/16 is Enoki's.
        let daemon = json!({
            "cgroup-parent": space.cgroup_parent(),
            "bip": "198.18.0.1/24",
            "default-address-pools": [{"base": "198.18.16.0/20", "size": 24}],
        });
        fs::write(space.root.join("daemon.json"), daemon.to_string()).expect("write daemon.json");
        space
    }

    /// The space whose folder this is.
    pub fn at(root: &Path) -> Option<Self> {
        let id = root.file_name()?.to_str()?.strip_prefix(PREFIX)?.to_owned();
        Some(Self { id, root: root.to_owned(), sleeper: 0 })
    }

    /// The cgroup below which Docker puts everything of this space.
    pub fn cgroup_parent(&self) -> String {
        format!("/{PREFIX}{}", self.id)
    }

    /// Whether the process that made this space still lives. A folder just being made has no owner yet.
    pub fn owner_lives(&self) -> bool {
        let Ok(text) = fs::read_to_string(self.root.join("owner")) else {
            let young = |age: Duration| age < Duration::from_secs(60);
            let made = fs::metadata(&self.root).and_then(|meta| meta.modified());
            return made.is_ok_and(|at| at.elapsed().is_ok_and(young));
        };
        let mut words = text.split_whitespace();
        let pid = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        words.next().is_some_and(|start| started_at(pid).as_deref() == Some(start))
    }

    /// A command that will run inside. Its folder is `/`, its environment this process's without what points elsewhere.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &self.sleeper.to_string(), "-m", "-n", "-u", "--", program])
            .env("PATH", PATH)
            .env("HOME", "/root")
            .current_dir("/");
        for name in [
            "DOCKER_HOST",
            "DOCKER_CONTEXT",
            "DOCKER_CONFIG",
            "CONTAINERD_ADDRESS",
            "ETCDCTL_ENDPOINTS",
            "XDG_CONFIG_HOME",
        ] {
            command.env_remove(name);
        }
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ENOKI_") {
                command.env_remove(name);
            }
        }
        command
    }

    /// Runs a command inside to its end.
    pub fn run(&self, arguments: &[&str], input: &[u8], timeout: Duration) -> Output {
        let (program, rest) = arguments.split_first().expect("a command has at least its program");
        bounded(self.command(program).args(rest), input, timeout)
    }

    /// The path on this side of what is `path` inside. Valid while the sleeper lives.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.sleeper))
    }
}

/// When a process started, in clock ticks since boot: with its pid, this names it for good.
fn started_at(pid: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; field 22 is the twentieth after it.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19).map(str::to_owned)
}
