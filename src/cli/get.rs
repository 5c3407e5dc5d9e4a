//! Reading: get, watch, orphans.

use super::context::{CALL, Context, reference, warn_if_stale};
use super::failure::Failure;
use super::output::{self, Format};
use super::table;
use enoki_api::client::{ChangeKind, Client, ListOptions, Target};
use enoki_api::protocol::Orphan;
use enoki_api::{Code, Kind};
use serde_json::{Value, json};
use std::time::Duration;

/// How long a watch looks for a server that went away.
const PATIENCE: Duration = Duration::from_secs(60);

/// `KIND NAME...` or `KIND/NAME`.
#[derive(clap::Args, Debug)]
pub struct Named {
    /// host, project, network, volume, secret, image, instance, cluster, job, token, operation, event (or their plurals), or KIND/NAME
    #[arg(value_name = "KIND[/NAME]")]
    kind: String,
    /// The names
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

impl Named {
    pub fn resolve(&self) -> Result<(Kind, Vec<String>), Failure> {
        let (kind, mut names) = match self.kind.split_once('/') {
            Some((kind, name)) => (kind, vec![name.to_owned()]),
            None => (self.kind.as_str(), Vec::new()),
        };
        names.extend(self.names.iter().cloned());
        Ok((kind.parse().map_err(Failure::usage)?, names))
    }
}

/// Shows objects: a kind's list, or the named ones
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  enoki get instances                     enoki get hosts -o wide
  enoki get instance web1 -o json         enoki get instances -l tier=web -o name
  enoki get events --for instance/web1    enoki get orphans")]
pub struct Get {
    #[command(flatten)]
    named: Named,
    /// Only objects with these labels: key=value,...
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,
    /// Of `get events`: only those of this object
    #[arg(long = "for", value_name = "KIND/NAME")]
    about: Option<String>,
}

pub async fn get(ctx: &Context, args: Get) -> Result<(), Failure> {
    if matches!(args.named.kind.as_str(), "orphan" | "orphans") {
        return orphans(ctx).await;
    }
    let (kind, names) = args.named.resolve()?;
    if kind == Kind::Event {
        return events(ctx, args.about.as_deref(), &names).await;
    }
    if args.about.is_some() {
        return Err(Failure::usage("--for is of `get events`"));
    }
    if names.is_empty() {
        let options = ListOptions { selector: args.selector, limit: None };
        let answer = ctx.client.read_list(&ctx.kind(kind), &options, CALL).await?;
        warn_if_stale(&answer);
        return ctx.show_list(kind, &answer.body);
    }
    if args.selector.is_some() {
        return Err(Failure::usage("a selector is for a whole list, not for named objects"));
    }
    if let [name] = names.as_slice() {
        return ctx.show(kind, &ctx.read(kind, name).await?);
    }
    let mut items = Vec::new();
    for name in &names {
        items.push(ctx.read(kind, name).await?);
    }
    ctx.show_list(kind, &json!({"items": items, "revision": 0, "continue": null}))
}

async fn events(ctx: &Context, about: Option<&str>, names: &[String]) -> Result<(), Failure> {
    let mut target = Target::kind(Kind::Event, None);
    if let Some(about) = about {
        let (kind, name) = about
            .split_once('/')
            .ok_or_else(|| Failure::usage(format!("`{about}` is not KIND/NAME, as in instance/web1")))?;
        let kind: Kind = kind.parse().map_err(Failure::usage)?;
        target = of_object(ctx, target, kind, name);
    } else {
        if let [name] = names {
            target = target.query("name", name);
        }
        if ctx.project_named {
            target = target.query("project", &ctx.project);
        }
    }
    let mut answer = ctx.client.read_list(&target, &ListOptions::default(), CALL).await?;
    // Without a project that was named: also what happened to hosts.
    if let Some(items) = answer.body["items"].as_array_mut() {
        items.retain(|event| event["project"].is_null() || event["project"] == ctx.project.as_str());
    }
    ctx.show_list(Kind::Event, &answer.body)
}

/// Narrows a list of events to one object's.
pub fn of_object(ctx: &Context, target: Target, kind: Kind, name: &str) -> Target {
    let target = target.query("kind", kind.singular()).query("name", name);
    if kind.in_project() { target.query("project", &ctx.project) } else { target }
}

/// An orphan and the host it is on.
pub struct Found {
    pub host: String,
    pub orphan: Orphan,
    object: Value,
}

/// The orphans of all hosts.
pub async fn find_orphans(client: &Client) -> Result<Vec<Found>, Failure> {
    let hosts = client.read_list(&Target::kind(Kind::Host, None), &ListOptions::default(), CALL).await?;
    let mut found = Vec::new();
    for host in hosts.body["items"].as_array().into_iter().flatten() {
        let host = host["name"].as_str().unwrap_or_default();
        let target = Target::object(Kind::Host, None, host).join("orphans");
        let list = client.read_list(&target, &ListOptions::default(), CALL).await?;
        for item in list.body["items"].as_array().into_iter().flatten() {
            let mut object = item.clone();
            object["host"] = json!(host);
            found.push(Found { host: host.to_owned(), orphan: table::decode(item)?, object });
        }
    }
    Ok(found)
}

async fn orphans(ctx: &Context) -> Result<(), Failure> {
    let found = find_orphans(&ctx.client).await?;
    let list = || json!({"items": found.iter().map(|f| &f.object).collect::<Vec<_>>(), "continue": null});
    match ctx.format {
        Format::Json => output::json(&list()),
        Format::Yaml => output::yaml(&list()),
        Format::Name => found
            .iter()
            .try_for_each(|f| output::line(format!("orphan/{}.{}", f.orphan.project, f.orphan.name))),
        Format::Table | Format::Wide => {
            if found.is_empty() {
                eprintln!("no orphans");
                return Ok(());
            }
            let row = |f: &Found| {
                vec![
                    f.orphan.project.clone(),
                    f.orphan.name.clone(),
                    f.orphan.phase.to_string(),
                    f.host.clone(),
                    if f.orphan.order.is_some() { "yes" } else { "no" }.to_owned(),
                    f.orphan.uid.to_string(),
                ]
            };
            let header = ["PROJECT", "NAME", "PHASE", "HOST", "RECORD", "UID"];
            output::table(&header, found.iter().map(row).collect())?;
            eprintln!("`enoki adopt --orphans` takes them back");
            Ok(())
        }
    }
}

/// Prints changes as they come
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Each line is a change: put or delete, the object, its phase and the store's revision. With -o json each line is
{\"type\", \"revision\", \"object\"}. A broken connection is resumed where it was; Ctrl-C ends it.

Examples:
  enoki watch instances
  enoki watch instances --from 4711 -o json")]
pub struct Watch {
    /// The kind
    kind: Kind,
    /// Changes after this revision (default: from now on)
    #[arg(long, value_name = "REVISION")]
    from: Option<u64>,
}

pub async fn watch(ctx: &Context, args: Watch) -> Result<(), Failure> {
    if args.kind == Kind::Event {
        return Err(Failure::usage("events are listed, not watched").hint("enoki get events"));
    }
    let project = Some(ctx.project.as_str());
    let mut from = match args.from {
        Some(from) => Some(from),
        None => current(ctx, args.kind).await?.1,
    };
    loop {
        let mut watch = ctx.client.watch(args.kind, project, from, PATIENCE);
        let error = loop {
            match watch.next().await {
                Ok(change) => change_line(ctx, args.kind, change.kind, change.revision, &change.object)?,
                Err(error) => break error,
            }
        };
        if error.code() != Some(Code::RevisionCompacted) {
            return Err(error.into());
        }
        eprintln!("the changes in between are gone; this is how things are now");
        let (items, revision) = current(ctx, args.kind).await?;
        for item in &items {
            change_line(ctx, args.kind, ChangeKind::Put, revision, item)?;
        }
        from = revision;
    }
}

/// All objects, and the revision that they show.
async fn current(ctx: &Context, kind: Kind) -> Result<(Vec<Value>, Option<u64>), Failure> {
    let mut list = ctx.client.read_list(&ctx.kind(kind), &ListOptions::default(), CALL).await?;
    let revision = list.body["revision"].as_u64();
    let items = list.body["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
    Ok((items, revision))
}

fn change_line(
    ctx: &Context,
    kind: Kind,
    change: ChangeKind,
    revision: Option<u64>,
    object: &Value,
) -> Result<(), Failure> {
    let word = match change {
        ChangeKind::Put => "put",
        ChangeKind::Delete => "delete",
        ChangeKind::Bookmark if ctx.format == Format::Json => "bookmark",
        ChangeKind::Bookmark => return Ok(()),
    };
    let change = json!({"type": word, "revision": revision, "object": object});
    match ctx.format {
        Format::Json => output::line(change),
        Format::Yaml => {
            output::line("---")?;
            output::yaml(&change)
        }
        Format::Name => output::line(reference(kind, object)),
        Format::Table | Format::Wide => {
            let status = &object["status"];
            let phase = status["phase"].as_str().unwrap_or("-");
            let reason = status["reason"].as_str().map(|reason| format!(" ({reason})")).unwrap_or_default();
            let revision = revision.map(|number| number.to_string()).unwrap_or_default();
            let name = reference(kind, object);
            output::line(format!("{word:<7} {name:<32} {:<24} {revision}", format!("{phase}{reason}")))
        }
    }
}
