//! Changing what exists: start, stop, restart, rebuild, delete, label, cordon.

use super::context::{CALL, Context};
use super::failure::Failure;
use super::get::Named;
use super::table;
use super::wait::{WaitFlags, Waiting};
use enoki_api::client::{Answer, WriteOptions};
use enoki_api::instance::{Phase, RunState};
use enoki_api::token::Role;
use enoki_api::{Code, Instance, Kind};
use serde_json::{Map, Value, json};
use std::io::{self, BufRead, IsTerminal, Write};

#[derive(clap::Args, Debug)]
pub struct Names {
    /// The instances
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    wait: WaitFlags,
}

/// What is done to an instance, the phase it leads to, and how that is told.
#[derive(Clone, Copy)]
pub enum Verb {
    Start,
    Stop,
    Restart,
}

impl Verb {
    fn words(self) -> (&'static str, Phase, &'static str) {
        match self {
            Verb::Start => ("start", Phase::Running, "started"),
            Verb::Stop => ("stop", Phase::Stopped, "stopped"),
            Verb::Restart => ("restart", Phase::Running, "restarted"),
        }
    }
}

/// Starts, stops or restarts instances, one after the other.
pub async fn act(ctx: &Context, verb: Verb, args: Names) -> Result<(), Failure> {
    for name in &args.names {
        act_on(ctx, verb, name, &args.wait).await?;
    }
    Ok(())
}

/// Starts, stops or restarts one instance.
pub async fn act_on(ctx: &Context, verb: Verb, name: &str, wait: &WaitFlags) -> Result<(), Failure> {
    let (word, phase, done) = verb.words();
    action(ctx, name, word, None, phase, done, wait).await
}

async fn action(
    ctx: &Context,
    name: &str,
    verb: &str,
    body: Option<&Value>,
    phase: Phase,
    done: &str,
    wait: &WaitFlags,
) -> Result<(), Failure> {
    let target = ctx.object(Kind::Instance, name);
    if wait.no_wait {
        let answer = ctx.client.action(target, verb, body, &WriteOptions::default(), CALL).await?;
        return ctx.done(Kind::Instance, name, &format!("{verb} accepted"), &answer.body);
    }
    let waiting = Waiting::begin(wait.timeout, format!("instance/{name}: {verb}"));
    let options = waiting.with_write(&phase.to_string());
    let answer = ctx.client.action(target, verb, body, &options, CALL).await?;
    let object = waiting.for_phase(ctx, answer, phase).await?;
    ctx.done(Kind::Instance, name, done, &object)
}

/// Makes an instance anew from an image; its root disk is discarded
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Name, address, limits and volumes stay; everything on the root disk is lost. On a terminal it asks first.

Example:
  enoki rebuild web1 --image enoki/debian:12 --yes")]
pub struct Rebuild {
    /// The instance
    name: String,
    /// The new image; it may be the same as before
    #[arg(long)]
    image: String,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    wait: WaitFlags,
}

pub async fn rebuild(ctx: &Context, args: Rebuild) -> Result<(), Failure> {
    let before: Instance = table::decode(&ctx.read(Kind::Instance, &args.name).await?)?;
    eprintln!(
        "everything on the root disk of instance/{} (image {}) will be lost; its volumes stay",
        args.name, before.spec.image
    );
    if !args.yes && io::stdin().is_terminal() && !confirmed("discard it?")? {
        return Err(Failure::failed("nothing was changed"));
    }
    let phase = match before.spec.state {
        RunState::Stopped => Phase::Stopped,
        RunState::Running | RunState::Unknown => Phase::Running,
    };
    let body = json!({"image": args.image});
    action(ctx, &args.name, "rebuild", Some(&body), phase, "rebuilt", &args.wait).await
}

