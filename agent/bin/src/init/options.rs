//! The init's command line:
//! `init [--log-dir DIR] [--log-max BYTES] [--log-files N] [--user USER] [--stop-grace SECONDS]
//!  [--user-data FILE --user-data-result FILE] -- [CMD ARGS...]`

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use enoki_helpers::{LOG_INSIDE, logline};

#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    pub log_dir: PathBuf,
    /// Bytes a file.
    pub log_max: u64,
    pub log_files: u32,
    /// `user[:group]`, names or numbers, for CMD alone. None: root.
    pub user: Option<String>,
    /// Without CMD: how long processes may take to go after SIGTERM.
    pub stop_grace: Duration,
    pub user_data: Option<UserData>,
    /// Empty: none, the init stays up alone.
    pub command: Vec<OsString>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserData {
    pub script: PathBuf,
    /// Gets its exit code once it has finished.
    pub result: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            log_dir: LOG_INSIDE.into(),
            log_max: logline::DEFAULT_MAX,
            log_files: logline::DEFAULT_FILES,
            user: None,
            stop_grace: Duration::from_secs(10),
            user_data: None,
            command: Vec::new(),
        }
    }
}

/// The options come in any case, as far as they were read: what is wrong is told in their log.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> (Options, Result<(), String>) {
    let mut options = Options::default();
    let outcome = read(args, &mut options);
    (options, outcome)
}

fn read(args: impl IntoIterator<Item = OsString>, options: &mut Options) -> Result<(), String> {
    let mut args = args.into_iter();
    let (mut script, mut result) = (None, None);
    while let Some(word) = args.next() {
        if word == "--" {
            options.command = args.collect();
            break;
        }
        let name = word
            .to_str()
            .filter(|w| w.starts_with("--"))
            .ok_or_else(|| format!("{word:?} stands where an option or -- was expected"))?;
        let value = args.next().ok_or_else(|| format!("{name} needs a value"))?;
        match name {
            "--log-dir" => options.log_dir = value.into(),
            "--log-max" => options.log_max = number(name, &value)?,
            "--log-files" => options.log_files = number(name, &value)?,
            "--stop-grace" => options.stop_grace = Duration::from_secs(number(name, &value)?),
            "--user" => {
                options.user = Some(value.into_string().map_err(|v| format!("--user {v:?} is not UTF-8"))?)
            }
            "--user-data" => script = Some(value.into()),
            "--user-data-result" => result = Some(value.into()),
            _ => return Err(format!("unknown option {name}")),
        }
    }
    options.user_data = match (script, result) {
        (Some(script), Some(result)) => Some(UserData { script, result }),
        (None, None) => None,
        _ => return Err("--user-data and --user-data-result go together".into()),
    };
    Ok(())
}

fn number<T: std::str::FromStr>(name: &str, value: &OsString) -> Result<T, String> {
    value.to_str().and_then(|v| v.parse().ok()).ok_or_else(|| format!("{name} {value:?} is not a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Options, String> {
        let (options, outcome) = parse(line.split_whitespace().map(OsString::from));
        outcome.map(|()| options)
    }

    #[test]
    fn all_options() {
        let options = read("--log-dir /l --log-max 5 --log-files 2 --user app:staff --stop-grace 3 --user-data /u --user-data-result /r -- sh -c --log-dir").expect("reads");
        assert_eq!((options.log_dir, options.log_max, options.log_files), ("/l".into(), 5, 2));
        assert_eq!(
            (options.user.as_deref(), options.stop_grace),
            (Some("app:staff"), Duration::from_secs(3))
        );
        assert_eq!(options.user_data, Some(UserData { script: "/u".into(), result: "/r".into() }));
        assert_eq!(options.command, ["sh", "-c", "--log-dir"]);
        assert_eq!(read("--"), Ok(Options::default()));
        assert_eq!(read(""), Ok(Options::default()));
    }

    #[test]
    fn bad_ones_are_named() {
        for (line, why) in [
            ("sleep 1", "\"sleep\""),
            ("--new 1", "unknown option --new"),
            ("--log-max", "needs a value"),
            ("--log-max x", "not a number"),
            ("--user-data /u", "go together"),
        ] {
            let got = read(line).expect_err(line);
            assert!(got.contains(why), "{line}: {got}");
        }
    }
}
