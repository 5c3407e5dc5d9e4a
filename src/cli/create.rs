//! Making networks, volumes, secrets and projects from flags.

use super::context::{CALL, Context};
use super::failure::Failure;
use super::quota::QuotaFlags;
use super::run::{Pair, labels};
use super::terminal;
use enoki_api::client::WriteOptions;
use enoki_api::network::Gateway;
use enoki_api::{Kind, Labels};
use ipnet::Ipv4Net;
use serde_json::{Map, Value, json};
use std::io::{self, IsTerminal, Read};
use std::str::FromStr;

/// Networks
#[derive(clap::Subcommand, Debug)]
pub enum NetworkCommand {
    /// Makes a network
    #[command(after_help = "\
Examples:
  enoki network create blue --cidr 198.18.100.0/24
  enoki network create out --cidr 198.18.101.0/24 --gateway host --egress nat
  enoki network create wide --type vxlan --cidr 198.18.102.0/24")]
    Create {
        name: String,
        /// How it spans hosts
        #[arg(long = "type", value_parser = ["local", "vxlan", "vlan"], default_value = "local")]
        kind: String,
        /// The range its addresses are from: 198.18.100.0/24
        #[arg(long)]
        cidr: Ipv4Net,
        /// The number of a vxlan segment (default: the next free one)
        #[arg(long)]
        segment: Option<u32>,
        /// none, host, or the address of a router of yours
        #[arg(long)]
        gateway: Option<Gateway>,
        /// What leaves through a host gateway
        #[arg(long, value_parser = ["none", "routed", "nat"])]
        egress: Option<String>,
        #[command(flatten)]
        make: Make,
    },
}

/// Volumes
#[derive(clap::Subcommand, Debug)]
pub enum VolumeCommand {
    /// Makes a volume
    Create {
        name: String,
        /// Where its bytes are: on one host, or in a folder that every host has
        #[arg(long = "type", value_parser = ["local", "shared"])]
        kind: Option<String>,
        /// The folder of a shared volume
        #[arg(long)]
        path: Option<String>,
        #[command(flatten)]
        make: Make,
    },
}

/// Secrets
#[derive(clap::Subcommand, Debug)]
pub enum SecretCommand {
    /// Makes a secret; its values are sealed and never shown again
    #[command(after_help = "\
A value on the command line is seen by other users of this machine while the command runs; from a file or stdin
it is not. `-` is stdin: on a terminal the value is asked for and not shown.

Examples:
  enoki secret create db --from-file password=-
  enoki secret create tls --from-file cert=cert.pem --from-file key=key.pem
  enoki secret create web --from-literal token=abc")]
    Create {
        name: String,
        /// A value as it is
        #[arg(long, value_name = "KEY=VALUE")]
        from_literal: Vec<Pair>,
        /// A value from a file, or from stdin (-)
        #[arg(long, value_name = "KEY=PATH")]
        from_file: Vec<Pair>,
        #[command(flatten)]
        make: Make,
    },
}

/// Projects
#[derive(clap::Subcommand, Debug)]
pub enum ProjectCommand {
    /// Makes a project
    Create {
        name: String,
        /// What it is for
        #[arg(long)]
        description: Option<String>,
        #[command(flatten)]
        make: Make,
        // Last: its heading would stand over what follows.
        #[command(flatten)]
        quota: QuotaFlags,
    },
    /// Shows what a project uses of its quota, or changes the quota
    #[command(after_help = "\
A quota counts what specs ask for, whether it runs or not. One below what is used stops growth and nothing else.

Examples:
  enoki project quota shop
  enoki project quota shop --cpus 8 --memory 16Gi --instances 20
  enoki project quota shop --memory none")]
    Quota {
        name: String,
        /// Only tell what would be changed
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        quota: QuotaFlags,
    },
    /// Lists the projects
    List,
}

/// What all of them take.
#[derive(clap::Args, Debug)]
pub struct Make {
    /// A label
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<Pair>,
    /// Only tell whether it could be made
    #[arg(long)]
    dry_run: bool,
}

pub async fn network(ctx: &Context, command: NetworkCommand) -> Result<(), Failure> {
    let NetworkCommand::Create { name, kind, cidr, segment, gateway, egress, make } = command;
    let mut spec = json!({"type": kind, "cidr": cidr});
    set(&mut spec, "segment", segment.map(|segment| json!(segment)));
    set(&mut spec, "gateway", gateway.map(|gateway| json!(gateway)));
    set(&mut spec, "egress", egress.map(|egress| json!(egress)));
    create(ctx, Kind::Network, &name, spec, &make).await
}

