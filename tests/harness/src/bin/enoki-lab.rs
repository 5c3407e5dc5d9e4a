//! `make lab`: a cloud of several machines on this one, that stays until `make lab-down`.
//!
//! It writes `/run/enoki-lab/env`, which points the CLI at the lab when it is sourced, and a folder `hN` for each machine
//! with links to its sockets and pid files. Nothing in it restarts what is killed. It ends, and everything of it, with
//! this process; should that be killed, the next lab or test run sweeps up.

use enoki_harness::{Lab, Signal, is_root};
use std::fs;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::Path;
use std::process::ExitCode;

const FOLDER: &str = "/run/enoki-lab";
/// Each takes about 100 MB, a dockerd and a containerd.
const HOSTS_MAX: usize = 16;

fn main() -> ExitCode {
    let number = |at| std::env::args().nth(at).and_then(|text: String| text.parse().ok()).unwrap_or(0);
    let (hosts, servers) = (number(1), number(2));
    if !(1..=HOSTS_MAX).contains(&hosts) || !(1..=hosts).contains(&servers) {
        eprintln!("enoki-lab HOSTS SERVERS: 1 to {HOSTS_MAX} hosts, and no more servers than hosts");
        return ExitCode::from(2);
    }
    if !is_root() {
        return ExitCode::FAILURE;
    }
    enoki_harness::sweep_dead();
    let lab = Lab::start_with(hosts, servers);
    lab[0].import_tiny();
    lab[0].import_debian();
    for number in 0..hosts {
        // What is killed in a lab stays dead: that is what it is for.
        lab[number].kill("supervisor", Signal::SIGKILL);
    }
    if let Err(error) = publish(&lab, hosts) {
        eprintln!("{FOLDER}: {error}");
        return ExitCode::FAILURE;
    }
    eprintln!("a lab of {hosts} hosts; `. {FOLDER}/env` points the CLI at it, `make lab-down` ends it");
    loop {
        // Signals are the harness': it purges and exits.
        std::thread::park();
    }
}

fn publish(lab: &Lab, hosts: usize) -> std::io::Result<()> {
    for number in 0..hosts {
        let folder = Path::new(FOLDER).join(format!("h{}", number + 1));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        for (name, inside) in [
            ("docker.sock", "/run/docker.sock"),
            ("agent.pid", "/run/enoki/agent.pid"),
            ("server.pid", "/run/enoki/server.pid"),
            ("api.sock", "/run/enoki/api.sock"),
            ("log", "/var/log/enoki"),
        ] {
            let target = lab[number].path(inside);
            if target.exists() {
                let _ = fs::remove_file(folder.join(name));
                symlink(target, folder.join(name))?;
            }
        }
        fs::write(folder.join("sleeper.pid"), format!("{}\n", lab[number].sleeper()))?;
    }
    // Last: who waits for it finds everything else.
    let socket = lab[0].path("/run/enoki/api.sock");
    fs::write(Path::new(FOLDER).join("env"), format!("export ENOKI_SOCKET={}\n", socket.display()))
}
