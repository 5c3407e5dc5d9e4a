//! Programs that are started in a running instance: what holds of them by Docker holds beneath it, too.

use std::time::Duration;

use enoki_harness::{Cloud, Output, eventually};

/// Enough for a loaded machine.
const LONG: Duration = Duration::from_secs(60);
/// The instance that they are started in. Its own process starts none, so it does not mind when no more are allowed.
const NAME: &str = "guest";
/// Prints all that a program is given and held to.
const GIVEN: &str = "stty -echo 2>/dev/null; id; pwd; env | sort; ulimit -a; cat /proc/self/cgroup /proc/self/oom_score_adj /proc/self/limits; \
    grep -E 'Cap|Seccomp:|NoNewPrivs|Groups|allowed_list' /proc/self/status; \
    for n in cgroup ipc mnt net pid user uts; do readlink /proc/self/ns/$n; done";
/// Starts more processes than the instance may have. None of them holds a stream of the program.
const FORKS: &str =
    "i=0; while [ $i -lt 100 ]; do sleep 3 >/dev/null 2>&1 </dev/null & i=$((i+1)); done; echo all of them";
/// Waits for the sizes that its terminal is to have, the second one being told while it runs.
const SIZES: &str = "tty; for size in '37 101' '30 90'; do n=0; \
    while [ $n -lt 100 ] && [ \"$(stty size)\" != \"$size\" ]; do sleep 0.2; n=$((n+1)); done; stty size; done; exit 5";

/// Makes the instance for them.
#[track_caller]
pub fn start(cloud: &Cloud) {
    let limits = ["--memory", "64Mi", "--pids", "40"];
    let run = [&["run", NAME, "--image", "enoki/tiny:1"], &limits[..], &["--wait", "--", "sleep", "1000000"]];
    cloud.enoki(&run.concat()).ok();
}

/// What a program is given now, without a terminal and with one.
#[track_caller]
pub fn given(cloud: &Cloud) -> [String; 2] {
    let plain = sh(cloud, GIVEN).ok().stdout;
    let terminal = typed(cloud, GIVEN, "", "").ok().stdout;
    assert!(terminal.contains("TERM=xterm") && !plain.contains("TERM="), "{plain}{terminal}");
    [plain, terminal]
}

/// They work as ever, and are given what `before` tells.
#[track_caller]
pub fn work(cloud: &Cloud, before: &[String; 2]) {
    cloud.enoki(&["exec", NAME, "--", "true"]).ok();
    let out = cloud
        .enoki_with(&["exec", "-i", NAME, "--", "sh", "-c", "cat; echo err >&2; exit 7"], "typed\n", LONG)
        .exits(7);
    assert_eq!((out.stdout.as_str(), out.stderr.as_str()), ("typed\n", "err\n"));
    sh(cloud, "kill -9 $$").exits(137);
    sh(cloud, "exit 126").exits(126);
    let missing = cloud.enoki(&["exec", NAME, "--", "/no/such/program"]).exits(125);
    assert!(missing.stderr.contains("no such file"), "{missing}");
    let bytes = format!(
        "head -c 1000000 /dev/urandom >/run/bytes; timeout 60 enoki exec -i {NAME} -- cat </run/bytes | cmp - /run/bytes; \
         timeout 60 enoki exec -i {NAME} -- true </run/bytes"
    );
    cloud.sh(&bytes).ok();

    assert_eq!(&given(cloud), before, "another environment");
    for refused in ["dmesg", "mount -t tmpfs none /mnt", "echo 1 >/proc/sys/kernel/panic"] {
        let out = sh(cloud, refused);
        assert!(out.code() != 0 && ![125, 127].contains(&out.code()), "not refused by the kernel: {out}");
    }

    let resized = "stty cols 101 rows 37; (sleep 3; stty -F /dev/tty cols 90 rows 30) & ";
    let sizes = typed(cloud, SIZES, resized, "").exits(5).stdout;
    assert!(sizes.contains("/dev/pts/"), "{sizes}");
    assert!(sizes.contains("37 101") && sizes.trim_end().ends_with("30 90"), "{sizes}");
    // The terminal inside echoes and makes lines; nothing else on the way does.
    let echoed = typed(cloud, "stty -a | head -n 1; read -r line; echo \"<$line>\"", "", "hello\\n").ok();
    assert!(echoed.stdout.ends_with("hello\r\n<hello>\r\n"), "{echoed:?}");
    let console = format!(
        "(sleep 1; printf 'tty; id -un\\nexit 3\\n'; sleep 1) | timeout 60 script -qec 'enoki console {NAME}' /dev/null"
    );
    let console = cloud.sh(&console).exits(3);
    assert!(console.stdout.contains("/dev/pts/") && console.stdout.contains("\nroot\r"), "{console}");

    let forks = sh(cloud, FORKS);
    assert!(forks.code() != 0 && forks.stderr.contains("fork") && forks.stdout.is_empty(), "{forks}");
    eventually("there is room for a process again", LONG, || {
        let out = sh(cloud, "true");
        if out.code() == 0 { Ok(()) } else { Err(out.to_string()) }
    });
}

fn sh(cloud: &Cloud, script: &str) -> Output {
    cloud.enoki(&["exec", NAME, "--", "sh", "-c", script])
}

/// A script on a terminal, on which `first` runs outside before it and `input` is typed after a while.
fn typed(cloud: &Cloud, script: &str, first: &str, input: &str) -> Output {
    cloud.enoki_with(&["exec", "-i", NAME, "--", "sh", "-c", "cat >/script"], script, LONG).ok();
    cloud.sh(&format!(
        "(sleep 2; printf '{input}'; sleep 1) | timeout 60 script -qec \"{first}enoki exec -it {NAME} -- sh /script\" /dev/null"
    ))
}
