//! `enoki describe`: one object as a sheet for people, with its events and what stands in its way.

use super::context::{CALL, Context, warn_if_stale};
use super::failure::Failure;
use super::get::{Named, of_object};
use super::output::{self, Format};
use super::plan::Fit;
use super::table::{self, age, decode, labels, size, text, word};
use enoki_api::client::Target;
use enoki_api::event::Event;
use enoki_api::instance::{EnvValue, LimitsState, Phase, cpu_weight};
use enoki_api::job::JobFile;
use enoki_api::operation::Step;
use enoki_api::project::Resource;
use enoki_api::{
    Cluster, Host, Image, Instance, Job, Kind, Labels, Network, Operation, Project, Secret, Token, Volume,
};
use serde_json::Value;

/// Shows all that is known of an object, with its events
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  enoki describe instance web1
  enoki describe host/node1")]
pub struct Describe {
    #[command(flatten)]
    named: Named,
}

pub async fn describe(ctx: &Context, args: Describe) -> Result<(), Failure> {
    let (kind, names) = args.named.resolve()?;
    if names.is_empty() || kind == Kind::Event {
        return Err(
            Failure::usage("one object is described").hint("for example: enoki describe instance web1")
        );
    }
    for (number, name) in names.iter().enumerate() {
        let answer = ctx.client.read(&ctx.object(kind, name), CALL).await?;
        warn_if_stale(&answer);
        let object = answer.body;
        match ctx.format {
            Format::Json | Format::Yaml | Format::Name => ctx.show(kind, &object)?,
            Format::Table | Format::Wide => {
                let separator = if number > 0 { "\n" } else { "" };
                let sheet = sheet(ctx, kind, name, &object).await?;
                output::text(format!("{separator}{sheet}"))?;
            }
        }
    }
    Ok(())
}

async fn sheet(ctx: &Context, kind: Kind, name: &str, object: &Value) -> Result<String, Failure> {
    let mut sheet = Sheet::default();
    envelope(&mut sheet, kind, object)?;
    match kind {
        Kind::Instance => {
            let instance: Instance = decode(object)?;
            instance_sheet(&mut sheet, &instance);
            if matches!(instance.status.phase, Phase::Pending)
                || matches!(instance.status.limits.state, LimitsState::Infeasible | LimitsState::Deferred)
            {
                placement(ctx, name, &mut sheet).await;
            }
        }
        Kind::Host => host_sheet(&mut sheet, &decode(object)?),
        Kind::Network => network_sheet(&mut sheet, &decode(object)?),
        Kind::Volume => volume_sheet(&mut sheet, &decode(object)?),
        Kind::Secret => secret_sheet(&mut sheet, &decode(object)?),
        Kind::Image => image_sheet(&mut sheet, &decode(object)?),
        Kind::Project => project_sheet(&mut sheet, &decode(object)?),
        Kind::Cluster => cluster_sheet(&mut sheet, &decode(object)?),
        Kind::Job => job_sheet(&mut sheet, &decode(object)?),
        Kind::Token => token_sheet(&mut sheet, &decode(object)?),
        Kind::Operation => operation_sheet(&mut sheet, &decode(object)?),
        Kind::Event => {}
    }
    events(ctx, kind, name, &mut sheet).await;
    Ok(sheet.print())
}

/// Lines of `key: value`, aligned, under headings.
#[derive(Default)]
struct Sheet {
    lines: Vec<Line>,
}

enum Line {
    Heading(String),
    Field { key: String, value: String, inner: bool },
    Text(String),
}

impl Sheet {
    fn field(&mut self, key: &str, value: impl ToString) {
        self.push(key, value.to_string(), false);
    }

    /// Left out where there is nothing to say.
    fn maybe<T: ToString>(&mut self, key: &str, value: &Option<T>) {
        if let Some(value) = value {
            self.field(key, value.to_string());
        }
    }

    fn inner(&mut self, key: &str, value: impl ToString) {
        self.push(key, value.to_string(), true);
    }

    fn push(&mut self, key: &str, value: String, inner: bool) {
        if !value.is_empty() {
            self.lines.push(Line::Field { key: key.to_owned(), value, inner });
        }
    }

    fn heading(&mut self, heading: &str) {
        self.lines.push(Line::Heading(heading.to_owned()));
    }

    fn text(&mut self, text: impl ToString) {
        self.lines.push(Line::Text(text.to_string()));
    }

