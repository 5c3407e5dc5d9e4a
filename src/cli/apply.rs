//! `enoki apply`: makes what a file says, whatever is there.
//!
//! Each object is read and then put whole: a field that a manifest leaves out gets its default. Three fields of an
//! instance are other commands' to write (`start` and `stop` its `state`, `restart` and `rebuild` their counts), so
//! what they hold is carried over unless the manifest names them. Objects go in the order in which they need each
//! other, whatever the file's; one that is refused does not keep the others back.

use super::context::{CALL, Context};
use super::failure::{FAILED, Failure};
use super::lifecycle::{Verb, act_on};
use super::manifest::{self, Document};
use super::output::{self, Format};
use super::plan::Fit;
use super::table;
use super::wait::WaitFlags;
use enoki_api::client::{self, Answer, WriteOptions};
use enoki_api::instance::{Change, Phase};
use enoki_api::quantity::Span;
use enoki_api::{Code, Instance, Kind};
use serde_json::{Value, json};
use std::io::Read;

/// How often a write is tried anew because the object changed since it was read.
const TRIES: u32 = 5;
/// What other commands write.
const KEPT: [&str; 4] = ["state", "restart_count", "rebuild_count", "resolved"];

/// Makes and changes objects as manifests say
#[derive(clap::Args, Debug)]
#[command(after_help = "\
A manifest is YAML or JSON, with many documents a file. For each object `created`, `configured` or `unchanged` is
printed. What a manifest leaves out gets its default; only whether an instance is stopped, and how often it was
restarted and rebuilt, is kept.

Examples:
  enoki apply -f shop.yaml
  enoki apply -f shop.yaml --dry-run
  enoki get instances -o json | enoki -p copy apply -f -")]
pub struct Apply {
    /// The manifest, or - for stdin; may be given more than once
    #[arg(short, long = "file", required = true, value_name = "FILE")]
    files: Vec<String>,
    /// Only tell what would change
    #[arg(long)]
    dry_run: bool,
    /// Restart instances that have changes waiting for a restart
    #[arg(long, conflicts_with = "dry_run")]
    restart: bool,
    /// How long to wait for a restart
    #[arg(long, default_value = "60s", value_name = "DURATION")]
    timeout: Span,
}

pub async fn apply(ctx: &Context, args: Apply) -> Result<(), Failure> {
    let mut documents = Vec::new();
    for file in &args.files {
        documents.extend(read(file)?);
    }
    // Stable: objects of one kind stay in the file's order.
    documents.sort_by_key(|document| order(document.kind));
    let mut run = Run { ctx, args: &args, new: Vec::new(), results: Vec::new() };
    let mut failed = false;
    for document in &documents {
        match run.one(document).await {
            Ok(()) => {}
            Err(Fault::Object(failure)) => {
                eprintln!("{}/{}:", document.kind, document.name);
                let _ = failure.report();
                failed = true;
            }
            Err(Fault::All(failure)) => return Err(failure),
        }
    }
    run.print()?;
    if failed { Err(Failure::silent(FAILED)) } else { Ok(()) }
}

fn read(file: &str) -> Result<Vec<Document>, Failure> {
    let mut bytes = Vec::new();
    let (name, read) = if file == "-" {
        ("stdin", std::io::stdin().read_to_end(&mut bytes))
    } else {
        (file, std::fs::File::open(file).and_then(|mut open| open.read_to_end(&mut bytes)))
    };
    read.map_err(|error| Failure::io(name, error))?;
    let text =
        String::from_utf8(bytes).map_err(|_| Failure::failed(format!("{name} is not text in UTF-8")))?;
    manifest::parse(name, &text)
}

/// What others refer to goes first.
fn order(kind: Kind) -> u8 {
    match kind {
        Kind::Host => 0,
        Kind::Project => 1,
        Kind::Volume => 2,
        Kind::Secret => 3,
        Kind::Network => 4,
        Kind::Image => 5,
        Kind::Instance => 6,
        Kind::Cluster => 7,
        Kind::Job => 8,
        Kind::Token => 9,
        Kind::Operation => 10,
        Kind::Event => 11,
    }
}

/// Whom a failure concerns.
enum Fault {
    /// This object; the others go on.
    Object(Failure),
    /// All: the server is away, or stdout is.
    All(Failure),
}

impl From<client::Error> for Fault {
    fn from(error: client::Error) -> Self {
        match error {
            client::Error::Problem(_) => Fault::Object(error.into()),
            _ => Fault::All(error.into()),
        }
    }
}

struct Run<'a> {
    ctx: &'a Context,
    args: &'a Apply,
    /// Of a dry run: names that do not exist yet, which later objects may refer to.
    new: Vec<String>,
    /// For `-o json|yaml`.
    results: Vec<Value>,
}

