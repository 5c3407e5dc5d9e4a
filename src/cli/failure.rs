//! How a command fails: what is told on stderr, and the exit code that goes with it.

use enoki_api::client;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

/// The command failed.
pub const FAILED: u8 = 1;
/// It was called wrongly.
pub const USAGE: u8 = 2;
/// It did not come about in time.
pub const TIMED_OUT: u8 = 3;
/// A program could not be run at all.
pub const NOT_RUN: u8 = 125;

/// Why a command ends without having done its work.
#[derive(Debug)]
pub struct Failure {
    pub code: u8,
    message: String,
    field: Option<String>,
    hint: Option<String>,
    /// Nothing is told: whoever would read it knows, or has left.
    quiet: bool,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl Failure {
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Failure { code, message: message.into(), field: None, hint: None, quiet: false }
    }

    pub fn failed(message: impl Into<String>) -> Self {
        Failure::new(FAILED, message)
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Failure::new(USAGE, message)
    }

    pub fn timed_out(message: impl Into<String>) -> Self {
        Failure::new(TIMED_OUT, message)
    }

    /// Ends with `code` and says nothing more: what there was to say has been said.
    pub fn silent(code: u8) -> Self {
        Failure { quiet: true, ..Failure::new(code, "") }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same failure under another exit code.
    pub fn with_code(self, code: u8) -> Self {
        Failure { code, ..self }
    }

    /// A file or stream of the user's that could not be read or written.
    pub fn io(what: impl std::fmt::Display, error: io::Error) -> Self {
        Failure::failed(format!("{what}: {error}"))
    }

    /// Failing to write to stdout. Where its reader has left (`| head`), the work is done.
    pub fn stdout(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Failure::silent(0);
        }
        Failure::io("stdout", error)
    }

    /// Tells the failure on stderr.
    pub fn report(&self) -> ExitCode {
        if !self.quiet {
            // Nobody is left to tell where stderr fails too.
            let _ = io::stderr().lock().write_all(self.text(coloured(&io::stderr())).as_bytes());
        }
        ExitCode::from(self.code)
    }

    fn text(&self, colour: bool) -> String {
        let mut text = if colour { "\x1b[1;31merror:\x1b[0m ".to_owned() } else { "error: ".to_owned() };
        text.push_str(&self.message);
        text.push('\n');
        for (name, value) in [("field", &self.field), ("hint", &self.hint)] {
            if let Some(value) = value {
                text.push_str(&format!("{name}: {value}\n"));
            }
        }
        text
    }
}

impl From<client::Error> for Failure {
    fn from(error: client::Error) -> Self {
        let hint = error.hint().map(str::to_owned);
        let failure = match error {
            client::Error::Problem(problem) => {
                let holder = problem.holder.map(|holder| format!(", held by {holder}")).unwrap_or_default();
                Failure {
                    field: problem.field,
                    ..Failure::failed(format!("{}{holder} ({})", problem.detail, problem.code))
                }
            }
            client::Error::Timeout { .. } => Failure::timed_out(error.to_string()),
            client::Error::Unreachable { .. } | client::Error::Protocol(_) => {
                Failure::failed(error.to_string())
            }
        };
        Failure { hint, ..failure }
    }
}

/// Whether to colour what goes to `stream`: only a terminal, and only if nobody objects.
pub fn coloured(stream: &impl IsTerminal) -> bool {
    stream.is_terminal()
        && std::env::var_os("NO_COLOR").is_none()
        && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;
    use enoki_api::{Code, Problem};

    #[test]
    fn a_problem_is_told_with_its_field_and_hint() {
        let problem = Problem::new(Code::AddressTaken, "198.18.0.2 is taken")
            .field("spec.nics.eth0.address")
            .holder("default/db1")
            .hint("leave it out");
        let failure = Failure::from(client::Error::Problem(Box::new(problem)));
        assert_eq!(failure.code, FAILED);
        assert_eq!(
            failure.text(false),
            "error: 198.18.0.2 is taken, held by default/db1 (address_taken)\n\
             field: spec.nics.eth0.address\nhint: leave it out\n"
        );
    }

    #[test]
    fn an_absent_server_is_told_with_what_to_do() {
        let source = io::Error::from(io::ErrorKind::NotFound);
        let failure = Failure::from(client::Error::Unreachable { address: "/x".into(), source });
        assert!(failure.text(false).ends_with("hint: is the cloud up? try `enoki up`\n"));
        let late = Failure::from(client::Error::Timeout { after: std::time::Duration::from_secs(1) });
        assert_eq!(late.code, TIMED_OUT);
    }
}
