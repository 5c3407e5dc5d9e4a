//! `enoki top`: what instances use right now, from two samples a moment apart.

use super::context::{CALL, Context};
use super::failure::Failure;
use super::output::{self, Format};
use super::table;
use enoki_api::client::{ListOptions, Target};
use enoki_api::instance::InstanceSpec;
use enoki_api::list::List;
use enoki_api::quantity::{Bytes, Span};
use enoki_api::{Instance, Kind};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::IsTerminal;

/// Shows what instances use
#[derive(clap::Args, Debug)]
#[command(after_help = "\
CPU is in hundredths of one CPU: 150% is one and a half.

Examples:
  enoki top
  enoki top --watch --interval 5s")]
pub struct Top {
    /// Go on until Ctrl-C
    #[arg(short, long)]
    watch: bool,
    /// Between two samples
    #[arg(long, default_value = "1s", value_name = "DURATION")]
    interval: Span,
}

/// The counters of one instance at one moment.
#[derive(Clone, Debug, Deserialize)]
struct Sample {
    name: String,
    uid: String,
    /// Nanoseconds of CPU time since it started.
    cpu_usage_ns: u64,
    memory_bytes: u64,
    #[serde(default)]
    pids: u64,
    /// Since it started.
    #[serde(default)]
    read_bytes: u64,
    #[serde(default)]
    write_bytes: u64,
    at: Timestamp,
}

/// What an instance used between two samples.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Usage {
    name: String,
    /// Of one CPU.
    cpu_percent: f64,
    memory_bytes: u64,
    memory_limit: Option<u64>,
    pids: u64,
    read_bytes_per_second: u64,
    write_bytes_per_second: u64,
}

pub async fn top(ctx: &Context, args: Top) -> Result<(), Failure> {
    if args.interval < Span(100) {
        return Err(Failure::usage("--interval is at least 100ms"));
    }
    let mut before = sample(ctx).await?;
    loop {
        tokio::time::sleep(args.interval.duration()).await;
        let now = sample(ctx).await?;
        let list: List<Instance> =
            ctx.client.list::<InstanceSpec>(Some(&ctx.project), &ListOptions::default(), CALL).await?;
        let limits: BTreeMap<&str, Bytes> =
            list.items.iter().filter_map(|i| Some((i.name.as_str(), i.spec.memory?))).collect();
        let usages = usages(&before, &now, &limits);
        if args.watch && std::io::stdout().is_terminal() && ctx.format == Format::Table {
            // Home, and clear what is below.
            output::text("\x1b[H\x1b[J")?;
        }
        print(ctx, &usages)?;
        if !args.watch {
            return Ok(());
        }
        before = now;
    }
}

async fn sample(ctx: &Context) -> Result<Vec<Sample>, Failure> {
    // Stands beside the kinds of the project.
    let target = Target::object(Kind::Project, None, &ctx.project).join("stats");
    let answer = ctx.client.read(&target, CALL).await?;
    answer.body["items"].as_array().into_iter().flatten().map(table::decode).collect()
}

/// Only instances that are in both samples and were not started anew in between.
fn usages(before: &[Sample], now: &[Sample], limits: &BTreeMap<&str, Bytes>) -> Vec<Usage> {
    let mut usages = Vec::new();
    for new in now {
        let Some(old) = before.iter().find(|old| old.uid == new.uid && old.cpu_usage_ns <= new.cpu_usage_ns)
        else {
            continue;
        };
        let elapsed = new.at.duration_since(old.at).as_secs_f64();
        let rate = |old: u64, new: u64| {
            if elapsed > 0.0 { new.saturating_sub(old) as f64 / elapsed } else { 0.0 }
        };
        usages.push(Usage {
            name: new.name.clone(),
            cpu_percent: (rate(old.cpu_usage_ns, new.cpu_usage_ns) / 1e9 * 1000.0).round() / 10.0,
            memory_bytes: new.memory_bytes,
            memory_limit: limits.get(new.name.as_str()).map(|limit| limit.0),
            pids: new.pids,
            read_bytes_per_second: rate(old.read_bytes, new.read_bytes) as u64,
            write_bytes_per_second: rate(old.write_bytes, new.write_bytes) as u64,
        });
    }
    usages.sort_by(|a, b| b.cpu_percent.total_cmp(&a.cpu_percent).then_with(|| a.name.cmp(&b.name)));
    usages
}

fn print(ctx: &Context, usages: &[Usage]) -> Result<(), Failure> {
    let list = json!({"items": usages});
    match ctx.format {
        Format::Json => return output::json(&list),
        Format::Yaml => return output::yaml(&list),
        Format::Name => return usages.iter().try_for_each(|u| output::line(format!("instance/{}", u.name))),
        Format::Table | Format::Wide => {}
    }
    if usages.is_empty() {
        eprintln!("no instance runs in project {}", ctx.project);
        return Ok(());
    }
    let size = |bytes| table::size(Bytes(bytes));
    let row = |u: &Usage| {
        vec![
            u.name.clone(),
            format!("{:.1}%", u.cpu_percent),
            match u.memory_limit {
                Some(limit) => format!("{}/{}", size(u.memory_bytes), Bytes(limit)),
                None => size(u.memory_bytes),
            },
            u.pids.to_string(),
            format!("{}/s", size(u.read_bytes_per_second)),
            format!("{}/s", size(u.write_bytes_per_second)),
        ]
    };
    output::table(&["NAME", "CPU", "MEMORY", "PIDS", "READ", "WRITE"], usages.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_come_from_two_samples() {
        let sample = |uid: &str, cpu: u64, written: u64, second: i64| Sample {
            name: uid.into(),
            uid: uid.into(),
            cpu_usage_ns: cpu,
            memory_bytes: 5,
            pids: 2,
            read_bytes: 0,
            write_bytes: written,
            at: Timestamp::from_second(second).unwrap(),
        };
        let before = [sample("a", 1_000_000_000, 10, 100), sample("restarted", 9, 0, 100)];
        let now =
            [sample("a", 2_000_000_000, 30, 102), sample("restarted", 5, 0, 102), sample("new", 5, 0, 102)];
        let usages = usages(&before, &now, &BTreeMap::from([("a", Bytes(99))]));
        assert_eq!(usages.len(), 1);
        assert_eq!((usages[0].cpu_percent, usages[0].write_bytes_per_second), (50.0, 10));
        assert_eq!(usages[0].memory_limit, Some(99));
    }
}
