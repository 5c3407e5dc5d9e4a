//! Limits on the command line: the flags that `run` and `resize` share, and `resize` itself.

use super::context::{CALL, Context};
use super::failure::Failure;
use super::table;
use super::wait::{Waiting, standing};
use enoki_api::client::WriteOptions;
use enoki_api::instance::{CpuSet, LimitsState, Phase, RunState};
use enoki_api::quantity::{Bytes, MilliCpu, Span};
use enoki_api::{Instance, Kind};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::str::FromStr;

/// A limit as it is typed: a value, or `none` for no limit.
#[derive(Clone, Debug, PartialEq)]
pub enum Limit<T> {
    None,
    At(T),
}

impl<T: FromStr> FromStr for Limit<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        if text == "none" { Ok(Limit::None) } else { text.parse().map(Limit::At) }
    }
}

impl<T: Serialize> Limit<T> {
    /// For a merge-patch: `null` removes.
    fn json(&self) -> Value {
        match self {
            Limit::None => Value::Null,
            Limit::At(value) => json!(value),
        }
    }
}

#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Limits (`none`: no limit)")]
pub struct LimitFlags {
    /// CPU time, up to three decimals: 0.5, 2
    #[arg(long, value_name = "N")]
    cpus: Option<Limit<MilliCpu>>,
    /// The CPUs it may run on: 0-1,3
    #[arg(long, value_name = "LIST")]
    cpuset: Option<Limit<CpuSet>>,
    /// Memory: 512Mi, 2G
    #[arg(long, value_name = "BYTES")]
    memory: Option<Limit<Bytes>>,
    /// Swap on top of memory
    #[arg(long, value_name = "BYTES")]
    swap: Option<Limit<Bytes>>,
    /// Processes and threads
    #[arg(long, value_name = "N")]
    pids: Option<Limit<u64>>,
    /// Size of the root disk; it only grows
    #[arg(long, value_name = "BYTES")]
    disk_size: Option<Limit<Bytes>>,
    /// Bytes read a second: 20MiB
    #[arg(long, value_name = "BYTES")]
    disk_read_bps: Option<Limit<Bytes>>,
    /// Bytes written a second
    #[arg(long, value_name = "BYTES")]
    disk_write_bps: Option<Limit<Bytes>>,
    /// Read operations a second
    #[arg(long, value_name = "N")]
    disk_read_iops: Option<Limit<u64>>,
    /// Write operations a second
    #[arg(long, value_name = "N")]
    disk_write_iops: Option<Limit<u64>>,
}

impl LimitFlags {
    /// The limits that were given, as a merge-patch of a spec.
    pub fn patch(&self) -> Map<String, Value> {
        let mut patch = Map::new();
        set(&mut patch, "cpus", &self.cpus);
        set(&mut patch, "cpuset", &self.cpuset);
        set(&mut patch, "memory", &self.memory);
        set(&mut patch, "swap", &self.swap);
        set(&mut patch, "pids", &self.pids);
        set(&mut patch, "disk_size", &self.disk_size);
        let mut disk = Map::new();
        set(&mut disk, "read_bps", &self.disk_read_bps);
        set(&mut disk, "write_bps", &self.disk_write_bps);
        set(&mut disk, "read_iops", &self.disk_read_iops);
        set(&mut disk, "write_iops", &self.disk_write_iops);
        if !disk.is_empty() {
            patch.insert("disk".into(), disk.into());
        }
        patch
    }
}

/// Adds what was given.
pub fn set<T: Serialize>(patch: &mut Map<String, Value>, field: &str, limit: &Option<Limit<T>>) {
    if let Some(limit) = limit {
        patch.insert(field.into(), limit.json());
    }
}

/// Changes the limits of a running instance, without a restart
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Waits until the new limits hold: exit code 0. Where the host has no room for them the old ones stay: exit code 1,
with the reason. 3 when it is not settled in time.

Examples:
  enoki resize web1 --cpus 1.5 --memory 512Mi
  enoki resize web1 --disk-write-bps none")]
pub struct Resize {
    /// The instance
    name: String,
    #[command(flatten)]
    limits: LimitFlags,
    /// Return as soon as the request is accepted
    #[arg(long, conflicts_with = "timeout")]
    no_wait: bool,
    /// How long to wait
    #[arg(long, default_value = "60s", value_name = "DURATION")]
    timeout: Span,
    /// Only tell whether it would fit
    #[arg(long)]
    dry_run: bool,
}

pub async fn resize(ctx: &Context, args: Resize) -> Result<(), Failure> {
    let patch = args.limits.patch();
    if patch.is_empty() {
        return Err(Failure::usage("no limit is given").hint("for example --memory 512Mi"));
    }
    let target = ctx.object(Kind::Instance, &args.name);
    let options = WriteOptions { dry_run: args.dry_run, ..Default::default() };
    let answer = ctx.client.patch(target, &json!({"spec": patch}), &options, CALL).await?;
    if args.dry_run {
        return super::plan::show(ctx, Kind::Instance, &args.name, "resized", &answer.body);
    }
    if args.no_wait {
        return ctx.done(Kind::Instance, &args.name, "resize accepted", &answer.body);
    }
    let waiting = Waiting::begin(args.timeout, format!("instance/{}: resizing", args.name));
    let wanted: Instance = table::decode(&answer.body)?;
    let mut object = answer.body;
    loop {
        let seen: Instance = table::decode(&object)?;
        match settled(&seen, wanted.generation) {
            Some(Settled::Applied) => return ctx.done(Kind::Instance, &args.name, "resized", &object),
            Some(Settled::AtNextStart) => {
                return ctx.done(
                    Kind::Instance,
                    &args.name,
                    "resized; it holds from the next start",
                    &object,
                );
            }
            Some(Settled::Infeasible(why)) => {
                let failure = Failure::failed(format!("instance/{} keeps its old limits: {why}", args.name));
                return Err(failure.hint("`enoki describe` shows what was asked and what holds"));
            }
            None => {
                let limits = &seen.status.limits;
                let why = limits.reason.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
                waiting.pause(format!("{}; limits {}{why}", standing(&seen), limits.state)).await?;
            }
        }
        object = waiting.look(ctx, Kind::Instance, &args.name).await?.unwrap_or(object);
    }
}

enum Settled {
    Applied,
    AtNextStart,
    Infeasible(String),
}

fn settled(seen: &Instance, generation: u64) -> Option<Settled> {
    let limits = &seen.status.limits;
    if seen.status.observed_generation < generation {
        return None;
    }
    match limits.state {
        LimitsState::Infeasible => {
            Some(Settled::Infeasible(limits.reason.clone().unwrap_or_else(|| "the host has no room".into())))
        }
        // What does not run has no limits to be changed.
        _ if seen.spec.state == RunState::Stopped && seen.status.phase == Phase::Stopped => {
            Some(Settled::AtNextStart)
        }
        LimitsState::Applied => Some(Settled::Applied),
        LimitsState::Pending | LimitsState::Deferred | LimitsState::Unknown => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        limits: LimitFlags,
    }

    #[test]
    fn only_what_is_given_is_patched() {
        let line = Line::parse_from(["x", "--cpus", "1.5", "--memory", "none", "--disk-write-bps", "1MiB"]);
        assert_eq!(
            Value::from(line.limits.patch()),
            json!({"cpus": "1.5", "memory": null, "disk": {"write_bps": "1Mi"}})
        );
        assert!(Line::try_parse_from(["x", "--memory", "1Gx"]).is_err());
        assert!(Line::parse_from(["x"]).limits.patch().is_empty());
    }
}
