//! What is read from the machine beside the clock: CPU time, and the conditions of a run.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use enoki_harness::Cloud;

const CGROUPS: &str = "/sys/fs/cgroup";
/// Below the cloud's own group, where Docker puts the containers.
const DAEMONS: &str = "daemons";

/// CPU time of a cloud: of its daemons, of everything that they start and of its containers, the ended ones included.
/// Work that the kernel does in threads of its own is not in it, and neither is this program.
#[derive(Clone, Debug)]
pub struct Meter {
    file: PathBuf,
    /// Version 2 counts in microseconds in a file of several lines.
    v2: bool,
}

impl Meter {
    /// Puts the named parts of a cloud into a group beside its containers; what they start stays in it.
    pub fn start(cloud: &Cloud, parts: &[&str]) -> Result<Self> {
        let v2 = !Path::new(CGROUPS).join("cpuacct").exists();
        let top = if v2 { CGROUPS.to_owned() } else { format!("{CGROUPS}/cpuacct") };
        let own = PathBuf::from(format!("{top}{}", cloud.cgroup_parent()));
        let daemons = own.join(DAEMONS);
        fs::create_dir_all(&daemons).with_context(|| format!("make {}", daemons.display()))?;
        for part in parts {
            let pid = cloud.find(part).with_context(|| format!("{part} does not run"))?;
            fs::write(daemons.join("cgroup.procs"), pid.to_string())
                .with_context(|| format!("move {part} ({pid}) to {}", daemons.display()))?;
        }
        Ok(Self { file: own.join(if v2 { "cpu.stat" } else { "cpuacct.usage" }), v2 })
    }

    /// Seconds since the start.
    pub fn seconds(&self) -> Result<f64> {
        let text = fs::read_to_string(&self.file).with_context(|| format!("read {}", self.file.display()))?;
        let number = if self.v2 {
            text.lines().find_map(|line| line.strip_prefix("usage_usec ")).unwrap_or_default()
        } else {
            text.trim()
        };
        let count: f64 = number.parse().with_context(|| format!("{}: {text}", self.file.display()))?;
        Ok(count / if self.v2 { 1e6 } else { 1e9 })
    }
}

/// The load of the last minute.
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN)
}

pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// What somebody must know to compare with another run.
pub fn conditions(docker: &str) -> Vec<(&'static str, String)> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let v1 = Path::new(CGROUPS).join("cpuacct").exists();
    let build = if cfg!(debug_assertions) { "DEBUG: these figures mean nothing" } else { "release" };
    vec![
        (
            "kernel",
            format!("{}, cgroup v{}", read("/proc/sys/kernel/osrelease").trim(), if v1 { 1 } else { 2 }),
        ),
        (
            "machine",
            format!(
                "{} cores ({}), {} of memory",
                cores(),
                field(&read("/proc/cpuinfo"), "model name"),
                field(&read("/proc/meminfo"), "MemTotal")
            ),
        ),
        ("docker", docker.to_owned()),
        ("enoki", format!("{}, {build} build", env!("CARGO_PKG_VERSION"))),
    ]
}
