//! The user's terminal: raw mode that is always undone, its size, and input that is not shown.

use super::failure::Failure;
use enoki_api::protocol::TerminalSize;
use nix::libc;
use nix::sys::termios::{self, LocalFlags, SetArg, Termios};
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::fd::AsRawFd;

/// The terminal on stdin in another mode than it was; put back when dropped, also by a panic.
pub struct Mode {
    saved: Termios,
}

impl Mode {
    fn change(change: impl FnOnce(&mut Termios)) -> Result<Self, Failure> {
        let saved = termios::tcgetattr(io::stdin()).map_err(terminal)?;
        let mut changed = saved.clone();
        change(&mut changed);
        termios::tcsetattr(io::stdin(), SetArg::TCSADRAIN, &changed).map_err(terminal)?;
        Ok(Mode { saved })
    }

    /// Every key goes through as it is typed, Ctrl-C included. None where stdin is no terminal.
    pub fn raw() -> Result<Option<Self>, Failure> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        Mode::change(termios::cfmakeraw).map(Some)
    }
}

impl Drop for Mode {
    fn drop(&mut self) {
        // A terminal that is gone has no mode to be put back.
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.saved);
    }
}

fn terminal(error: nix::Error) -> Failure {
    Failure::io("the terminal", error.into())
}

nix::ioctl_read_bad!(window_size, libc::TIOCGWINSZ, libc::winsize);

/// The size of the terminal on stdout, or else on stdin. None where neither is one.
pub fn size() -> Option<TerminalSize> {
    let size_of = |fd| {
        let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the kernel writes one winsize, which `size` is, and fails for what is no terminal.
        unsafe { window_size(fd, &mut size) }.ok()?;
        (size.ws_col > 0 && size.ws_row > 0)
            .then_some(TerminalSize { columns: size.ws_col, rows: size.ws_row })
    };
    size_of(io::stdout().as_raw_fd()).or_else(|| size_of(io::stdin().as_raw_fd()))
}

/// Asks for a line on the terminal without showing what is typed.
pub fn ask_hidden(prompt: &str) -> Result<String, Failure> {
    eprint!("{prompt}");
    io::stderr().flush().map_err(|error| Failure::io("stderr", error))?;
    let mut line = String::new();
    {
        let _hidden = Mode::change(|mode| mode.local_flags.remove(LocalFlags::ECHO))?;
        io::stdin().lock().read_line(&mut line).map_err(|error| Failure::io("stdin", error))?;
    }
    eprintln!();
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}
