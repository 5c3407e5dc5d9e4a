//! Becoming a service: the last step of this program in the process that is about to be containerd, dockerd, etcd, the registry,
//! server or agent.
//!
//! The supervisor (or a systemd unit) runs `enoki supervise --launch NAME`. That process leaves its terminal, takes a clean
//! environment and sane limits, writes its own pid file and executes the program: same pid, same start time. Whatever dies
//! at whichever moment, a running service is always a known one. If anything here fails, the pid files are taken back and
//! the reason is on stderr, which is the service's log.

use std::convert::Infallible;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use nix::sys::resource::{Resource, setrlimit};

use super::process::{Identity, arguments, forget, in_our_mounts, program_name, register};
use super::service::{PATH, Plan, Service};
use super::{etcd, folders, registry};
use crate::config::paths;

/// Passed on from whoever ran `enoki up`; all else of a person's shell has no business in a daemon.
const KEPT: [&str; 10] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "TZ",
    "ENOKI_LOG",
    "RUST_BACKTRACE",
    "INVOCATION_ID",
];

/// Returns only on failure.
pub fn launch(service: Service) -> anyhow::Result<Infallible> {
    folders::make()?;
    // Refused for the leader of a process group (as under systemd), which needs none.
    let _ = nix::unistd::setsid();
    std::env::set_current_dir("/").context("cannot change to /")?;
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    // A container host keeps many files open; the default of 1024 is for shells. Where that much is not allowed, what is.
    let _ = setrlimit(Resource::RLIMIT_NOFILE, 1_048_576, 1_048_576);
    let _ = std::fs::write("/proc/self/oom_score_adj", service.oom_score_adj().to_string());

    let plan = Plan::load()?;
    prepare(service, &plan)?;
    let (program, args) = plan.command(service);
    let identity = Identity::mine(&program).with_context(|| format!("cannot run {}", program.display()))?;
    register(service.name(), &identity).with_context(|| format!("cannot write to {}", paths::RUN))?;

    let mut command = Command::new(&program);
    command.args(args).env_clear().env("PATH", PATH).env("HOME", "/root");
    for name in KEPT {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    let error = command.exec();
    forget(service.name());
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}

/// Whether some process is on its way to becoming a service.
pub fn under_way() -> bool {
    in_our_mounts()
        .into_iter()
        .any(|pid| arguments(pid).windows(2).any(|pair| pair == ["supervise", "--launch"]))
}

/// What a service needs before its first instruction.
fn prepare(service: Service, plan: &Plan) -> anyhow::Result<()> {
    match service {
        Service::Etcd => {
            etcd::ensure_certificates(&plan.server.etcd)?;
            etcd::make_data_folder().with_context(|| format!("cannot make {}", paths::ETCD_DATA))
        }
        Service::Registry => registry::prepare(),
        Service::Dockerd => remove_stale_docker_pid(Path::new(paths::DOCKER_PID)),
        Service::Containerd | Service::Server | Service::Agent => Ok(()),
    }
}

/// dockerd refuses to start while its pid file names a living process, whoever that is by now.
fn remove_stale_docker_pid(file: &Path) -> anyhow::Result<()> {
    let pid = std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<i32>().ok());
    match pid {
        Some(pid) if program_name(pid) != "dockerd" => {
            std::fs::remove_file(file).with_context(|| format!("cannot remove the stale {}", file.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_stale_pid_file_of_dockerd_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("docker.pid");
        remove_stale_docker_pid(&file).unwrap();
        std::fs::write(&file, format!("{}\n", std::process::id())).unwrap();
        remove_stale_docker_pid(&file).unwrap();
        assert!(!file.exists());
        std::fs::write(&file, "not a number").unwrap();
        remove_stale_docker_pid(&file).unwrap();
        assert!(file.exists());
    }
}
