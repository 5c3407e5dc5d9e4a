//! `enoki run`: an instance from flags.

use super::context::{CALL, Context};
use super::failure::Failure;
use super::limits::LimitFlags;
use super::wait::Waiting;
use enoki_api::client::WriteOptions;
use enoki_api::instance::Phase;
use enoki_api::quantity::Span;
use enoki_api::{Kind, merge};
use serde_json::{Map, Value, json};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

/// Makes an instance and starts it
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Without a command the image's own runs; without either the machine stays up with its init alone.

Examples:
  enoki run web1 --image enoki/debian:12 --wait
  enoki run web1 --image enoki/debian:12 --cpus 0.5 --memory 256Mi --network blue --address 198.18.100.10
  enoki run db1 --image enoki/debian:12 --network blue:198.18.100.11 --network back \\
        --volume data:/var/lib/db --env TZ=UTC --env-secret PASSWORD=db/password
  enoki run job1 --image enoki/debian:12 --restart never -- sh -c 'make all'")]
pub struct Run {
    /// Its name: 1-63 of a-z, 0-9 and -
    name: String,
    /// The image, under exactly the name that Docker or `image import` gave it
    #[arg(long)]
    image: String,
    #[command(flatten)]
    limits: LimitFlags,
    #[command(flatten)]
    machine: Machine,
    #[command(flatten)]
    placement: PlacementFlags,
    /// Wait until it runs
    #[arg(long)]
    wait: bool,
    /// How long to wait
    #[arg(long, default_value = "60s", value_name = "DURATION")]
    timeout: Span,
    /// Only tell where it would go
    #[arg(long)]
    dry_run: bool,
    /// What runs in it, instead of the image's own command
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Machine")]
struct Machine {
    /// A network, perhaps with an address on it: the first is eth0, the next eth1 (default: `default`)
    #[arg(long = "network", value_name = "NETWORK[:ADDRESS]")]
    networks: Vec<NetworkFlag>,
    /// The address on the first network (default: the next free one)
    #[arg(long, value_name = "ADDRESS")]
    address: Option<Ipv4Addr>,
    /// A variable of its environment
    #[arg(long, value_name = "KEY=VALUE")]
    env: Vec<Pair>,
    /// A variable whose value is a key of a secret
    #[arg(long, value_name = "KEY=SECRET/KEY")]
    env_secret: Vec<Pair>,
    /// A volume and where it is mounted
    #[arg(long = "volume", value_name = "VOLUME:PATH[:ro]")]
    volumes: Vec<VolumeFlag>,
    /// Its host name (default: its name)
    #[arg(long)]
    hostname: Option<String>,
    /// What happens when its command ends by itself
    #[arg(long, value_enum)]
    restart: Option<Restart>,
    /// How long a stop waits before it kills (default: 10s)
    #[arg(long, value_name = "DURATION")]
    stop_grace: Option<Span>,
    /// A script that runs once as root at first boot
    #[arg(long, value_name = "FILE")]
    user_data: Option<PathBuf>,
}

#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Placement")]
struct PlacementFlags {
    /// A label of its own
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<Pair>,
    /// Only hosts with this label
    #[arg(long, value_name = "KEY=VALUE")]
    require: Vec<Pair>,
    /// No host with this label, or with an instance that has it
    #[arg(long, value_name = "KEY=VALUE")]
    avoid: Vec<Pair>,
    /// Even over the hosts, or as few hosts as possible
    #[arg(long, value_enum)]
    strategy: Option<Strategy>,
    /// Placed first when room is short: higher wins
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    priority: Option<i32>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum Restart {
    Always,
    #[value(alias = "on-failure")]
    OnFailure,
    Never,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum Strategy {
    Spread,
    #[value(alias = "bin-pack", alias = "binpack")]
    BinPack,
}

/// The name of a choice, as the API writes it.
fn choice<T: clap::ValueEnum>(value: &T) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// `KEY=VALUE`.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair(pub String, pub String);

impl FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Pair(key.to_owned(), value.to_owned())),
            // What was typed may be a secret: it is not repeated.
            _ => Err("this is not KEY=VALUE".into()),
        }
    }
}

