//! Compute clusters: made, shown; jobs submitted to them, followed, killed.

use super::context::{CALL, Context};
use super::create::list;
use super::failure::{Failure, NOT_RUN};
use super::forward::lead;
use super::image::bring;
use super::logs::{self, Part};
use super::output;
use super::run::{Pair, VolumeFlag, labels, mounts};
use super::table;
use super::wait::Waiting;
use enoki_api::client::{ListOptions, LogOptions, Target, WriteOptions};
use enoki_api::cluster::{CONNECT_PORT, ClusterPhase, Engine, HISTORY_PAGE};
use enoki_api::job::JobPhase;
use enoki_api::quantity::{Bytes, MilliCpu, Span};
use enoki_api::{Cluster, Job, Kind};
use serde_json::{Map, Value, json};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::str::FromStr;

/// Compute clusters and their jobs
#[derive(clap::Subcommand, Debug)]
pub enum ClusterCommand {
    Create(Box<Create>),
    Submit(Box<Submit>),
    /// Lists the clusters
    List,
    /// Lists the jobs of a cluster, the ended ones too
    Jobs {
        /// The cluster
        name: String,
    },
    #[command(subcommand)]
    Job(JobCommand),
    /// Leads a port of this machine to the cluster's pages, until Ctrl-C
    #[command(after_help = "\
The master's page leads on to those of workers and, of Spark, running jobs. The way there is the API: nothing else has to reach it.

Examples:
  enoki cluster ui lake
  enoki cluster ui lake --port 8080")]
    Ui(Way),
    /// Leads a port of this machine to the pages of ended jobs, until Ctrl-C
    #[command(after_help = "\
Jobs that run are there, too, as far as their event log has come. The first page takes some seconds: it starts the history server,
which ends when nobody has looked for ten minutes.

Examples:
  enoki cluster history lake
  enoki cluster history lake --port 18080")]
    History(Way),
    /// Leads a port of this machine to the cluster's Connect server, until Ctrl-C
    #[command(after_help = "\
What it prints is what a notebook takes: SparkSession.builder.remote(\"sc://...\"). The cluster needs `spec.connect: true`, as
`create --connect` makes it.

Examples:
  enoki cluster connect lake
  enoki cluster connect lake --port 15002")]
    Connect(Way),
}

/// From a port of this machine into a cluster.
#[derive(clap::Args, Debug)]
pub struct Way {
    /// The cluster
    name: String,
    /// Of this machine. Default: any free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Where to listen. Whoever reaches it reaches what it leads to: pages, or a way to run programs
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    address: IpAddr,
}

/// Makes a cluster: a master and a pool of workers that grows and shrinks with its jobs
#[derive(clap::Args, Debug)]
// Its own --version is the engine's.
#[command(disable_version_flag = true)]
#[command(after_help = "\
The least workers are there from the start, all of them or none. More come while tasks wait, and leave again when they
had nothing to do for --idle; what they keep is handed on first. `enoki delete cluster NAME` removes all of it.

Examples:
  enoki cluster create lake --workers 1..8 --wait
  enoki cluster create lake --workers 2..20 --worker-cpus 4 --worker-memory 8Gi --version 4.0.1
  enoki cluster create lake --workers 1..8 --volume data:/data --conf spark.sql.shuffle.partitions=64
  enoki cluster create pond --engine dask --workers 1..8 --conf distributed.worker.memory.spill=0.6")]
pub struct Create {
    name: String,
    /// How many workers: at least and at most
    #[arg(long, value_name = "MIN..MAX", default_value = "1..1")]
    workers: Range,
    /// What runs in it: spark or dask
    #[arg(long, default_value_t, value_parser = engine)]
    engine: Engine,
    /// Of the engine. Default: the newest there is an image of
    #[arg(long)]
    version: Option<String>,
    /// The network of its instances. Default: one of its own
    #[arg(long)]
    network: Option<String>,
    /// Of each worker: whole ones, each runs a task at a time. Default: 1
    #[arg(long, value_name = "CPUS")]
    worker_cpus: Option<MilliCpu>,
    /// Of each worker. Default: 2Gi
    #[arg(long, value_name = "SIZE")]
    worker_memory: Option<Bytes>,
    /// Of the root disk of each instance, where workers have their scratch files. Default: as much as the host has
    #[arg(long, value_name = "SIZE")]
    disk_size: Option<Bytes>,
    /// How long a worker beyond the least has nothing to do before it leaves. Default: 1m
    #[arg(long, value_name = "DURATION")]
    idle: Option<Span>,
    /// Of its workers, which give way to what has more. Default: -100
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    priority: Option<i32>,
    /// With a Connect server: the way in for notebooks
    #[arg(long)]
    connect: bool,
    /// A setting of the engine
    #[arg(long = "conf", value_name = "KEY=VALUE")]
    conf: Vec<Pair>,
    /// More settings for drivers, a line each, from a secret
    #[arg(long, value_name = "SECRET/KEY")]
    conf_secret: Option<String>,
    /// A volume for workers and drivers, and where it is mounted
    #[arg(long = "volume", value_name = "VOLUME:PATH[:ro]")]
    volumes: Vec<VolumeFlag>,
    /// A label
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<Pair>,
    /// Only tell whether it is right as asked; whether there is room for it shows when it is made
    #[arg(long)]
    dry_run: bool,
    /// Wait until it is ready
    #[arg(long)]
    wait: bool,
    /// How long to wait; when it takes longer, the exit code is 3 and the work goes on
    #[arg(long, default_value = "300s", value_name = "DURATION")]
    timeout: Span,
}

fn engine(text: &str) -> Result<Engine, String> {
    match text {
        "spark" => Ok(Engine::Spark),
        "dask" => Ok(Engine::Dask),
        _ => Err(format!("`{text}` is not one of spark, dask")),
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Range {
    min: u32,
    max: u32,
}

impl FromStr for Range {
    type Err = String;

    /// `1..8`, or `3` for three at all times. Whether that makes sense the server says.
    fn from_str(text: &str) -> Result<Self, String> {
        let (min, max) = text.split_once("..").unwrap_or((text, text));
        let number =
            |text: &str| text.parse().map_err(|_| format!("`{text}` is not a number of workers, as in 1..8"));
        Ok(Range { min: number(min)?, max: number(max)? })
    }
}

/// Runs a program on a cluster
#[derive(clap::Args, Debug)]
#[command(after_help = "\
The program and its files are sent along. Its driver is an instance of its own, and so are its settings; what it prints is its
log. With --wait that is passed on, and the exit code is the program's. Ctrl-C ends the waiting only.

Examples:
  enoki cluster submit lake pi.py --wait -- 100
  enoki cluster submit lake job.py --py-files lib.zip --files rules.json --conf spark.executor.memory=2g
  enoki cluster submit lake app.jar --class org.example.Main --retries 2")]
pub struct Submit {
    /// The cluster
    name: String,
    /// The program: a .py or a .jar
    file: String,
    /// Its arguments
    #[arg(last = true)]
    args: Vec<String>,
    /// A setting of the engine, for this job
    #[arg(long = "conf", value_name = "KEY=VALUE")]
    conf: Vec<Pair>,
    /// Modules that it imports: .py, .zip, .egg
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    py_files: Vec<String>,
    /// Java archives
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    jars: Vec<String>,
    /// Files that each executor finds in its folder
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    files: Vec<String>,
    /// Packages of Maven, GROUP:ARTIFACT:VERSION
    #[arg(long, value_name = "PACKAGE", value_delimiter = ',')]
    packages: Vec<String>,
    /// Of a .jar: the class whose main begins
    #[arg(long)]
    class: Option<String>,
    /// Of the driver
    #[arg(long, value_name = "CPUS")]
    driver_cpus: Option<MilliCpu>,
    /// Of the driver
    #[arg(long, value_name = "SIZE")]
    driver_memory: Option<Bytes>,
    /// How often it is begun again after it failed
    #[arg(long, value_name = "N")]
    retries: Option<u32>,
    /// Wait for its end, pass on what it prints, and exit as it did
    #[arg(long)]
    wait: bool,
    /// How long to wait. Default: as long as it takes
    #[arg(long, value_name = "DURATION", requires = "wait")]
    timeout: Option<Span>,
}

/// One job
#[derive(clap::Subcommand, Debug)]
pub enum JobCommand {
    /// Prints what a job's driver printed
    Logs {
        /// The cluster
        name: String,
        /// The job
        id: String,
        #[command(flatten)]
        part: Part,
    },
    /// Ends a job; it does not come back
    Kill {
        /// The cluster
        name: String,
        /// The job
        id: String,
        /// Return as soon as the request is accepted
        #[arg(long)]
        no_wait: bool,
        /// How long to wait
        #[arg(long, default_value = "60s", value_name = "DURATION")]
        timeout: Span,
    },
}

pub async fn cluster(ctx: &Context, command: ClusterCommand) -> Result<u8, Failure> {
    match command {
        ClusterCommand::Create(args) => create(ctx, *args).await.map(|()| 0),
        ClusterCommand::Submit(args) => submit(ctx, *args).await,
        ClusterCommand::List => list(ctx, Kind::Cluster).await.map(|()| 0),
        ClusterCommand::Jobs { name } => {
            // Whether there is such a cluster: none has no jobs either.
            ctx.read(Kind::Cluster, &name).await?;
            let jobs = ctx.client.read_list(&below(ctx, &name), &ListOptions::default(), CALL).await?;
            ctx.show_list(Kind::Job, &jobs.body).map(|()| 0)
        }
        ClusterCommand::Ui(Way { name, port, address }) => {
            let engine = engine_of(ctx, &name).await?;
            let (page, path) = engine.page().ok_or_else(|| unknown(&name))?;
            let told = |at| format!("http://{at}/{path}");
            lead(ctx, &format!("{name}-master"), (address, port).into(), page, told).await.map(|()| 0)
        }
        ClusterCommand::History(Way { name, port, address }) => {
            let engine = engine_of(ctx, &name).await?;
            if engine != Engine::Spark {
                return Err(Failure::failed(format!(
                    "cluster/{name} runs {engine}, which has no history server"
                )));
            }
            let told = |at| format!("http://{at}/");
            lead(ctx, &format!("{name}-master"), (address, port).into(), HISTORY_PAGE, told).await.map(|()| 0)
        }
        ClusterCommand::Connect(Way { name, port, address }) => {
            let cluster: Cluster = table::decode(&ctx.read(Kind::Cluster, &name).await?)?;
            if !cluster.spec.connect {
                let hint = match cluster.spec.engine {
                    Engine::Spark => "set spec.connect: true, in its manifest, and `enoki apply` it",
                    Engine::Dask | Engine::Unknown => "only spark has one",
                };
                return Err(Failure::failed(format!("cluster/{name} has no Connect server")).hint(hint));
            }
            if cluster.status.connect.is_none() {
                return Err(Failure::failed(format!("the Connect server of cluster/{name} is not up yet"))
                    .hint(format!(
                        "`enoki describe cluster {name}` and `enoki logs {name}-connect` say why"
                    )));
            }
            let told = |at: SocketAddr| format!("sc://{at}");
            lead(ctx, &format!("{name}-connect"), (address, port).into(), CONNECT_PORT, told)
                .await
                .map(|()| 0)
        }
        ClusterCommand::Job(JobCommand::Logs { name, id, part }) => {
            let job = below(ctx, &name).join(&id);
            if part.follow {
                begun(ctx, &job, &id).await?;
            }
            logs::print(ctx, job, part).await.map(|()| 0)
        }
        ClusterCommand::Job(JobCommand::Kill { name, id, no_wait, timeout }) => {
            kill(ctx, &name, &id, no_wait, timeout).await.map(|()| 0)
        }
    }
}

/// Waits until a job has something to print, or never will.
async fn begun(ctx: &Context, at: &Target, job: &str) -> Result<(), Failure> {
    let waiting = Waiting::begin(Span(u64::MAX), format!("{job} is queued"));
    loop {
        let seen: Job = table::decode(&ctx.client.read(at, CALL).await?.body)?;
        if seen.status.phase != JobPhase::Queued {
            return Ok(());
        }
        waiting.pause(stands(&seen)).await?;
    }
}

/// `job-1a2b3c4d5e is queued: no host has room`.
fn stands(job: &Job) -> String {
    let message = job.status.message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
    format!("{} is {}{message}", job.name, job.status.phase)
}

/// What runs in a cluster.
async fn engine_of(ctx: &Context, cluster: &str) -> Result<Engine, Failure> {
    let cluster: Cluster = table::decode(&ctx.read(Kind::Cluster, cluster).await?)?;
    if cluster.deleted_at.is_some() {
        return Err(Failure::failed(format!("cluster/{} is being deleted", cluster.name)));
    }
    Ok(cluster.spec.engine)
}

fn unknown(cluster: &str) -> Failure {
    Failure::failed(format!("cluster/{cluster} runs an engine that this `enoki` does not know"))
        .hint("take one of the server's version")
}

/// Where a cluster's jobs are.
fn below(ctx: &Context, cluster: &str) -> Target {
    ctx.object(Kind::Cluster, cluster).join("jobs")
}

async fn create(ctx: &Context, args: Create) -> Result<(), Failure> {
    let version = match args.version {
        Some(version) => version,
        None => newest(ctx, args.engine).await?,
    };
    let mut workers = json!({"min": args.workers.min, "max": args.workers.max});
    if let Some(cpus) = args.worker_cpus {
        workers["cpus"] = json!(cpus);
    }
    if let Some(memory) = args.worker_memory {
        workers["memory"] = json!(memory);
    }
    let mut spec = json!({"engine": args.engine, "version": version, "workers": workers});
    if let Some(network) = args.network {
        spec["network"] = json!(network);
    }
    if let Some(size) = args.disk_size {
        spec["disk_size"] = json!(size);
    }
    if let Some(idle) = args.idle {
        spec["idle"] = json!(idle);
    }
    if let Some(priority) = args.priority {
        spec["priority"] = json!(priority);
    }
    if args.connect {
        spec["connect"] = json!(true);
    }
    if !args.conf.is_empty() {
        spec[format!("{}_conf", args.engine)] = labels(&args.conf).into();
    }
    if let Some(from) = args.conf_secret {
        let (secret, key) = from
            .split_once('/')
            .ok_or_else(|| Failure::usage(format!("--conf-secret: `{from}` is not SECRET/KEY")))?;
        spec["spark_conf_secret"] = json!({"secret": secret, "key": key});
    }
    if let Some(mounts) = mounts(&args.volumes)? {
        spec["mounts"] = mounts;
    }
    let mut draft = json!({"kind": Kind::Cluster, "name": args.name, "spec": spec});
    if !args.labels.is_empty() {
        draft["labels"] = labels(&args.labels).into();
    }
    let options = WriteOptions { dry_run: args.dry_run, ..WriteOptions::default() };
    let answer = ctx.client.create_value(ctx.kind(Kind::Cluster), &draft, &options, CALL).await?;
    if args.dry_run {
        return super::plan::show(ctx, Kind::Cluster, &args.name, "created", &answer.body);
    }
    if !args.wait {
        return ctx.done(Kind::Cluster, &args.name, "created", &answer.body);
    }
    let waiting = Waiting::begin(args.timeout, format!("cluster/{}: starting", args.name));
    let mut object = answer.body;
    loop {
        let seen: Cluster = table::decode(&object)?;
        match seen.status.phase {
            ClusterPhase::Ready => return ctx.done(Kind::Cluster, &args.name, "ready", &object),
            ClusterPhase::Deleting => {
                return Err(Failure::failed(format!("cluster/{} is being deleted", args.name)));
            }
            ClusterPhase::Pending
            | ClusterPhase::Starting
            | ClusterPhase::Degraded
            | ClusterPhase::Unknown => {}
        }
        waiting.pause(standing(&seen)).await?;
        object = waiting.look(ctx, Kind::Cluster, &args.name).await?.unwrap_or(object);
    }
}

/// `cluster/lake is starting: 1 of 2 workers are ready`.
fn standing(seen: &Cluster) -> String {
    let message = seen.status.message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
    format!("cluster/{} is {}{message}", seen.name, seen.status.phase)
}

/// The newest version that there is an image of.
async fn newest(ctx: &Context, engine: Engine) -> Result<String, Failure> {
    let prefix = format!("enoki/{engine}:");
    let mut found: Option<(Vec<u64>, String)> = None;
    for project in [ctx.project.as_str(), enoki_api::project::DEFAULT] {
        let target = Target::kind(Kind::Image, Some(project));
        // Of another project, which this token may not see: its images can be asked for by version all the same.
        let Ok(images) = ctx.client.read_list(&target, &ListOptions::default(), CALL).await else { continue };
        for name in
            images.body["items"].as_array().into_iter().flatten().filter_map(|item| item["name"].as_str())
        {
            let Some(version) = name.strip_prefix(&prefix) else { continue };
            let number = version.split('.').map(|part| part.parse().unwrap_or_default()).collect();
            if found.as_ref().is_none_or(|(best, _)| *best < number) {
                found = Some((number, version.to_owned()));
            }
        }
    }
    found.map(|(_, version)| version).ok_or_else(|| {
        Failure::failed(format!("there is no image of {engine}, so no version of it")).hint(format!(
            "an operator builds and imports them with `make images-{engine}`; or name one with --version"
        ))
    })
}

async fn submit(ctx: &Context, args: Submit) -> Result<u8, Failure> {
    // Before anything is sent: whether there is somewhere to run it.
    ctx.read(Kind::Cluster, &args.name).await?;
    let mut spec = json!({"file": file(ctx, &args.file).await?, "args": args.args});
    for (field, paths) in [("py_files", &args.py_files), ("jars", &args.jars), ("files", &args.files)] {
        let mut sent = Vec::new();
        for path in paths {
            sent.push(file(ctx, path).await?);
        }
        spec[field] = json!(sent);
    }
    spec["packages"] = json!(args.packages);
    spec["conf"] = labels(&args.conf).into();
    let more = [
        ("class", args.class.map(Value::from)),
        ("cpus", args.driver_cpus.map(|cpus| json!(cpus))),
        ("memory", args.driver_memory.map(|memory| json!(memory))),
        ("retries", args.retries.map(Value::from)),
    ];
    if let Some(fields) = spec.as_object_mut() {
        fields.extend(more.into_iter().filter_map(|(field, value)| Some((field.to_owned(), value?))));
    }
    let draft: Value =
        Map::from_iter([("kind".to_owned(), json!(Kind::Job)), ("spec".to_owned(), spec)]).into();
    let answer =
        ctx.client.create_value(below(ctx, &args.name), &draft, &WriteOptions::default(), CALL).await?;
    let job: Job = table::decode(&answer.body)?;
    if !args.wait {
        ctx.done(Kind::Job, &job.name, "submitted", &answer.body)?;
        return Ok(0);
    }
    eprintln!("{} submitted", job.name);
    follow(ctx, job, args.timeout.unwrap_or(Span(u64::MAX))).await
}

/// Sends a file, and says how a job names it.
async fn file(ctx: &Context, path: &str) -> Result<Value, Failure> {
    let name = Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or(path);
    let (reader, length, bar) = bring(path).await?;
    let sent = ctx.client.upload_file(&ctx.project, reader, length, UPLOAD).await;
    bar.finish_and_clear();
    let sent = sent?;
    Ok(json!({"name": name, "digest": sent.digest, "size": sent.size}))
}

/// For one file: the largest there may be over a slow line.
const UPLOAD: std::time::Duration = std::time::Duration::from_secs(30 * 60);

/// Passes on what the job's driver prints, until the job has ended. The exit code is the job's.
async fn follow(ctx: &Context, job: Job, timeout: Span) -> Result<u8, Failure> {
    let waiting = Waiting::begin(timeout, format!("{} is queued", job.name));
    let mut printed = Printed { of: below(ctx, &job.spec.cluster).join(&job.name), bytes: 0 };
    let mut seen = job;
    loop {
        let state = stands(&seen);
        if seen.status.driver.is_some() {
            printed.catch_up(ctx).await?;
        }
        if seen.status.ended() {
            break;
        }
        waiting.pause(state).await?;
        if let Some(object) = waiting.look(ctx, Kind::Job, &seen.name).await? {
            seen = table::decode(&object)?;
        }
    }
    drop(waiting);
    let status = &seen.status;
    let message = status.message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
    eprintln!("{} {}{message}", seen.name, status.phase);
    let code = status.exit_code.and_then(|code| u8::try_from(code).ok());
    Ok(match (status.phase, code) {
        (JobPhase::Succeeded, _) => 0,
        (_, Some(code)) if code != 0 => code,
        // It never ran, or nobody knows how it ended.
        (_, _) => NOT_RUN,
    })
}

/// How much of a log was passed on.
struct Printed {
    of: Target,
    bytes: usize,
}

impl Printed {
    /// Passes on what is new. A log that cannot be read now is read at the next look.
    async fn catch_up(&mut self, ctx: &Context) -> Result<(), Failure> {
        let Ok(mut text) = ctx.client.logs(self.of.clone(), &LogOptions::default(), CALL).await else {
            return Ok(());
        };
        let mut skip = self.bytes;
        while let Some(Ok(piece)) = text.next().await {
            let known = skip.min(piece.len());
            skip -= known;
            if known < piece.len() {
                output::text(&piece[known..])?;
                self.bytes += piece.len() - known;
            }
        }
        Ok(())
    }
}

async fn kill(ctx: &Context, name: &str, id: &str, no_wait: bool, timeout: Span) -> Result<(), Failure> {
    let target = below(ctx, name).join(id);
    let accepted = ctx.client.action(target, "kill", None, &WriteOptions::default(), CALL).await?.body;
    if no_wait {
        return ctx.done(Kind::Job, id, "kill accepted", &accepted);
    }
    let waiting = Waiting::begin(timeout, format!("{id}: being killed"));
    let mut object = accepted;
    loop {
        let seen: Job = table::decode(&object)?;
        if seen.status.ended() {
            return ctx.done(Kind::Job, id, &seen.status.phase.to_string(), &object);
        }
        waiting.pause(format!("{id} is {}", seen.status.phase)).await?;
        object = waiting.look(ctx, Kind::Job, id).await?.unwrap_or(object);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        assert_eq!("1..8".parse(), Ok(Range { min: 1, max: 8 }));
        assert_eq!("3".parse(), Ok(Range { min: 3, max: 3 }));
        for wrong in ["", "1..", "..8", "1-8", "1...8", "-1..2"] {
            wrong.parse::<Range>().unwrap_err();
        }
    }
}
