//! The tables of B14.

use std::time::Duration;

use comfy_table::Table;
use enoki_harness::statistics::{median, quantile, ratio};

use crate::plan::Plan;
use crate::pool::{Passes, Round};
use crate::table::{Verdict, between, new};

/// Bars: a cluster that is ready, against the same by hand and in seconds; from a need to the decision, in seconds; the part
/// of the tasks that runs again when a pool shrinks.
const READY: f64 = 1.15;
const READY_SECONDS: f64 = 15.0;
const DECIDED: f64 = 2.0;
const AGAIN: f64 = 0.05;

/// Clusters of one contender.
pub struct Score {
    name: &'static str,
    seconds: Vec<f64>,
    /// CPU seconds of a cluster, until it is ready.
    cpu: Vec<f64>,
}

impl Score {
    pub fn new(name: &'static str) -> Self {
        Self { name, seconds: Vec::new(), cpu: Vec::new() }
    }

    pub fn add(&mut self, took: Duration, cpu: f64) {
        self.seconds.push(took.as_secs_f64());
        self.cpu.push(cpu);
    }
}

/// From nothing to ready.
pub fn ready(plan: &Plan, ours: &Score, theirs: &Score, verdict: &mut Verdict) {
    let title = format!("B14 from nothing to a master and {} workers that are ready", plan.workers);
    println!("\n{title}");
    let mut table =
        new(&["", "s", "from-to", "rounds", "CPU s", "bar s", "", "ours / this [95 %]", "bar", ""]);
    let row = |score: &Score| {
        vec![
            score.name.to_owned(),
            format!("{:.2}", median(&score.seconds)),
            range(&score.seconds),
            score.seconds.len().to_string(),
            format!("{:.2}", median(&score.cpu)),
        ]
    };
    let seconds = median(&ours.seconds);
    let good = verdict.judge(
        &title,
        seconds <= READY_SECONDS,
        format!("ready after {seconds:.1} s, not <= {READY_SECONDS}"),
    );
    let mut first = row(ours);
    first.extend([format!("<= {READY_SECONDS}"), good.to_owned()]);
    table.add_row(first);
    let (value, interval) = ratio(&ours.seconds, &theirs.seconds);
    let good = verdict.judge(&title, value <= READY, format!("{value:.3} x {}, not <= {READY}", theirs.name));
    let mut second = row(theirs);
    second.extend([String::new(), String::new(), format!("{value:.2} {}", between(interval))]);
    second.extend([format!("<= {READY}"), good.to_owned()]);
    table.add_row(second);
    println!("{table}");
}

/// Seconds from a job's need.
pub fn grown(rounds: &[Round], plan: &Plan, verdict: &mut Verdict) {
    let title = format!("B14 from the need of a job to {} more workers", plan.workers);
    println!("\n{title}");
    let mut table = new(&["until", "s", "from-to", "rounds", "bar s", ""]);
    let decided = of(rounds, |round| round.decided);
    let at_work = of(rounds, |round| round.at_work);
    let there = of(rounds, |round| round.there);
    let middle = median(&decided);
    let good =
        verdict.judge(&title, middle <= DECIDED, format!("decided after {middle:.2} s, not <= {DECIDED}"));
    line(&mut table, "decided: all of them are instances", &decided, &[&format!("<= {DECIDED}"), good]);
    line(&mut table, "they run", &of(rounds, |round| round.running), &[]);
    line(&mut table, "each has a task", &at_work, &[]);
    line(&mut table, "the floor: the same, of workers that are there already", &there, &[]);
    println!("{table}");
    let (value, interval) = ratio(&at_work, &there);
    println!("each has a task: {value:.2} x the floor {}", between(interval));
}

/// What a shrinking pool costs.
pub fn shrunk(rounds: &[Round], plan: &Plan, verdict: &mut Verdict) {
    let title = format!("B14 {} workers leave under a job that shuffles", plan.workers);
    println!("\n{title}; s after they were needless for the idle time of {} s", plan.idle.as_secs());
    let mut table = new(&["until", "s", "from-to", "rounds"]);
    line(&mut table, "the first is asked to leave", &of(rounds, |round| round.asked), &[]);
    line(&mut table, "the last is gone, what it kept handed on", &of(rounds, |round| round.gone), &[]);
    println!("{table}");
    let sum = |count: fn(&Round) -> usize| rounds.iter().map(count).sum::<usize>();
    let (tasks, again) = (sum(|round| round.tasks), sum(|round| round.again));
    let (parts, read_again) = (sum(|round| round.parts), sum(|round| round.read_again));
    println!(
        "{again} of {tasks} tasks ran again, {read_again} of {parts} cached parts were read again; {} shuffles meanwhile; \
         no job failed",
        sum(|round| round.shuffles)
    );
    for (what, again, all) in
        [("tasks ran again", again, tasks), ("cached parts were read again", read_again, parts)]
    {
        let good = again as f64 <= AGAIN * all as f64;
        verdict.judge(&title, good, format!("{again} of {all} {what}, not <= {:.0} %", AGAIN * 100.0));
    }
}

/// A cached input against reading it again.
pub fn kept(rounds: &[Round]) {
    println!("\nB14 one pass over an input that is cached, against reading and parsing it again");
    let mut table = new(&["", "cached s", "read again s", "passes", "cached / read [95 %]"]);
    let all = |passes: fn(&Round) -> &Passes| {
        let cached: Vec<f64> = rounds.iter().flat_map(|round| passes(round).cached.clone()).collect();
        let read: Vec<f64> = rounds.iter().flat_map(|round| passes(round).read.clone()).collect();
        (cached, read)
    };
    for (name, (cached, read)) in [
        ("before the pool shrinks, on all workers", all(|round| &round.before)),
        ("after it, on the one that is left", all(|round| &round.after)),
    ] {
        let (value, interval) = ratio(&cached, &read);
        table.add_row(vec![
            name.to_owned(),
            format!("{:.2}", median(&cached)),
            format!("{:.2}", median(&read)),
            cached.len().to_string(),
            format!("{value:.2} {}", between(interval)),
        ]);
    }
    println!("{table}");
}

fn of(rounds: &[Round], figure: fn(&Round) -> f64) -> Vec<f64> {
    rounds.iter().map(figure).collect()
}

fn line(table: &mut Table, name: &str, seconds: &[f64], more: &[&str]) {
    let figures = [format!("{:.2}", median(seconds)), range(seconds), seconds.len().to_string()];
    table.add_row(
        std::iter::once(name.to_owned()).chain(figures).chain(more.iter().map(|&word| word.to_owned())),
    );
}

fn range(seconds: &[f64]) -> String {
    format!("{:.2} to {:.2}", quantile(seconds, 0.0), quantile(seconds, 1.0))
}
