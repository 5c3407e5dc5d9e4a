//! Docker by hand: what a machine looks like whose owner ran Docker long before Enoki came.
//!
//! containerd and dockerd are two processes, as on any machine, so that killing one leaves the other.

use std::fs::{File, create_dir_all};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::built::image;
use crate::cloud::Cloud;
use crate::eventually;

const START: Duration = Duration::from_secs(60);

impl Cloud {
    /// Starts containerd and dockerd and waits until dockerd answers.
    ///
    /// # Panics
    /// When they don't come up, with their logs.
    pub fn start_docker(&self) {
        self.start_containerd();
        self.start_dockerd(&[]);
    }

    /// Starts containerd alone.
    ///
    /// # Panics
    /// When it does not come up, with its log.
    pub fn start_containerd(&self) {
        self.daemon("containerd", &[]);
        eventually("containerd's socket", START, || {
            let found = self.path("/run/containerd/containerd.sock").exists();
            if found { Ok(()) } else { Err(self.logs()) }
        });
    }

    /// Starts dockerd beside a running containerd.
    ///
    /// # Panics
    /// When it does not answer, with its log.
    pub fn start_dockerd(&self, more: &[&str]) {
        self.daemon("dockerd", &[&["--containerd", "/run/containerd/containerd.sock"], more].concat());
        eventually("dockerd's answer", START, || {
            let out = self.docker(&["version", "--format", "{{.Server.APIVersion}}"]);
            if out.code() == 0 { Ok(()) } else { Err(format!("{out}{}", self.logs())) }
        });
    }

    /// Gives a Docker that was started by hand the image `enoki/tiny:1`.
    ///
    /// # Panics
    /// When it can't be built or imported.
    pub fn docker_import_tiny(&self) {
        self.docker(&["import", "--change", "CMD [\"/bin/sh\"]", &image("tiny", None), "enoki/tiny:1"]).ok();
    }

    /// Starts a program inside that outlives the call: a session of its own, its output in a log that `logs` shows.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn daemon(&self, program: &str, arguments: &[&str]) {
        let folder = self.folder().join("disk/run/enoki-harness");
        create_dir_all(&folder).expect("make the folder for logs");
        let name = program.rsplit('/').next().unwrap_or(program);
        let log = File::options()
            .create(true)
            .append(true)
            .open(folder.join(format!("{name}.log")))
            .expect("open a log");
        let mut command: Command = self.command(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::from(log.try_clone().expect("duplicate a file descriptor")))
            .stderr(Stdio::from(log));
        // Safety: setsid(2) is async-signal-safe and touches nothing of ours.
        unsafe { command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into)) };
        let mut child = command.spawn().unwrap_or_else(|error| panic!("start {program}: {error}"));
        // It is our child: without somebody to wait for it, its end would leave a zombie that looks alive to some.
        std::thread::spawn(move || child.wait());
    }
}
