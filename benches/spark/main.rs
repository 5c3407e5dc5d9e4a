//! `make bench-spark`: B14, compute clusters with the real Apache Spark, beside the same containers by raw Docker.
//! docs/benchmarks.md says what is measured and how; FULL=1 runs the whole, SMOKE=1 shows in minutes that it works.
//!
//! Everything runs in one cloud of its own, which is gone at the end whatever happens. Exit codes: 0 all bars are met, 1 one
//! was missed or something did not work.

#[path = "../shared/docker.rs"]
mod docker;
#[path = "../shared/machine.rs"]
mod machine;
mod ours;
mod plan;
mod pool;
mod raw;
mod report;
#[path = "../shared/table.rs"]
mod table;
mod timeline;
#[path = "../../tests/support/within.rs"]
mod within;

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use enoki_api::image::Image;
use enoki_harness::{Cloud, is_root};
use tokio::runtime::{Builder, Handle};

use machine::{Meter, load};
use ours::{Api, VERSION};
use plan::Plan;
use pool::Pool;
use raw::Raw;
use report::Score;
use table::Verdict;

/// What takes part in a start, beside what these start themselves.
const PARTS: [&str; 6] = ["supervisor", "server", "agent", "etcd", "containerd", "dockerd"];
/// CPUs may be granted many times over: how fast clusters come is measured, not how many this machine has room for.
const SETTINGS: &str = "cpu_overcommit = 100.0\n";

fn main() -> ExitCode {
    if !is_root() {
        return ExitCode::FAILURE;
    }
    match prepared(&Plan::from_environment()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench-spark: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all bars are met.
fn prepared(plan: &Plan) -> Result<bool> {
    let before = load();
    // Where every machine has the same folder, and no test cloud one of its own.
    fs::create_dir_all("/srv")?;
    let shared =
        tempfile::Builder::new().prefix("enoki-bench-").tempdir_in("/srv").context("a folder in /srv")?;
    let cloud = Cloud::bare();
    cloud.write("/etc/enoki/server.toml", SETTINGS);
    cloud.up();
    eprintln!("giving the cloud the image of Spark {VERSION}");
    cloud.import_spark(VERSION);
    // An image that had to be built takes nothing of the time that is planned.
    let begun = Instant::now();
    let inside = within::runtime_in(&cloud)?;
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(plan, &cloud, inside.handle().clone(), shared.path(), begun, before))
}

async fn run(
    plan: &Plan,
    cloud: &Cloud,
    inside: Handle,
    shared: &Path,
    begun: Instant,
    before: f64,
) -> Result<bool> {
    let mut cut: Vec<String> = plan.cut.iter().map(|text| (*text).to_owned()).collect();
    let api = Api::new(cloud);
    let docker = docker::connect(cloud).await?;
    let meter = Meter::start(cloud, &PARTS)?;
    let pool = Pool { cloud, api: &api, plan, shared };
    pool.prepare()?;

    // The first of each warms everything up, the image's files among it, and is thrown away.
    eprintln!("a first cluster, which is not counted");
    api.make(plan.workers, plan.workers, plan.idle).await?;
    let image: Image = api.0.get(None, &format!("enoki/spark:{VERSION}"), docker::DEADLINE).await?;
    let by_hand = Raw::of(cloud, &api, inside, plan.workers).await?;
    api.remove(&docker).await?;
    by_hand.make().await?;
    by_hand.remove().await?;

    let (mut ours, mut theirs) = (Score::new("enoki"), Score::new("raw Docker, its bridge"));
    let mut longest = Duration::ZERO;
    for round in 0..plan.rounds {
        let round_begun = Instant::now();
        if plan.rounds_end.is_some_and(|end| round > 0 && begun.elapsed() + longest > end) {
            cut.push(format!("clusters {} to {}: out of time", round + 1, plan.rounds));
            break;
        }
        eprintln!("cluster {} of {}", round + 1, plan.rounds);
        let spent = meter.seconds()?;
        let took = api.make(plan.workers, plan.workers, plan.idle).await?;
        ours.add(took, meter.seconds()? - spent);
        api.remove(&docker).await?;
        let spent = meter.seconds()?;
        let took = by_hand.make().await?;
        theirs.add(took, meter.seconds()? - spent);
        by_hand.remove().await?;
        longest = longest.max(round_begun.elapsed());
    }

    api.make(1, pool.most(), plan.idle).await?;
    let mut rounds = Vec::new();
    let mut longest = Duration::ZERO;
    for round in 0..plan.pools {
        let round_begun = Instant::now();
        if plan.pools_end.is_some_and(|end| round > 0 && begun.elapsed() + longest > end) {
            cut.push(format!("pools {} to {}: out of time", round + 1, plan.pools));
            break;
        }
        eprintln!("pool {} of {}", round + 1, plan.pools);
        rounds.push(pool.round().await?);
        longest = longest.max(round_begun.elapsed());
    }
    api.remove(&docker).await?;

    println!("bench-spark, {}: Spark {VERSION}, a master and {} workers", plan.title, plan.workers);
    machine::print_conditions(&docker::versions(&docker).await?, before);
    let megabytes = image.spec.size.0 as f64 / 1e6;
    println!("  {:8} {megabytes:.0} MB, on its host before the first cluster", "image");
    let mut verdict = Verdict::default();
    report::ready(plan, &ours, &theirs, &mut verdict);
    report::grown(&rounds, plan, &mut verdict);
    report::shrunk(&rounds, plan, &mut verdict);
    report::kept(&rounds);
    let met = verdict.print(&cut, plan.judged);
    println!("\n{:.0} s since the image was there", begun.elapsed().as_secs_f64());
    Ok(met)
}
