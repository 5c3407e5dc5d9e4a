//! Images: import, pull, list, delete.

use super::context::{CALL, Context};
use super::failure::{Failure, coloured};
use super::lifecycle::delete_all;
use super::run::Pair;
use super::wait::WaitFlags;
use enoki_api::Kind;
use enoki_api::client::WriteOptions;
use enoki_api::quantity::Span;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::io;
use std::pin::Pin;
use std::task::{Poll, ready};
use tokio::io::{AsyncRead, ReadBuf};

/// Images
#[derive(clap::Subcommand, Debug)]
pub enum ImageCommand {
    /// Imports an image from a `docker save` archive or a root file system's tar
    #[command(after_help = "\
The contents are kept in the cloud's registry: every host that needs the image gets it from there, also after it was pruned from
the host's Docker.

Examples:
  enoki image import enoki/debian:12 debian.tar
  docker save shop:1.4 | enoki image import shop:1.4 -")]
    Import {
        /// The name it gets: instances ask for exactly this one
        name: String,
        /// A tar, or - for stdin
        file: String,
        /// How long the transfer may take
        #[arg(long, default_value = "30m", value_name = "DURATION")]
        timeout: Span,
    },
    /// Has hosts get an imported image before an instance needs it
    #[command(after_help = "\
It holds for hosts that come later, and for what is imported under the name later. `enoki describe image NAME` tells which
hosts have it.

Examples:
  enoki image pull enoki/debian:12 --require zone=a
  enoki image pull shop:1.4
  enoki image pull shop:1.4 --none")]
    Pull {
        name: String,
        /// Only hosts with this label; repeat it for hosts that have all of them
        #[arg(long, value_name = "KEY=VALUE", conflicts_with = "none")]
        require: Vec<Pair>,
        /// No host any more; what hosts have they keep
        #[arg(long)]
        none: bool,
    },
    /// Lists the imported images
    List,
    /// Deletes imported images
    Delete {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        #[command(flatten)]
        wait: WaitFlags,
    },
}

pub async fn image(ctx: &Context, command: ImageCommand) -> Result<(), Failure> {
    match command {
        ImageCommand::Import { name, file, timeout } => import(ctx, &name, &file, timeout).await,
        ImageCommand::Pull { name, require, none } => pull(ctx, &name, &require, none).await,
        ImageCommand::List => super::create::list(ctx, Kind::Image).await,
        ImageCommand::Delete { names, wait } => delete_all(ctx, Kind::Image, &names, false, &wait).await,
    }
}

async fn pull(ctx: &Context, name: &str, require: &[Pair], none: bool) -> Result<(), Failure> {
    let rules: Vec<String> = require.iter().map(|Pair(key, value)| format!("{key}={value}")).collect();
    let body = json!({"require": (!none).then_some(rules)});
    let target = ctx.object(Kind::Image, name);
    let answer = ctx.client.action(target, "pull", Some(&body), &WriteOptions::default(), CALL).await?;
    let done = if none { "is pulled to no host beforehand" } else { "is being pulled" };
    ctx.done(Kind::Image, name, done, &answer.body)
}

async fn import(ctx: &Context, name: &str, file: &str, timeout: Span) -> Result<(), Failure> {
    let (reader, length, bar) = bring(file).await?;
    let answer = ctx.client.upload(&ctx.project, name, reader, length, timeout.duration()).await;
    bar.finish_and_clear();
    ctx.done(Kind::Image, name, "imported", &answer?.body)
}

/// A file's bytes (`-`: those of stdin), how many there are, if that is known, and the bar that counts them as they are read.
pub async fn bring(
    file: &str,
) -> Result<(impl AsyncRead + Send + Unpin + use<>, Option<u64>, ProgressBar), Failure> {
    let (reader, length): (Box<dyn AsyncRead + Send + Unpin>, Option<u64>) = if file == "-" {
        (Box::new(tokio::io::stdin()), None)
    } else {
        let open = async {
            let file = tokio::fs::File::open(file).await?;
            let about = file.metadata().await?;
            if about.is_dir() {
                return Err(io::Error::from(io::ErrorKind::IsADirectory));
            }
            // A pipe or a device has no length to go by.
            Ok((file, about.is_file().then_some(about.len())))
        };
        let (open, length) = open.await.map_err(|error| Failure::io(file, error))?;
        (Box::new(open), length)
    };
    let bar = progress(length);
    Ok((Counted { reader, bar: bar.clone() }, length, bar))
}

/// On stderr, and only where that is a terminal.
fn progress(length: Option<u64>) -> ProgressBar {
    let bar = match length {
        Some(length) => ProgressBar::new(length),
        None => ProgressBar::no_length(),
    };
    let colour = if coloured(&io::stderr()) { ".cyan" } else { "" };
    let template = format!("{{bar:40{colour}}} {{bytes}}/{{total_bytes}} {{bytes_per_sec}} {{eta}}");
    match ProgressStyle::with_template(&template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Tells a progress bar what passes through.
struct Counted<R> {
    reader: R,
    bar: ProgressBar,
}

impl<R: AsyncRead + Unpin> AsyncRead for Counted<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        task: &mut std::task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.reader).poll_read(task, buffer));
        self.bar.inc((buffer.filled().len() - before) as u64);
        if read.is_ok() && buffer.filled().len() == before {
            // The server unpacks now, which takes a while too.
            self.bar.set_message("unpacking");
        }
        Poll::Ready(read)
    }
}
