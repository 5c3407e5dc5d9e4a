//! A pool that grows for one job and shrinks under the next.
//!
//! The first job begins with one worker and has tasks for all. The second one begins while all are still there, with the same
//! tasks: what it takes to have them at work is the floor. Then it caches, shuffles, and needs one worker for as long as it
//! takes until the others are gone; after that it uses what they kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use enoki_api::Kind;
use enoki_harness::Cloud;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use crate::ours::{Api, CLUSTER, DATA, VOLUME};
use crate::plan::Plan;
use crate::timeline::{Seen, Timeline};

const PROGRAM: &str = include_str!("work.py");
const PROGRAM_INSIDE: &str = "/run/work.py";
const WORKER: &str = "lake-worker-";
/// Between two looks for a file that a job makes, outside of every clock.
const PAUSE: Duration = Duration::from_millis(100);

/// What one time of growing and shrinking showed; times are in seconds.
pub struct Round {
    /// From the first job's need until the last of the new workers was an instance, and until it ran.
    pub decided: f64,
    pub running: f64,
    /// Until each worker had a task, of the first job and of the second.
    pub at_work: f64,
    pub there: f64,
    /// From when workers had been needless for an idle period until the first was asked to leave, and until the last was
    /// gone.
    pub asked: f64,
    pub gone: f64,
    /// Tasks of the second job, and those that were not first attempts.
    pub tasks: usize,
    pub again: usize,
    /// Shuffles that ran while the pool shrank.
    pub shuffles: usize,
    /// Parts of the input that were cached, and those that were read again after the pool shrank.
    pub parts: usize,
    pub read_again: usize,
    pub before: Passes,
    pub after: Passes,
}

/// Seconds of each pass over the input: as it is cached, and read again.
#[derive(Clone, Debug, Deserialize)]
pub struct Passes {
    pub cached: Vec<f64>,
    pub read: Vec<f64>,
}

/// What a job says of its first part.
#[derive(Deserialize)]
struct Backlog {
    began: f64,
    /// When each host began its first task.
    firsts: BTreeMap<String, f64>,
}

impl Backlog {
    /// From the need until each of so many hosts had a task.
    fn at_work(&self, hosts: usize) -> Result<f64> {
        if self.firsts.len() != hosts {
            bail!("{} workers had tasks, not {hosts}: {:?}", self.firsts.len(), self.firsts.keys());
        }
        Ok(last(self.firsts.values().copied()) - self.began)
    }
}

/// And of its second.
#[derive(Deserialize)]
struct Kept {
    fell: f64,
    parts: usize,
    shuffles: usize,
    read_again: usize,
    before: Passes,
    after: Passes,
}

/// A cluster whose pool is watched, and the folder that its jobs share with us.
pub struct Pool<'c> {
    pub cloud: &'c Cloud,
    pub api: &'c Api,
    pub plan: &'c Plan,
    pub shared: &'c Path,
}

