//! Tokens: who may come in over TLS, and which machines may join.

use super::context::{CALL, Context};
use super::failure::Failure;
use super::output::{self, Format};
use enoki_api::client::WriteOptions;
use enoki_api::object::Kind;
use enoki_api::quantity::Span;
use enoki_api::token::Role;
use jiff::Timestamp;
use serde_json::{Value, json};

/// Tokens
#[derive(clap::Subcommand, Debug)]
pub enum TokenCommand {
    /// Makes one and prints it, this once
    #[command(after_help = "\
Examples:
  enoki token create ci --role member --projects shop,web --ttl 30d
  enoki token create boss --role admin >boss.token")]
    Create {
        name: String,
        /// admin, member or viewer
        #[arg(long, value_enum)]
        role: UserRole,
        /// The projects of a member or viewer
        #[arg(long, value_delimiter = ',', value_name = "PROJECT,...")]
        projects: Vec<String>,
        /// How long it is good for, as in 30d. Default: until it is deleted
        #[arg(long, value_name = "DURATION")]
        ttl: Option<Span>,
    },
    /// Lists tokens, without what is secret
    List,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum UserRole {
    Admin,
    Member,
    Viewer,
}

pub async fn token(ctx: &Context, command: TokenCommand) -> Result<(), Failure> {
    match command {
        TokenCommand::List => super::create::list(ctx, Kind::Token).await,
        TokenCommand::Create { name, role, projects, ttl } => {
            let role = match role {
                UserRole::Admin => Role::Admin,
                UserRole::Member => Role::Member,
                UserRole::Viewer => Role::Viewer,
            };
            let made = make(ctx, &name, role, projects, ttl).await?;
            tell(ctx, &made, &format!("token {name}: this is the only time it is shown"))
        }
    }
}

/// `enoki host join-token`: prints a token with which machines become hosts until it expires.
pub async fn join_token(ctx: &Context, role: Role, ttl: Span) -> Result<(), Failure> {
    let name = format!("join-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
    let made = make(ctx, &name, role, Vec::new(), Some(ttl)).await?;
    let how = match role {
        Role::Server => "enoki server join https://THIS-SERVER:7443",
        _ => "enoki agent join https://THIS-SERVER:7443",
    };
    tell(
        ctx,
        &made,
        &format!("good for {ttl}; on the new machine, with it in ENOKI_TOKEN or on stdin: {how}"),
    )
}

async fn make(
    ctx: &Context,
    name: &str,
    role: Role,
    projects: Vec<String>,
    ttl: Option<Span>,
) -> Result<Value, Failure> {
    let expires_at = match ttl {
        None => None,
        Some(ttl) => {
            let span = ttl.signed();
            let at = Timestamp::now().checked_add(span);
            Some(at.map_err(|_| Failure::usage(format!("{ttl} from now is beyond all time")))?)
        }
    };
    let draft = json!({"name": name, "spec": {"role": role, "projects": projects, "expires_at": expires_at}});
    let made = ctx.client.create_value(ctx.kind(Kind::Token), &draft, &WriteOptions::default(), CALL).await?;
    Ok(made.body)
}

/// The token on stdout, so that it can be piped; what to know about it on stderr.
fn tell(ctx: &Context, made: &Value, about: &str) -> Result<(), Failure> {
    match ctx.format {
        Format::Json | Format::Yaml => ctx.show(Kind::Token, made),
        Format::Table | Format::Wide | Format::Name => {
            eprintln!("{about}");
            output::line(made["status"]["token"].as_str().unwrap_or_default().to_owned())
        }
    }
}
