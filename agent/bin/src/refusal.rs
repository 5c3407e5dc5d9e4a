//! A refusal: why the wrapper did not start a container, told where Docker's user will read it.
//!
//! containerd shows what the runtime wrote as its last error into `--log`; stderr is for a person who runs the wrapper by hand.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::clock::Timestamp;

/// One sentence: what is wrong, where, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(pub String);

impl Refusal {
    pub fn new(why: impl Into<String>) -> Self {
        Refusal(why.into())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

/// Appends `message` to runc's log in the format asked for, as runc itself would. Losing the log never changes the outcome.
pub fn append_to_runc_log(log: &Path, json: bool, message: &str) {
    let time = Timestamp::now();
    let line = if json {
        serde_json::json!({"level": "error", "msg": message, "time": time.to_string()}).to_string()
    } else {
        format!("time=\"{time}\" level=error msg={message:?}")
    };
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(log);
    let written = file.and_then(|mut f| f.write_all(format!("{line}\n").as_bytes()));
    if let Err(error) = written {
        eprintln!("enoki: cannot write the reason to {}: {error}", log.display());
    }
}
