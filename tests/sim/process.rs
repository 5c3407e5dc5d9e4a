//! A process for each seed: what is counted or remembered for a whole process (tokio's seeds, threads' numbers) begins
//! anew, so that a seed does the same alone and among others.

use crate::clock;
use crate::plan::{Broken, Plan};
use crate::world::{self, Outcome};
use std::ops::Range;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

/// Names the seed to run.
const SEED: &str = "ENOKI_SIM_SEED";
/// Names what a control takes away.
const BROKEN: &str = "ENOKI_SIM_BROKEN";
/// Set to a level, what the processes log goes to standard error with the simulation's time.
const LOG: &str = "ENOKI_SIM_LOG";
/// Lines of the trace that a failure shows.
const TAIL: usize = 60;

/// What the environment asks for.
pub fn asked() -> Option<Plan> {
    let seed = std::env::var(SEED).ok()?.parse().expect("a number in ENOKI_SIM_SEED");
    let broken = std::env::var(BROKEN).ok().map(|name| name.parse().expect("a control in ENOKI_SIM_BROKEN"));
    Some(Plan { seed, broken })
}

/// Runs a seed in a thread that nothing has run in before.
pub fn simulate(plan: Plan) -> Outcome {
    // In memory, where syncing costs nothing.
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder");
    let thread = std::thread::Builder::new().name("simulation".to_owned());
    if let Some(level) = std::env::var(LOG).ok().and_then(|level| level.parse::<tracing::Level>().ok()) {
        let log =
            tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_timer(Time);
        log.with_ansi(false).init();
    }
    let running = thread.spawn(move || world::run(plan, folder.path())).expect("a thread");
    running.join().expect("the simulation itself does not panic")
}

/// The simulation's, as the trace has it.
struct Time;

impl FormatTime for Time {
    fn format_time(&self, out: &mut Writer<'_>) -> std::fmt::Result {
        write!(out, "{:>9.3}", clock::now().as_secs_f64())
    }
}

/// The last line of what a seed prints.
pub fn summary(outcome: &Outcome) -> String {
    let counts = outcome.trace.counts();
    let counts: Vec<String> = counts.iter().map(|(what, count)| format!("{what}={count}")).collect();
    format!("trace={:016x} {}", outcome.trace.hash(), counts.join(" "))
}

/// How a seed went.
pub struct Run {
    pub seed: u64,
    /// The hash of its trace.
    pub trace: String,
    /// The rule that was broken.
    pub broken: Option<String>,
    ok: bool,
    output: String,
}

impl Run {
    fn of(plan: Plan) -> Self {
        let program = std::env::current_exe().expect("this test");
        let mut command = Command::new(program);
        command.args(["--exact", "one_seed", "--nocapture"]).env(SEED, plan.seed.to_string());
        match plan.broken {
            Some(broken) => command.env(BROKEN, broken.name()),
            None => command.env_remove(BROKEN),
        };
        let ran = command.output().expect("this test runs itself");
        let both = [ran.stdout, ran.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let output = both.join("");
        let word = |start: &str| {
            let words = output.split_whitespace().rev();
            words.filter_map(|word| word.strip_prefix(start)).next().map(str::to_owned)
        };
        let law = output.lines().find_map(|line| line.split_once(" LAW    ")?.1.split_once(" is broken: "));
        Run {
            seed: plan.seed,
            trace: word("trace=").unwrap_or_default(),
            broken: law.map(|(rule, _)| rule.to_owned()),
            ok: ran.status.success(),
            output,
        }
    }

    /// How often this happened.
    pub fn count(&self, what: &str) -> u64 {
        let start = format!("{what}=");
        self.output
            .split_whitespace()
            .rev()
            .find_map(|word| word.strip_prefix(&start)?.parse().ok())
            .unwrap_or(0)
    }

    pub fn tail(&self) -> String {
        let lines: Vec<&str> = self.output.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }

    /// What to read and what to do about a seed that failed.
    pub fn failure(&self) -> Option<String> {
        let again = format!("{SEED}={} cargo nextest run --test sim --no-capture one_seed", self.seed);
        (!self.ok).then(|| format!("seed {}; to see it again:\n  {again}\n{}", self.seed, self.tail()))
    }
}

/// Runs these seeds, as many at once as there are processors, in the order of seeds.
pub fn each(seeds: Range<u64>, broken: Option<Broken>) -> Vec<Run> {
    run_while(seeds, broken, |_| true)
}

/// The first of the seeds that fails without what a control takes away.
pub fn first(seeds: Range<u64>, broken: Broken) -> Option<Run> {
    run_while(seeds, Some(broken), |run| run.ok).into_iter().find(|run| !run.ok)
}

fn run_while(seeds: Range<u64>, broken: Option<Broken>, goes_on: impl Fn(&Run) -> bool + Sync) -> Vec<Run> {
    let (next, runs) = (AtomicU64::new(seeds.start), Mutex::new(Vec::new()));
    let at_once = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let run = Run::of(Plan { seed, broken });
                    if !goes_on(&run) {
                        next.store(seeds.end, Ordering::Relaxed);
                    }
                    runs.lock().expect("no run panics").push(run);
                }
            });
        }
    });
    let mut runs = runs.into_inner().expect("no run panics");
    runs.sort_by_key(|run: &Run| run.seed);
    runs
}
