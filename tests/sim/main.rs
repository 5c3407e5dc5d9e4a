//! The whole system, simulated: real servers and real agents in one thread, over a simulated store, network, Docker and
//! host, through every fault, from a seed.
//!
//! What runs is what ships: the API's router, the controllers, sessions and their WebSockets, the reflector, the election,
//! the agent with its ledger. Only what is at the edges is simulated ([`etcd`], [`net`], [`host`]), and the clock and the
//! machine's randomness ([`clock`]). [`world`] tells the story of a seed, [`faults`] and [`chaos`] what goes wrong,
//! [`law`] and [`rest`] what must hold.
//!
//! `ENOKI_SIM_SEED=7 cargo nextest run --test sim --no-capture one_seed` runs one seed and prints its trace.

mod chaos;
mod clock;
mod dice;
mod etcd;
mod faults;
mod host;
mod law;
mod net;
mod node;
mod plan;
mod process;
mod rest;
mod server;
mod trace;
mod users;
mod watched;
mod world;

use plan::Broken;
use process::{each, first};

/// How many seeds a run of the tests tries.
const SEEDS: u64 = 100;

/// One seed, whole: to be run by hand, and by the other tests as a process of its own.
#[test]
fn one_seed() {
    let Some(plan) = process::asked() else { return };
    let outcome = process::simulate(plan);
    println!("{}", outcome.trace.tail(usize::MAX));
    println!("{}", process::summary(&outcome));
    if let Some(violation) = outcome.violation {
        panic!("{} is broken: {}", violation.rule, violation.message);
    }
}

#[test]
fn a_hundred_seeds_hold() {
    let runs = each(0..SEEDS, None);
    let broken: Vec<String> = runs.iter().filter_map(process::Run::failure).collect();
    assert!(broken.is_empty(), "{} of {SEEDS} seeds fail\n{}", broken.len(), broken.join("\n\n"));
    // A simulation in which nothing happens finds nothing.
    for (what, least) in [("answers", 50), ("elections", 3), ("starts", 15), ("kills", 5)] {
        let count: u64 = runs.iter().map(|run| run.count(what)).sum();
        assert!(count >= least * SEEDS, "{count} {what} in {SEEDS} seeds");
    }
}

#[test]
fn a_seed_replays_exactly() {
    let (first, again) = (each(7..9, None), each(7..9, None));
    for (first, again) in first.iter().zip(&again) {
        assert!(!first.trace.is_empty() && first.trace == again.trace, "seed {} does not replay", first.seed);
    }
    assert!(first[0].trace != first[1].trace, "two seeds do the same");
}

/// F2: without the fence a leader that is over still writes.
#[test]
fn without_the_fence_a_late_write_is_found() {
    let found = first(0..SEEDS, Broken::NoFence).expect("a seed that fails");
    assert_eq!(found.broken.as_deref(), Some("F2"), "{}", found.tail());
}

/// A lost answer is looked at again by the slow timer, and by nothing else.
#[test]
fn without_the_slow_timer_what_was_lost_stays_undone() {
    let found = first(0..SEEDS, Broken::NoSlowTimer).expect("a seed that fails");
    assert_eq!(found.broken.as_deref(), Some("I2"), "{}", found.tail());
}

/// What a watch does not tell is never done: that watches lose nothing is what all else stands on.
#[test]
fn a_change_that_a_watch_loses_is_missed() {
    let found = first(0..SEEDS, Broken::LosesAChange).expect("a seed that fails");
    assert_eq!(found.broken.as_deref(), Some("I2"), "{}", found.tail());
}