impl Pool<'_> {
    /// Workers when it is at its largest.
    pub fn most(&self) -> u32 {
        self.plan.workers + 1
    }

    /// The volume of the jobs, with the input in it.
    pub fn prepare(&self) -> Result<()> {
        let mut text = String::new();
        for number in 0..self.plan.lines {
            text.push_str(&format!(
                "{{\"id\": {number}, \"name\": \"item-{number}\", \"value\": {}}}\n",
                number % 97
            ));
        }
        for_everybody(self.shared)?;
        fs::write(self.shared.join("input.txt"), text).context("write the input")?;
        self.cloud.write(PROGRAM_INSIDE, PROGRAM);
        let path = self.shared.display().to_string();
        self.cloud.enoki(&["volume", "create", VOLUME, "--type", "shared", "--path", &path]).ok();
        Ok(())
    }

    /// One time, with the pool at one worker before and after.
    pub async fn round(&self) -> Result<Round> {
        let most = self.most();
        let mut jobs = Timeline::of(&self.api.0, Kind::Job).await?;
        let mut instances = Timeline::of(&self.api.0, Kind::Instance).await?;
        let mut clusters = Timeline::of(&self.api.0, Kind::Cluster).await?;
        let tasks = self.plan.tasks.to_string();

        let job = self.submit(&["--", &tasks]);
        let backlog: Backlog = serde_json::from_value(self.result(&mut jobs, &job).await?)?;
        let new = instances.until("new workers", |all| created(all, most as usize - 1)).await?;
        let decided = last(new.iter().map(|(_, at)| *at)) - backlog.began;
        let names: BTreeSet<String> = new.into_iter().map(|(name, _)| name).collect();
        let running = instances.until("running workers", |all| started(all, &names)).await? - backlog.began;
        let at_work = backlog.at_work(most as usize)?;

        for name in ["fell", "go"] {
            let _ = fs::remove_file(self.shared.join(name));
        }
        let events = self.shared.join("events");
        let _ = fs::remove_dir_all(&events);
        fs::create_dir_all(&events)?;
        for_everybody(&events)?;
        let folder = format!("spark.eventLog.dir={DATA}/events");
        let conf = [
            "spark.eventLog.enabled=true",
            &folder,
            "spark.eventLog.compress=false",
            "spark.eventLog.rolling.enabled=false",
        ];
        let conf: Vec<&str> = conf.iter().flat_map(|line| ["--conf", line]).collect();
        let passes = self.plan.passes.to_string();
        let job = self.submit(&[&conf[..], &["--", &tasks, DATA, &passes]].concat());
        let fell = async {
            while !self.shared.join("fell").exists() {
                tokio::time::sleep(PAUSE).await;
            }
        };
        let early = tokio::select! {
            () = fell => false,
            ended = jobs.until("the need of the second job falls", |all| ended(all, &job)) => ended.map(|_| true)?,
        };
        if early {
            let told = self.result(&mut jobs, &job).await?;
            bail!("the second job ended before its need fell: {told}");
        }
        let gone = instances
            .until("a pool that shrinks", |all| {
                let gone = all.iter().filter(|seen| seen.gone && seen.name().starts_with(WORKER));
                let times: Vec<f64> = gone.map(|seen| seen.at).collect();
                (times.len() + 1 >= most as usize).then(|| last(times.into_iter()))
            })
            .await;
        // The passes that follow have tasks for more than one worker again.
        self.api.bound(1).await?;
        fs::write(self.shared.join("go"), "")?;
        let told = self.result(&mut jobs, &job).await?;
        self.api.bound(most).await?;
        let gone = gone?;
        let there: Backlog = serde_json::from_value(told.clone())?;
        let kept: Kept = serde_json::from_value(told)?;
        let asked = clusters
            .until("workers that leave", |all| {
                let draining = |seen: &&Seen| {
                    seen.at >= kept.fell && seen.object["status"]["workers"]["draining"].as_u64() > Some(0)
                };
                all.iter().find(draining).map(|seen| seen.at)
            })
            .await?;
        let due = kept.fell + self.plan.idle.as_secs_f64();
        if gone < kept.fell {
            bail!(
                "the pool shrank before the second job was there: this machine is too slow for the idle time"
            );
        }
        let log = fs::read_dir(&events)?.flatten().next().context("no event log")?.path();
        let (tasks, again) = attempts(&fs::read_to_string(log)?);
        Ok(Round {
            decided,
            running,
            at_work,
            there: there.at_work(most as usize)?,
            asked: asked - due,
            gone: gone - due,
            tasks,
            again,
            shuffles: kept.shuffles,
            parts: kept.parts,
            read_again: kept.read_again,
            before: kept.before,
            after: kept.after,
        })
    }

    fn submit(&self, flags: &[&str]) -> String {
        let words = [&["cluster", "submit", CLUSTER, PROGRAM_INSIDE, "-o", "name"], flags].concat();
        self.cloud.enoki(&words).ok().text().trim_start_matches("job/").to_owned()
    }

    /// What a job printed last, once it has ended as it should.
    async fn result(&self, jobs: &mut Timeline, job: &str) -> Result<Value> {
        let phase = jobs.until("the end of a job", |all| ended(all, job)).await?;
        let logs = self.cloud.enoki(&["cluster", "job", "logs", CLUSTER, job]).ok();
        let told = logs.stdout.lines().find_map(|line| line.strip_prefix("RESULT "));
        match told {
            Some(told) if phase == "succeeded" => Ok(serde_json::from_str(told)?),
            _ => bail!("job {job} {phase}: {logs}"),
        }
    }
}

/// The phase in which a job has ended. None: it has not.
fn ended(all: &[Seen], job: &str) -> Option<String> {
    let status = &all.iter().rfind(|seen| seen.name() == job)?.object["status"];
    (!status["ended_at"].is_null()).then(|| status["phase"].as_str().unwrap_or_default().to_owned())
}

/// The so many workers that were made last, and when, by the server. None: there are fewer.
fn created(all: &[Seen], count: usize) -> Option<Vec<(String, f64)>> {
    let mut found: BTreeMap<String, f64> = BTreeMap::new();
    for seen in all.iter().filter(|seen| !seen.gone && seen.name().starts_with(WORKER)) {
        let at: Timestamp = seen.object["created_at"].as_str()?.parse().ok()?;
        found.insert(seen.name().to_owned(), at.as_duration().as_secs_f64());
    }
    let mut found: Vec<(String, f64)> = found.into_iter().collect();
    found.sort_by(|a, b| b.1.total_cmp(&a.1));
    found.truncate(count);
    (found.len() == count).then_some(found)
}

/// When the last of them was first seen running.
fn started(all: &[Seen], names: &BTreeSet<String>) -> Option<f64> {
    let mut firsts: BTreeMap<&str, f64> = BTreeMap::new();
    for seen in all.iter().filter(|seen| seen.object["status"]["phase"] == "running") {
        firsts.entry(seen.name()).or_insert(seen.at);
    }
    let times: Option<Vec<f64>> = names.iter().map(|name| firsts.get(name.as_str()).copied()).collect();
    times.map(|times| last(times.into_iter()))
}

/// The tasks that ended, by an event log, and those that were not the first attempt.
fn attempts(log: &str) -> (usize, usize) {
    let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let ends: Vec<Value> = events.filter(|event| event["Event"] == "SparkListenerTaskEnd").collect();
    let again =
        ends.iter().filter(|end| end["Stage Attempt ID"] != 0 || end["Task Info"]["Attempt"] != 0).count();
    (ends.len(), again)
}

fn last(times: impl Iterator<Item = f64>) -> f64 {
    times.fold(f64::MIN, f64::max)
}

/// What runs in the instances is another user.
fn for_everybody(folder: &Path) -> Result<()> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o1777))
        .with_context(|| format!("open {} to all", folder.display()))
}
