//! `make bench-launch`: how fast instances start, beside raw Docker, Docker Swarm and LXD. docs/benchmarks.md says what is
//! measured and how; FULL=1 runs the whole, SMOKE=1 shows in minutes that it works.
//!
//! Everything runs in clouds of its own, which are gone at the end whatever happens: one with Enoki, whose dockerd also
//! serves the raw contenders, a lab of three such hosts, one for Swarm and one for LXD. Exit codes: 0 all bars are met, 1 one
//! was missed or something did not work.

mod contender;
#[path = "../shared/docker.rs"]
mod docker;
mod hosts;
mod latency;
mod lxd;
#[path = "../shared/machine.rs"]
mod machine;
mod ours;
mod plan;
mod raw;
mod report;
mod rounds;
mod swarm;
#[path = "../shared/table.rs"]
mod table;

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use enoki_harness::{Cloud, is_root};

use hosts::Hosts;
use machine::load;
use plan::Plan;
use report::{Bar, Memory};
use rounds::{Entry, Score};
use table::Verdict;

const ENOKI: &str = "enoki";
const FIXED: &str = "enoki, fixed address on a segment";
const HOST: &str = "raw Docker, host network";
const NONE: &str = "raw Docker, no network";
const BRIDGE: &str = "raw Docker, its bridge";
const SWARM: &str = "Docker Swarm";
const LXD: &str = "LXD";
const LAB: &str = "lab: enoki";
const LAB_HOST: &str = "lab: raw Docker, host network, the hosts in turn";

fn main() -> ExitCode {
    if !is_root() {
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("bench-launch: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(&Plan::from_environment())) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench-launch: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all bars are met.
async fn run(plan: &Plan) -> Result<bool> {
    let begun = Instant::now();
    let before = load();
    let mut cut: Vec<String> = plan.cut.iter().map(|text| (*text).to_owned()).collect();
    let tiny = tiny_image()?;

    let cloud = Cloud::bare();
    cloud.write("/etc/enoki/server.toml", hosts::SETTINGS);
    cloud.up();
    cloud.import_tiny();
    let alone = Hosts::one(&cloud).await?;
    ours::Api::new(&cloud).make_networks().await?;
    let idle = (cloud.resident("server"), cloud.resident("agent"));

    let lab = hosts::start_lab();
    let three = Hosts::lab(&lab).await?;
    ours::Api::new(&lab[0]).make_spanning_network().await?;
    let swarm_cloud = Cloud::bare();
    let lxd_cloud = Cloud::bare();
    let mut entries = vec![
        entry(ours::Enoki::new(&alone, ENOKI, false), plan.rounds, false),
        entry(ours::Enoki::new(&alone, FIXED, true), plan.rounds, false),
        entry(raw::Raw::new(&alone, "host", HOST).await?, plan.rounds, false),
        entry(raw::Raw::new(&alone, "none", NONE).await?, plan.rounds, false),
        entry(raw::Raw::new(&alone, "bridge", BRIDGE).await?, plan.rounds, false),
        entry(ours::Enoki::new(&three, LAB, false), plan.rounds, false),
        entry(raw::Raw::new(&three, "host", LAB_HOST).await?, plan.rounds, false),
    ];
    match swarm::Swarm::new(&swarm_cloud).await {
        Ok(swarm) => entries.push(entry(swarm, plan.slow_rounds, true)),
        Err(error) => cut.push(format!("{SWARM}: {error:#}")),
    }
    match lxd::Lxd::new(&lxd_cloud, &tiny).await {
        Ok(lxd) => entries.push(entry(lxd, plan.slow_rounds, true)),
        Err(error) => cut.push(format!("{LXD}: {error:#}")),
    }

    let scores = rounds::run(entries, plan, begun, &mut cut).await?;
    // Their daemons would share the machine with what is left.
    drop(swarm_cloud);
    drop(lxd_cloud);
    drop(lab);
    let docker = alone.turn(0);
    let latencies =
        latency::run(&cloud, docker, plan, plan.samples_end.map(|end| begun + end), &mut cut).await?;
    let after = (cloud.resident("server"), cloud.resident("agent"));
    let memory = [
        Memory { part: "server", idle: idle.0, after: after.0, bar: 80.0 },
        Memory { part: "agent", idle: idle.1, after: after.1, bar: 20.0 },
    ];

    println!("bench-launch, {}: {} starts a cell", plan.title, plan.starts);
    machine::print_conditions(&docker::versions(docker).await?, before);
    let mut verdict = Verdict::default();
    print(&scores, &latencies, &memory, &mut verdict)?;
    let met = verdict.print(&cut, plan.judged);
    println!("\n{:.0} s in all", begun.elapsed().as_secs_f64());
    Ok(met)
}

fn entry<'c>(contender: impl contender::Contender + 'c, rounds: usize, optional: bool) -> Entry<'c> {
    Entry { contender: Box::new(contender), rounds, optional }
}

fn print(
    scores: &[Score],
    latencies: &[latency::Latencies],
    memory: &[Memory],
    verdict: &mut Verdict,
) -> Result<()> {
    let named = |name: &str| scores.iter().find(|score| score.name.starts_with(name));
    let ours = |name: &str| scores.iter().find(|score| score.name == name).context("we are not in the table");
    let peers: Vec<&Score> = [HOST, NONE, BRIDGE, SWARM, LXD].into_iter().filter_map(named).collect();
    let bar = |peer, ratio| Bar { peer, ratio, strict: false };
    let bars =
        [bar(HOST, 0.75), bar(NONE, 1.5), bar(SWARM, 3.0), Bar { peer: LXD, ratio: 1.0, strict: true }];
    report::rates(
        "B1 launch rate: any free address, limits; the floor is raw Docker on the host network",
        ours(ENOKI)?,
        &peers,
        &bars,
        verdict,
    );
    let floor: Vec<&Score> = named(LAB_HOST).into_iter().collect();
    report::rates(
        "B1 over a lab of three hosts, multi-host on one machine: any free address on a network that spans them, limits",
        ours(LAB)?,
        &floor,
        &[],
        verdict,
    );
    report::latencies("B2 added latency of a single start", latencies, &[(0.5, 20.0), (0.99, 60.0)], verdict);
    let bridge: Vec<&Score> = named(BRIDGE).into_iter().collect();
    report::rates(
        "B3 wired start: a fixed address on a segment, against Docker's bridge",
        ours(FIXED)?,
        &bridge,
        &[bar(BRIDGE, 1.5)],
        verdict,
    );
    report::trials(scores);
    report::memory("B7 resident memory on one host", memory, verdict);
    Ok(())
}

/// The tar of the tiny image, built where it is not.
fn tiny_image() -> Result<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/images/tiny.sh");
    let out = Command::new(&script).output().with_context(|| format!("run {}", script.display()))?;
    if !out.status.success() {
        bail!("{}: {}", script.display(), String::from_utf8_lossy(&out.stderr));
    }
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}
