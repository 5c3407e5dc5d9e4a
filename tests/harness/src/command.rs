//! Running a program with a deadline and keeping what it said.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

/// What a program did: how it ended and what it wrote.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// The exit code as a shell would tell it: 128 + n for a signal.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// This output, if it ended with 0.
    ///
    /// # Panics
    /// With everything the program said, if it did not.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.exits(0)
    }

    /// This output, if it ended with `code`.
    ///
    /// # Panics
    /// With everything the program said, if it did not.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert!(self.code() == code, "expected exit code {code}\n{self}");
        self
    }

    /// Standard output without the blanks around it.
    pub fn text(&self) -> &str {
        self.stdout.trim()
    }

    /// Standard output as JSON.
    ///
    /// # Panics
    /// With everything the program said, if it is not JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        match serde_json::from_str(&self.stdout) {
            Ok(value) => value,
            Err(error) => panic!("not JSON: {error}\n{self}"),
        }
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "$ {}   -> {}", self.command, self.code())?;
        for (name, text) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !text.is_empty() {
                writeln!(f, "--- {name}\n{}", text.trim_end())?;
            }
        }
        Ok(())
    }
}

/// Runs `command` to its end, at most for `timeout`; its standard streams are taken over.
///
/// The streams are files, not pipes: a daemon that inherits them can't keep us waiting. On timeout the program and its
/// process group are killed and the output says so in `stderr`; the status is then that of signal 9.
///
/// # Panics
/// When the program can't be started at all.
pub fn bounded(command: &mut Command, input: &[u8], timeout: Duration) -> Output {
    let line = describe(command);
    let open = || tempfile::tempfile().unwrap_or_else(|error| panic!("temporary file for `{line}`: {error}"));
    let (mut stdin, mut stdout, mut stderr) = (open(), open(), open());
    stdin.write_all(input).and_then(|()| stdin.rewind()).expect("write to a temporary file");
    let share = |file: &File| Stdio::from(file.try_clone().expect("duplicate a file descriptor"));

    let mut child = command
        .stdin(share(&stdin))
        .stdout(share(&stdout))
        .stderr(share(&stderr))
        .process_group(0)
        .spawn()
        .unwrap_or_else(|error| panic!("can't run `{line}`: {error}"));

    let started = Instant::now();
    let mut late = false;
    let status = loop {
        if let Some(status) = child.try_wait().expect("wait for our own child") {
            break status;
        }
        if !late && started.elapsed() >= timeout {
            late = true;
            // Safety: a plain system call; the group is our child's own and the child has not been waited for.
            unsafe { libc::kill(-(child.id() as i32), libc::SIGKILL) };
        }
        sleep(Duration::from_millis(2));
    };

    let read = |file: &mut File| {
        let mut bytes = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("read a temporary file");
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let mut output = Output { command: line, status, stdout: read(&mut stdout), stderr: read(&mut stderr) };
    if late {
        output.stderr.push_str(&format!("\n[harness: killed after {timeout:?}]\n"));
    }
    output
}

/// The command line as one would type it, shortened.
fn describe(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    if line.len() > 400 {
        let end = (0..=400).rev().find(|&i| line.is_char_boundary(i)).unwrap_or(0);
        line.truncate(end);
        line.push_str(" ...");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, timeout: Duration) -> Output {
        bounded(Command::new("sh").args(["-c", script]), b"hello\n", timeout)
    }

    #[test]
    fn keeps_streams_and_code() {
        let out = sh("cat; echo oops >&2; exit 7", Duration::from_secs(5)).exits(7);
        assert_eq!((out.stdout.as_str(), out.stderr.as_str()), ("hello\n", "oops\n"));
    }

    #[test]
    fn a_background_process_does_not_hold_it() {
        let started = Instant::now();
        let out = sh("sleep 3 & echo $!", Duration::from_secs(10)).ok();
        assert!(started.elapsed() < Duration::from_secs(2));
        sh(&format!("kill {}", out.text()), Duration::from_secs(5)).ok();
    }

    #[test]
    fn a_late_program_is_killed_with_its_children() {
        let out = sh("sleep 30 & sleep 30", Duration::from_millis(100)).exits(137);
        assert!(out.stderr.contains("killed after"), "{out}");
    }
}
