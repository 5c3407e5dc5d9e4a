//! `enoki-init`: PID 1 of an instance. It reaps, forwards signals, runs user data once and owns the output as bounded log files, so that
//! nothing outside (engine, agent, reader) has to be alive for the instance to go on.
//!
//! One thread, one loop, no growth. Exit codes: CMD's own, 128+n for a signal, 127 when it is not there, 126 when it cannot be executed, 2
//! for a wrong command line; 0 when a machine without CMD was told to stop.

mod child;
mod log;
mod machine;
mod options;
mod signals;
mod user;
mod userdata;

use std::fs::OpenOptions;
use std::process::ExitCode;

use log::Log;

fn main() -> ExitCode {
    if std::process::id() != 1 {
        // Anywhere else "everybody" would be the whole host.
        eprintln!("enoki-init: must run as PID 1 of a container");
        return ExitCode::from(2);
    }
    let (options, outcome) = options::parse(std::env::args_os().skip(1));
    if let Err(why) = &outcome {
        eprintln!("enoki-init: {why}");
    }
    leave_the_engines_streams();
    let mut log = Log::open(options.log_dir.clone(), options.log_max, options.log_files);
    if let Err(why) = outcome {
        log.note(&why);
        return ExitCode::from(2);
    }
    match signals::Signals::take() {
        Ok(signals) => ExitCode::from(machine::Machine::run(options, log, signals)),
        Err(error) => {
            log.note(&format!("cannot take over signals: {error}"));
            ExitCode::from(126)
        }
    }
}

/// Whatever the engine gave as standard streams may fill up or close while the engine is away: never used again.
fn leave_the_engines_streams() {
    if let Ok(null) = OpenOptions::new().read(true).write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdin(&null);
        let _ = nix::unistd::dup2_stdout(&null);
        let _ = nix::unistd::dup2_stderr(&null);
    }
}
