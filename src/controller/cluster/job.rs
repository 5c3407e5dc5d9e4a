//! PURE: where a job stands, and what is to be done for it next.
//!
//! ```text
//! queued --> running --> succeeded
//!    |          |------> failed       (after its last attempt)
//!    '----------+------> killed
//! ```

use enoki_api::file::FileRef;
use enoki_api::instance::{InstanceStatus, Phase};
use enoki_api::job::{Job, JobPhase, JobStatus};
use jiff::Timestamp;

/// The instance that a job's driver is.
#[derive(Clone, Debug)]
pub struct Driver {
    pub name: String,
    /// How often it was begun again.
    pub restarts: u64,
    pub status: InstanceStatus,
    /// Whether `status` is of what is wanted now.
    pub current: bool,
    pub deleting: bool,
    /// Whether it has a host: one that waits for room has not begun.
    pub placed: bool,
    /// Whether its host has been away for so long that it is given up.
    pub lost: bool,
}

/// The cluster, as far as its jobs are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    /// It takes drivers now.
    Ready,
    NotYet,
    /// The host of its master is given up, and with it what the master knew of running jobs.
    Lost,
}

/// Everything that the decision follows from.
pub struct Seen<'a> {
    pub now: Timestamp,
    pub job: &'a Job,
    pub status: &'a JobStatus,
    pub driver: Option<&'a Driver>,
    pub cluster: Stand,
    /// What its driver printed, if that is kept by now.
    pub log: Option<&'a FileRef>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Makes its driver, after so many attempts that were lost with their hosts.
    Begin(u32),
    /// Starts the driver once more.
    BeginAgain,
    Stop,
    /// Copies what the driver printed to where it outlives the driver.
    KeepLog,
    DeleteDriver,
    /// The job's own keys: nothing else is left of it.
    Forget,
}

pub fn decide(seen: &Seen<'_>) -> (JobStatus, Option<Step>) {
    let mut status = seen.status.clone();
    if seen.job.deleted_at.is_some() {
        let step = match seen.driver {
            Some(driver) if driver.deleting => None,
            Some(_) => Some(Step::DeleteDriver),
            None => Some(Step::Forget),
        };
        return (status, step);
    }
    if status.ended() {
        let step = after(seen, &mut status);
        return (status, step);
    }
    (status.reason, status.message) = (None, None);
    let Some(driver) = seen.driver else { return without_driver(seen, status) };
    status.driver = Some(driver.name.clone());
    status.attempts = u32::try_from(driver.restarts).unwrap_or(u32::MAX).saturating_add(1);
    let over = driver.current && matches!(driver.status.phase, Phase::Stopped | Phase::Failed);
    if let Some((reason, message)) = lost(seen, driver).filter(|_| !over) {
        (status.reason, status.message) = (Some(reason.to_owned()), Some(message.to_owned()));
        if driver.lost && !seen.job.spec.killed && status.attempts <= seen.job.spec.retries {
            // Without a driver of its own to miss, it is one that waits to begin.
            (status.phase, status.driver, status.started_at) = (JobPhase::Queued, None, None);
            return (status, (!driver.deleting).then_some(Step::DeleteDriver));
        }
        status.phase = if seen.job.spec.killed { JobPhase::Killed } else { JobPhase::Failed };
        status.ended_at = Some(seen.now);
        return (status, None);
    }
    if seen.job.spec.killed {
        if !driver.placed {
            (status.phase, status.ended_at) = (JobPhase::Killed, Some(seen.now));
            return (status, None);
        }
        if !over {
            status.reason.clone_from(&driver.status.reason);
            status.message.clone_from(&driver.status.message);
            let step = if driver.status.phase == Phase::Stopping { None } else { Some(Step::Stop) };
            return (status, step);
        }
        return (end(seen, status, JobPhase::Killed, driver), None);
    }
    match (over, driver.status.exit_code) {
        (true, Some(0)) => (end(seen, status, JobPhase::Succeeded, driver), None),
        (true, Some(_)) if status.attempts <= seen.job.spec.retries => {
            status.message = Some(format!("attempt {} failed; it is begun again", status.attempts));
            (status, Some(Step::BeginAgain))
        }
        (true, _) => (end(seen, status, JobPhase::Failed, driver), None),
        (false, _) => {
            if driver.current && driver.status.phase == Phase::Running {
                status.phase = JobPhase::Running;
                status.started_at = status.started_at.or(driver.status.started_at).or(Some(seen.now));
            } else {
                status.reason.clone_from(&driver.status.reason);
                status.message.clone_from(&driver.status.message);
            }
            (status, None)
        }
    }
}