    fn print(&self) -> String {
        let width = |wanted: bool| {
            let keys = self.lines.iter().filter_map(|line| match line {
                Line::Field { key, inner, .. } if *inner == wanted => Some(key.chars().count()),
                _ => None,
            });
            keys.max().unwrap_or(0)
        };
        let (outer, inner_width) = (width(false), width(true));
        let mut text = String::new();
        for line in &self.lines {
            match line {
                Line::Heading(heading) => text.push_str(&format!("{heading}:\n")),
                Line::Field { key, value, inner: false } => {
                    text.push_str(&format!("{:<width$}  {value}\n", format!("{key}:"), width = outer + 1));
                }
                Line::Field { key, value, inner: true } => {
                    text.push_str(&format!("  {key:<inner_width$}  {value}\n"));
                }
                Line::Text(line) => text.push_str(&format!("  {line}\n")),
            }
        }
        text
    }
}

/// What every object has.
fn envelope(sheet: &mut Sheet, kind: Kind, object: &Value) -> Result<(), Failure> {
    let string = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
    sheet.field("Name", string("name"));
    sheet.field("Kind", kind);
    sheet.field("Project", string("project"));
    sheet.field("UID", string("uid"));
    let marks: Labels = if object["labels"].is_object() { decode(&object["labels"])? } else { Labels::new() };
    sheet.field("Labels", labels(&marks));
    sheet.field("Created", string("created_at"));
    sheet.field("Deleting since", string("deleted_at"));
    if let Some(owner) = object["owner"].as_object() {
        let part = |field: &str| owner.get(field).and_then(Value::as_str).unwrap_or("?");
        sheet.field("Owner", format!("{} {}", part("kind"), part("name")));
    }
    sheet.field("Generation", format!("{}, revision {}", object["generation"], object["revision"]));
    Ok(())
}

fn instance_sheet(sheet: &mut Sheet, instance: &Instance) {
    let (spec, status) = (&instance.spec, &instance.status);
    sheet.field("Phase", status.phase);
    sheet.maybe("Reason", &status.reason);
    sheet.maybe("Message", &status.message);
    if status.observed_generation < instance.generation {
        let behind = format!("generation {} of {}", status.observed_generation, instance.generation);
        sheet.field("Acted on", behind);
    }
    sheet.field("Wanted", format!("{}, restart {}", spec.state, spec.restart));
    sheet.maybe("Host", &status.host);
    sheet.field("Image", &spec.image);
    sheet.maybe("Command", &spec.command.as_ref().map(|words| words.join(" ")));
    sheet.field("Hostname", &spec.hostname);
    sheet.maybe("Container", &status.container_id);
    sheet.maybe("PID", &status.pid);
    sheet.maybe("Started", &status.started_at);
    sheet.maybe("Exit code", &status.exit_code);
    if status.oom_killed {
        sheet.field("OOM killed", "yes: it had used up its memory");
    }
    if status.restarts > 0 {
        sheet.field("Restarts", status.restarts);
    }
    sheet.maybe("User data", &status.user_data_exit_code.map(|code| format!("ended with exit code {code}")));
    sheet.field("Stop grace", spec.stop_grace);
    if spec.priority != 0 {
        sheet.field("Priority", spec.priority);
    }
    sheet.maybe(
        "Squeezed",
        &status
            .squeezed_since
            .map(|since| format!("since {since}: it waits for CPUs that instances of higher priority use")),
    );
    let placement = &spec.placement;
    let rules = [("require", &placement.require), ("avoid", &placement.avoid)];
    let rules = rules.iter().filter(|(_, rules)| !rules.is_empty());
    let rules: String = rules.map(|(name, rules)| format!(", {name} {}", rules.join(" "))).collect();
    sheet.field("Placement", format!("{}{rules}", placement.strategy));
    if !status.restart_required.is_empty() {
        sheet.field("Restart needed", format!("for changes of {}", status.restart_required.join(", ")));
    }
    limits(sheet, instance);
    if !spec.nics.is_empty() {
        sheet.heading("Interfaces");
        for (name, nic) in &spec.nics {
            let seen = status.nics.get(name);
            let address = match (seen, nic.address) {
                (Some(seen), _) => format!("{} ({})", seen.address, seen.mac),
                (None, Some(address)) => format!("{address} asked"),
                (None, None) => "no address yet".into(),
            };
            let rate = |name: &str, rate: Option<enoki_api::quantity::BitRate>| {
                rate.map(|rate| format!(", {name} {rate}")).unwrap_or_default()
            };
            let rates = format!("{}{}", rate("egress", nic.egress), rate("ingress", nic.ingress));
            sheet.inner(name, format!("{address} on {}{rates}", nic.network));
        }
    }
    if !spec.mounts.is_empty() {
        sheet.heading("Mounts");
        for (path, mount) in &spec.mounts {
            let read_only = if mount.read_only { ", read-only" } else { "" };
            sheet.inner(path, format!("volume {}{read_only}", mount.volume));
        }
    }
    if !spec.env.is_empty() {
        sheet.heading("Environment");
        for (key, value) in &spec.env {
            match value {
                EnvValue::Plain(text) => sheet.inner(key, format!("{text:?}")),
                EnvValue::Secret(from) => {
                    sheet.inner(key, format!("key {} of secret {}", from.key, from.secret));
                }
            }
        }
    }
}

