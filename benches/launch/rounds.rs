//! B1 and B3: every contender in turn, round after round, each at the number in flight that suits it best.
//!
//! First each is tried once at 1, 2, 4 and 8 in flight; these trials warm everything up, choose, and are thrown away, so that
//! the choice does not flatter the figures. Then the rounds: A-B-C-A-B-C, so that what the machine does meanwhile hits all.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::contender::Contender;
use crate::plan::Plan;
use enoki_harness::statistics::median;

const IN_FLIGHT: [usize; 4] = [1, 2, 4, 8];

/// One who takes part, and in how many rounds.
pub struct Entry<'c> {
    pub contender: Box<dyn Contender + 'c>,
    pub rounds: usize,
    /// One that fails is left out with the reason; else the benchmark fails.
    pub optional: bool,
}

/// What a contender showed.
#[derive(Clone, Debug)]
pub struct Score {
    pub name: String,
    /// None: one order for all.
    pub in_flight: Option<usize>,
    /// Starts a second, a round each.
    pub rates: Vec<f64>,
    /// CPU seconds a start, a round each, the removal not included.
    pub cpu: Vec<f64>,
}

/// Runs all of it; what had to be left out goes to `cut`.
pub async fn run(
    mut entries: Vec<Entry<'_>>,
    plan: &Plan,
    until: Option<Instant>,
    cut: &mut Vec<String>,
) -> Result<Vec<Score>> {
    // A round takes about as long as the one before it.
    let mut last = Duration::ZERO;
    let mut scores: Vec<Option<Score>> = Vec::new();
    for entry in &mut entries {
        let name = entry.contender.name();
        eprintln!("finding what suits {name}");
        let best = best_in_flight(entry.contender.as_mut(), plan.trial).await;
        let best = match best {
            Ok(best) => best,
            Err(error) if entry.optional => {
                cut.push(format!("{name}: {error:#}"));
                scores.push(None);
                continue;
            }
            Err(error) => return Err(error.context(name)),
        };
        let in_flight = (!entry.contender.all_at_once()).then_some(best);
        scores.push(Some(Score { name, in_flight, rates: Vec::new(), cpu: Vec::new() }));
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
            match cell(entry.contender.as_mut(), plan.starts, score.in_flight.unwrap_or(1)).await {
                Ok((rate, cpu)) => {
                    score.rates.push(rate);
                    score.cpu.push(cpu);
                }
                Err(error) if entry.optional => {
                    cut.push(format!("{} from round {} on: {error:#}", score.name, round + 1));
                    entry.rounds = round;
                }
                Err(error) => return Err(error.context(score.name.clone())),
            }
        }
        last = begun.elapsed();
    }
    Ok(scores.into_iter().flatten().filter(|score| !score.rates.is_empty()).collect())
}

async fn best_in_flight(contender: &mut dyn Contender, starts: usize) -> Result<usize> {
    let mut best = (IN_FLIGHT[0], 0.0);
    // One order for all: the one trial only warms up.
    let tried = if contender.all_at_once() { &IN_FLIGHT[..1] } else { &IN_FLIGHT };
    for &in_flight in tried {
        let (rate, _) = cell(contender, starts, in_flight).await?;
        if rate > best.1 {
            best = (in_flight, rate);
        }
    }
    Ok(best.0)
}

/// Starts them all, removes them all: starts a second and CPU seconds a start.
async fn cell(contender: &mut dyn Contender, starts: usize, in_flight: usize) -> Result<(f64, f64)> {
    let before = contender.meter().seconds()?;
    let taken = contender.launch(starts, in_flight).await;
    let spent = contender.meter().seconds()? - before;
    // Also after a failure, so that it does not weigh on the others.
    let cleared = contender.clear().await;
    let taken = taken.with_context(|| format!("{starts} starts, {in_flight} in flight"))?;
    cleared.context("clean up")?;
    Ok((starts as f64 / taken.as_secs_f64(), spent / starts as f64))
}

impl Score {
    pub fn rate(&self) -> f64 {
        median(&self.rates)
    }
}
