//! `enoki audit`: who changed what, as far as the server was asked that this talks to.

use super::context::{CALL, Context};
use super::create::moment;
use super::failure::Failure;
use super::output::{self, Format};
use super::table::{decode, text};
use enoki_api::audit::AuditEntry;
use enoki_api::client::Target;
use jiff::Timestamp;

/// Shows who changed what: writes, what entered an instance, what was refused
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Each server writes down what it was asked, and shows its own. The newest come last.

Examples:
  enoki audit --since 1h
  enoki audit --actor 'token ci' --path /v1/projects/shop/
  enoki audit --status 403 -o json")]
pub struct Audit {
    /// Not before: 10m ago, or a time as in 2026-01-31T12:00:00Z
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    since: Option<Timestamp>,
    /// Who, as it is written: `uid 0`, `token ci`, `host h2`
    #[arg(long)]
    actor: Option<String>,
    /// How the path begins
    #[arg(long)]
    path: Option<String>,
    /// The status of the answer
    #[arg(long, value_name = "N")]
    status: Option<u16>,
    /// At most so many, the newest
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
}

pub async fn audit(ctx: &Context, args: Audit) -> Result<(), Failure> {
    let mut target = Target::path("/v1/audit").query("limit", &args.limit.to_string());
    let filters = [
        ("since", args.since.map(|since| since.to_string())),
        ("actor", args.actor),
        ("path", args.path),
        ("status", args.status.map(|status| status.to_string())),
    ];
    for (key, value) in filters {
        if let Some(value) = value {
            target = target.query(key, &value);
        }
    }
    let list = ctx.client.read(&target, CALL).await?.body;
    match ctx.format {
        Format::Json => return output::json(&list),
        Format::Yaml => return output::yaml(&list),
        Format::Name => return Err(Failure::usage("what stands in the audit has no names")),
        Format::Table | Format::Wide => {}
    }
    let entries: Vec<AuditEntry> =
        list["items"].as_array().into_iter().flatten().map(decode).collect::<Result<_, _>>()?;
    if entries.is_empty() {
        eprintln!("nothing of that is in the audit");
        return Ok(());
    }
    output::table(&["AT", "ACTOR", "WHAT", "OUTCOME"], entries.iter().map(row).collect())
}

fn row(entry: &AuditEntry) -> Vec<String> {
    let request = entry.method.as_ref().map(|method| format!("{method} {}", text(&entry.path)));
    vec![
        entry.at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        entry.actor.clone(),
        text(&request.or_else(|| entry.what.clone())),
        text(&entry.status.map(|status| status.to_string()).or_else(|| entry.outcome.clone())),
    ]
}
