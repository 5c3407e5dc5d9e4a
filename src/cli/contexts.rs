//! Which cloud the command line talks to: the local socket, or a server that one has logged in to.
//!
//! Contexts stand in `$XDG_CONFIG_HOME/enoki/contexts.json` (else `~/.config`), readable by their owner alone: each has a
//! server and a token, and the token has the fingerprint of the cloud's CA in it, so that no certificate is copied about.

use super::failure::Failure;
use super::output;
use super::terminal;
use crate::config::write_atomic;
use enoki_api::client::{Client, Target};
use enoki_api::endpoint::{Authority, Endpoint};
use enoki_api::tls::Trust;
use enoki_api::token::TokenText;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::Duration;

/// The first call to a new server.
const CALL: Duration = Duration::from_secs(15);
/// The longest token that is read from a stream.
const TOKEN_MAX: u64 = 1024;

/// Everything that one has logged in to.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Contexts {
    /// None: the local socket.
    #[serde(default)]
    current: Option<String>,
    #[serde(default)]
    contexts: BTreeMap<String, Saved>,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct Saved {
    server: String,
    token: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
}

impl std::fmt::Debug for Saved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Saved").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Saved {
    /// A client of this context's server, which must be of the cloud that made the token.
    pub fn client(&self) -> Result<Client, Failure> {
        let strange =
            || Failure::failed("this is not a token").hint("ask an admin for one: `enoki token create`");
        let text = TokenText::parse(&self.token).ok_or_else(strange)?;
        let pin = text.ca.parse().map_err(|_| strange())?;
        let authority = Authority::parse(&self.server).map_err(Failure::usage)?;
        let endpoint = Endpoint::https(authority, Trust::Pin(pin), None);
        let endpoint = endpoint.map_err(|error| Failure::failed(error.to_string()))?;
        Ok(Client::new(endpoint, Some(&self.token))?)
    }
}

fn path() -> Result<PathBuf, Failure> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")));
    let folder = folder.ok_or_else(|| Failure::failed("neither XDG_CONFIG_HOME nor HOME is set"))?;
    Ok(folder.join("enoki/contexts.json"))
}

impl Contexts {
    /// What is saved; nothing where nobody ever logged in.
    pub fn load() -> Result<Self, Failure> {
        let path = path()?;
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                Failure::failed(format!("{}: {error}", path.display()))
                    .hint("mend it, or remove it and log in again")
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Contexts::default()),
            Err(error) => Err(Failure::io(path.display(), error)),
        }
    }

    fn save(&self) -> Result<(), Failure> {
        let path = path()?;
        let failed = |error| Failure::io(path.display(), error);
        if let Some(folder) = path.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        }
        let text = serde_json::to_vec_pretty(self).map_err(|error| failed(error.into()))?;
        write_atomic(&path, &text, 0o600).map_err(failed)
    }

    /// The context of this name, else the current one. None: the local socket.
    pub fn chosen(&self, name: Option<&str>) -> Result<Option<&Saved>, Failure> {
        let Some(name) = name.or(self.current.as_deref()) else { return Ok(None) };
        if name == LOCAL {
            return Ok(None);
        }
        self.contexts.get(name).map(Some).ok_or_else(|| unknown(name))
    }
}

/// The context that always is there: this machine's socket.
const LOCAL: &str = "local";

fn unknown(name: &str) -> Failure {
    Failure::failed(format!("there is no context {name}")).hint("`enoki context list` shows those there are")
}

/// Logs in to a cloud on another machine: the token is read from ENOKI_TOKEN, or asked for
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  enoki login https://cloud.example.internal:7443
  ENOKI_TOKEN=$(cat token) enoki login https://198.18.0.1:7443 --name lab")]