pub async fn volume(ctx: &Context, command: VolumeCommand) -> Result<(), Failure> {
    let VolumeCommand::Create { name, kind, path, make } = command;
    let mut spec = json!({});
    set(&mut spec, "type", kind.map(|kind| json!(kind)));
    set(&mut spec, "path", path.map(|path| json!(path)));
    create(ctx, Kind::Volume, &name, spec, &make).await
}

pub async fn secret(ctx: &Context, command: SecretCommand) -> Result<(), Failure> {
    let SecretCommand::Create { name, from_literal, from_file, make } = command;
    let mut data = labels(&from_literal);
    for Pair(key, path) in &from_file {
        let value = secret_value(key, path)?;
        data.insert(key.clone(), json!(value));
    }
    if data.len() < from_literal.len() + from_file.len() {
        return Err(Failure::usage("a key is given twice"));
    }
    create(ctx, Kind::Secret, &name, json!({"data": data}), &make).await
}

fn secret_value(key: &str, path: &str) -> Result<String, Failure> {
    let bytes = if path != "-" {
        std::fs::read(path).map_err(|error| Failure::io(path, error))?
    } else if io::stdin().is_terminal() {
        return terminal::ask_hidden(&format!("{key}: "));
    } else {
        let mut bytes = Vec::new();
        io::stdin().read_to_end(&mut bytes).map_err(|error| Failure::io("stdin", error))?;
        bytes
    };
    String::from_utf8(bytes).map_err(|_| {
        Failure::failed(format!("the value of {key} is not text in UTF-8"))
            .hint("encode it, as base64 for instance")
    })
}

pub async fn project(ctx: &Context, command: ProjectCommand) -> Result<(), Failure> {
    match command {
        ProjectCommand::Create { name, description, make, quota } => {
            let mut spec = json!({});
            set(&mut spec, "description", description.map(|text| json!(text)));
            set(&mut spec, "quota", Some(quota.patch()).filter(|quota| !quota.is_empty()).map(Value::from));
            create(ctx, Kind::Project, &name, spec, &make).await
        }
        ProjectCommand::Quota { name, dry_run, quota } => {
            super::quota::quota(ctx, &name, &quota, dry_run).await
        }
        ProjectCommand::List => list(ctx, Kind::Project).await,
    }
}

/// The list of a kind, as `get KIND` prints it.
pub async fn list(ctx: &Context, kind: Kind) -> Result<(), Failure> {
    let answer = ctx.client.read_list(&ctx.kind(kind), &Default::default(), CALL).await?;
    ctx.show_list(kind, &answer.body)
}

fn set(spec: &mut Value, field: &str, value: Option<Value>) {
    if let Some(value) = value {
        spec[field] = value;
    }
}

async fn create(ctx: &Context, kind: Kind, name: &str, spec: Value, make: &Make) -> Result<(), Failure> {
    let labels: Labels = make.labels.iter().map(|Pair(key, value)| (key.clone(), value.clone())).collect();
    let mut draft = Map::new();
    draft.insert("kind".into(), json!(kind));
    draft.insert("name".into(), json!(name));
    if !labels.is_empty() {
        draft.insert("labels".into(), json!(labels));
    }
    draft.insert("spec".into(), spec);
    let options = WriteOptions { dry_run: make.dry_run, ..Default::default() };
    let answer = ctx.client.create_value(ctx.kind(kind), &draft.into(), &options, CALL).await?;
    if make.dry_run {
        return super::plan::show(ctx, kind, name, "created", &answer.body);
    }
    ctx.done(kind, name, "created", &answer.body)
}

/// A moment on the command line: `10m` ago, or an RFC 3339 time.
pub fn moment(text: &str) -> Result<jiff::Timestamp, String> {
    if let Ok(span) = enoki_api::quantity::Span::from_str(text) {
        let ago = span.signed();
        return jiff::Timestamp::now()
            .checked_sub(ago)
            .map_err(|_| format!("`{text}` ago is before all time"));
    }
    text.parse().map_err(|_| {
        format!("`{text}` is neither a duration, as in 10m, nor a time, as in 2026-01-31T12:00:00Z")
    })
}
