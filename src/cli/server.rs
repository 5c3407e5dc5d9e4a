//! `enoki server`: running one, joining one, and which there are.

use super::context::{CALL, Context};
use super::failure::Failure;
use super::output::{self, Format};
use super::token::join_token;
use enoki_api::client::Target;
use enoki_api::quantity::Span;
use enoki_api::token::Role;
use http::Method;
use std::net::IpAddr;

/// Runs the control plane in the foreground; its subcommands are about a cloud's servers
#[derive(clap::Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ServerArgs {
    #[command(subcommand)]
    pub command: Option<ServerCommand>,
}

#[derive(clap::Subcommand, Debug)]
pub enum ServerCommand {
    Join(JoinArgs),
    /// Makes a token with which a machine joins as a server, and prints it. It gives away all that servers know
    #[command(name = "join-token")]
    JoinToken {
        /// How long it is good for
        #[arg(long, value_name = "DURATION", default_value = "1h")]
        ttl: Span,
    },
    /// Lists the servers of the cloud
    List,
    /// Forgets a server whose machine is gone for good
    Remove {
        name: String,
    },
}

/// Makes this machine a server of a cloud: the token is read from ENOKI_TOKEN or stdin, or asked for
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Example, with a token that `enoki server join-token` printed on the cloud's side:
  ENOKI_TOKEN=$(cat token) enoki server join https://198.18.0.1:7443 --advertise 198.18.0.2
  enoki up")]
pub struct JoinArgs {
    /// A server's address: https://HOST[:7443]
    #[arg(value_name = "SERVER")]
    pub server: String,
    /// This server's name in the cloud. Default: the machine's
    #[arg(long)]
    pub name: Option<String>,
    /// How others reach this server, the best first: a DNS name or an address. Default: the machine's name
    #[arg(long, value_name = "HOST")]
    pub advertise: Vec<String>,
    /// Where its member of etcd listens for those of the other servers. Default: the address that it talks to SERVER from
    #[arg(long, value_name = "ADDRESS", conflicts_with = "no_etcd")]
    pub etcd_listen: Option<IpAddr>,
    /// Use the etcd of the other servers, and run no member of it here
    #[arg(long)]
    pub no_etcd: bool,
}

/// What there is to do about a cloud's servers, over its API.
pub async fn server(ctx: &Context, command: ServerCommand) -> Result<(), Failure> {
    match command {
        ServerCommand::Join(_) => {
            Err(Failure::usage("`enoki server join` asks the server that it names, by itself"))
        }
        ServerCommand::JoinToken { ttl } => join_token(ctx, Role::Server, ttl).await,
        ServerCommand::List => list(ctx).await,
        ServerCommand::Remove { name } => {
            ctx.client.call(Method::DELETE, &Target::path("/v1/servers").join(&name), None, CALL).await?;
            eprintln!("server {name}: removed");
            Ok(())
        }
    }
}

async fn list(ctx: &Context) -> Result<(), Failure> {
    let answer = ctx.client.read(&Target::path("/v1/servers"), CALL).await?.body;
    let items = answer["items"].as_array().cloned().unwrap_or_default();
    let name = |item: &serde_json::Value| item["name"].as_str().unwrap_or_default().to_owned();
    match ctx.format {
        Format::Json => output::json(&answer),
        Format::Yaml => output::yaml(&answer),
        Format::Name => items.iter().try_for_each(|item| output::line(format!("server/{}", name(item)))),
        Format::Table | Format::Wide => {
            let row = |item: &serde_json::Value| {
                let text = |field: &str| item[field].as_str().unwrap_or_default().to_owned();
                let leader = if item["leader"] == true { "leader" } else { "" };
                vec![name(item), leader.to_owned(), text("etcd"), text("address")]
            };
            output::table(&["NAME", "ROLE", "ETCD", "ADDRESS"], items.iter().map(row).collect())
        }
    }
}