/// Labels from pairs.
pub fn labels(pairs: &[Pair]) -> Map<String, Value> {
    pairs.iter().map(|Pair(key, value)| (key.clone(), json!(value))).collect()
}

#[derive(Clone, Debug)]
struct NetworkFlag {
    network: String,
    address: Option<Ipv4Addr>,
}

impl FromStr for NetworkFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((network, address)) = text.split_once(':') else {
            return Ok(NetworkFlag { network: text.to_owned(), address: None });
        };
        let address =
            address.parse().map_err(|_| format!("`{address}` is not an address, as in 198.18.0.2"))?;
        Ok(NetworkFlag { network: network.to_owned(), address: Some(address) })
    }
}

#[derive(Clone, Debug)]
pub struct VolumeFlag {
    volume: String,
    path: String,
    read_only: bool,
}

impl FromStr for VolumeFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let (volume, path, read_only) = match parts.as_slice() {
            [volume, path] | [volume, path, "rw"] => (volume, path, false),
            [volume, path, "ro"] => (volume, path, true),
            _ => return Err(format!("`{text}` is not VOLUME:PATH or VOLUME:PATH:ro")),
        };
        Ok(VolumeFlag { volume: (*volume).to_owned(), path: (*path).to_owned(), read_only })
    }
}

pub async fn run(ctx: &Context, args: Run) -> Result<(), Failure> {
    let draft = draft(&args)?;
    let waiting =
        args.wait.then(|| Waiting::begin(args.timeout, format!("instance/{}: starting", args.name)));
    let mut options = match &waiting {
        Some(waiting) => waiting.with_write("running"),
        None => WriteOptions::default(),
    };
    options.dry_run = args.dry_run;
    let answer = ctx.client.create_value(ctx.kind(Kind::Instance), &draft, &options, CALL).await?;
    if args.dry_run {
        return super::plan::show(ctx, Kind::Instance, &args.name, "created", &answer.body);
    }
    match waiting {
        None => ctx.done(Kind::Instance, &args.name, "created", &answer.body),
        Some(waiting) => {
            let object = waiting.for_phase(ctx, answer, Phase::Running).await?;
            ctx.done(Kind::Instance, &args.name, "running", &object)
        }
    }
}

/// What was given, and nothing else: the server fills in what is left out.
fn draft(args: &Run) -> Result<Value, Failure> {
    let mut spec = json!({"image": args.image});
    merge::merge_patch(&mut spec, &args.limits.patch().into());
    let machine = &args.machine;
    let mut set = |field: &str, value: Option<Value>| {
        if let Some(value) = value {
            spec[field] = value;
        }
    };
    set("command", (!args.command.is_empty()).then(|| json!(args.command)));
    set("hostname", machine.hostname.as_ref().map(|name| json!(name)));
    set("nics", nics(machine)?);
    set("mounts", mounts(&machine.volumes)?);
    set("env", env(machine)?);
    set("restart", machine.restart.as_ref().map(|restart| json!(choice(restart))));
    set("stop_grace", machine.stop_grace.map(|grace| json!(grace)));
    set("priority", args.placement.priority.map(|priority| json!(priority)));
    set("placement", placement(&args.placement));
    if let Some(path) = &machine.user_data {
        let script = std::fs::read_to_string(path).map_err(|error| Failure::io(path.display(), error))?;
        set("user_data", Some(json!(script)));
    }
    let mut draft = json!({"kind": "instance", "name": args.name, "spec": spec});
    if !args.placement.labels.is_empty() {
        draft["labels"] = labels(&args.placement.labels).into();
    }
    Ok(draft)
}

