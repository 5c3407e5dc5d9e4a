//! Verbs that outlive their request: draining a host, and ending an operation before its time.

use super::context::{CALL, Context};
use super::failure::Failure;
use super::table;
use super::wait::{WaitFlags, Waiting};
use enoki_api::client::WriteOptions;
use enoki_api::operation::{OperationPhase, StepKind};
use enoki_api::{Kind, Operation};
use serde_json::{Value, json};

/// Cordons a host and empties it
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Nothing can move to another host yet. Without --stop it ends with the list of what is in the way; with --stop what runs
is stopped in place, a few at once, and stays so until it is started. The host stays cordoned.
Repeated while it runs, it waits for the one that runs. Ctrl-C ends the waiting only.

Examples:
  enoki host drain node2
  enoki host drain node2 --stop --timeout 10m
  enoki host uncordon node2")]
pub struct Drain {
    /// The host
    host: String,
    /// Stop in place what cannot move
    #[arg(long)]
    stop: bool,
    #[command(flatten)]
    wait: WaitFlags,
}

pub async fn drain(ctx: &Context, args: Drain) -> Result<(), Failure> {
    let body = json!({"stop": args.stop});
    let target = ctx.object(Kind::Host, &args.host);
    let begun = ctx.client.action(target, "drain", Some(&body), &WriteOptions::default(), CALL).await?.body;
    let name = begun["name"].as_str().unwrap_or_default().to_owned();
    if args.wait.no_wait {
        return ctx.done(Kind::Operation, &name, "begun", &begun);
    }
    let waiting = Waiting::begin(args.wait.timeout, format!("draining {}", args.host));
    let object = end(ctx, waiting, &name, begun).await?;
    let ended: Operation = table::decode(&object)?;
    let message = ended.status.message.clone().unwrap_or_default();
    match ended.status.phase {
        OperationPhase::Succeeded => {
            eprintln!("{message}");
            ctx.done(Kind::Operation, &name, "succeeded", &object)
        }
        OperationPhase::Blocked
        | OperationPhase::Failed
        | OperationPhase::Cancelled
        | OperationPhase::Running
        | OperationPhase::Unknown => {
            for step in ended.status.journal.iter().filter(|step| step.what == StepKind::CannotMove) {
                eprintln!("{}: {}", table::text(&step.instance), table::text(&step.message));
            }
            Err(Failure::failed(format!("the drain is {}: {message}", ended.status.phase))
                .hint(format!("enoki describe operation {name}")))
        }
    }
}

/// Waits until the operation has ended.
async fn end(ctx: &Context, waiting: Waiting, name: &str, begun: Value) -> Result<Value, Failure> {
    let mut object = begun;
    loop {
        let seen: Operation = table::decode(&object)?;
        if seen.status.ended() {
            return Ok(object);
        }
        waiting.pause(standing(&seen)).await?;
        object = waiting.look(ctx, Kind::Operation, name).await?.unwrap_or(object);
    }
}

/// `operation/drain-1a2b3c4d is running: 2/5 stopped; waits for default/web1`.
fn standing(seen: &Operation) -> String {
    let message = seen.status.message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
    format!("operation/{} is {}{message}", seen.name, seen.status.phase)
}

/// Operations
#[derive(clap::Subcommand, Debug)]
pub enum OperationCommand {
    /// Begin nothing more; what was done stays done
    #[command(after_help = "\
Examples:
  enoki get operations
  enoki operation cancel drain-1a2b3c4d")]
    Cancel {
        name: String,
        #[command(flatten)]
        wait: WaitFlags,
    },
}

pub async fn operation(ctx: &Context, command: OperationCommand) -> Result<(), Failure> {
    let OperationCommand::Cancel { name, wait } = command;
    let target = ctx.object(Kind::Operation, &name);
    let accepted = ctx.client.action(target, "cancel", None, &WriteOptions::default(), CALL).await?.body;
    if wait.no_wait {
        return ctx.done(Kind::Operation, &name, "cancel accepted", &accepted);
    }
    let waiting = Waiting::begin(wait.timeout, format!("cancelling {name}"));
    let object = end(ctx, waiting, &name, accepted).await?;
    let ended: Operation = table::decode(&object)?;
    eprintln!("{}", ended.status.message.as_deref().unwrap_or_default());
    ctx.done(Kind::Operation, &name, &ended.status.phase.to_string(), &object)
}
