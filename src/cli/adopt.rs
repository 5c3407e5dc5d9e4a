//! Taking orphans back: instances that run on a host and that the store no longer names.

use super::context::{CALL, Context};
use super::failure::{FAILED, Failure};
use super::get::{Found, find_orphans};
use super::output;
use enoki_api::client::{Target, WriteOptions};
use enoki_api::{Kind, Uid};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;

/// Takes back instances that hosts have and the store has lost
#[derive(clap::Args, Debug)]
#[command(after_help = "\
`enoki get orphans` lists them. Adopted instances keep running, with their name, address and disk.

Examples:
  enoki adopt --orphans
  enoki adopt --orphans --uid 6f0c2b0e-5a3f-4c1e-9d0a-2b7c5d8e9f10")]
pub struct Adopt {
    /// Adopt the orphans
    #[arg(long, required = true)]
    orphans: bool,
    /// Only those of this host
    #[arg(long)]
    host: Option<String>,
    /// Only this one (default: all)
    #[arg(long = "uid", value_parser = uid, value_name = "UID")]
    uids: Vec<Uid>,
}

fn uid(text: &str) -> Result<Uid, String> {
    Uid::parse(text).ok_or_else(|| format!("`{text}` is not a uid"))
}

pub async fn adopt(ctx: &Context, args: Adopt) -> Result<(), Failure> {
    let wanted = |found: &Found| {
        args.host.as_ref().is_none_or(|host| *host == found.host)
            && (args.uids.is_empty() || args.uids.contains(&found.orphan.uid))
    };
    let mut found = find_orphans(&ctx.client).await?;
    found.retain(wanted);
    if let Some(missing) = args.uids.iter().find(|uid| !found.iter().any(|f| f.orphan.uid == **uid)) {
        return Err(
            Failure::failed(format!("no orphan has the uid {missing}")).hint("see `enoki get orphans`")
        );
    }
    if found.is_empty() {
        eprintln!("no orphans");
        return Ok(());
    }
    let mut hosts: BTreeMap<&str, Vec<&Uid>> = BTreeMap::new();
    for found in &found {
        hosts.entry(&found.host).or_default().push(&found.orphan.uid);
    }
    let mut refused = false;
    for (host, uids) in hosts {
        // Without uids all of a host are taken, also one that came up since the list was read.
        let body = if args.uids.is_empty() { json!({}) } else { json!({"uids": uids}) };
        let target = Target::object(Kind::Host, None, host).join("orphans");
        let answer = ctx.client.action(target, "adopt", Some(&body), &WriteOptions::default(), CALL).await?;
        let outcome: Outcome = answer.decode()?;
        for one in outcome.adopted {
            output::line(format!("instance {} adopted", one.name))?;
        }
        for one in outcome.refused {
            eprintln!("error: instance {} stays an orphan: {}", one.name, one.reason);
            refused = true;
        }
    }
    if refused { Err(Failure::silent(FAILED)) } else { Ok(()) }
}

/// What became of each.
#[derive(Deserialize)]
struct Outcome {
    #[serde(default)]
    adopted: Vec<One>,
    #[serde(default)]
    refused: Vec<One>,
}

#[derive(Deserialize)]
struct One {
    /// `PROJECT/NAME`.
    name: String,
    #[serde(default)]
    reason: String,
}
