//! runc's command line, read just far enough to know what is asked: `runc [global flags] VERB [flags] ID`.
//!
//! Flags come as `--flag value`, `--flag=value` or with one dash. An unknown flag before the verb could hide a value that looks like a
//! verb, so it is an error wherever a container would be made: passing such a call on unread would start a container without
//! its network and disk.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use crate::Refusal;

const GLOBAL_WITH_VALUE: [&str; 5] = ["root", "log", "log-format", "criu", "rootless"];
const GLOBAL_ALONE: [&str; 6] = ["debug", "systemd-cgroup", "help", "h", "version", "v"];
const CREATE_WITH_VALUE: [&str; 5] = ["bundle", "b", "console-socket", "pid-file", "preserve-fds"];
const CREATE_ALONE: [&str; 2] = ["no-pivot", "no-new-keyring"];
const DELETE_ALONE: [&str; 2] = ["force", "f"];

/// What the global flags say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Call {
    /// `--root`: where runc keeps its containers' state. None: runc's default.
    pub root: Option<PathBuf>,
    /// `--log`. None: stderr alone.
    pub log: Option<PathBuf>,
    /// `--log-format json`.
    pub log_json: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verb {
    /// `bundle` as given; None: the working directory.
    Create {
        bundle: Option<PathBuf>,
        id: String,
    },
    Delete {
        id: String,
    },
    /// `run` and `restore` make a container too, in one go with starting it.
    Forbidden(String),
    /// Whatever makes no container: handed to runc unread.
    Other,
}

/// Reads the arguments after the program's name. What was read of the global flags comes in any case: a refusal goes to their log.
pub fn parse(args: &[OsString]) -> (Call, Result<Verb, Refusal>) {
    let mut call = Call::default();
    let verb = read(args, &mut call);
    (call, verb)
}

fn read(args: &[OsString], call: &mut Call) -> Result<Verb, Refusal> {
    let mut rest = args;
    let verb = loop {
        let Some((word, flag)) = next(&mut rest) else {
            return Ok(Verb::Other);
        };
        let Some((name, inline)) = flag else {
            break word;
        };
        if GLOBAL_WITH_VALUE.contains(&name.as_str()) {
            let value = inline.or_else(|| take(&mut rest));
            match (name.as_str(), value) {
                ("root", Some(v)) => call.root = Some(v.into()),
                ("log", Some(v)) => call.log = Some(v.into()),
                ("log-format", Some(v)) => call.log_json = v == "json",
                _ => {}
            }
        } else if !GLOBAL_ALONE.contains(&name.as_str()) {
            let makes_one = rest.iter().any(|w| ["create", "run", "restore"].iter().any(|v| w == v));
            return if makes_one {
                Err(Refusal::new(format!("unknown runtime flag --{name} before the verb")))
            } else {
                Ok(Verb::Other)
            };
        }
    };
    Ok(match verb.to_str() {
        Some("create") => create(rest)?,
        Some("delete") => delete(rest),
        Some(verb @ ("run" | "restore")) => Verb::Forbidden(verb.to_owned()),
        _ => Verb::Other,
    })
}

fn create(mut rest: &[OsString]) -> Result<Verb, Refusal> {
    let mut bundle = None;
    let id = loop {
        let Some((word, flag)) = next(&mut rest) else {
            return Err(Refusal::new("create without a container id"));
        };
        let Some((name, inline)) = flag else {
            break word;
        };
        if CREATE_WITH_VALUE.contains(&name.as_str()) {
            let value = inline.or_else(|| take(&mut rest));
            if matches!(name.as_str(), "bundle" | "b") {
                bundle = value.map(PathBuf::from);
            }
        } else if !CREATE_ALONE.contains(&name.as_str()) {
            return Err(Refusal::new(format!("unknown flag --{name} of create")));
        }
    };
    let id = id.into_string().map_err(|id| Refusal::new(format!("{id:?} is not a container id")))?;
    Ok(Verb::Create { bundle, id })
}

/// A delete that cannot be read is runc's to complain about.
fn delete(mut rest: &[OsString]) -> Verb {
    while let Some((word, flag)) = next(&mut rest) {
        match flag {
            None => {
                return word.into_string().map_or(Verb::Other, |id| Verb::Delete { id });
            }
            Some((name, _)) if DELETE_ALONE.contains(&name.as_str()) => {}
            Some(_) => return Verb::Other,
        }
    }
    Verb::Other
}

type Flag = (String, Option<OsString>);

/// The next word and, if it is a flag, its name and inline value. A lone `--` is skipped: what follows it is positional.
fn next(rest: &mut &[OsString]) -> Option<(OsString, Option<Flag>)> {
    let word = take(rest)?;
    if word == "--" {
        return take(rest).map(|word| (word, None));
    }
    let flag = as_flag(&word);
    Some((word, flag))
}

fn as_flag(word: &OsStr) -> Option<Flag> {
    let text = word.to_str()?;
    let name = text.strip_prefix("--").or_else(|| text.strip_prefix('-'))?;
    match name.split_once('=') {
        Some((name, value)) => Some((name.to_owned(), Some(value.into()))),
        None => Some((name.to_owned(), None)),
    }
}

fn take(rest: &mut &[OsString]) -> Option<OsString> {
    let (first, others) = rest.split_first()?;
    *rest = others;
    Some(first.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn the_forms_that_containerd_uses() {
        let (call, verb) = parse(&words(
            "--root /run/docker/runtime-runc/moby --log /b/log.json --log-format json --systemd-cgroup create --bundle /b --pid-file /b/init.pid --console-socket /tmp/pty.sock --no-pivot abc",
        ));
        assert_eq!(call.root, Some("/run/docker/runtime-runc/moby".into()));
        assert_eq!((call.log, call.log_json), (Some("/b/log.json".into()), true));
        assert_eq!(verb, Ok(Verb::Create { bundle: Some("/b".into()), id: "abc".into() }));
    }

    #[test]
    fn verbs() {
        for (line, verb) in [
            ("create abc", Verb::Create { bundle: None, id: "abc".into() }),
            (
                "--root=create --log=x create -b=/x abc",
                Verb::Create { bundle: Some("/x".into()), id: "abc".into() },
            ),
            (
                "--root create --debug create -bundle /x --preserve-fds 2 -- abc",
                Verb::Create { bundle: Some("/x".into()), id: "abc".into() },
            ),
            ("--criu delete --rootless true create abc", Verb::Create { bundle: None, id: "abc".into() }),
            ("delete --force abc", Verb::Delete { id: "abc".into() }),
            ("--root /r delete abc", Verb::Delete { id: "abc".into() }),
            ("delete", Verb::Other),
            ("delete --new abc", Verb::Other),
            ("run --bundle /b abc", Verb::Forbidden("run".into())),
            ("--log x restore abc", Verb::Forbidden("restore".into())),
            ("exec abc create", Verb::Other),
            ("--root create state abc", Verb::Other),
            ("--unknown state abc", Verb::Other),
            ("--version", Verb::Other),
            ("", Verb::Other),
        ] {
            assert_eq!(parse(&words(line)).1, Ok(verb), "{line}");
        }
    }

    #[test]
    fn what_cannot_be_read_makes_no_container() {
        for line in [
            "--cgroup-manager x create abc",
            "--new=x run abc",
            "create --keep abc",
            "create --bundle /b",
            "create",
        ] {
            let (call, verb) = parse(&words(&format!("--log /l --log-format json {line}")));
            assert!(verb.is_err(), "{line}");
            assert_eq!((call.log, call.log_json), (Some("/l".into()), true), "{line}");
        }
    }
}
