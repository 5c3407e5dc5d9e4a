//! Instances under test: what runs in them, and what of them must not change while the cloud around them breaks.

use std::fs;
use std::time::Duration;

use enoki_harness::{Cloud, eventually};
use serde_json::Value;

/// Everything that a cloud does by itself is done by then.
pub const SOON: Duration = Duration::from_secs(60);

/// Counts up in `/count`, five times a second, going on from where it was.
pub const COUNTER: &str = "n=$(cat /count 2>/dev/null || echo 0); \
    while :; do n=$((n+1)); echo $n >/count.new; mv /count.new /count; sleep 0.2; done";

/// An instance as the API shows it.
#[track_caller]
pub fn instance(cloud: &Cloud, name: &str) -> Value {
    cloud.api("GET", &format!("/v1/projects/default/instances/{name}"), None).expect(200).json
}

/// Waits for a phase and returns the instance.
#[track_caller]
pub fn phase(cloud: &Cloud, name: &str, phase: &str) -> Value {
    eventually(&format!("{name} {phase}"), SOON, || {
        let seen = cloud.api("GET", &format!("/v1/projects/default/instances/{name}"), None);
        if seen.json["status"]["phase"] == phase { Ok(seen.json) } else { Err(seen.body) }
    })
}

/// An instance that runs: its first process and what it has counted.
#[derive(Debug)]
pub struct Running {
    pub name: String,
    pub uid: String,
    pub pid: i64,
}

impl Running {
    /// Starts an instance of the tiny image that runs a shell script.
    #[track_caller]
    pub fn start(cloud: &Cloud, name: &str, flags: &[&str], script: &str) -> Running {
        let run = [
            &["run", name, "--image", "enoki/tiny:1", "--memory", "64Mi"],
            flags,
            &["--wait", "--", "sh", "-c", script],
        ]
        .concat();
        cloud.enoki(&run).ok();
        Running::of(cloud, name)
    }

    #[track_caller]
    pub fn of(cloud: &Cloud, name: &str) -> Running {
        let seen = phase(cloud, name, "running");
        let pid = seen["status"]["pid"].as_i64().unwrap_or_else(|| panic!("no pid: {seen}"));
        Running { name: name.to_owned(), uid: seen["uid"].as_str().unwrap_or_default().to_owned(), pid }
    }

    /// What it has counted, read past everything that may be down.
    #[track_caller]
    pub fn count(&self) -> u64 {
        let path = format!("/proc/{}/root/count", self.pid);
        eventually(&path, Duration::from_secs(10), || {
            let text = fs::read_to_string(&path).map_err(|e| e.to_string())?;
            text.trim().parse::<u64>().map_err(|e| format!("{text:?}: {e}"))
        })
    }

    /// It counts on, in the same process.
    #[track_caller]
    pub fn goes_on(&self) {
        let before = self.count();
        eventually(&format!("{} counts on", self.name), Duration::from_secs(10), || {
            let now = self.count();
            if now > before { Ok(()) } else { Err(now) }
        });
    }

    /// The same process with the same story, and the cloud says so.
    #[track_caller]
    pub fn unchanged(&self, cloud: &Cloud) {
        let now = Running::of(cloud, &self.name);
        assert_eq!((now.pid, &now.uid), (self.pid, &self.uid), "{} is another one", self.name);
        let seen = instance(cloud, &self.name);
        assert_eq!(seen["status"]["restarts"].as_u64().unwrap_or(0), 0, "restarted: {seen}");
        self.goes_on();
    }
}

/// Answers as it should: a command in the instance, and its first host ready.
#[track_caller]
pub fn well(cloud: &Cloud, name: &str) {
    eventually("the host is ready", SOON, || {
        let seen = cloud.api("GET", "/v1/hosts", None);
        if seen.json["items"][0]["status"]["phase"] == "ready" { Ok(()) } else { Err(seen.body) }
    });
    eventually(&format!("{name} answers"), SOON, || {
        let out = cloud.enoki(&["exec", name, "--", "hostname"]);
        if out.text() == name { Ok(()) } else { Err(out.to_string()) }
    });
}
