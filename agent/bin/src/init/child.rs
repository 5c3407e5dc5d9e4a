//! Starting a program under the init: own session, /dev/null as stdin, the log's pipes as stdout and stderr, a clean signal mask.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::user::User;

/// The writing ends of the log's pipes.
#[derive(Debug)]
pub struct Output {
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// Why a program did not start, and the exit code that a shell gives for it.
#[derive(Debug)]
pub struct NotStarted {
    pub code: u8,
    pub why: String,
}

/// Starts `words` (the program first, searched in PATH) and returns its pid.
pub fn start(words: &[OsString], user: Option<&User>, output: &Output) -> Result<i32, NotStarted> {
    let (program, args) =
        words.split_first().ok_or_else(|| NotStarted { code: 127, why: "no program was named".into() })?;
    let stream = |fd: &OwnedFd| fd.as_fd().try_clone_to_owned().map(Stdio::from);
    let prepared = || -> io::Result<Command> {
        let mut command = Command::new(program);
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(stream(&output.stdout)?)
            .stderr(stream(&output.stderr)?);
        Ok(command)
    };
    let mut command = prepared().map_err(|e| not_started(program, &e))?;
    let switch = user.map(|u| (u.uid, u.gid, u.groups.clone()));
    if let Some(user) = user {
        let (uid, gid) = (Some(user.uid), Some(user.gid));
        // So that the program can open /dev/stdout anew, as Docker allows.
        for fd in [&output.stdout, &output.stderr] {
            std::os::unix::fs::fchown(fd, uid, gid).map_err(|e| not_started(program, &e))?;
        }
        if std::env::var_os("HOME").is_none_or(|home| user.uid != 0 && home == "/root") {
            command.env("HOME", user.home.as_deref().unwrap_or("/"));
        }
    }
    // SAFETY: between fork and exec only async-signal-safe system calls are made, on memory prepared before.
    unsafe {
        command.pre_exec(move || {
            let mut mask = std::mem::zeroed();
            libc::sigemptyset(&mut mask);
            libc::sigprocmask(libc::SIG_SETMASK, &mask, std::ptr::null_mut());
            libc::setsid();
            if let Some((uid, gid, groups)) = &switch {
                check(libc::setgroups(groups.len(), groups.as_ptr()))?;
                check(libc::setgid(*gid))?;
                check(libc::setuid(*uid))?;
            }
            Ok(())
        });
    }
    match command.spawn() {
        // Reaped with all other children, by pid.
        Ok(child) => Ok(child.id() as i32),
        Err(error) => Err(not_started(program, &error)),
    }
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn not_started(program: &OsStr, error: &io::Error) -> NotStarted {
    let name = program.to_string_lossy();
    match error.raw_os_error() {
        Some(libc::ENOENT) if program.as_encoded_bytes().contains(&b'/') && Path::new(program).exists() => {
            NotStarted { code: 127, why: format!("{name}: its interpreter is not in the image") }
        }
        Some(libc::ENOENT | libc::ENOTDIR) => {
            NotStarted { code: 127, why: format!("{name}: not found in the image") }
        }
        _ => NotStarted { code: 126, why: format!("{name}: cannot be executed: {error}") },
    }
}

/// The command that runs a script, whatever its mode: by its `#!` line as the kernel reads it, else by /bin/sh. A binary runs as it is.
pub fn interpreted(script: &Path) -> io::Result<Vec<OsString>> {
    let mut head = Vec::new();
    fs::File::open(script)?.take(4096).read_to_end(&mut head)?;
    Ok(interpreter(&head).into_iter().chain([script.into()]).collect())
}

fn interpreter(head: &[u8]) -> Vec<OsString> {
    if head.starts_with(b"\x7fELF") {
        return Vec::new();
    }
    let line = head.split(|b| *b == b'\n').next().unwrap_or_default();
    let Some(line) = line.strip_prefix(b"#!") else {
        return vec!["/bin/sh".into()];
    };
    let line = line.trim_ascii();
    if line.is_empty() {
        return vec!["/bin/sh".into()];
    }
    let (program, argument) = match line.iter().position(|b| b.is_ascii_whitespace()) {
        Some(at) => (&line[..at], line[at..].trim_ascii()),
        None => (line, &[][..]),
    };
    let words = [program, argument].into_iter().filter(|w| !w.is_empty());
    words.map(|w| OsString::from_vec(w.to_vec())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreters() {
        for (head, want) in [
            ("#!/bin/bash\necho", &["/bin/bash"][..]),
            ("#! /usr/bin/env -S python3 -u \r\n", &["/usr/bin/env", "-S python3 -u"]),
            ("#!/bin/sh", &["/bin/sh"]),
            ("#!\n", &["/bin/sh"]),
            ("echo hi\n", &["/bin/sh"]),
            ("", &["/bin/sh"]),
            ("\x7fELF...", &[]),
        ] {
            assert_eq!(interpreter(head.as_bytes()), want, "{head:?}");
        }
    }
}
