//! Jobs: submitted to a cluster, killed, and forgotten when they have ended.

use crate::admission::{Deletion, key, missing, refuse_deleting};
use crate::auth::actor::Actor;
use crate::http::App;
use crate::http::answer::Answer;
use crate::http::edit::{self, Edit};
use crate::http::kinds::files;
use crate::http::objects::{Managed, Options, PARENT, Place, base, below, place, presented, routes_at};
use crate::http::query::{Params, if_match};
use crate::http::streams;
use crate::state::{Row, Snapshot, Table};
use crate::store::Txn;
use crate::store::keys::Key;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Extension, Router};
use enoki_api::cluster::ClusterSpec;
use enoki_api::error::{Code, Problem};
use enoki_api::job::JobSpec;
use enoki_api::object::{Faults, Object, Uid, check_name};
use http_body_util::BodyExt;

/// Below its cluster, where a job is submitted; a project's jobs are also together under its own address.
pub const BELOW: &str = "/v1/projects/{project}/clusters/{cluster}/jobs";

pub fn routes() -> Router<App> {
    let verbs = |base: &str| {
        let at = |verb: &str| format!("{base}/{{name}}/{verb}");
        Router::new().route(&at("kill"), post(kill)).route(&at("logs"), get(logs))
    };
    routes_at::<JobSpec>(BELOW).merge(verbs(BELOW)).merge(verbs(&base::<JobSpec>()))
}

impl Managed for JobSpec {
    const CHANGED_BY_USERS: bool = false;

    fn table(snapshot: &Snapshot) -> &Table<Self> {
        &snapshot.jobs
    }

    /// Its driver is called CLUSTER-NAME, as the cluster's other instances are.
    fn check_name(name: &str) -> Result<(), Problem> {
        check_name("name", name)?;
        if ["master", "connect"].contains(&name) || name.starts_with("worker-") {
            let detail = format!("an instance of its cluster may be called CLUSTER-{name}: no job can");
            return Err(Problem::invalid_field("name", detail).hint("take another name, or none"));
        }
        Ok(())
    }

    fn name_one() -> Option<String> {
        Some(format!("job-{}", &Uid::random().hex()[..10]))
    }

    fn parent(spec: &Self) -> Option<&str> {
        Some(&spec.cluster)
    }

    fn put_below(spec: &mut Self, parent: &str) {
        spec.cluster = parent.to_owned();
    }

    /// The files are there, and stay for as long as it takes to name them.
    async fn ask(app: &App, project: &str, spec: &mut Self) -> Result<(), Problem> {
        for file in spec.all_files_mut() {
            let there = files::present(app, project, &file.digest).await;
            file.size = there.map_err(|problem| problem.field(format!("the digest of {}", file.name)))?.size;
        }
        Ok(())
    }

    fn present(_app: &App, snapshot: &Snapshot, job: &mut Object<Self>) {
        let at = (job.project.clone().unwrap_or_default(), job.name.clone());
        if let Some(stored) = snapshot.job_status.get(&at) {
            job.status = stored.status.clone();
        }
    }

    fn create(_app: &App, snapshot: &Snapshot, job: &mut Object<Self>, txn: Txn) -> Result<Txn, Problem> {
        let project = job.project.clone().unwrap_or_default();
        let at = (project, job.spec.cluster.clone());
        let cluster = snapshot.clusters.at(&at).ok_or_else(|| missing::<ClusterSpec>(snapshot, &at))?;
        refuse_deleting(&cluster.object)?;
        let mut faults = Faults::default();
        cluster.object.spec.check_job(&job.spec, &mut faults);
        faults.into_result()?;
        // One that is deleted meanwhile takes no more.
        Ok(txn.when_unchanged(key(Key::spec("clusters", Some(&at.0), &at.1))?, cluster.object.revision))
    }

