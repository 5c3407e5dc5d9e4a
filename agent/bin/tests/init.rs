//! The init as PID 1 of a real PID namespace.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{can_run, private_mounts, read, tmpfs, wait_until};
use enoki_helpers::logline;

const TOOLS: [&str; 2] = ["/usr/bin/unshare", "/bin/busybox"];

/// An init in its own PID namespace; killed with its namespace when dropped.
struct Machine {
    child: Child,
    log: PathBuf,
}

impl Machine {
    fn start(log: &Path, options: &[&str], command: &[&str]) -> Machine {
        let mut start = Command::new("unshare");
        start.args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
        start.arg(env!("CARGO_BIN_EXE_enoki-init")).arg("--log-dir").arg(log);
        start.args(options).arg("--").args(command);
        let child = start.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Machine { child: child.spawn().expect("unshare"), log: log.into() }
    }

    /// The init's pid, seen from outside.
    fn pid(&self) -> String {
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        wait_until("the init is there", || !read(&children).trim().is_empty());
        read(&children).trim().to_owned()
    }

    fn signal(&self, signal: &str) {
        common::tool(&format!("kill -{signal} {}", self.pid()));
    }

    fn wait(&mut self) -> i32 {
        let mut code = None;
        wait_until("the machine ends", || {
            code = self.child.try_wait().expect("the child");
            code.is_some()
        });
        code.and_then(|c| c.code()).expect("an exit code")
    }

