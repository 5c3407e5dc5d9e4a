//! B1 and B3: every contender in turn, round after round, each at the number in flight that suits it best.
//!
//! First each is tried at several numbers in flight, and again at those that came near the best, so that no hiccup of the
//! machine decides; these trials warm everything up, choose, and are thrown away, so that the choice does not flatter the
//! figures. Then the rounds: A-B-C-A-B-C, so that what the machine does meanwhile hits all.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::contender::Contender;
use crate::plan::Plan;
use enoki_harness::statistics::median;

/// A number whose first trial made at least this share of the best one's rate is tried again.
const NEAR: f64 = 2.0 / 3.0;

/// One who takes part, and in how many rounds.
pub struct Entry<'c> {
    pub contender: Box<dyn Contender + 'c>,
    pub rounds: usize,
    /// One that fails is left out with the reason; else the benchmark fails.
    pub optional: bool,
}

impl Entry<'_> {
    /// Goes on without one that failed, if it is optional.
    fn without(&self, what: &str, error: anyhow::Error, cut: &mut Vec<String>) -> Result<()> {
        if !self.optional {
            return Err(error.context(what.to_owned()));
        }
        cut.push(format!("{what}: {error:#}"));
        Ok(())
    }
}

/// What a contender showed.
#[derive(Clone, Debug)]
pub struct Score {
    pub name: String,
    /// What was tried; nothing with one order for all.
    pub trials: Vec<Trial>,
    /// Starts a second, a round each.
    pub rates: Vec<f64>,
    /// CPU seconds a start, a round each, the removal not included.
    pub cpu: Vec<f64>,
    /// How many were on each host, in the round in which that was least even.
    pub landed: Vec<usize>,
}

/// A number in flight, and its starts a second: the better one where it was tried twice.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    pub in_flight: usize,
    pub rate: f64,
}

/// One time all of them.
struct Cell {
    rate: f64,
    cpu: f64,
    landed: Vec<usize>,
}

/// Runs all of it, by the times of the plan; what had to be left out goes to `cut`.
pub async fn run(
    mut entries: Vec<Entry<'_>>,
    plan: &Plan,
    begun: Instant,
    cut: &mut Vec<String>,
) -> Result<Vec<Score>> {
    let trials_end = plan.trials_end.map(|end| begun + end);
    let until = plan.rounds_end.map(|end| begun + end);
    // A round takes about as long as the one before it.
    let mut last = Duration::ZERO;
    let mut scores: Vec<Option<Score>> = Vec::new();
    for entry in &mut entries {
        let name = entry.contender.name();
        eprintln!("finding what suits {name}");
        scores.push(match try_out(entry.contender.as_mut(), plan.trial).await {
            Ok(trials) => {
                Some(Score { name, trials, rates: Vec::new(), cpu: Vec::new(), landed: Vec::new() })
            }
            Err(error) => entry.without(&name, error, cut).map(|()| None)?,
        });
    }
    // From the last to the first, which is ours: where time runs out, it is we who do without.
    for (entry, place) in entries.iter_mut().zip(&mut scores).rev() {
        let Some(score) = place.as_mut().filter(|score| !score.trials.is_empty()) else { continue };
        if trials_end.is_some_and(|end| Instant::now() >= end) {
            cut.push(format!("second trials of {}: out of time", score.name));
            continue;
        }
        eprintln!("again for {}", score.name);
        if let Err(error) = try_again(entry.contender.as_mut(), plan.trial, &mut score.trials).await {
            entry.without(&score.name, error, cut)?;
            *place = None;
        }
    }
    let most = entries.iter().map(|entry| entry.rounds).max().unwrap_or(0);
    for round in 0..most {
        let begun = Instant::now();
        if round > 0 && until.is_some_and(|until| begun + last > until) {
            cut.push(format!("rounds {} to {most} of B1 and B3: out of time", round + 1));
            break;
        }
        eprintln!("round {} of {most}", round + 1);
        for (entry, place) in entries.iter_mut().zip(&mut scores) {
            let Some(score) = place.as_mut().filter(|_| round < entry.rounds) else {
                continue;
            };
            match cell(entry.contender.as_mut(), plan.starts, score.in_flight().unwrap_or(1)).await {
                Ok(cell) => {
                    score.rates.push(cell.rate);
                    score.cpu.push(cell.cpu);
                    if score.landed.is_empty() || uneven(&cell.landed) > uneven(&score.landed) {
                        score.landed = cell.landed;
                    }
                }
                Err(error) => {
                    entry.without(&format!("{} from round {} on", score.name, round + 1), error, cut)?;
                    entry.rounds = round;
                }
            }
        }
        last = begun.elapsed();
    }
    Ok(scores.into_iter().flatten().filter(|score| !score.rates.is_empty()).collect())
}

/// Every number once, and everything warmed up.
async fn try_out(contender: &mut dyn Contender, starts: usize) -> Result<Vec<Trial>> {
    let mut trials = Vec::new();
    for &in_flight in contender.in_flight() {
        trials.push(Trial { in_flight, rate: trial(contender, starts, in_flight).await? });
    }
    if trials.is_empty() {
        trial(contender, starts, 1).await?;
    }
    Ok(trials)
}

/// Those that came near the best once more: a while later, so that what has slowed one down does not slow the other.
async fn try_again(contender: &mut dyn Contender, starts: usize, trials: &mut [Trial]) -> Result<()> {
    let near = best(trials).map_or(0.0, |best| NEAR * best.rate);
    for one in trials.iter_mut().filter(|one| one.rate >= near) {
        one.rate = one.rate.max(trial(contender, starts, one.in_flight).await?);
    }
    Ok(())
}

/// Starts a second. With fewer starts than twice those in flight there would be no time in which all of these are under way.
async fn trial(contender: &mut dyn Contender, starts: usize, in_flight: usize) -> Result<f64> {
    Ok(cell(contender, starts.max(2 * in_flight), in_flight).await?.rate)
}

fn best(trials: &[Trial]) -> Option<Trial> {
    trials.iter().copied().max_by(|a, b| a.rate.total_cmp(&b.rate))
}

/// The difference between the host with the most and the one with the fewest.
pub fn uneven(landed: &[usize]) -> usize {
    landed.iter().max().unwrap_or(&0) - landed.iter().min().unwrap_or(&0)
}

/// Starts them all, removes them all.
async fn cell(contender: &mut dyn Contender, starts: usize, in_flight: usize) -> Result<Cell> {
    let before = contender.meter().seconds()?;
    let taken = contender.launch(starts, in_flight).await;
    let spent = contender.meter().seconds()? - before;
    let landed = contender.landed().await;
    // Also after a failure, so that it does not weigh on the others.
    let cleared = contender.clear().await;
    let taken = taken.with_context(|| format!("{starts} starts, {in_flight} in flight"))?;
    cleared.context("clean up")?;
    Ok(Cell {
        rate: starts as f64 / taken.as_secs_f64(),
        cpu: spent / starts as f64,
        landed: landed.context("count them by host")?,
    })
}

impl Score {
    pub fn rate(&self) -> f64 {
        median(&self.rates)
    }

    /// The number that suits it. None: one order for all.
    pub fn in_flight(&self) -> Option<usize> {
        best(&self.trials).map(|trial| trial.in_flight)
    }
}