pub struct Login {
    /// A server's address: https://HOST[:7443]
    #[arg(value_name = "SERVER")]
    server: String,
    /// What to call this context. Default: the server's host
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

pub async fn login(project: Option<String>, args: Login) -> Result<(), Failure> {
    let authority = Authority::parse(&args.server).map_err(Failure::usage)?;
    let name = args.name.unwrap_or_else(|| authority.host().to_owned());
    if name == LOCAL {
        return Err(Failure::usage("`local` is this machine's own context; choose another --name"));
    }
    let saved = Saved { server: authority.to_string(), token: read_token()?, project };
    // Every role that a user can have may list its projects.
    let listed = saved.client()?.read(&Target::path("/v1/projects"), CALL).await?;
    let projects = listed.body["items"].as_array().map_or(0, Vec::len);
    let mut contexts = Contexts::load()?;
    contexts.contexts.insert(name.clone(), saved);
    contexts.current = Some(name.clone());
    contexts.save()?;
    eprintln!("logged in to {authority} as context {name}: {projects} project(s)");
    Ok(())
}

/// A token from the environment, a terminal (not shown) or stdin: never from an argument, which everyone can see.
pub fn read_token() -> Result<String, Failure> {
    if let Some(token) = std::env::var("ENOKI_TOKEN").ok().filter(|token| !token.is_empty()) {
        return Ok(token.trim().to_owned());
    }
    if io::stdin().is_terminal() {
        return Ok(terminal::ask_hidden("Token: ")?.trim().to_owned());
    }
    let mut text = String::new();
    io::stdin().take(TOKEN_MAX).read_to_string(&mut text).map_err(|error| Failure::io("stdin", error))?;
    Ok(text.trim().to_owned())
}

/// Contexts: the clouds that one has logged in to
#[derive(clap::Subcommand, Debug)]
pub enum ContextCommand {
    /// All of them; the current one is marked
    List,
    /// Talk to this one from now on (`local`: this machine's socket)
    Use { name: String },
    /// Forget one with its token
    Delete { name: String },
}

pub fn context(command: ContextCommand) -> Result<(), Failure> {
    let mut contexts = Contexts::load()?;
    match command {
        ContextCommand::List => {
            let current = contexts.current.clone().unwrap_or_else(|| LOCAL.to_owned());
            let row = |name: &str, server: &str, project: &Option<String>| {
                let mark = if name == current { "*" } else { "" };
                let project = project.clone().unwrap_or_default();
                vec![mark.to_owned(), name.to_owned(), server.to_owned(), project]
            };
            let mut rows = vec![row(LOCAL, enoki_api::client::SOCKET, &None)];
            rows.extend(
                contexts.contexts.iter().map(|(name, saved)| row(name, &saved.server, &saved.project)),
            );
            output::table(&["", "NAME", "SERVER", "PROJECT"], rows)
        }
        ContextCommand::Use { name } => {
            if name != LOCAL && !contexts.contexts.contains_key(&name) {
                return Err(unknown(&name));
            }
            contexts.current = Some(name).filter(|name| name != LOCAL);
            contexts.save()
        }
        ContextCommand::Delete { name } => {
            if contexts.contexts.remove(&name).is_none() {
                return Err(unknown(&name));
            }
            contexts.current = contexts.current.filter(|current| *current != name);
            contexts.save()
        }
    }
}

/// What the environment and the flags say about where to go.
pub fn client(global: &super::context::Global) -> Result<(Client, Option<String>), Failure> {
    if let Some(socket) = &global.socket {
        return Ok((Client::unix(socket), None));
    }
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    if global.context.is_none()
        && let Some(server) = set("ENOKI_SERVER")
    {
        let token =
            set("ENOKI_TOKEN").ok_or_else(|| Failure::usage("ENOKI_SERVER is set, ENOKI_TOKEN is not"))?;
        return Ok((Saved { server, token, project: None }.client()?, None));
    }
    match Contexts::load()?.chosen(global.context.as_deref())? {
        Some(saved) => Ok((saved.client()?, saved.project.clone())),
        None => Ok((Client::unix(enoki_api::client::SOCKET), None)),
    }
}