/// Why a driver that may still run can come to no end of its own. One that has not begun can wait for its cluster.
fn lost(seen: &Seen<'_>, driver: &Driver) -> Option<(&'static str, &'static str)> {
    if driver.lost {
        Some(("host_lost", "the host of its driver is lost"))
    } else if seen.cluster == Stand::Lost && driver.status.phase == Phase::Running {
        Some(("master_lost", "the host of its cluster's master is lost"))
    } else {
        None
    }
}

/// A driver that has ended keeps what it was granted, so it goes: but not before what it printed is kept.
fn after(seen: &Seen<'_>, status: &mut JobStatus) -> Option<Step> {
    let driver = seen.driver.filter(|driver| !driver.deleting)?;
    if status.log.is_some() {
        return Some(Step::DeleteDriver);
    }
    // It may never have begun, or nobody can be asked there.
    let began = status.started_at.or(driver.status.started_at).is_some() || status.exit_code.is_some();
    if !driver.placed || !began || driver.lost {
        return Some(Step::DeleteDriver);
    }
    status.log = seen.log.cloned();
    status.log.is_none().then_some(Step::KeepLog)
}

fn without_driver(seen: &Seen<'_>, mut status: JobStatus) -> (JobStatus, Option<Step>) {
    if seen.job.spec.killed {
        (status.phase, status.ended_at) = (JobPhase::Killed, Some(seen.now));
        return (status, None);
    }
    // It was there, and whoever deleted it was not this job.
    if status.driver.is_some() && status.attempts > 0 {
        (status.phase, status.ended_at) = (JobPhase::Failed, Some(seen.now));
        (status.reason, status.message) = (Some("driver_lost".into()), Some("its driver is gone".into()));
        return (status, None);
    }
    if seen.cluster != Stand::Ready {
        status.reason = Some("cluster_not_ready".into());
        status.message = Some(format!("waits for cluster {}", seen.job.spec.cluster));
        return (status, None);
    }
    let lost = status.attempts;
    (status, Some(Step::Begin(lost)))
}

