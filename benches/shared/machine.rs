//! What is read from the machine beside the clock: CPU time, and the conditions of a run.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use enoki_harness::Cloud;

const CGROUPS: &str = "/sys/fs/cgroup";
/// Below the cloud's own group, where Docker puts the containers.
const DAEMONS: &str = "daemons";

/// CPU time of clouds: of their daemons, of everything that they start and of their containers, the ended ones included.
/// Work that the kernel does in threads of its own is not in it, and neither is this program.
#[derive(Clone, Debug)]
pub struct Meter {
    files: Vec<PathBuf>,
}

/// Several clouds as one.
impl FromIterator<Meter> for Meter {
    fn from_iter<I: IntoIterator<Item = Meter>>(meters: I) -> Self {
        Self { files: meters.into_iter().flat_map(|meter| meter.files).collect() }
    }
}

impl Meter {
    /// Puts the named parts of a cloud into a group beside its containers; what they start stays in it.
    pub fn start(cloud: &Cloud, parts: &[&str]) -> Result<Self> {
        let v1 = accounts_apart();
        let top = if v1 { format!("{CGROUPS}/cpuacct") } else { CGROUPS.to_owned() };
        let own = PathBuf::from(format!("{top}{}", cloud.cgroup_parent()));
        let daemons = own.join(DAEMONS);
        fs::create_dir_all(&daemons).with_context(|| format!("make {}", daemons.display()))?;
        for part in parts {
            let pid = cloud.find(part).with_context(|| format!("{part} does not run"))?;
            fs::write(daemons.join("cgroup.procs"), pid.to_string())
                .with_context(|| format!("move {part} ({pid}) to {}", daemons.display()))?;
        }
        Ok(Self { files: vec![own.join(if v1 { "cpuacct.usage" } else { "cpu.stat" })] })
    }

    /// Seconds since the start.
    pub fn seconds(&self) -> Result<f64> {
        self.files.iter().map(|file| seconds(file)).sum()
    }
}

fn seconds(file: &Path) -> Result<f64> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    // Version 2 counts in microseconds in a file of several lines.
    let (number, unit) = match text.lines().find_map(|line| line.strip_prefix("usage_usec ")) {
        Some(number) => (number, 1e6),
        None => (text.trim(), 1e9),
    };
    let count: f64 = number.parse().with_context(|| format!("{}: {text}", file.display()))?;
    Ok(count / unit)
}

/// Whether CPU time has a hierarchy of its own: version 1 of cgroups.
fn accounts_apart() -> bool {
    Path::new(CGROUPS).join("cpuacct").exists()
}

/// The load of the last minute.
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(f64::NAN)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Prints what somebody must know to compare with another run. `before`: the load before anything was started.
pub fn print_conditions(docker: &str, before: f64) {
    for (name, value) in conditions(docker) {
        println!("  {name:8} {value}");
    }
    println!("  {:8} {before:.2} before, {:.2} at the end", "load", load());
    if before > 0.3 * cores() as f64 {
        println!("  THE MACHINE WAS BUSY before anything was started: do not trust these figures");
    }
}

fn conditions(docker: &str) -> Vec<(&'static str, String)> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let build = if cfg!(debug_assertions) { "DEBUG: these figures mean nothing" } else { "release" };
    vec![
        (
            "kernel",
            format!(
                "{}, cgroup v{}",
                read("/proc/sys/kernel/osrelease").trim(),
                if accounts_apart() { 1 } else { 2 }
            ),
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
