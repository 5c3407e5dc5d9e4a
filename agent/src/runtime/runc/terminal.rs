//! A terminal between a client and runc, which copies between it and the one that the program has inside.
//!
//! It is raw from the start: bytes go through as they are, and what they mean is for the program's own. It is runc's
//! controlling terminal, so that the kernel tells runc of a new size, and that it is gone when the agent is.

use enoki_api::protocol::TerminalSize;
use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::setsid;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use tokio::net::unix::pipe;
use tokio::process::Command;

nix::ioctl_write_int_bad!(take_control, libc::TIOCSCTTY);
nix::ioctl_write_ptr_bad!(set_size, libc::TIOCSWINSZ, libc::winsize);

/// Our side of it.
pub struct Terminal(OwnedFd);

impl Terminal {
    /// Our side and theirs. Without a size it has none, as Docker's.
    pub fn open(size: Option<TerminalSize>) -> io::Result<(Terminal, OwnedFd)> {
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let ours = posix_openpt(flags)?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        let path = ptsname_r(&ours)?;
        let theirs: OwnedFd =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path)?.into();
        let mut mode = tcgetattr(&theirs)?;
        cfmakeraw(&mut mode);
        tcsetattr(&theirs, SetArg::TCSANOW, &mode)?;
        let terminal = Terminal(ours.into());
        if let Some(size) = size {
            terminal.resize(size)?;
        }
        Ok((terminal, theirs))
    }

    pub fn resize(&self, size: TerminalSize) -> io::Result<()> {
        let size = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the kernel reads one winsize, which `size` is, and keeps nothing of it.
        unsafe { set_size(self.0.as_raw_fd(), &raw const size) }?;
        Ok(())
    }

    /// What is said on it. Its end is an error: the other side is closed.
    pub fn output(&self) -> io::Result<pipe::Receiver> {
        // Not a pipe, but read, written and polled as one.
        pipe::Receiver::from_owned_fd_unchecked(self.0.try_clone()?)
    }

    /// What is typed on it.
    pub fn input(&self) -> io::Result<pipe::Sender> {
        pipe::Sender::from_owned_fd_unchecked(self.0.try_clone()?)
    }
}

/// Makes `theirs` the command's three streams and its controlling terminal.
pub fn give(command: &mut Command, theirs: OwnedFd) -> io::Result<()> {
    command.stdin(theirs.try_clone()?).stdout(theirs.try_clone()?).stderr(theirs);
    // SAFETY: both calls are allowed between fork and exec, and allocate nothing.
    unsafe {
        command.pre_exec(|| {
            setsid()?;
            take_control(libc::STDIN_FILENO, 0)?;
            Ok(())
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn until(output: &mut pipe::Receiver, end: &str) -> String {
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains(end) {
            let count = output.read_buf(&mut seen).await.unwrap();
            assert!(count > 0, "ended with {seen:?}");
        }
        String::from_utf8(seen).unwrap()
    }

    #[tokio::test]
    async fn bytes_go_through_as_they_are_and_sizes_are_told() {
        let (terminal, theirs) = Terminal::open(Some(TerminalSize { columns: 101, rows: 37 })).unwrap();
        let mut command = Command::new("bash");
        let script = "trap 'stty size' WINCH; stty size; read -r line; echo \"got $line\"; \
                      until [ \"$(stty size)\" = '24 80' ]; do sleep 0.01; done; echo over; exit 3";
        give(command.args(["-c", script]), theirs).unwrap();
        let mut child = command.spawn().unwrap();
        drop(command);
        let (mut output, mut input) = (terminal.output().unwrap(), terminal.input().unwrap());
        until(&mut output, "37 101\n").await;
        input.write_all(b"typed\n").await.unwrap();
        // Neither echoed nor with a carriage return.
        assert_eq!(until(&mut output, "typed\n").await, "got typed\n");
        terminal.resize(TerminalSize { columns: 80, rows: 24 }).unwrap();
        assert_eq!(until(&mut output, "over\n").await, "24 80\nover\n");
        assert_eq!(child.wait().await.unwrap().code(), Some(3));
        assert!(output.read_u8().await.is_err(), "it ends with its program");
    }
}