    fn log(&self) -> String {
        text(&self.log.join("current"))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the program wrote, streams mixed, and the init's own lines.
fn text(file: &Path) -> String {
    let bytes = fs::read(file).unwrap_or_default();
    let lines = bytes.split_inclusive(|b| *b == b'\n');
    let lines = lines.map(|l| logline::parse(l).unwrap_or_else(|| panic!("a torn line: {l:?}")));
    lines.map(|l| String::from_utf8_lossy(l.text).into_owned() + "\n").collect()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

const SH: [&str; 3] = ["/bin/busybox", "sh", "-c"];

fn sh(script: &str) -> [&str; 4] {
    [SH[0], SH[1], SH[2], script]
}

#[test]
fn exit_codes_are_the_programs_own() {
    if !can_run("exit_codes_are_the_programs_own", &TOOLS) {
        return;
    }
    let dir = folder();
    for (command, code) in [
        (&sh("exit 0")[..], 0),
        (&sh("exit 7"), 7),
        (&sh("kill -9 $$"), 137),
        (&["/nowhere"], 127),
        (&["no-such-program"], 127),
        (&["/etc/passwd"], 126),
    ] {
        assert_eq!(Machine::start(dir.path(), &[], command).wait(), code, "{command:?}");
    }
    let log = text(&dir.path().join("current"));
    assert!(log.contains("enoki-init: no-such-program: not found in the image"), "{log}");
    assert!(log.contains("enoki-init: /etc/passwd: cannot be executed"), "{log}");
    assert_eq!(Machine::start(dir.path(), &["--no-such-option", "x"], &[]).wait(), 2);
    assert_eq!(Machine::start(dir.path(), &["--user", "no-such-user"], &sh("true")).wait(), 126);
}

#[test]
fn orphans_are_reaped_and_the_program_runs_as_its_user() {
    if !can_run("orphans_are_reaped_and_the_program_runs_as_its_user", &TOOLS) {
        return;
    }
    let dir = folder();
    let script = "for i in 1 2 3 4 5 6 7 8 9; do (sleep 0.05 &); done; sleep 0.5; cat /proc/[0-9]*/stat | grep -c ' Z '; \
                  id -u; id -g; echo err >/dev/stderr; cat /proc/self/stat | cut -d' ' -f7; readlink /proc/self/fd/0";
    let mut machine = Machine::start(dir.path(), &["--user", "4711:42"], &sh(script));
    assert_eq!(machine.wait(), 0);
    let log = machine.log();
    let mut lines: Vec<&str> = log.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["/dev/null", "0", "0", "42", "4711", "err"]);
}

#[test]
fn signals_reach_the_program() {
    if !can_run("signals_reach_the_program", &TOOLS) {
        return;
    }
    let dir = folder();
    let script = "trap 'echo usr1' USR1; trap 'echo 34' 34; trap 'echo term; exit 5' TERM; echo ready; while :; do sleep 0.02; done";
    let mut machine = Machine::start(dir.path(), &[], &sh(script));
    for (signal, answer) in [("USR1", "usr1"), ("34", "34")] {
        wait_until("the program is ready", || machine.log().contains("ready"));
        machine.signal(signal);
        wait_until("the signal came", || machine.log().contains(answer));
    }
    machine.signal("TERM");
    assert_eq!(machine.wait(), 5);
    assert!(machine.log().ends_with("term\n"));
}

#[test]
fn a_machine_without_a_program_stays_up_and_ends_in_order() {
    let tools = ["/usr/bin/unshare", "/bin/busybox", "/usr/bin/nsenter"];
    if !can_run("a_machine_without_a_program_stays_up_and_ends_in_order", &tools) {
        return;
    }
    let dir = folder();
    let mut machine = Machine::start(&dir.path().join("log"), &[], &[]);
    let (ready, bye) = (dir.path().join("ready"), dir.path().join("bye"));
    let script = format!(
        "trap 'sleep 0.1; echo bye > {}; exit' TERM; touch {}; while :; do sleep 0.02; done",
        bye.display(),
        ready.display()
    );
    let pid = machine.pid();
    // The namespace's tools are there once its /proc is.
    wait_until("the init runs", || read(format!("/proc/{pid}/comm")).starts_with("enoki-init"));
    let mut other =
        Command::new("nsenter").args(["-t", &pid, "-p", "-m"]).args(sh(&script)).spawn().expect("nsenter");
    wait_until("the other process is ready", || ready.exists());
    machine.signal("HUP");
    std::thread::sleep(Duration::from_millis(100));
    assert!(machine.child.try_wait().expect("the child").is_none(), "still up");
    machine.signal("TERM");
    assert_eq!(machine.wait(), 0);
    assert_eq!(read(&bye), "bye\n", "the other process had its time");
    other.wait().expect("the other");
}

#[test]
fn a_machine_ends_when_the_grace_is_over() {
    if !can_run("a_machine_ends_when_the_grace_is_over", &["/usr/bin/nsenter"]) {
        return;
    }
    let dir = folder();
    let mut machine = Machine::start(&dir.path().join("log"), &["--stop-grace", "1"], &[]);
    let (ready, pid) = (dir.path().join("ready"), machine.pid());
    wait_until("the init runs", || read(format!("/proc/{pid}/comm")).starts_with("enoki-init"));
    let script = format!("trap '' TERM HUP; touch {}; while :; do sleep 0.02; done", ready.display());
    let mut other =
        Command::new("nsenter").args(["-t", &pid, "-p", "-m"]).args(sh(&script)).spawn().expect("nsenter");
    wait_until("the other process is ready", || ready.exists());
    let told = Instant::now();
    machine.signal("TERM");
    assert_eq!(machine.wait(), 0);
    assert!(told.elapsed() >= Duration::from_secs(1), "waited for the grace");
    other.wait().expect("the other");
}

#[test]
fn a_flood_that_nobody_reads_is_bounded_and_loses_only_the_oldest() {
    if !can_run("a_flood_that_nobody_reads_is_bounded_and_loses_only_the_oldest", &TOOLS) {
        return;
    }
    let dir = folder();
    let options = ["--log-max", "1000000", "--log-files", "3"];
    let script = "yes 0123456789012345678901234567890123456789012345678901234567890123456789 | head -n 300000; echo the end";
    let mut machine = Machine::start(dir.path(), &options, &sh(script));
    assert_eq!(machine.wait(), 0);
    let sizes: Vec<u64> = fs::read_dir(dir.path())
        .expect("the folder")
        .map(|e| e.and_then(|e| e.metadata()).expect("a file").len())
        .collect();
    assert!(sizes.len() == 3 && sizes.iter().all(|s| *s <= 1_000_000), "{sizes:?}");
    assert!(machine.log().ends_with("the end\n"));
    let older = text(&dir.path().join("1"));
    assert!(older.lines().all(|l| l.len() == 70), "whole lines alone");
}

#[test]
fn background_processes_that_hold_the_pipes_do_not_hold_the_machine() {
    if !can_run("background_processes_that_hold_the_pipes_do_not_hold_the_machine", &TOOLS) {
        return;
    }
    let dir = folder();
    let begun = Instant::now();
    let mut machine =
        Machine::start(dir.path(), &[], &sh("(while :; do echo more; sleep 0.01; done) & sleep 0.2; exit 3"));
    assert_eq!(machine.wait(), 3);
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn user_data_runs_once_before_the_program_and_again_only_when_it_was_cut_short() {
    if !can_run("user_data_runs_once_before_the_program_and_again_only_when_it_was_cut_short", &TOOLS) {
        return;
    }
    let dir = folder();
    let (script, result, log) =
        (dir.path().join("user-data"), dir.path().join("code"), dir.path().join("log"));
    let (s, r) = (script.to_string_lossy().into_owned(), result.to_string_lossy().into_owned());
    let options = ["--user-data", s.as_str(), "--user-data-result", r.as_str(), "--user", "4711"];
    let start = |command: &[&str]| Machine::start(&log, &options, command);

    // Told to stop in the middle: no result, and the next start runs it again.
    fs::write(&script, "#!/bin/busybox sh\necho begun; sleep 100\n").expect("writes");
    let mut machine = start(&sh("echo program"));
    wait_until("the script has begun", || machine.log().contains("begun"));
    machine.signal("TERM");
    assert_eq!(machine.wait(), 143);
    assert!(!result.exists() && !machine.log().contains("program"));

    fs::write(&script, "#!/bin/busybox sh\necho script as $(id -u) $0; exit 3\n").expect("writes");
    let mut machine = start(&sh("echo program as $(id -u)"));
    assert_eq!(machine.wait(), 0);
    let said = machine.log();
    let at = |what: &str| said.find(what).unwrap_or_else(|| panic!("{what:?} is not in {said}"));
    assert!(
        at("running it again") < at("script as 0") && at("script as 0") < at("program as 4711"),
        "{said}"
    );
    assert_eq!(read(&result), "3\n");

    let mut machine = start(&sh("echo second start"));
    assert_eq!(machine.wait(), 0);
    assert_eq!(machine.log().matches("script as").count(), 1, "once");

    // Without #! it is a shell's; what cannot be run has a code too.
    fs::remove_file(&result).expect("removes");
    fs::write(&script, "#!/no/interpreter\n").expect("writes");
    assert_eq!(start(&sh("true")).wait(), 0);
    assert_eq!(read(&result), "127\n");
}

#[test]
fn a_full_disk_never_stops_the_program_and_is_told_when_it_works_again() {
    if !can_run("a_full_disk_never_stops_the_program_and_is_told_when_it_works_again", &TOOLS) {
        return;
    }
    private_mounts();
    let dir = folder();
    let full = dir.path().join("full");
    fs::create_dir(&full).expect("a folder");
    tmpfs(&full.to_string_lossy(), "size=1m");
    // Leaves room for nothing but the name of a file.
    let filler = full.join("filler");
    fs::write(&filler, vec![0; (1 << 20) - 4096 * 4]).expect("fills");
    let go = dir.path().join("go");
    let script = format!(
        "yes 0123456789 | head -n 500000; while [ ! -e {} ]; do sleep 0.02; done; echo after",
        go.display()
    );
    let log = full.join("log");
    let mut machine = Machine::start(&log, &[], &sh(&script));
    wait_until("the disk is full and the flood over", || {
        !read("/proc/mounts").is_empty() && is_asleep(&machine.pid())
    });
    std::thread::sleep(Duration::from_millis(500));
    fs::remove_file(&filler).expect("makes room");
    wait_until("the log works again", || machine.log().contains("dropped"));
    fs::write(&go, "").expect("lets go");
    assert_eq!(machine.wait(), 0);
    let said = machine.log();
    let dropped: u64 = said
        .lines()
        .filter_map(|l| l.strip_prefix("enoki-init: dropped ")?.split(' ').next()?.parse::<u64>().ok())
        .sum();
    let kept = said.lines().filter(|l| *l == "0123456789").count() as u64 * 11;
    assert_eq!(dropped + kept, 500_000 * 11, "every byte is there or counted");
    assert!(said.contains("No space left on device") && said.ends_with("after\n"));
}

/// Does the init wait, with nothing to read?
fn is_asleep(pid: &str) -> bool {
    let cpu = || {
        read(format!("/proc/{pid}/stat"))
            .split_whitespace()
            .skip(13)
            .take(2)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let before = cpu();
    std::thread::sleep(Duration::from_millis(300));
    before == cpu()
}
