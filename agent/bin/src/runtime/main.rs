//! `enoki-runtime`: the runtime that dockerd knows as `enoki`. It stands in front of runc and borrows the instance's own network
//! namespace, disk and limits to the container, for every start by anybody, agent or no agent.
//!
//! `create` is edited or refused; `delete` also keeps whether memory was the cause, and unmounts the disk; `run` and `restore` are
//! refused, because they make a container too; every other verb becomes runc at once. A refused create leaves no mount, and its reason where Docker's user reads it.

mod create;
mod delete;

use std::ffi::OsString;
use std::process::ExitCode;

use enoki_helpers::args::{self, Verb};
use enoki_helpers::refusal::append_to_runc_log;
use enoki_helpers::runc;

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let (call, verb) = args::parse(&words);
    let outcome = match verb {
        Ok(verb) => run(&call, &verb, &words),
        Err(why) => Err(format!("enoki: refused: {why}")),
    };
    match outcome {
        Ok(code) => code,
        Err(why) => {
            eprintln!("{why}");
            if let Some(log) = &call.log {
                append_to_runc_log(log, call.log_json, &why);
            }
            ExitCode::FAILURE
        }
    }
}

/// The exit code that containerd gets, or the sentence that Docker's user reads.
fn run(call: &args::Call, verb: &Verb, words: &[OsString]) -> Result<ExitCode, String> {
    let runc = runc::find().map_err(|why| format!("enoki: {why}"))?;
    match verb {
        Verb::Create { bundle, id } => create::create(&runc, call, words, bundle.as_deref(), id)
            .map_err(|(who, why)| format!("enoki: refused to start {who}: {why}")),
        Verb::Delete { id } => delete::delete(&runc, call, words, id).map_err(|why| format!("enoki: {why}")),
        Verb::Forbidden(verb) => Err(format!(
            "enoki: refused: containers of this runtime are made by create and start, not by {verb}"
        )),
        Verb::Other => Err(format!("enoki: {}", runc::become_it(&runc, words))),
    }
}
