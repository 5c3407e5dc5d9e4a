//! What every command works with: the client, the project, and how results are printed.

use super::contexts;
use super::failure::Failure;
use super::output::{self, Format};
use super::table;
use enoki_api::client::{Answer, Client, Target};
use enoki_api::{Kind, project};
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;

/// How long a call may take that waits for nothing.
pub const CALL: Duration = Duration::from_secs(30);

/// Flags that every command takes.
#[derive(clap::Args, Debug)]
pub struct Global {
    /// The project that names belong to.
    #[arg(
        short,
        long,
        global = true,
        env = "ENOKI_PROJECT",
        value_name = "PROJECT",
        help_heading = "Global"
    )]
    pub project: Option<String>,
    /// How results are printed.
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT", help_heading = "Global")]
    pub output: Option<Format>,
    /// The cloud to talk to, as `enoki login` named it; `local` is this machine's.
    #[arg(long, global = true, env = "ENOKI_CONTEXT", value_name = "NAME", help_heading = "Global")]
    pub context: Option<String>,
    /// The server's socket.
    #[arg(long, global = true, hide = true, env = "ENOKI_SOCKET")]
    pub socket: Option<PathBuf>,
}

pub struct Context {
    pub client: Client,
    pub project: String,
    /// Whether the user named the project, rather than left it out.
    pub project_named: bool,
    pub format: Format,
}

impl Context {
    pub fn new(global: Global) -> Result<Self, Failure> {
        let (client, project) = contexts::client(&global)?;
        // An empty variable is one that is not set.
        let named = global.project.filter(|project| !project.is_empty());
        Ok(Context {
            client,
            project_named: named.is_some(),
            project: named.or(project).unwrap_or_else(|| project::DEFAULT.to_owned()),
            format: global.output.unwrap_or(Format::Table),
        })
    }

    pub fn kind(&self, kind: Kind) -> Target {
        Target::kind(kind, Some(&self.project))
    }

    pub fn object(&self, kind: Kind, name: &str) -> Target {
        Target::object(kind, Some(&self.project), name)
    }

    /// One object as JSON.
    pub async fn read(&self, kind: Kind, name: &str) -> Result<Value, Failure> {
        let answer = self.client.read(&self.object(kind, name), CALL).await?;
        warn_if_stale(&answer);
        Ok(answer.body)
    }

    /// Prints an object that was asked for.
    pub fn show(&self, kind: Kind, object: &Value) -> Result<(), Failure> {
        match self.format {
            Format::Json => output::json(object),
            Format::Yaml => output::yaml(object),
            Format::Name => output::line(reference(kind, object)),
            Format::Table | Format::Wide => table::show(kind, std::slice::from_ref(object), self.format),
        }
    }

    /// Prints a list that was asked for: `{"items", "revision", "continue"}`.
    pub fn show_list(&self, kind: Kind, list: &Value) -> Result<(), Failure> {
        let array =
            |field: &str| list.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        for lost in array("undecodable") {
            let part = |field: &str| lost[field].as_str().unwrap_or_default();
            eprintln!(
                "warning: {kind}/{} is stored in a form that the server cannot read: {}",
                part("name"),
                part("reason")
            );
        }
        let items = array("items");
        match self.format {
            Format::Json => output::json(list),
            Format::Yaml => output::yaml(list),
            Format::Name => items.iter().try_for_each(|item| output::line(reference(kind, item))),
            Format::Table | Format::Wide => {
                if items.is_empty() {
                    eprintln!("no {} {}", kind.plural(), self.place(kind));
                    return Ok(());
                }
                table::show(kind, items, self.format)
            }
        }
    }

    fn place(&self, kind: Kind) -> String {
        if kind.in_project() { format!("in project {}", self.project) } else { "yet".into() }
    }

    /// Prints what became of an object: `instance/web1 created`, or the object in the format asked for.
    pub fn done(&self, kind: Kind, name: &str, what: &str, object: &Value) -> Result<(), Failure> {
        match self.format {
            Format::Json if object.is_object() => output::json(object),
            Format::Yaml if object.is_object() => output::yaml(object),
            Format::Name => output::line(format!("{kind}/{name}")),
            Format::Json | Format::Yaml | Format::Table | Format::Wide => {
                output::line(format!("{kind}/{name} {what}"))
            }
        }
    }
}

/// `kind/name`, as `-o name` prints it.
pub fn reference(kind: Kind, object: &Value) -> String {
    format!("{kind}/{}", object.get("name").and_then(Value::as_str).unwrap_or("?"))
}

/// Says so when what was read may be old.
pub fn warn_if_stale(answer: &Answer) {
    if let Some(seconds) = answer.stale {
        eprintln!("warning: the store is away; this is how things were {seconds} s ago");
    }
}
