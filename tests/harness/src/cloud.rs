//! A test's own cloud: what a test does with it, as a user or as an operator would.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::built::{HELPERS, enoki_binary, helpers, image};
use crate::space::Space;
use crate::{Output, Response, eventually, http, panics, signals, sweep};

/// Longer than any wait of the CLI's own by default, so that the CLI tells its story first.
const COMMAND: Duration = Duration::from_secs(120);
/// A first start makes keys, data folders and Docker's storage.
const UP: Duration = Duration::from_secs(180);
const REQUEST: Duration = Duration::from_secs(30);

/// Whether end-to-end tests can run. Without root it says so on stderr; in CI it panics, since a skipped test there would
/// hide what it is there to test.
pub fn is_root() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    let why = "needs root: it makes namespaces and runs Docker in them";
    assert!(std::env::var_os("CI").is_none(), "this test {why}");
    eprintln!("SKIPPED: this test {why}");
    false
}

/// A cloud in namespaces of its own. Dropping it removes everything that it made.
pub struct Cloud {
    space: Space,
    sleeper: Child,
    purged: bool,
}

impl Cloud {
    /// The namespaces alone, with `enoki` at its place if it is built and the helpers if they are.
    ///
    /// # Panics
    /// Without root, or when the machine lacks what it takes.
    pub fn bare() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "a test cloud needs root: ask `is_root()` first");
        panics::remember();
        for left in sweep::sweep_dead() {
            eprintln!("harness: an earlier test's leftover would not go: {left}");
        }
        let (space, sleeper) = Space::make();
        let cloud = Self { space, sleeper, purged: false };
        match enoki_binary() {
            Ok(enoki) => cloud.place(&enoki, "/usr/local/bin/enoki"),
            Err(missing) => eprintln!("harness: this cloud goes without: {missing}"),
        }
        match helpers() {
            Ok(folder) => {
                for (built, name) in HELPERS {
                    cloud.place(&folder.join(built), &format!("/usr/local/lib/enoki/{name}"));
                }
            }
            Err(missing) => eprintln!("harness: this cloud goes without: {missing}"),
        }
        cloud
    }

    /// A running cloud: `enoki up` has returned, so Docker, etcd, the server and the agent are there.
    ///
    /// # Panics
    /// When it does not come up, with what it said and the ends of its logs.
    pub fn start() -> Self {
        let ready = enoki_binary().and_then(|_| helpers());
        if let Err(missing) = ready {
            panic!("{missing}");
        }
        let cloud = Self::bare();
        cloud.up();
        cloud
    }

    /// Runs `enoki up`.
    ///
    /// # Panics
    /// When it fails, with what it said and the ends of the logs.
    #[track_caller]
    pub fn up(&self) {
        let out = self.space.run(&["enoki", "up"], b"", UP);
        assert!(out.code() == 0, "{out}{}", self.logs());
    }

    /// Runs the CLI inside.
    pub fn enoki(&self, arguments: &[&str]) -> Output {
        self.enoki_with(arguments, "", COMMAND)
    }

    /// Runs the CLI inside with something on its standard input, at most for `timeout`.
    pub fn enoki_with(&self, arguments: &[&str], input: &str, timeout: Duration) -> Output {
        self.space.run(&[&["enoki"], arguments].concat(), input.as_bytes(), timeout)
    }

    /// Runs a program inside. Its folder is `/`: name files by their full path.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.space.run(arguments, b"", COMMAND)
    }

    /// Runs a program inside that may take longer.
    pub fn run_for(&self, arguments: &[&str], timeout: Duration) -> Output {
        self.space.run(arguments, b"", timeout)
    }

    /// Runs a shell script inside.
    pub fn sh(&self, script: &str) -> Output {
        self.run(&["sh", "-euc", script])
    }

    /// A command that will run inside, for what `run` does not do: the caller spawns it, and dropping the cloud ends it.
    pub fn command(&self, program: &str) -> Command {
        self.space.command(program)
    }

    /// Runs the Docker client inside.
    pub fn docker(&self, arguments: &[&str]) -> Output {
        self.run(&[&["docker"], arguments].concat())
    }

    /// One request to the API over its unix socket; the body, if any, as JSON.
    ///
    /// # Panics
    /// When there is no answer at all.
    #[track_caller]
    pub fn api(&self, method: &str, path: &str, body: Option<&Value>) -> Response {
        let body = body.map(Value::to_string);
        self.api_raw(method, path, &[], body.as_deref().map(str::as_bytes))
    }

    /// One request with headers and any bytes as body.
    ///
    /// # Panics
    /// When there is no answer at all.
    #[track_caller]
    pub fn api_raw(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
    ) -> Response {
        match self.try_api(method, path, headers, body, REQUEST) {
            Ok(response) => response,
            Err(error) => panic!("{method} {path}: {error}{}", self.logs()),
        }
    }

    /// The same, for a server that may be away or hang; `timeout` bounds each read and write.
    pub fn try_api(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
        timeout: Duration,
    ) -> std::io::Result<Response> {
        http::request(&self.path("/run/enoki/api.sock"), method, path, headers, body, timeout)
    }

    /// The process whose namespaces these are.
    pub fn sleeper(&self) -> i32 {
        self.space.sleeper
    }

    /// Writes a file inside.
    ///
    /// # Panics
    /// When it can't be written.
    #[track_caller]
    pub fn write(&self, inside: &str, text: &str) {
        let path = self.path(inside);
        fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// The path on this side of what is `path` inside.
    pub fn path(&self, path: &str) -> PathBuf {
        self.space.path(path)
    }

    /// The folder on disk behind this cloud.
    pub fn folder(&self) -> &Path {
        &self.space.root
    }

    /// The cgroup below which Docker puts this cloud's containers.
    pub fn cgroup_parent(&self) -> String {
        self.space.cgroup_parent()
    }

    /// Copies an executable to a path inside, replacing by rename what is there.
    ///
    /// # Panics
    /// When it can't be read or written.
    #[track_caller]
    pub fn place(&self, source: &Path, inside: &str) {
        let new = self.path(&format!("{inside}.new"));
        let put = || {
            fs::create_dir_all(new.parent().unwrap_or(Path::new("/")))?;
            fs::copy(source, &new)?;
            fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
            fs::rename(&new, self.path(inside))
        };
        if let Err(error) = put() {
            panic!("put {} to {inside}: {error}", source.display());
        }
    }

    /// The process of a part: `supervisor`, `server`, `agent`, `etcd`, `dockerd`, `containerd`. `None` when it is not running.
    pub fn find(&self, part: &str) -> Option<i32> {
        // By command line: a pid file may be what the test is about.
        let verb = match part {
            "server" | "agent" => Some(part),
            "supervisor" => Some("supervise"),
            _ => None,
        };
        let is_it = |words: &[String]| {
            let program = words.first().map_or("", |word| base(word));
            let first = words.iter().skip(1).find(|word| !word.starts_with('-'));
            match verb {
                Some(verb) => program == "enoki" && first.is_some_and(|word| word == verb),
                None => program == part,
            }
        };
        let mut processes = sweep::processes_at_home(&self.space).into_iter();
        processes.find(|(_, words)| is_it(words)).map(|(pid, _)| pid)
    }

    /// The process of a part that must be running.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn pid(&self, part: &str) -> i32 {
        self.find(part).unwrap_or_else(|| panic!("{part} is not running{}", self.logs()))
    }

    /// Sends a signal to a part and returns its pid; after SIGKILL it is gone.
    ///
    /// # Panics
    /// When it is not running, or does not die.
    #[track_caller]
    pub fn kill(&self, part: &str, signal: Signal) -> i32 {
        let pid = self.pid(part);
        kill(Pid::from_raw(pid), signal)
            .unwrap_or_else(|error| panic!("send {signal} to {part} ({pid}): {error}"));
        if signal == Signal::SIGKILL {
            self.gone(pid);
        }
        pid
    }

    /// Waits until a process has ended.
    ///
    /// # Panics
    /// When it lives on for ten seconds.
    #[track_caller]
    pub fn gone(&self, pid: i32) {
        eventually(&format!("the end of process {pid}"), Duration::from_secs(10), || {
            if sweep::has_ended(pid) { Ok(()) } else { Err("it is still running") }
        });
    }

    /// A file of the cgroup of a process or container, without the newline. With cgroup v2 the controller is ignored.
    ///
    /// # Panics
    /// When there is no such group or file.
    #[track_caller]
    pub fn cgroup<'a>(&self, subject: impl Into<Subject<'a>>, controller: &str, file: &str) -> String {
        let group = match subject.into() {
            Subject::Container(id) => format!("{}/{id}", self.cgroup_parent()),
            Subject::Process(pid) => {
                let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
                let group = groups.lines().find_map(|line| {
                    let mut parts = line.splitn(3, ':').skip(1);
                    let (names, path) = (parts.next()?, parts.next()?);
                    names.split(',').any(|name| name == controller).then(|| path.to_owned())
                });
                let unified = || groups.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned);
                group
                    .or_else(unified)
                    .unwrap_or_else(|| panic!("process {pid} is gone, or has no cgroup for {controller}"))
            }
        };
        let top = Path::new("/sys/fs/cgroup");
        let versioned = top.join(controller);
        let top = if versioned.is_dir() { versioned } else { top.to_owned() };
        let path = top.join(group.trim_start_matches('/')).join(file);
        match fs::read_to_string(&path) {
            Ok(text) => text.trim_end().to_owned(),
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }

    /// Imports the tiny image as `enoki/tiny:1`, through the CLI.
    ///
    /// # Panics
    /// When it can't be built or imported.
    #[track_caller]
    pub fn import_tiny(&self) {
        self.enoki(&["image", "import", "enoki/tiny:1", &image("tiny", None)]).ok();
    }

    /// Imports the Debian image as `enoki/debian:12`, through the CLI. Takes a minute where it is not built yet.
    ///
    /// # Panics
    /// When it can't be built or imported.
    #[track_caller]
    pub fn import_debian(&self) {
        self.enoki(&["image", "import", "enoki/debian:12", &image("debian", None)]).ok();
    }

    /// Imports the image of this version of Spark, through the CLI. Takes minutes where it is not built yet.
    ///
    /// # Panics
    /// When it can't be built or imported.
    #[track_caller]
    pub fn import_spark(&self, version: &str) {
        self.import_engine("spark", version);
    }

    /// Imports the image of this version of Dask, through the CLI. Takes a minute where it is not built yet.
    ///
    /// # Panics
    /// When it can't be built or imported.
    #[track_caller]
    pub fn import_dask(&self, version: &str) {
        self.import_engine("dask", version);
    }

    #[track_caller]
    fn import_engine(&self, engine: &str, version: &str) {
        let archive = image(engine, Some(version));
        self.enoki(&["image", "import", &format!("enoki/{engine}:{version}"), &archive]).ok();
    }

    /// The ends of this cloud's logs, for a message that explains a failure.
    pub fn logs(&self) -> String {
        let mut told = String::new();
        let mut waiting =
            vec![self.space.root.join("disk/var/log/enoki"), self.space.root.join("disk/run/enoki-harness")];
        while let Some(folder) = waiting.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.path().is_dir() {
                    waiting.push(entry.path());
                } else if let Ok(text) = fs::read(entry.path()) {
                    let text = String::from_utf8_lossy(&text);
                    let lines: Vec<_> = text.lines().rev().take(15).collect();
                    told.push_str(&format!("\n--- {}\n", entry.path().display()));
                    told.extend(lines.into_iter().rev().map(|line| format!("{line}\n")));
                }
            }
        }
        told
    }

    /// What there is of this cloud on the machine, a line each.
    pub fn leftovers(&self) -> Vec<String> {
        sweep::leftovers(&self.space)
    }

    /// Removes everything and returns what would not go: the last lines of a test that is about leaks.
    pub fn purge(mut self) -> Vec<String> {
        self.remove()
    }

    fn remove(&mut self) -> Vec<String> {
        self.purged = true;
        let left = sweep::purge(&self.space);
        let _ = self.sleeper.wait();
        signals::forget(&self.space);
        left
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        if self.purged {
            return;
        }
        if std::thread::panicking() {
            // What `pid`, `api` and `up` show by themselves, for all other failures.
            eprintln!(
                "harness: the cloud's logs:{}\nharness: why it failed:\n{}",
                self.logs(),
                panics::told()
            );
        }
        let left = self.remove();
        let told = format!("a test cloud left behind:\n{}", left.join("\n"));
        if !left.is_empty() && !std::thread::panicking() {
            panic!("{told}");
        } else if !left.is_empty() {
            eprintln!("{told}");
        }
    }
}

/// Whose cgroup: a process, or a container by its full id.
#[derive(Clone, Copy, Debug)]
pub enum Subject<'a> {
    Process(i32),
    Container(&'a str),
}

impl From<i32> for Subject<'_> {
    fn from(pid: i32) -> Self {
        Self::Process(pid)
    }
}

impl<'a> From<&'a str> for Subject<'a> {
    fn from(id: &'a str) -> Self {
        Self::Container(id)
    }
}

fn base(program: &str) -> &str {
    program.rsplit('/').next().unwrap_or(program)
}