impl Run<'_> {
    async fn one(&mut self, document: &Document) -> Result<(), Fault> {
        let (kind, name) = (document.kind, document.name.as_str());
        if kind == Kind::Job {
            let failure = Failure::failed("a job is submitted, not applied");
            return Err(Fault::Object(failure.hint("enoki cluster submit CLUSTER FILE")));
        }
        let ctx = Context {
            client: self.ctx.client.clone(),
            project: document.project.clone().unwrap_or_else(|| self.ctx.project.clone()),
            project_named: true,
            format: self.ctx.format,
        };
        for attempt in 1.. {
            let before = match ctx.client.read(&ctx.object(kind, name), CALL).await {
                Ok(answer) => Some(answer.body),
                Err(error) if error.code() == Some(Code::NotFound) => None,
                Err(error) => return Err(error.into()),
            };
            let body = carried_over(&document.body, before.as_ref());
            let options = WriteOptions {
                dry_run: self.args.dry_run,
                if_match: before.as_ref().and_then(|object| object["revision"].as_u64()),
                ..Default::default()
            };
            match ctx.client.put_value(ctx.object(kind, name), &body, &options, CALL).await {
                Err(error) if error.code() == Some(Code::StaleRevision) && attempt < TRIES => continue,
                Err(client::Error::Problem(problem))
                    if problem.code == Code::UnknownReference
                        && problem
                            .detail
                            .split_whitespace()
                            .any(|word| self.new.iter().any(|new| new == word)) =>
                {
                    // Of a dry run: it refers to something that this very file makes.
                    return self.tell(kind, name, "would be created with the others", Value::Null);
                }
                Err(error) => return Err(error.into()),
                Ok(answer) if self.args.dry_run => return self.planned(kind, name, before.as_ref(), answer),
                Ok(answer) => return self.written(&ctx, kind, name, before.as_ref(), answer).await,
            }
        }
        Ok(())
    }

    fn planned(
        &mut self,
        kind: Kind,
        name: &str,
        before: Option<&Value>,
        answer: Answer,
    ) -> Result<(), Fault> {
        let plan = &answer.body["plan"];
        let same = |field: &str| before.is_some_and(|before| before[field] == plan[field]);
        let done = match before {
            None => {
                self.new.push(name.to_owned());
                "would be created"
            }
            Some(_) if plan.is_null() || (same("spec") && same("labels")) => "unchanged",
            Some(_) => "would be configured",
        };
        self.tell(kind, name, done, answer.body.clone())?;
        if matches!(self.ctx.format, Format::Table | Format::Wide) && done != "unchanged" {
            for fit in Fit::of(&answer.body) {
                output::line(format!("  {}", fit.line())).map_err(Fault::All)?;
            }
        }
        Ok(())
    }

    async fn written(
        &mut self,
        ctx: &Context,
        kind: Kind,
        name: &str,
        before: Option<&Value>,
        answer: Answer,
    ) -> Result<(), Fault> {
        let after = answer.body;
        let done = match before {
            None => "created",
            Some(before) if before["revision"] == after["revision"] => "unchanged",
            Some(_) => "configured",
        };
        self.tell(kind, name, done, after.clone())?;
        if self.args.restart && needs_restart(kind, before, &after) {
            let wait = WaitFlags { no_wait: false, timeout: self.args.timeout };
            act_on(ctx, Verb::Restart, name, &wait).await.map_err(Fault::Object)?;
        }
        Ok(())
    }

    fn tell(&mut self, kind: Kind, name: &str, done: &str, object: Value) -> Result<(), Fault> {
        match self.ctx.format {
            Format::Json | Format::Yaml => {
                self.results.push(object);
                Ok(())
            }
            Format::Name => output::line(format!("{kind}/{name}")).map_err(Fault::All),
            Format::Table | Format::Wide => output::line(format!("{kind}/{name} {done}")).map_err(Fault::All),
        }
    }

    fn print(self) -> Result<(), Failure> {
        let list = json!({"items": self.results});
        match self.ctx.format {
            Format::Json => output::json(&list),
            Format::Yaml => output::yaml(&list),
            Format::Name | Format::Table | Format::Wide => Ok(()),
        }
    }
}

/// The manifest, with what other commands keep in the object filled in where it says nothing.
fn carried_over(manifest: &Value, before: Option<&Value>) -> Value {
    let mut body = manifest.clone();
    if let (Some(before), Some(Value::Object(spec))) = (before, body.get_mut("spec")) {
        for field in KEPT {
            if let Some(value) = before["spec"].get(field) {
                spec.entry(field).or_insert_with(|| value.clone());
            }
        }
    }
    body
}

/// Whether a running instance has changes that only a restart brings in: now, or still from before.
fn needs_restart(kind: Kind, before: Option<&Value>, after: &Value) -> bool {
    if kind != Kind::Instance {
        return false;
    }
    let Ok(after) = table::decode::<Instance>(after) else {
        return false;
    };
    let changed = before.and_then(|before| table::decode::<Instance>(before).ok()).is_some_and(|before| {
        let changes = before.spec.changes(&after.spec);
        changes.iter().any(|(_, change)| *change == Change::Restart)
    });
    let runs = !matches!(after.status.phase, Phase::Stopped | Phase::Pending | Phase::Deleting);
    runs && (changed || !after.status.restart_required.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_other_commands_write_is_kept() {
        let manifest = json!({"kind": "instance", "name": "a", "spec": {"image": "b", "restart_count": 9}});
        let before = json!({"spec": {"image": "a", "cpus": "1", "state": "stopped", "restart_count": 2, "rebuild_count": 1}});
        assert_eq!(
            carried_over(&manifest, Some(&before))["spec"],
            json!({"image": "b", "restart_count": 9, "state": "stopped", "rebuild_count": 1})
        );
        assert_eq!(carried_over(&manifest, None), manifest);
        let volume = json!({"kind": "volume", "name": "a", "spec": {}});
        assert_eq!(carried_over(&volume, Some(&volume)), volume);
    }
}
