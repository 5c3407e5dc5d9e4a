//! A dockerd and containerd of a test's own, in mount, network and PID namespaces that end with the test, and a
//! tiny image for it.

use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub const IMAGE: &str = "enoki/tiny:1";

/// Reads commands from its standard input; when that closes, for whatever reason, everything in here ends.
const SCRIPT: &str = r#"
set -e
T=$1 NAME=$2
mount --bind $T/run /run
mkdir -p /var/lib/docker /etc/docker
mount --bind $T/docker /var/lib/docker
mount --bind $T/etc /etc/docker
ip link set lo up
cat > /etc/docker/daemon.json <<END
{"containerd":"/run/containerd/containerd.sock","live-restore":true,"bridge":"none","iptables":false,
 "ip-forward":false,"cgroup-parent":"/$NAME","exec-root":"/run/docker","pidfile":"/run/docker.pid",
 "hosts":["unix:///run/docker.sock"],"runtimes":{"enoki":{"path":"$T/wrapper"}}}
END
containerd --root $T/containerd --state /run/containerd --address /run/containerd/containerd.sock >$T/containerd.log 2>&1 </dev/null &
start() { dockerd >>$T/dockerd.log 2>&1 </dev/null & DOCKERD=$!; }
start
while read -r word; do
  case $word in
    kill) kill -9 $DOCKERD; wait $DOCKERD || true; rm -f /run/docker.pid /run/docker.sock;;
    start) start;;
    freeze) kill -STOP $DOCKERD;;
    thaw) kill -CONT $DOCKERD;;
  esac
done
"#;

/// Does what the wrapper does at its worst: refuses with a reason on `create` while a file says so.
const WRAPPER: &str = r#"#!/bin/sh
for word in "$@"; do
  if [ "$word" = create ] && [ -e "$(dirname "$0")/refuse" ]; then
    log=
    prev=
    for arg in "$@"; do [ "$prev" = --log ] && log=$arg; prev=$arg; done
    msg='enoki: no record for this container'
    [ -n "$log" ] && echo "{\"level\":\"error\",\"msg\":\"$msg\",\"time\":\"2026-01-01T00:00:00Z\"}" >> "$log"
    echo "$msg" >&2
    exit 1
  fi
done
exec runc "$@"
"#;

pub struct Engine {
    child: Child,
    pub folder: tempfile::TempDir,
    pub name: String,
}

impl Engine {
    pub fn start() -> Engine {
        let folder = tempfile::tempdir().unwrap();
        let name = format!("enoki-rt-test-{}", std::process::id());
        for part in ["run", "docker", "etc", "containerd"] {
            std::fs::create_dir(folder.path().join(part)).unwrap();
        }
        let wrapper = folder.path().join("wrapper");
        std::fs::write(&wrapper, WRAPPER).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&wrapper, mode).unwrap();
        let child = Command::new("unshare")
            .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["--propagation", "private", "sh", "-c", SCRIPT, "engine"])
            .arg(folder.path())
            .arg(&name)
            .stdin(Stdio::piped())
            .stdout(std::fs::File::create(folder.path().join("script.log")).unwrap())
            .stderr(std::fs::File::create(folder.path().join("script.err")).unwrap())
            .spawn()
            .expect("unshare (tests of Docker need root and docker.io)");
        let engine = Engine { child, folder, name };
        engine.wait_for_socket();
        engine
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("run/docker.sock")
    }

    pub fn wrapper(&self) -> PathBuf {
        self.folder.path().join("wrapper")
    }

    pub fn refuse(&self, yes: bool) {
        let flag = self.folder.path().join("refuse");
        if yes { std::fs::write(flag, "").unwrap() } else { std::fs::remove_file(flag).unwrap() }
    }

    pub fn tell(&mut self, word: &str) {
        let stdin = self.child.stdin.as_mut().unwrap();
        writeln!(stdin, "{word}").unwrap();
        stdin.flush().unwrap();
    }

    pub fn wait_for_socket(&self) {
        let until = Instant::now() + Duration::from_secs(40);
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err() {
            if Instant::now() > until {
                let log = |name| std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
                panic!("dockerd did not come up:\n{}\n{}", log("script.err"), log("dockerd.log"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Ends `unshare`, whose child is PID 1 in there, with which everything in there ends.
        let _ = self.child.kill();
        let _ = self.child.wait();
        std::thread::sleep(Duration::from_millis(300));
        let Ok(controllers) = std::fs::read_dir("/sys/fs/cgroup") else {
            return;
        };
        for controller in controllers.flatten() {
            remove_groups(&controller.path().join(&self.name));
        }
        remove_groups(&Path::new("/sys/fs/cgroup").join(&self.name));
    }
}

/// Control groups are removed from the leaves up; their files cannot be.
fn remove_groups(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(folder);
}

/// An archive as `docker save` writes it: busybox and its usual names. Returns the image's id too.
pub fn archive(name: &str) -> (String, Vec<u8>) {
    let mut layer = tar::Builder::new(Vec::new());
    let mut folder = |path: &str, mode: u32| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(mode);
        header.set_size(0);
        layer.append_data(&mut header, path, std::io::empty()).unwrap();
    };
    for (path, mode) in
        [("bin/", 0o755), ("tmp/", 0o1777), ("etc/", 0o755), ("proc/", 0o755), ("sys/", 0o755)]
    {
        folder(path, mode);
    }
    let mut header = tar::Header::new_gnu();
    let busybox = std::fs::read("/bin/busybox").expect("busybox-static");
    header.set_mode(0o755);
    header.set_size(busybox.len() as u64);
    layer.append_data(&mut header, "bin/busybox", busybox.as_slice()).unwrap();
    for link in
        ["sh", "echo", "cat", "true", "false", "sleep", "stty", "dmesg", "mount", "grep", "id", "head"]
    {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        layer.append_link(&mut header, format!("bin/{link}"), "busybox").unwrap();
    }
    let layer = layer.into_inner().unwrap();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Cmd": ["sh"], "Entrypoint": null, "Volumes": {"/data": {}}, "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))]},
        "history": [{"created": "2026-01-01T00:00:00Z", "created_by": "test"}],
        "created": "2026-01-01T00:00:00Z",
    })
    .to_string();
    let id = digest(config.as_bytes());
    let manifest = serde_json::json!([{
        "Config": format!("{id}.json"), "RepoTags": [name], "Layers": ["layer/layer.tar"],
    }])
    .to_string();
    let mut archive = tar::Builder::new(Vec::new());
    for (path, bytes) in [
        (format!("{id}.json"), config.as_bytes()),
        ("layer/layer.tar".to_owned(), layer.as_slice()),
        ("manifest.json".to_owned(), manifest.as_bytes()),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        archive.append_data(&mut header, path, bytes).unwrap();
    }
    (format!("sha256:{id}"), archive.into_inner().unwrap())
}

pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
