//! The one loop: signals, output and phases.
//!
//! ```text
//! user data (at the first start) -> main, or idle without CMD -> [stopping] -> draining -> exit
//! ```
//! * main: CMD runs; signals go to it; its exit ends the machine with its exit code.
//! * idle: no CMD; SIGTERM, SIGINT, SIGQUIT, SIGPWR and SIGRTMIN+3 end the machine with 0.
//! * stopping: everything inside got SIGTERM; wait until it is gone or the grace is over.
//! * draining: read what is still in the pipes, bounded, because background processes may hold them open.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use enoki_helpers::logline::Stream;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::child::{self, Output};
use crate::log::Log;
use crate::options::Options;
use crate::signals::{self, Signals};
use crate::user;
use crate::userdata::Next;

/// Pipe size asked for: a burst of this length never waits for the log.
const PIPE: i32 = 256 * 1024;
const CHUNK: usize = 64 * 1024;
/// An unfinished line is told after this much silence.
const PARTIAL_AFTER: Duration = Duration::from_millis(200);
const STOP_TICK: Duration = Duration::from_millis(20);
const DRAIN: Duration = Duration::from_secs(1);
const DRAIN_SILENCE: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy)]
enum Phase {
    UserData { pid: i32 },
    Main { pid: i32 },
    Idle,
    Stopping { until: Instant, code: u8 },
    Draining { until: Instant, code: u8 },
}

pub struct Machine {
    options: Options,
    log: Log,
    signals: Signals,
    phase: Phase,
    /// The reading ends, until all writers are gone.
    pipes: [Option<OwnedFd>; 2],
    /// The writing ends, until the last program was started with them.
    output: Option<Output>,
}

impl Machine {
    /// Runs the instance to its end. Returns the exit code of PID 1.
    pub fn run(options: Options, log: Log, signals: Signals) -> u8 {
        let mut machine =
            Machine { options, log, signals, phase: Phase::Idle, pipes: [None, None], output: None };
        let code = match machine.make_pipes() {
            Ok(()) => {
                machine.begin();
                machine.turn()
            }
            Err(error) => {
                machine.log.note(&format!("cannot make the output's pipes: {error}"));
                126
            }
        };
        machine.log.finish();
        code
    }