/// Each limit: what is asked for and what holds, as read back from the kernel.
fn limits(sheet: &mut Sheet, instance: &Instance) {
    let (spec, holds) = (&instance.spec, &instance.status.limits);
    let why = holds.reason.as_ref().map(|why| format!(", {why}")).unwrap_or_default();
    sheet.heading(&format!("Limits ({}{why})", holds.state));
    let running = instance.status.pid.is_some();
    let mut row = |name: &str, asked: String, held: String| {
        let asked = if asked.is_empty() { "no limit".to_owned() } else { asked };
        let held = match held.as_str() {
            "" if !running => "nothing runs".to_owned(),
            "" => "no limit".to_owned(),
            _ => held,
        };
        // Nothing asked and nothing held needs no line.
        if (asked.as_str(), held.as_str()) != ("no limit", "no limit")
            && (asked.as_str(), held.as_str()) != ("no limit", "nothing runs")
        {
            sheet.inner(name, format!("{asked:<12} holds: {held}"));
        }
    };
    row("cpus", text(&spec.cpus), text(&holds.cpus));
    row("cpu_weight", text(&cpu_weight(spec.priority)), text(&holds.cpu_weight));
    row("cpuset", text(&spec.cpuset), text(&holds.cpuset));
    row("memory", text(&spec.memory), text(&holds.memory));
    let swap = spec.memory.map(|_| spec.swap);
    row("swap", text(&swap), holds.swap.map_or_else(|| "not accounted".into(), |swap| swap.to_string()));
    row("pids", text(&spec.pids), text(&holds.pids));
    row("disk_size", text(&spec.disk_size), text(&holds.disk_size));
    let (disk, held) = (&spec.disk, &holds.disk);
    row("disk.read_bps", text(&disk.read_bps), text(&held.read_bps));
    row("disk.write_bps", text(&disk.write_bps), text(&held.write_bps));
    row("disk.read_iops", text(&disk.read_iops), text(&held.read_iops));
    row("disk.write_iops", text(&disk.write_iops), text(&held.write_iops));
    if let Some(note) = &holds.note {
        sheet.text(format!("note: {note}"));
    }
}

fn host_sheet(sheet: &mut Sheet, host: &Host) {
    let status = &host.status;
    sheet.field("Phase", table::host_phase(status.phase));
    sheet.maybe("Reason", &status.reason);
    sheet.maybe("Message", &status.message);
    sheet.field("Cordoned", if host.spec.cordoned { "yes: nothing new is placed here" } else { "no" });
    sheet.maybe("Docker", &status.docker);
    sheet.maybe("Cgroup", &status.cgroup);
    sheet.maybe("Address", &status.address);
    sheet.maybe("Last seen", &status.last_seen_at.map(|at| format!("{at} ({} ago)", age(at))));
    sheet.heading("Granted of its capacity");
    let (granted, has) = (&status.granted, &status.capacity);
    sheet.inner("cpus", format!("{} of {}", granted.cpus, has.cpus));
    sheet.inner("memory", format!("{} of {}", size(granted.memory), size(has.memory)));
    sheet.inner("pids", format!("{} of {}", granted.pids, has.pids));
    let instances = match has.instances {
        0 => granted.instances.to_string(),
        most => format!("{} of {most}", granted.instances),
    };
    sheet.inner("instances", instances);
}

