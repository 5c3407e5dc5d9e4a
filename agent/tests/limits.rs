//! Limits on control groups: v1 for real, in groups of the test's own; v2 on a folder that looks like one.

use enoki_agent::limits::device::Device;
use enoki_agent::limits::record::resources_for_record;
use enoki_agent::limits::{self, Cgroup, Error, Running, Version, apply, v2};
use enoki_api::instance::{DiskLimits, LimitsState, Resources};
use enoki_api::object::Uid;
use enoki_api::quantity::{Bytes, MilliCpu};
use std::fs::{read_to_string, write};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const CONTROLLERS: [&str; 6] = ["cpu", "cpuacct", "cpuset", "memory", "pids", "blkio"];

/// A process in control groups of its own, as a container has them.
struct Contained {
    child: Child,
    id: String,
    top: String,
}

impl Contained {
    /// Runs `script` once everything is in place.
    fn new(name: &str, script: &str) -> Contained {
        let id = format!("{:064x}", std::process::id());
        let top = format!("enoki-limits-test-{}-{name}", std::process::id());
        let mut child = Command::new("sh")
            .args(["-c", &format!("read go; {script}")])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        for controller in CONTROLLERS {
            let root = Path::new("/sys/fs/cgroup").join(controller);
            let folder = root.join(&top).join(&id);
            std::fs::create_dir_all(&folder).unwrap();
            if controller == "cpuset" {
                for level in [root.join(&top), folder.clone()] {
                    let parent = level.parent().unwrap().to_path_buf();
                    for file in ["cpuset.cpus", "cpuset.mems"] {
                        write(level.join(file), read_to_string(parent.join(file)).unwrap()).unwrap();
                    }
                }
            }
            write(folder.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        writeln!(child.stdin.as_mut().unwrap(), "go").unwrap();
        Contained { child, id, top }
    }

    fn folder(&self, controller: &str) -> PathBuf {
        Path::new("/sys/fs/cgroup").join(controller).join(&self.top).join(&self.id)
    }

    fn file(&self, file: &str) -> String {
        let controller = file.split('.').next().unwrap();
        read_to_string(self.folder(controller).join(file)).unwrap().trim().to_owned()
    }
}

impl Drop for Contained {
    fn drop(&mut self) {
        let until = Instant::now() + Duration::from_secs(5);
        for controller in CONTROLLERS {
            let folder = self.folder(controller);
            loop {
                for pid in read_to_string(folder.join("cgroup.procs")).unwrap_or_default().lines() {
                    if let Ok(pid) = pid.parse() {
                        let _ = nix::sys::signal::kill(
                            nix::unistd::Pid::from_raw(pid),
                            nix::sys::signal::Signal::SIGKILL,
                        );
                    }
                }
                let _ = self.child.try_wait();
                if std::fs::remove_dir(&folder).is_ok() || !folder.exists() || Instant::now() > until {
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = std::fs::remove_dir(folder.parent().unwrap());
        }
        let _ = self.child.wait();
    }
}

fn disk_below(path: &Path) -> Device {
    Device::under(path).unwrap().expect("the tests' folder is on a disk")
}

fn full() -> Resources {
    Resources {
        cpus: Some(MilliCpu(500)),
        cpuset: "0".parse().ok(),
        memory: Some(Bytes(256 << 20)),
        swap: Bytes(16 << 20),
        pids: Some(200),
        disk: DiskLimits { write_bps: Some(Bytes(1 << 20)), read_iops: Some(900), ..DiskLimits::default() },
        disk_size: None,
        cpu_weight: Some(64),
    }
}

#[tokio::test]
async fn v1_live() {
    // Uses some memory and some time, then waits.
    let contained = Contained::new("live", r"x=$(head -c 4000000 /dev/zero | tr '\0' a); read never");
    let (id, pid) = (contained.id.as_str(), contained.child.id());
    let device = disk_below(&std::env::temp_dir());
    let devices = [device];

    let set = limits::apply_to(id, pid, &full(), &devices).await.unwrap();
    assert_eq!((set.state, set.reason.as_deref()), (LimitsState::Applied, None));
    for (file, value) in [
        ("cpu.cfs_quota_us", "50000".to_owned()),
        ("cpu.cfs_period_us", "100000".to_owned()),
        ("cpu.shares", "64".to_owned()),
        ("cpuset.cpus", "0".to_owned()),
        ("memory.limit_in_bytes", (256u64 << 20).to_string()),
        ("memory.memsw.limit_in_bytes", (272u64 << 20).to_string()),
        ("pids.max", "200".to_owned()),
        ("blkio.throttle.write_bps_device", format!("{device} 1048576")),
        ("blkio.throttle.read_iops_device", format!("{device} 900")),
        ("blkio.throttle.read_bps_device", String::new()),
    ] {
        assert_eq!(contained.file(file), value, "{file}");
    }
    let granted = full();
    assert_eq!((set.cpus, set.cpuset.clone(), set.memory), (granted.cpus, granted.cpuset, granted.memory));
    assert_eq!((set.swap, set.pids, set.disk), (Some(granted.swap), granted.pids, granted.disk));
    assert_eq!(set.cpu_weight, Some(64));
    assert!(set.note.as_deref().is_some_and(|note| note.contains("buffered")));

    // Up, down, and free again.
    let mut more = full();
    (more.cpus, more.memory, more.swap) = (Some(MilliCpu(1500)), Some(Bytes(512 << 20)), Bytes(0));
    more.disk = DiskLimits { read_bps: Some(Bytes(3 << 20)), ..DiskLimits::default() };
    let set = limits::apply_to(id, pid, &more, &devices).await.unwrap();
    assert_eq!((set.state, set.cpus, set.memory), (LimitsState::Applied, more.cpus, more.memory));
    assert_eq!(set.disk, more.disk);
    assert_eq!(contained.file("blkio.throttle.write_bps_device"), "");
    let less = Resources { memory: Some(Bytes(64 << 20)), ..more };
    let set = limits::apply_to(id, pid, &less, &devices).await.unwrap();
    assert_eq!((set.state, set.memory), (LimitsState::Applied, less.memory));
    let none = Resources::default();
    let set = limits::apply_to(id, pid, &none, &devices).await.unwrap();
    assert_eq!(
        (set.state, set.cpus, set.cpuset, set.memory, set.pids, set.disk, set.note),
        (LimitsState::Applied, None, None, None, None, DiskLimits::default(), None)
    );
    assert_eq!(set.cpu_weight, None);
    for (file, value) in [("cpu.cfs_quota_us", "-1"), ("cpu.shares", "1024"), ("pids.max", "max")] {
        assert_eq!(contained.file(file), value, "{file}");
    }

    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let usage = limits::usage_of(id, pid).await.unwrap();
        if usage.cpu_ns > 0 && usage.memory_bytes > 4_000_000 && usage.pids == 1 {
            break;
        }
        assert!(Instant::now() < until, "{usage:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    // What the script is left with is one process.
    let one = |threads| vec![Running { uid: Uid::random(), container: id.to_owned(), pid, threads }];
    for (threads, expected) in [(true, vec![pid]), (false, Vec::new())] {
        let load = limits::loads_of(one(threads)).await.unwrap().into_values().next().unwrap();
        assert!(load.cpu_ns > 0 && load.threads.keys().copied().eq(expected), "{load:?}");
        assert!(load.threads.values().all(|(ran, _)| *ran > 0), "{load:?}");
    }
    let cpus = limits::cpus().await.unwrap();
    assert!(cpus.len() >= std::thread::available_parallelism().unwrap().get(), "{cpus:?}");
}

#[tokio::test]
async fn v1_refusals_change_nothing() {
    let contained = Contained::new("refused", "exec sleep 1000");
    let (id, pid) = (contained.id.as_str(), contained.child.id());
    let device = disk_below(&std::env::temp_dir());
    limits::apply_to(id, pid, &full(), &[device]).await.unwrap();

    // A CPU that does not exist.
    let beyond = Resources { cpuset: "0,7000".parse().ok(), cpus: Some(MilliCpu(100)), ..full() };
    let set = limits::apply_to(id, pid, &beyond, &[device]).await.unwrap();
    assert_eq!((set.state, set.cpus), (LimitsState::Infeasible, Some(MilliCpu(500))));
    assert!(set.reason.unwrap().contains("no CPU 7000"));

    // A device that does not exist is refused after everything else was written: all of it goes back.
    let ghost = Device { major: 4090, minor: 5 };
    let grown = Resources { memory: Some(Bytes(300 << 20)), cpus: Some(MilliCpu(900)), ..full() };
    let set = limits::apply_to(id, pid, &grown, &[device, ghost]).await.unwrap();
    assert_eq!(set.state, LimitsState::Infeasible);
    assert!(set.reason.as_deref().unwrap().contains("4090:5"), "{:?}", set.reason);
    assert_eq!((set.memory, set.cpus), (full().memory, full().cpus));
    assert_eq!(contained.file("memory.memsw.limit_in_bytes"), (272u64 << 20).to_string());
    assert_eq!(contained.file("cpu.cfs_quota_us"), "50000");

    // Somebody else's process is not touched, whatever its number.
    let stranger = limits::apply_to(id, std::process::id(), &full(), &[device]).await;
    assert!(matches!(stranger, Err(Error::Gone(_))), "{stranger:?}");
    assert!(matches!(limits::usage_of(id, u32::MAX - 1).await, Err(Error::Gone(_))));
}

#[tokio::test]
async fn v1_memory_in_use_is_deferred_and_kills_nobody() {
    // `tail` keeps what it was given and waits for a reader that never reads.
    let contained = Contained::new("busy", "head -c 60000000 /dev/zero | tail -c 60000000 | exec sleep 1000");
    let (id, pid) = (contained.id.as_str(), contained.child.id());
    let until = Instant::now() + Duration::from_secs(20);
    while limits::usage_of(id, pid).await.unwrap().memory_bytes < 55_000_000 {
        assert!(Instant::now() < until, "the memory was never used");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let wide = Resources { memory: Some(Bytes(128 << 20)), pids: Some(50), ..Resources::default() };
    assert_eq!(limits::apply_to(id, pid, &wide, &[]).await.unwrap().state, LimitsState::Applied);
    let tight = Resources { memory: Some(Bytes(16 << 20)), pids: Some(60), ..Resources::default() };
    let set = limits::apply_to(id, pid, &tight, &[]).await.unwrap();
    assert_eq!((set.state, set.memory, set.pids), (LimitsState::Deferred, wide.memory, wide.pids));
    assert!(set.reason.unwrap().contains("in use"));
    assert!(limits::usage_of(id, pid).await.unwrap().memory_bytes > 55_000_000, "nobody was killed");
    let seen = limits::read_of(id, pid, &tight).await.unwrap();
    assert_eq!((seen.state, seen.memory), (LimitsState::Deferred, wide.memory));
    assert_eq!(limits::read_of(id, pid, &wide).await.unwrap().state, LimitsState::Applied);
}

/// The device under a path is the one that the kernel throttles.
#[tokio::test]
async fn v1_disk_limits_are_real() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("data");
    let script = format!(
        "read again; dd if=/dev/zero of={} bs=65536 count=48 oflag=direct 2>/dev/null; exec sleep 1000",
        target.display()
    );
    let mut contained = Contained::new("disk", &script);
    let granted = Resources {
        disk: DiskLimits { write_bps: Some(Bytes(1 << 20)), ..DiskLimits::default() },
        ..Resources::default()
    };
    let device = disk_below(folder.path());
    let (id, pid) = (contained.id.clone(), contained.child.id());
    let set = limits::apply_to(&id, pid, &granted, &[device]).await.unwrap();
    assert_eq!(set.state, LimitsState::Applied, "{:?}", set.reason);
    let before = Instant::now();
    writeln!(contained.child.stdin.as_mut().unwrap(), "again").unwrap();
    while std::fs::metadata(&target).map_or(0, |file| file.len()) < 48 << 16 {
        assert!(before.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(before.elapsed() > Duration::from_millis(1800), "3 MiB at 1 MiB/s: {:?}", before.elapsed());
    let usage = limits::usage_of(&id, pid).await.unwrap();
    assert!(usage.write_bytes >= 2 << 20, "{usage:?}");
}

/// A folder that looks like a group of v2.
fn fake_v2() -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("docker-abc.scope");
    std::fs::create_dir(&folder).unwrap();
    write(root.path().join("cpuset.cpus.effective"), "0-3\n").unwrap();
    for (file, text) in [
        ("cpu.max", "max 100000\n"),
        ("cpu.weight", "100\n"),
        ("cpuset.cpus", "\n"),
        ("memory.max", "max\n"),
        ("memory.high", "max\n"),
        ("memory.swap.max", "max\n"),
        ("memory.current", "10485760\n"),
        ("memory.stat", "anon 1\ninactive_file 1048576\n"),
        ("pids.max", "max\n"),
        ("pids.current", "3\n"),
        ("io.max", ""),
        ("io.stat", "254:0 rbytes=10 wbytes=20 rios=1 wios=2\n7:0 rbytes=1 wbytes=2 rios=1 wios=1\n"),
        ("cpu.stat", "usage_usec 5000\nuser_usec 1\nnr_periods 9\nnr_throttled 4\n"),
        ("cgroup.threads", &format!("{}\n4194305\n", std::process::id())),
    ] {
        write(folder.join(file), text).unwrap();
    }
    (root, folder)
}

#[test]
fn v2_writes_and_reads_back() {
    let (_root, folder) = fake_v2();
    let group = v2::Group::new(folder.clone());
    let device = disk_below(&std::env::temp_dir());
    let set = apply(&group, &full(), &[device]).unwrap();
    assert_eq!((set.state, set.reason), (LimitsState::Applied, None));
    let file = |name: &str| read_to_string(folder.join(name)).unwrap().trim().to_owned();
    assert_eq!(file("cpu.max"), "50000 100000");
    assert_eq!((file("cpu.weight").as_str(), set.cpu_weight), ("6", Some(6)));
    assert_eq!(file("cpuset.cpus"), "0");
    assert_eq!(file("memory.max"), (256u64 << 20).to_string());
    assert_eq!(file("memory.high"), "max");
    assert_eq!(file("memory.swap.max"), (16u64 << 20).to_string());
    assert_eq!(file("pids.max"), "200");
    assert_eq!(file("io.max"), format!("{device} rbps=max wbps=1048576 riops=900 wiops=max"));
    let granted = full();
    assert_eq!((set.cpus, set.cpuset, set.memory), (granted.cpus, granted.cpuset, granted.memory));
    assert_eq!((set.swap, set.pids, set.disk), (Some(granted.swap), granted.pids, granted.disk));
    assert_eq!(set.note, None, "v2 accounts for buffered writes");

    let set = apply(&group, &Resources::default(), &[device]).unwrap();
    assert_eq!(
        (set.state, set.cpus, set.cpuset, set.memory, set.swap),
        (LimitsState::Applied, None, None, None, None)
    );
    assert_eq!(
        (file("cpu.max").as_str(), file("memory.max").as_str(), file("cpuset.cpus").as_str()),
        ("max 100000", "max", "")
    );
    assert_eq!((file("cpu.weight").as_str(), set.cpu_weight), ("100", None));

    let usage = group.usage().unwrap();
    assert_eq!((usage.cpu_ns, usage.memory_bytes, usage.pids), (5_000_000, 9 << 20, 3));
    assert_eq!((usage.read_bytes, usage.write_bytes), (11, 22));
    let load = group.load(true).unwrap();
    assert_eq!((load.cpu_ns, load.periods, load.throttled), (5_000_000, 9, 4));
    assert!(load.threads.into_keys().eq([std::process::id()]), "one that is gone is not missed");
}

#[test]
fn v2_memory_in_use_is_deferred() {
    let (_root, folder) = fake_v2();
    let group = v2::Group::new(folder.clone());
    let granted = |memory: u64| Resources { memory: Some(Bytes(memory << 20)), ..Resources::default() };
    assert_eq!(apply(&group, &granted(64), &[]).unwrap().state, LimitsState::Applied);
    // 10 MiB are in use and stay so: the hard limit, which would kill, is never written.
    let set = apply(&group, &granted(8), &[]).unwrap();
    assert_eq!((set.state, set.memory), (LimitsState::Deferred, Some(Bytes(64 << 20))));
    let file = |name: &str| read_to_string(folder.join(name)).unwrap().trim().to_owned();
    assert_eq!((file("memory.max"), file("memory.high").as_str()), ((64u64 << 20).to_string(), "max"));
    // Meanwhile reclaimed: now it goes through.
    let current = folder.join("memory.current");
    let reclaim = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        write(current, "4194304\n").unwrap();
    });
    assert_eq!(apply(&group, &granted(8), &[]).unwrap().state, LimitsState::Applied);
    reclaim.join().unwrap();
    assert_eq!((file("memory.max"), file("memory.high").as_str()), ((8u64 << 20).to_string(), "max"));
}

#[test]
fn v2_refusals_change_nothing() {
    let (_root, folder) = fake_v2();
    let group = v2::Group::new(folder.clone());
    // A kernel without the io controller.
    std::fs::remove_file(folder.join("io.max")).unwrap();
    let before = group.read().unwrap();
    let set = apply(&group, &full(), &[disk_below(&std::env::temp_dir())]).unwrap();
    assert_eq!(set.state, LimitsState::Infeasible);
    assert!(set.reason.unwrap().contains("io.max"));
    assert_eq!(group.read().unwrap(), before);
    // A group that is gone is no refusal.
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(matches!(apply(&group, &full(), &[]), Err(Error::Gone(_))));
}

#[test]
fn the_record_says_the_same() {
    let device = Device { major: 254, minor: 0 };
    let record = resources_for_record(&full(), &[device], (Version::V1, true));
    assert_eq!(
        serde_json::to_value(&record).unwrap(),
        serde_json::json!({
            "cpu_quota_us": 50000, "cpu_period_us": 100000, "cpu_shares": 64, "cpuset": "0",
            "memory_bytes": 268435456, "memory_swap_bytes": 285212672, "pids": 200,
            "io": [{"major": 254, "minor": 0, "write_bps": 1048576, "read_iops": 900}],
        })
    );
    let record = resources_for_record(&full(), &[], (Version::V1, false));
    assert_eq!(record.memory_swap_bytes, None);
    let nothing = resources_for_record(&Resources::default(), &[device], (Version::V2, true));
    assert_eq!(serde_json::to_value(&nothing).unwrap(), serde_json::json!({}));
}