fn nics(machine: &Machine) -> Result<Option<Value>, Failure> {
    let mut networks = machine.networks.clone();
    if let Some(address) = machine.address {
        if networks.is_empty() {
            networks
                .push(NetworkFlag { network: enoki_api::instance::DEFAULT_NETWORK.into(), address: None });
        }
        if networks[0].address.is_some_and(|other| other != address) {
            return Err(Failure::usage(
                "--address and --network give the first interface different addresses",
            ));
        }
        networks[0].address = Some(address);
    }
    if networks.is_empty() {
        return Ok(None);
    }
    let mut nics = Map::new();
    for (number, flag) in networks.iter().enumerate() {
        let mut nic = json!({"network": flag.network});
        if let Some(address) = flag.address {
            nic["address"] = json!(address);
        }
        nics.insert(format!("eth{number}"), nic);
    }
    Ok(Some(nics.into()))
}

/// Mounts from flags.
pub fn mounts(volumes: &[VolumeFlag]) -> Result<Option<Value>, Failure> {
    let mut mounts = Map::new();
    for flag in volumes {
        let mut mount = json!({"volume": flag.volume});
        if flag.read_only {
            mount["read_only"] = json!(true);
        }
        if mounts.insert(flag.path.clone(), mount).is_some() {
            return Err(Failure::usage(format!("two volumes at {}", flag.path)));
        }
    }
    Ok((!mounts.is_empty()).then(|| mounts.into()))
}

fn env(machine: &Machine) -> Result<Option<Value>, Failure> {
    let mut env = labels(&machine.env);
    for Pair(key, from) in &machine.env_secret {
        let (secret, part) = from
            .split_once('/')
            .ok_or_else(|| Failure::usage(format!("--env-secret {key}: `{from}` is not SECRET/KEY")))?;
        env.insert(key.clone(), json!({"secret": secret, "key": part}));
    }
    Ok((!env.is_empty()).then(|| env.into()))
}

fn placement(flags: &PlacementFlags) -> Option<Value> {
    let rules = |pairs: &[Pair]| {
        json!(pairs.iter().map(|Pair(key, value)| format!("{key}={value}")).collect::<Vec<_>>())
    };
    let mut placement = Map::new();
    if let Some(strategy) = &flags.strategy {
        placement.insert("strategy".into(), json!(choice(strategy)));
    }
    if !flags.require.is_empty() {
        placement.insert("require".into(), rules(&flags.require));
    }
    if !flags.avoid.is_empty() {
        placement.insert("avoid".into(), rules(&flags.avoid));
    }
    (!placement.is_empty()).then(|| placement.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use enoki_api::instance::InstanceSpec;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        run: Run,
    }

    fn spec(words: &str) -> Result<Value, Failure> {
        let words = ["x", "web1", "--image", "a"].into_iter().chain(words.split_whitespace());
        draft(&Line::parse_from(words).run).map(|draft| draft["spec"].clone())
    }

    #[test]
    fn flags_become_a_spec_that_the_contract_takes() {
        let spec = spec(
            "--cpus 0.5 --memory none --network blue:198.18.100.10 --network back --env A=b=c \
             --env-secret P=db/pw --volume data:/data:ro --restart on-failure --stop-grace 5s \
             --require zone=a --avoid tier=db --strategy bin_pack --priority -3 -- sleep -1",
        )
        .unwrap();
        assert_eq!(
            spec,
            json!({
                "image": "a", "cpus": "0.5", "command": ["sleep", "-1"], "priority": -3,
                "nics": {"eth0": {"network": "blue", "address": "198.18.100.10"}, "eth1": {"network": "back"}},
                "env": {"A": "b=c", "P": {"secret": "db", "key": "pw"}},
                "mounts": {"/data": {"volume": "data", "read_only": true}},
                "restart": "on_failure", "stop_grace": "5s",
                "placement": {"strategy": "bin_pack", "require": ["zone=a"], "avoid": ["tier=db"]},
            })
        );
        enoki_api::decode::strict_value::<InstanceSpec>(spec).unwrap();
    }

    #[test]
    fn an_address_alone_is_on_the_default_network() {
        assert_eq!(
            spec("--address 198.18.0.9").unwrap()["nics"],
            json!({"eth0": {"network": "default", "address": "198.18.0.9"}})
        );
        assert!(spec("--network a:198.18.0.1 --address 198.18.0.2").is_err());
        assert!(spec("--volume a:/x --volume b:/x").is_err());
    }
}