fn network_sheet(sheet: &mut Sheet, network: &Network) {
    let spec = &network.spec;
    sheet.field("Type", word(&spec.kind));
    sheet.maybe("Segment", &spec.segment);
    sheet.field("CIDR", spec.cidr);
    let address = spec.gateway_address().map(|address| format!(" ({address})")).unwrap_or_default();
    sheet.field("Gateway", format!("{}{address}", spec.gateway));
    sheet.field("Egress", word(&spec.egress));
    sheet.field("Addresses", format!("{} of {} used", network.status.used, network.status.addresses));
}

fn volume_sheet(sheet: &mut Sheet, volume: &Volume) {
    sheet.field("Type", word(&volume.spec.kind));
    sheet.maybe("Path", &volume.spec.path);
    sheet.maybe("Host", &volume.status.host);
    sheet.field("Used by", used(&volume.status.used_by));
}

fn token_sheet(sheet: &mut Sheet, token: &Token) {
    sheet.field("Role", token.spec.role.to_string());
    sheet.field("Projects", token.spec.projects.join(", "));
    let expires = token.spec.expires_at.map_or_else(|| "never".to_owned(), |at| at.to_string());
    sheet.field("Expires", if token.status.expired { format!("{expires}: expired") } else { expires });
}

fn operation_sheet(sheet: &mut Sheet, operation: &Operation) {
    let (spec, status) = (&operation.spec, &operation.status);
    let how = if spec.stop { ", stopping what cannot move" } else { "" };
    sheet.field("Verb", format!("{} of host {}{how}", spec.verb, spec.host));
    let cancelled = if spec.cancelled && !status.ended() { ", being cancelled" } else { "" };
    sheet.field("Phase", format!("{}{cancelled}", status.phase));
    sheet.maybe("Reason", &status.reason);
    sheet.maybe("Message", &status.message);
    sheet.field("Done", status.progress);
    sheet.maybe("Ended", &status.ended_at);
    if !status.journal.is_empty() {
        sheet.heading("Journal");
        let row = |step: &Step| {
            vec![step.at.to_string(), step.what.to_string(), text(&step.instance), text(&step.message)]
        };
        let rows = status.journal.iter().map(row).collect();
        for line in output::render(&["AT", "STEP", "INSTANCE", "MESSAGE"], rows, false).lines() {
            sheet.text(line);
        }
    }
}

fn cluster_sheet(sheet: &mut Sheet, cluster: &Cluster) {
    let (spec, status) = (&cluster.spec, &cluster.status);
    sheet.field("Engine", format!("{} {}", spec.engine, spec.version));
    sheet.field("Phase", status.phase);
    sheet.maybe("Reason", &status.reason);
    sheet.maybe("Message", &status.message);
    sheet.maybe("Master", &status.master);
    sheet.maybe("Connect", &status.connect);
    sheet.field("Network", spec.network.as_deref().unwrap_or("its own"));
    let workers = &status.workers;
    sheet.heading("Workers");
    sheet.field(
        "Ready",
        format!("{} of {} wanted, {} leaving", workers.ready, workers.desired, workers.draining),
    );
    sheet.field("Bounds", format!("{} to {}", spec.workers.min, spec.workers.max));
    sheet.field("Each", format!("{} cpus, {} of memory", spec.workers.cpus, spec.workers.memory));
    sheet.field(
        "Leave after",
        format!("{} idle, with {} to do so", spec.idle, spec.graceful_decommission_timeout),
    );
    sheet.field(
        "Steps",
        format!(
            "up by {}, down by {}, at least {} apart",
            spec.scale_up_factor, spec.scale_down_factor, spec.cooldown
        ),
    );
    if !spec.mounts.is_empty() {
        sheet.heading("Mounts");
        for (path, mount) in &spec.mounts {
            sheet.field(
                path,
                format!("volume {}{}", mount.volume, if mount.read_only { ", read-only" } else { "" }),
            );
        }
    }
    if !spec.spark_conf.is_empty() || !spec.dask_conf.is_empty() {
        sheet.heading("Settings");
        for (key, value) in spec.spark_conf.iter().chain(&spec.dask_conf) {
            sheet.field(key, value);
        }
    }
}