fn end(seen: &Seen<'_>, mut status: JobStatus, phase: JobPhase, driver: &Driver) -> JobStatus {
    status.phase = phase;
    status.exit_code = driver.status.exit_code.and_then(|code| i32::try_from(code).ok());
    status.started_at = status.started_at.or(driver.status.started_at);
    status.ended_at = Some(seen.now);
    if phase == JobPhase::Failed {
        let code =
            status.exit_code.map_or_else(|| "no exit code".to_owned(), |code| format!("exit code {code}"));
        if driver.status.oom_killed {
            status.reason = Some("out_of_memory".into());
            let memory = seen.job.spec.memory;
            status.message = Some(format!("the driver needed more than its {memory} of memory"));
        } else {
            status.reason = Some("exit_code".into());
            status.message = Some(format!("the driver ended with {code}; its log says why"));
        }
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use enoki_api::object::Object;

    struct World {
        job: Job,
        status: JobStatus,
        driver: Option<Driver>,
        cluster: Stand,
        log: Option<FileRef>,
    }

    impl World {
        fn new(retries: u32) -> Self {
            let digest = format!("sha256:{}", "0".repeat(64));
            let file = serde_json::json!({"name": "a.py", "digest": digest, "size": 1});
            let spec = serde_json::json!({"cluster": "lake", "file": file, "retries": retries});
            let spec = serde_json::from_value(spec).unwrap();
            let job = Object::new(Some("default"), "job-1", Default::default(), spec, Timestamp::UNIX_EPOCH);
            World { job, status: JobStatus::default(), driver: None, cluster: Stand::Ready, log: None }
        }

        fn decide(&mut self) -> (JobPhase, Option<Step>) {
            let (now, driver) = (Timestamp::UNIX_EPOCH, self.driver.as_ref());
            let seen = Seen {
                now,
                job: &self.job,
                status: &self.status,
                driver,
                cluster: self.cluster,
                log: self.log.as_ref(),
            };
            let (status, step) = decide(&seen);
            self.status = status;
            (self.status.phase, step)
        }

        fn driver(
            &mut self,
            phase: Phase,
            exit_code: Option<i64>,
            restarts: u64,
        ) -> (JobPhase, Option<Step>) {
            let host = Some("h1".to_owned());
            let placed = phase != Phase::Pending;
            let started_at = placed.then_some(Timestamp::UNIX_EPOCH);
            let status = InstanceStatus { phase, exit_code, host, started_at, ..InstanceStatus::default() };
            let name = "lake-job-1".to_owned();
            self.driver =
                Some(Driver { name, restarts, status, current: true, deleting: false, placed, lost: false });
            self.decide()
        }
    }

    #[test]
    fn it_waits_for_its_cluster_runs_and_ends_by_its_exit_code() {
        let mut world = World::new(0);
        world.cluster = Stand::NotYet;
        assert_eq!(world.decide(), (JobPhase::Queued, None));
        world.cluster = Stand::Ready;
        assert_eq!(world.decide(), (JobPhase::Queued, Some(Step::Begin(0))));
        assert_eq!(world.driver(Phase::Starting, None, 0), (JobPhase::Queued, None));
        assert_eq!(world.driver(Phase::Running, None, 0), (JobPhase::Running, None));
        assert_eq!(world.driver(Phase::Stopped, Some(0), 0), (JobPhase::Succeeded, None));
        assert_eq!((world.status.exit_code, world.status.attempts), (Some(0), 1));
        assert_eq!(world.driver(Phase::Running, None, 1).0, JobPhase::Succeeded, "an end is an end");
        assert_eq!(world.decide().1, Some(Step::KeepLog));
        world.log = Some(FileRef { digest: "sha256:00".into(), size: 1 });
        assert_eq!(world.decide().1, None, "first it is written down where the log is");
        assert_eq!(world.decide().1, Some(Step::DeleteDriver));
        world.job.deleted_at = Some(Timestamp::UNIX_EPOCH);
        assert_eq!(world.decide().1, Some(Step::DeleteDriver));
        world.driver = None;
        assert_eq!(world.decide().1, Some(Step::Forget));
    }

    #[test]
    fn it_is_begun_again_as_often_as_was_asked() {
        let mut world = World::new(1);
        assert_eq!(world.driver(Phase::Failed, Some(7), 0), (JobPhase::Queued, Some(Step::BeginAgain)));
        assert_eq!(world.driver(Phase::Failed, Some(7), 1), (JobPhase::Failed, None));
        assert_eq!((world.status.exit_code, world.status.attempts), (Some(7), 2));
        assert_eq!(world.status.reason.as_deref(), Some("exit_code"));
    }

    #[test]
    fn an_older_runs_end_is_not_this_ones() {
        let mut world = World::new(1);
        world.driver(Phase::Failed, Some(7), 1);
        world.status = JobStatus::default();
        world.driver.as_mut().unwrap().current = false;
        assert_eq!(world.decide(), (JobPhase::Queued, None));
    }

    #[test]
    fn it_is_killed_wherever_it_stands() {
        let mut world = World::new(3);
        world.job.spec.killed = true;
        assert_eq!(world.decide(), (JobPhase::Killed, None), "before it began");
        let mut world = World::new(3);
        assert_eq!(world.driver(Phase::Pending, None, 0), (JobPhase::Queued, None));
        world.job.spec.killed = true;
        assert_eq!(world.decide(), (JobPhase::Killed, None), "before there was room for it");
        assert_eq!(world.decide().1, Some(Step::DeleteDriver), "which has printed nothing");
        let mut world = World::new(3);
        world.driver(Phase::Running, None, 0);
        world.job.spec.killed = true;
        assert_eq!(world.decide(), (JobPhase::Running, Some(Step::Stop)));
        assert_eq!(world.driver(Phase::Stopping, None, 0), (JobPhase::Running, None));
        assert_eq!(world.driver(Phase::Stopped, Some(143), 0), (JobPhase::Killed, None));
        assert_eq!(world.status.exit_code, Some(143));
    }

    #[test]
    fn a_host_that_is_lost_ends_what_was_there() {
        let mut world = World::new(3);
        world.cluster = Stand::Lost;
        assert_eq!(world.decide(), (JobPhase::Queued, None), "it had not begun, and can wait");
        assert_eq!(world.driver(Phase::Running, None, 0), (JobPhase::Failed, None));
        assert_eq!(world.status.reason.as_deref(), Some("master_lost"));
        assert_eq!(world.decide().1, Some(Step::KeepLog), "the driver is on another host");
        let mut world = World::new(0);
        world.cluster = Stand::Lost;
        assert_eq!(world.driver(Phase::Pending, None, 0), (JobPhase::Queued, None), "it can wait, too");
        assert_eq!(
            world.driver(Phase::Stopped, Some(0), 0),
            (JobPhase::Succeeded, None),
            "it had ended by then"
        );
        let mut world = World::new(0);
        (world.cluster, world.job.spec.killed) = (Stand::Lost, true);
        assert_eq!(world.driver(Phase::Running, None, 0), (JobPhase::Killed, None), "as was asked");
        let mut world = World::new(0);
        world.driver(Phase::Running, None, 0);
        world.driver.as_mut().unwrap().lost = true;
        assert_eq!(world.decide(), (JobPhase::Failed, None));
        assert_eq!(world.status.reason.as_deref(), Some("host_lost"));
        assert_eq!(world.decide().1, Some(Step::DeleteDriver), "nobody can be asked for its log");
    }

    #[test]
    fn what_was_lost_with_its_host_is_begun_again_elsewhere() {
        let mut world = World::new(1);
        world.driver(Phase::Running, None, 0);
        world.driver.as_mut().unwrap().lost = true;
        assert_eq!(world.decide(), (JobPhase::Queued, Some(Step::DeleteDriver)));
        assert_eq!(world.status.reason.as_deref(), Some("host_lost"));
        assert_eq!(world.decide().1, Some(Step::DeleteDriver), "as often as it takes");
        world.driver = None;
        assert_eq!(world.decide(), (JobPhase::Queued, Some(Step::Begin(1))));
        assert_eq!(world.driver(Phase::Running, None, 1), (JobPhase::Running, None));
        assert_eq!(world.status.attempts, 2);
        world.driver.as_mut().unwrap().lost = true;
        assert_eq!(world.decide(), (JobPhase::Failed, None), "that was the last attempt");
        let mut world = World::new(1);
        world.driver(Phase::Running, None, 0);
        (world.job.spec.killed, world.driver.as_mut().unwrap().lost) = (true, true);
        assert_eq!(world.decide(), (JobPhase::Killed, None));
    }

    #[test]
    fn a_driver_that_is_gone_was_lost() {
        let mut world = World::new(3);
        world.driver(Phase::Running, None, 0);
        world.driver = None;
        assert_eq!(world.decide(), (JobPhase::Failed, None));
        assert_eq!(world.status.reason.as_deref(), Some("driver_lost"));
    }
}