    fn make_pipes(&mut self) -> nix::Result<()> {
        let make = || -> nix::Result<(OwnedFd, OwnedFd)> {
            let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
            nix::fcntl::fcntl(&read, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
            // A smaller pipe works too.
            let _ = nix::fcntl::fcntl(&read, nix::fcntl::FcntlArg::F_SETPIPE_SZ(PIPE));
            Ok((read, write))
        };
        let (out_read, stdout) = make()?;
        let (err_read, stderr) = make()?;
        self.pipes = [Some(out_read), Some(err_read)];
        self.output = Some(Output { stdout, stderr });
        Ok(())
    }

    /// User data first, where it is due.
    fn begin(&mut self) {
        match self.options.user_data.as_ref().map_or(Next::Nothing, |data| data.next()) {
            Next::Nothing => self.start_main(),
            Next::Unreadable(why) => {
                self.log.note(&format!("user data cannot be read: {why}"));
                self.user_data_ended(126);
            }
            Next::Run { words, again } => {
                if again {
                    self.log.note("user data did not finish at an earlier start: running it again");
                }
                let marked = self.options.user_data.as_ref().map_or(Ok(()), |data| data.begin());
                if let Err(error) = marked {
                    self.log.note(&format!("cannot mark that user data has begun: {error}"));
                }
                let started = self.output.as_ref().map(|output| child::start(&words, None, output));
                match started {
                    Some(Ok(pid)) => self.phase = Phase::UserData { pid },
                    Some(Err(not)) => {
                        self.log.note(&format!("user data: {}", not.why));
                        self.user_data_ended(not.code);
                    }
                    None => self.start_main(),
                }
            }
        }
    }

    fn user_data_ended(&mut self, code: u8) {
        if code != 0 {
            self.log.note(&format!("user data ended with exit code {code}"));
        }
        if let Some(data) = &self.options.user_data
            && let Err(error) = data.finish(code)
        {
            self.log.note(&format!(
                "cannot keep the exit code of user data, so it will run again at the next start: {error}"
            ));
        }
        self.start_main();
    }

    /// CMD, or idling without one. From here on the pipes belong to what was started alone.
    fn start_main(&mut self) {
        let Some(output) = self.output.take() else {
            return;
        };
        if self.options.command.is_empty() {
            self.phase = Phase::Idle;
            return;
        }
        let user = self.options.user.as_deref().map(user::look_up).transpose();
        let user = user.map_err(|why| child::NotStarted { code: 126, why });
        match user.and_then(|user| child::start(&self.options.command, user.as_ref(), &output)) {
            Ok(pid) => self.phase = Phase::Main { pid },
            Err(not) => {
                self.log.note(&not.why);
                self.drain(not.code);
            }
        }
    }

    fn turn(&mut self) -> u8 {
        // Reserved once: PID 1 does not grow.
        let mut chunk = vec![0; CHUNK];
        let mut silent_since = Instant::now();
        loop {
            if let Some(code) = self.tick(silent_since) {
                return code;
            }
            // Write only when there is nothing to read: few large writes under load, none late when idle.
            let wait = if self.log.has_pending() { Duration::ZERO } else { self.patience(silent_since) };
            let ready = self.poll(wait);
            if ready.iter().all(|r| !r) {
                self.log.flush();
                self.log.mend();
                continue;
            }
            if ready[0] {
                self.take_signals();
            }
            for (index, stream) in [(0, Stream::Stdout), (1, Stream::Stderr)] {
                if ready[index + 1] && self.read(index, stream, &mut chunk) {
                    silent_since = Instant::now();
                }
            }
        }
    }

    /// What is due by the clock. Some: the machine has ended.
    fn tick(&mut self, silent_since: Instant) -> Option<u8> {
        let now = Instant::now();
        if self.log.has_partial() && now >= silent_since + PARTIAL_AFTER {
            self.log.tell_partial();
        }
        match self.phase {
            Phase::Stopping { until, code } if now >= until || signals::alone() => {
                self.reap();
                self.drain(code);
                None
            }
            Phase::Draining { until, code } => {
                let silent = now >= silent_since + DRAIN_SILENCE && now + DRAIN >= until + DRAIN_SILENCE;
                let done = self.pipes.iter().all(Option::is_none) || now >= until || silent;
                done.then_some(code)
            }
            _ => None,
        }
    }

    /// How long nothing is due.
    fn patience(&self, silent_since: Instant) -> Duration {
        let by_phase = match self.phase {
            Phase::Stopping { .. } | Phase::Draining { .. } => Some(STOP_TICK),
            Phase::UserData { .. } | Phase::Main { .. } | Phase::Idle => None,
        };
        let partial = self
            .log
            .has_partial()
            .then(|| (silent_since + PARTIAL_AFTER).saturating_duration_since(Instant::now()));
        let soonest = [by_phase, partial, self.log.mend_in()].into_iter().flatten().min();
        soonest.unwrap_or(Duration::from_secs(3600))
    }

    /// Waits; tells whether signals, stdout and stderr can be read.
    fn poll(&self, wait: Duration) -> [bool; 3] {
        let sources = [
            Some(self.signals.fd()),
            self.pipes[0].as_ref().map(|p| p.as_fd()),
            self.pipes[1].as_ref().map(|p| p.as_fd()),
        ];
        let mut fds: Vec<PollFd<'_>> =
            sources.iter().flatten().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        // Rounded up: a wait of less than a millisecond must not become a spin.
        let millis = wait.as_micros().div_ceil(1000).min(60_000) as u16;
        if poll(&mut fds, PollTimeout::from(millis)).unwrap_or(0) == 0 {
            return [false; 3];
        }
        let is_ready = |fd: RawFd| {
            fds.iter().any(|p| p.as_fd().as_raw_fd() == fd && p.revents().is_some_and(|r| !r.is_empty()))
        };
        sources.map(|source| source.is_some_and(|fd| is_ready(fd.as_raw_fd())))
    }

    /// One chunk of a stream. False: it has ended, or there was nothing.
    fn read(&mut self, index: usize, stream: Stream, chunk: &mut [u8]) -> bool {
        let Some(pipe) = &self.pipes[index] else {
            return false;
        };
        match nix::unistd::read(pipe, chunk) {
            Ok(0) => {
                self.pipes[index] = None;
                false
            }
            Ok(n) => {
                self.log.append(stream, &chunk[..n]);
                true
            }
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => false,
            Err(error) => {
                self.log.note(&format!("cannot read the output: {error}"));
                self.pipes[index] = None;
                false
            }
        }
    }

    fn take_signals(&mut self) {
        while let Some(signal) = self.signals.next() {
            if signal == libc::SIGCHLD {
                self.reap();
                continue;
            }
            match self.phase {
                Phase::Main { pid } => signals::send(pid, signal),
                // The script and what it runs, which may be waiting for something.
                Phase::UserData { pid } if signals::ends_a_machine(signal) => {
                    signals::send(-pid, signal);
                    let code = if self.options.command.is_empty() { 0 } else { 128 + signal as u8 };
                    self.log.note(
                        "told to stop before user data had finished: it will run again at the next start",
                    );
                    self.stop(code);
                }
                Phase::Idle if signals::ends_a_machine(signal) => self.stop(0),
                Phase::UserData { .. } | Phase::Idle | Phase::Stopping { .. } | Phase::Draining { .. } => {}
            }
        }
    }

    /// Collects every child that has ended.
    fn reap(&mut self) {
        while let Some((pid, code)) = signals::reap_one() {
            match self.phase {
                Phase::Main { pid: main } if pid == main => self.drain(code),
                Phase::UserData { pid: script } if pid == script => self.user_data_ended(code),
                _ => {}
            }
        }
    }

    fn stop(&mut self, code: u8) {
        self.output = None;
        signals::tell_everybody_to_go();
        self.phase = Phase::Stopping { until: Instant::now() + self.options.stop_grace, code };
    }

    fn drain(&mut self, code: u8) {
        self.phase = Phase::Draining { until: Instant::now() + DRAIN, code };
    }
}
