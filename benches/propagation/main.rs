//! B6, how fast a change of the store is known: to one raw watch of etcd, and to the agents of hundreds of hosts.
//!
//! The hosts are simulated by their sessions alone: each has joined, has a certificate and a connection of its own over TLS, and
//! takes in what it is sent. The server, etcd and what lies between are real. A change is an assignment that is written
//! straight into etcd, as the leader would; the clock begins before the write and ends when the last of its hosts has the
//! order, or the watch the key.

mod agents;
#[path = "../../tests/support/within.rs"]
mod within;
mod world;

use agents::Agents;
use anyhow::{Context, Result, bail};
use enoki_harness::statistics::{compare, quantile};
use enoki_harness::{Lab, address, is_root};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use world::World;

/// How many assignments change at once, and how often that is measured.
const CHANGES: [(usize, usize); 3] = [(1, 300), (100, 20), (10_000, 3)];
/// Bar: ours over the raw watch, of the slowest in a hundred single changes.
const RATIO: f64 = 2.0;
/// Bar: of the server's memory, for each connected agent. Bytes.
const MEMORY: f64 = 20_000.0;

fn main() -> ExitCode {
    if !is_root() {
        return ExitCode::FAILURE;
    }
    match run() {
        Ok(missed) if missed.is_empty() => ExitCode::SUCCESS,
        Ok(missed) => {
            println!("\nMISSED:");
            for what in missed {
                println!("  {what}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<Vec<String>> {
    let hosts: usize = match std::env::var("BENCH_HOSTS") {
        Ok(text) => text.parse().context("BENCH_HOSTS")?,
        Err(_) => 500,
    };
    if !(1..=5000).contains(&hosts) {
        bail!("BENCH_HOSTS is {hosts}: 1 to 5000");
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default().to_owned();
    let lab = Lab::start(1);
    let tokio = within::runtime_in(&lab[0])?;
    let token = lab[0].enoki(&["host", "join-token"]).ok().text().to_owned();
    let most = CHANGES.iter().map(|(changes, _)| *changes).max().unwrap_or(0);

    eprintln!("{most} instances on {hosts} hosts");
    let server = format!("https://{}:7443", address(1));
    let memory = || lab[0].resident("server").all as f64;
    let before = memory();
    let opening = World::open(&lab[0]);
    let (world, agents) = tokio.block_on(tokio.spawn(async move {
        let agents = Agents::join(&server, &token, hosts).await?;
        // What a connection costs shows once nothing is under way.
        tokio::time::sleep(Duration::from_secs(10)).await;
        anyhow::Ok((Arc::new(opening.await?), Arc::new(agents)))
    }))??;
    let connected = memory();
    let each = (connected - before) / hosts as f64;

    let mut missed = Vec::new();
    println!(
        "bench-propagation: {hosts} simulated hosts on this machine, real server, etcd and TLS; load {load} before"
    );
    println!("\nB6 from a change in etcd to who has to know it, ms");
    println!(
        "{:>8} {:>8}  {:>18}  {:>18}  {:>24}",
        "changes", "samples", "raw watch p50 p99", "agents p50 p99", "agents / watch p99 [95 %]"
    );
    let names = {
        let (world, names) = (world.clone(), agents.names());
        tokio.block_on(tokio.spawn(async move { world.seed(&names, most).await }))??
    };
    for (changes, samples) in CHANGES {
        let (mut raw, mut ours) = (Vec::new(), Vec::new());
        for sample in 0..samples {
            let (world, agents, names) = (world.clone(), agents.clone(), names.clone());
            let took = tokio.block_on(tokio.spawn(async move {
                let took = world.change(&agents, &names, sample * changes, changes).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
                took
            }))??;
            raw.push(took.watch.as_secs_f64() * 1e3);
            ours.push(took.agents.as_secs_f64() * 1e3);
        }
        let (ratio, interval) = compare(&ours, &raw, |a, b| quantile(a, 0.99) / quantile(b, 0.99));
        println!(
            "{changes:>8} {samples:>8}  {:>8.2} {:>9.2}  {:>8.2} {:>9.2}  {ratio:>10.2} [{:.2}-{:.2}]",
            quantile(&raw, 0.5),
            quantile(&raw, 0.99),
            quantile(&ours, 0.5),
            quantile(&ours, 0.99),
            interval.low,
            interval.high,
        );
        if changes == 1 && ratio > RATIO {
            missed.push(format!(
                "B6: one change reaches its agent at {ratio:.2} x the raw watch, not <= {RATIO}"
            ));
        }
    }
    println!(
        "\nserver's memory for each agent: {:.1} kB (from {:.1} to {:.1} MB)",
        each / 1e3,
        before / 1e6,
        connected / 1e6
    );
    if each > MEMORY {
        missed.push(format!(
            "B6: {:.1} kB of the server's memory an agent, not <= {:.0}",
            each / 1e3,
            MEMORY / 1e3
        ));
    }
    Ok(missed)
}