fn confirmed(question: &str) -> Result<bool, Failure> {
    eprint!("{question} [y/N] ");
    io::stderr().flush().map_err(|error| Failure::io("stderr", error))?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(|error| Failure::io("stdin", error))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Deletes objects and waits until they are gone
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  enoki delete instance web1 web2
  enoki delete network/blue
  enoki delete instance web1 --no-wait
  enoki delete instance web1 --force")]
pub struct Delete {
    #[command(flatten)]
    named: Named,
    /// Kill an instance's programs instead of giving them their stop_grace to end, and do not wait for a host that does
    /// not answer: it removes the instance (or volume) when it is back
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    wait: WaitFlags,
}

pub async fn delete(ctx: &Context, args: Delete) -> Result<(), Failure> {
    let (kind, names) = args.named.resolve()?;
    if names.is_empty() {
        return Err(Failure::usage("no name is given").hint(format!("enoki delete {kind} NAME")));
    }
    delete_all(ctx, kind, &names, args.force, &args.wait).await
}

/// Asks for all deletions first and then waits for each, so that many take no longer than the slowest.
pub async fn delete_all(
    ctx: &Context,
    kind: Kind,
    names: &[String],
    force: bool,
    wait: &WaitFlags,
) -> Result<(), Failure> {
    let waiting =
        (!wait.no_wait).then(|| Waiting::begin(wait.timeout, format!("deleting {}", names.join(", "))));
    let mut begun = Vec::new();
    for name in names {
        let options = match &waiting {
            Some(waiting) if names.len() == 1 => waiting.with_write("deleted"),
            _ => WriteOptions::default(),
        };
        let answer = match force {
            true => delete_by_force(ctx, kind, name, &options).await?,
            false => ctx.client.delete(ctx.object(kind, name), &options, CALL).await?,
        };
        begun.push((name, answer));
    }
    for (name, answer) in begun {
        match &waiting {
            None => ctx.done(kind, name, "deletion accepted", &answer.body)?,
            Some(waiting) => {
                if !answer.reached() {
                    waiting.for_deletion(ctx, kind, name, answer.body["uid"].as_str()).await?;
                }
                ctx.done(kind, name, "deleted", &Value::Null)?;
            }
        }
    }
    Ok(())
}

/// A host that does not answer is not waited for; on one that does, an instance's programs get no time to end. Other
/// kinds are on no host and run nothing: they go the same way with and without force.
async fn delete_by_force(
    ctx: &Context,
    kind: Kind,
    name: &str,
    options: &WriteOptions,
) -> Result<Answer, Failure> {
    let target = ctx.object(kind, name);
    if matches!(kind, Kind::Instance | Kind::Volume) {
        let forced = ctx.client.delete(target.clone().flag("force", true), options, CALL).await;
        match forced {
            Err(error) if error.code() == Some(Code::HostReachable) => {}
            answered => return Ok(answered?),
        }
    }
    if kind == Kind::Instance {
        let patch = json!({"spec": {"stop_grace": "0s"}});
        let patched = ctx.client.patch(target.clone(), &patch, &WriteOptions::default(), CALL).await;
        // One that is on its way out already only has to be waited for.
        if let Err(error) = patched
            && error.code() != Some(Code::Deleting)
        {
            return Err(error.into());
        }
    }
    Ok(ctx.client.delete(target, options, CALL).await?)
}

/// Sets and removes labels
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  enoki label instance web1 tier=web zone=a
  enoki label host node1 zone-            (removes it)")]
pub struct Label {
    /// The kind, or KIND/NAME
    #[arg(value_name = "KIND[/NAME]")]
    kind: String,
    /// The name, then KEY=VALUE to set and KEY- to remove
    #[arg(required = true, value_name = "NAME | KEY=VALUE | KEY-")]
    rest: Vec<String>,
}

pub async fn label(ctx: &Context, args: Label) -> Result<(), Failure> {
    let mut rest = args.rest.iter();
    let (kind, name) = match args.kind.split_once('/') {
        Some((kind, name)) => (kind, name),
        None => (args.kind.as_str(), rest.next().map(String::as_str).unwrap_or_default()),
    };
    let kind: Kind = kind.parse().map_err(Failure::usage)?;
    let mut labels = Map::new();
    for word in rest {
        match (word.split_once('='), word.strip_suffix('-')) {
            (Some((key, value)), _) => labels.insert(key.to_owned(), json!(value)),
            (None, Some(key)) => labels.insert(key.to_owned(), Value::Null),
            (None, None) => return Err(Failure::usage(format!("`{word}` is neither KEY=VALUE nor KEY-"))),
        };
    }
    if labels.is_empty() {
        return Err(Failure::usage("no label is given").hint("KEY=VALUE sets one, KEY- removes one"));
    }
    let patch = json!({"labels": labels});
    let answer = ctx.client.patch(ctx.object(kind, name), &patch, &WriteOptions::default(), CALL).await?;
    ctx.done(kind, name, "labelled", &answer.body)
}

/// Hosts
#[derive(clap::Subcommand, Debug)]
pub enum HostCommand {
    /// Place nothing new on a host; what runs there goes on
    Cordon {
        host: String,
    },
    /// Place on it again
    Uncordon {
        host: String,
    },
    Drain(super::operation::Drain),
    /// Makes a token with which machines join as hosts, and prints it
    #[command(name = "join-token")]
    JoinToken {
        /// How long it is good for
        #[arg(long, value_name = "DURATION", default_value = "1h")]
        ttl: enoki_api::quantity::Span,
    },
}

pub async fn host(ctx: &Context, command: HostCommand) -> Result<(), Failure> {
    let (name, cordoned, done) = match command {
        HostCommand::Cordon { host } => (host, true, "cordoned"),
        HostCommand::Uncordon { host } => (host, false, "uncordoned"),
        HostCommand::Drain(args) => return super::operation::drain(ctx, args).await,
        HostCommand::JoinToken { ttl } => return super::token::join_token(ctx, Role::Host, ttl).await,
    };
    let patch = json!({"spec": {"cordoned": cordoned}});
    let target = ctx.object(Kind::Host, &name);
    let answer = ctx.client.patch(target, &patch, &WriteOptions::default(), CALL).await?;
    ctx.done(Kind::Host, &name, done, &answer.body)
}