    fn update(
        _app: &App,
        snapshot: &Snapshot,
        old: &Row<Self>,
        _new: &mut Object<Self>,
        txn: Txn,
    ) -> Result<Txn, Problem> {
        match snapshot.job_status.get(&old.at()).filter(|stored| stored.status.ended()) {
            Some(stored) if !old.object.spec.killed => {
                let detail = format!("{} has ended: {}", old.place(), stored.status.phase);
                Err(Problem::new(Code::NotRunning, detail))
            }
            Some(_) | None => Ok(txn),
        }
    }

    fn delete(
        _app: &App,
        _snapshot: &Snapshot,
        _row: &Row<Self>,
        txn: Txn,
    ) -> Result<(Txn, Deletion), Problem> {
        Ok((txn, Deletion::Marked))
    }

    fn phase(job: &Object<Self>) -> Option<String> {
        Some(job.status.phase.to_string())
    }

    fn settled(job: &Object<Self>) -> bool {
        job.status.ended()
    }
}

/// Ends the job: its driver is stopped, and its executors with it.
async fn kill(
    State(app): State<App>,
    path: Place,
    headers: HeaderMap,
    Extension(actor): Extension<Actor>,
    params: Params,
) -> Answer {
    let options = Options::take(actor, params)?;
    let done = if options.wait.is_some() || options.dry_run { StatusCode::OK } else { StatusCode::ACCEPTED };
    let edit = Edit { expected: if_match(&headers)?, options, done };
    let at = place::<JobSpec>(&path);
    edit::run::<JobSpec>(&app, at.clone(), edit, |old| {
        if !below(&old.spec, &path) {
            return Err(missing::<JobSpec>(&app.state.snapshot(), &at));
        }
        let mut new = old.clone();
        new.spec.killed = true;
        Ok(new)
    })
    .await
}

/// What its driver printed: the driver's own log while it is there, then what was kept of it.
async fn logs(State(app): State<App>, Path(mut path): Place, mut params: Params) -> Answer {
    let at = place::<JobSpec>(&path);
    let job = presented::<JobSpec>(&app, &app.state.snapshot(), &at).filter(|job| below(&job.spec, &path));
    let job = job.ok_or_else(|| missing::<JobSpec>(&app.state.snapshot(), &at))?;
    if let Some(log) = &job.status.log {
        let (tail, _) = (params.number("tail")?, params.flag("follow")?);
        for field in ["since", "timestamps"] {
            if params.take(field).is_some_and(|value| value != "false") {
                let detail = format!("{} has ended: its log is kept whole, without times", job.name);
                return Err(Problem::invalid_field(field, detail).into());
            }
        }
        params.done()?;
        return kept(&app, &at.0, &log.digest, tail).await;
    }
    let none = |why: &str| Problem::new(Code::NotRunning, format!("{} {why}", job.name));
    let ended = job.status.ended();
    let driver = job.status.driver.filter(|driver| {
        !ended || app.state.snapshot().instances.at(&(at.0.clone(), driver.clone())).is_some()
    });
    let driver = driver.ok_or_else(|| match ended {
        true => none("has no log: it did not begin, or was lost with the host of its driver"),
        false => none("has not begun: nothing was printed yet"),
    })?;
    path.remove(PARENT);
    path.insert("name".into(), driver);
    streams::logs(State(app), Path(path), params).await
}

/// A log that was kept, or its last lines.
async fn kept(app: &App, project: &str, digest: &str, tail: Option<u64>) -> Answer {
    let text = files::content(app, project, digest).await?;
    let Some(tail) = tail else { return Ok(streams::text(text)) };
    let bytes =
        text.collect().await.map_err(|error| Problem::new(Code::Internal, error.to_string()))?.to_bytes();
    let body = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
    let mut ends = body.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    let from = match usize::try_from(tail).unwrap_or(usize::MAX) {
        0 => bytes.len(),
        lines => ends.nth(lines - 1).unwrap_or(0),
    };
    Ok(streams::text(Body::from(bytes.slice(from..))))
}