fn job_sheet(sheet: &mut Sheet, job: &Job) {
    let (spec, status) = (&job.spec, &job.status);
    sheet.field("Cluster", &spec.cluster);
    let killed = if spec.killed && !status.ended() { ", being killed" } else { "" };
    sheet.field("Phase", format!("{}{killed}", status.phase));
    sheet.maybe("Reason", &status.reason);
    sheet.maybe("Message", &status.message);
    sheet.maybe("Exit code", &status.exit_code);
    sheet.field("Attempts", format!("{} of {}", status.attempts, spec.retries + 1));
    sheet.maybe("Driver", &status.driver.as_ref().map(|name| format!("instance/{name}")));
    sheet.maybe("Started", &status.started_at);
    sheet.maybe("Ended", &status.ended_at);
    sheet.heading("Program");
    sheet.field("File", &spec.file.name);
    if !spec.args.is_empty() {
        sheet.field("Arguments", spec.args.join(" "));
    }
    let names =
        |files: &[JobFile]| files.iter().map(|file| file.name.as_str()).collect::<Vec<_>>().join(", ");
    for (what, files) in [("Modules", &spec.py_files), ("Archives", &spec.jars), ("Files", &spec.files)] {
        if !files.is_empty() {
            sheet.field(what, names(files));
        }
    }
    if !spec.packages.is_empty() {
        sheet.field("Packages", spec.packages.join(", "));
    }
    for (key, value) in &spec.conf {
        sheet.field(key, value);
    }
}

fn secret_sheet(sheet: &mut Sheet, secret: &Secret) {
    sheet.field("Keys", secret.status.keys.join(", "));
}

fn image_sheet(sheet: &mut Sheet, image: &Image) {
    sheet.field("Image ID", &image.spec.image_id);
    sheet.field("Size", size(image.spec.size));
    let digest = if image.spec.digest.is_empty() { "none: import it again" } else { &image.spec.digest };
    sheet.field("Digest", digest);
    sheet.field("Source", &image.spec.source);
    sheet.field("Used by", used(&image.status.used_by));
    if let Some(rules) = &image.spec.prepull {
        let hosts =
            if rules.is_empty() { "all hosts".into() } else { format!("hosts with {}", rules.join(", ")) };
        sheet.field("Pulled to", format!("{hosts}; there on: {}", used(&image.status.hosts)));
    }
}

fn project_sheet(sheet: &mut Sheet, project: &Project) {
    sheet.field("Description", &project.spec.description);
    sheet.heading("Used of its quota");
    for resource in Resource::ALL {
        let used = resource.print(project.status.of(resource));
        let allowed = project.spec.quota.of(resource).map(|most| format!(" of {}", resource.print(most)));
        sheet.inner(resource.name(), format!("{used}{}", allowed.unwrap_or_default()));
    }
}

fn used(by: &[String]) -> String {
    if by.is_empty() { "nobody".into() } else { by.join(", ") }
}

/// Why each host takes it or not. A server that cannot tell leaves the sheet without it.
async fn placement(ctx: &Context, name: &str, sheet: &mut Sheet) {
    let target = ctx.object(Kind::Instance, name).join("explain");
    match ctx.client.read(&target, CALL).await {
        Ok(answer) => {
            let fits = Fit::of(&answer.body);
            if !fits.is_empty() {
                sheet.heading("Hosts");
                fits.iter().for_each(|fit| sheet.text(fit.line()));
            }
        }
        Err(error) => eprintln!("warning: no explanation of its placement: {error}"),
    }
}

async fn events(ctx: &Context, kind: Kind, name: &str, sheet: &mut Sheet) {
    let target = of_object(ctx, Target::kind(Kind::Event, None), kind, name);
    let events: Vec<Event> = match ctx.client.read_list(&target, &Default::default(), CALL).await {
        Ok(answer) => {
            answer.body["items"].as_array().into_iter().flatten().filter_map(|e| decode(e).ok()).collect()
        }
        Err(error) => {
            eprintln!("warning: no events: {error}");
            return;
        }
    };
    sheet.heading("Events");
    if events.is_empty() {
        sheet.text("none");
        return;
    }
    let row = |event: &Event| {
        let times = if event.count > 1 { format!(" (x{})", event.count) } else { String::new() };
        vec![
            format!("{} ago{times}", age(event.last_at)),
            if event.warning { "warning" } else { "normal" }.to_owned(),
            event.reason.clone(),
            event.message.clone(),
        ]
    };
    let rows = events.iter().map(row).collect();
    for line in output::render(&["WHEN", "TYPE", "REASON", "MESSAGE"], rows, false).lines() {
        sheet.text(line);
    }
}
