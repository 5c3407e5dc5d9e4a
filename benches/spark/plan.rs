//! How much is measured: the quick run that ends within ten minutes, the whole, and the one that only shows that it works.

use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Plan {
    pub title: &'static str,
    /// Of a cluster beside its master, and those that a pool grows by.
    pub workers: u32,
    /// Clusters made and removed, of each contender.
    pub rounds: usize,
    /// Times that a pool grows and shrinks.
    pub pools: usize,
    /// Tasks of a second each that it grows for.
    pub tasks: usize,
    /// Lines of the input that a job caches.
    pub lines: usize,
    /// Times that it is gone through, before the pool shrinks and after.
    pub passes: usize,
    /// How long a worker is kept that nobody needs.
    pub idle: Duration,
    /// When the rounds, and all of it, must be over, from when the image is there; None: they take as long as they take.
    pub rounds_end: Option<Duration>,
    pub pools_end: Option<Duration>,
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
            workers: 4,
            rounds: 9,
            pools: 7,
            tasks: 60,
            lines: 400_000,
            passes: 5,
            idle: Duration::from_secs(30),
            rounds_end: None,
            pools_end: None,
            judged: true,
            cut: &[],
        };
        if set("FULL") {
            return whole;
        }
        if set("SMOKE") {
            return Self {
                title: "smoke (SMOKE=1): shows that it works and measures nothing",
                workers: 2,
                rounds: 2,
                pools: 1,
                tasks: 30,
                lines: 20_000,
                passes: 2,
                judged: false,
                cut: &["nearly everything: these figures mean nothing and no bar is judged"],
                ..whole
            };
        }
        Self {
            title: "quick",
            rounds: 5,
            pools: 3,
            rounds_end: Some(Duration::from_secs(230)),
            pools_end: Some(Duration::from_secs(540)),
            cut: &[
                "5 clusters of each contender instead of 9, 3 times that a pool grows and shrinks instead of 7",
            ],
            ..whole
        }
    }
}
