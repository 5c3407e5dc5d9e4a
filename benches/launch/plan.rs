//! How much is measured: the quick run that ends within ten minutes, the whole, and the one that only shows that it works.

use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Plan {
    pub title: &'static str,
    /// Starts a cell.
    pub starts: usize,
    /// Starts a trial of what number in flight suits, and at least twice that number.
    pub trial: usize,
    pub rounds: usize,
    /// Of Swarm and LXD, which take long.
    pub slow_rounds: usize,
    /// Of B2, at each fill.
    pub samples: usize,
    /// When the last second trial must have begun, and when the rounds and the samples must be over; None: they take as long
    /// as they take.
    pub trials_end: Option<Duration>,
    pub rounds_end: Option<Duration>,
    pub samples_end: Option<Duration>,
    /// Whether a missed bar fails the run.
    pub judged: bool,
    /// What is less than the whole.
    pub cut: &'static [&'static str],
}

impl Plan {
    /// `FULL=1` and `SMOKE=1` in the environment choose; neither is the quick run.
    pub fn from_environment() -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty() && value != "0");
        let whole = Self {
            title: "whole (FULL=1)",
            starts: 100,
            trial: 40,
            rounds: 7,
            slow_rounds: 7,
            samples: 300,
            trials_end: None,
            rounds_end: None,
            samples_end: None,
            judged: true,
            cut: &[],
        };
        if set("FULL") {
            return whole;
        }
        if set("SMOKE") {
            return Self {
                title: "smoke (SMOKE=1): shows that it works and measures nothing",
                starts: 5,
                trial: 5,
                rounds: 2,
                slow_rounds: 1,
                samples: 5,
                judged: false,
                cut: &["nearly everything: these figures mean nothing and no bar is judged"],
                ..whole
            };
        }
        Self {
            title: "quick",
            starts: 40,
            trial: 10,
            slow_rounds: 3,
            samples: 60,
            trials_end: Some(Duration::from_secs(210)),
            rounds_end: Some(Duration::from_secs(460)),
            samples_end: Some(Duration::from_secs(570)),
            cut: &[
                "B1 and B3: 40 starts a cell instead of 100; Swarm and LXD in 3 rounds instead of 7",
                "B2: 60 samples a fill instead of 300, so that its p99 hangs on the slowest one",
            ],
            ..whole
        }
    }
}
