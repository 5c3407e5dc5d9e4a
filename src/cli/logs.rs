//! `enoki logs`: what an instance printed.

use super::context::{CALL, Context};
use super::create::moment;
use super::failure::Failure;
use super::output;
use enoki_api::Kind;
use enoki_api::client::{LogOptions, Target};
use jiff::Timestamp;

/// Which part of what was printed.
#[derive(clap::Args, Debug)]
pub struct Part {
    /// Go on with what it prints from now on; Ctrl-C ends it
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last N lines
    #[arg(long, value_name = "N")]
    tail: Option<u64>,
    /// Only what is younger: 10m, or 2026-01-31T12:00:00Z
    #[arg(long, value_name = "DURATION|TIME", value_parser = moment)]
    since: Option<Timestamp>,
    /// Begin each line with its time
    #[arg(long)]
    timestamps: bool,
}

/// Prints what an instance printed
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  enoki logs web1 --tail 100
  enoki logs -f web1
  enoki logs web1 --since 10m --timestamps")]
pub struct Logs {
    /// The instance
    name: String,
    #[command(flatten)]
    part: Part,
}

pub async fn logs(ctx: &Context, args: Logs) -> Result<(), Failure> {
    print(ctx, ctx.object(Kind::Instance, &args.name), args.part).await
}

/// Prints the log of an instance, or of what has one as a driver.
pub async fn print(ctx: &Context, of: Target, part: Part) -> Result<(), Failure> {
    let Part { follow, tail, since, timestamps } = part;
    let options = LogOptions { follow, tail, since, timestamps };
    let mut text = ctx.client.logs(of, &options, CALL).await?;
    while let Some(piece) = text.next().await {
        output::text(piece?)?;
    }
    Ok(())
}
