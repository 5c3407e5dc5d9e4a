//! What can be asked of a cluster of Spark's, and of its jobs.

use super::{ClusterSpec, floor, not_ours, plain, settings};
use crate::job::JobSpec;
use crate::object::Faults;
use crate::quantity::Bytes;

/// The least memory: the heap and the rest of the Java of a master (256 MiB of heap; 238 MB were seen resident), of a
/// worker (128 MiB of heap; 216 MB were seen) beside one executor's, and of a driver: the heap that Spark insists on, the rest of its
/// Java, and its Python.
const MASTER: Bytes = Bytes(512 << 20);
const WORKER: Bytes = Bytes(1 << 30);
const DRIVER: Bytes = Bytes(768 << 20);

pub fn validate(spec: &ClusterSpec, faults: &mut Faults) {
    floor(
        faults,
        "spec.workers.memory",
        spec.workers.memory,
        WORKER,
        "the Java of a worker and one executor",
    );
    floor(faults, "spec.master.memory", spec.master.memory, MASTER, "the Java of a master");
    if spec.connect && !connects(&spec.version) {
        let detail = format!("spark {} has no Connect server here: 4.0 or newer has", spec.version);
        faults.invalid("spec.connect", detail);
    }
    settings(faults, "spec.spark_conf", &spec.spark_conf, check_conf);
    if !spec.dask_conf.is_empty() {
        faults.invalid("spec.dask_conf", "settings of dask, and the engine is spark");
    }
}

pub fn check_job(job: &JobSpec, faults: &mut Faults) {
    settings(faults, "spec.conf", &job.conf, check_conf);
    floor(faults, "spec.memory", job.memory, DRIVER, "the Java of a driver");
    if job.class.is_some() && !job.file.name.ends_with(".jar") {
        faults.invalid("spec.class", format!("`{}` is not a .jar, which is what has classes", job.file.name));
    }
}

/// Whether a version has a Connect server that is one of its own programs: from 4 on.
fn connects(version: &str) -> bool {
    // A version that is not a number is that of somebody's own image, who knows.
    let major = version.split('.').next().unwrap_or_default();
    major.parse::<u32>().map_or(true, |major| major >= 4)
}

/// Whether a setting can be given. The error says why not.
///
/// Settings are lines of a file: one that could begin another is refused, and so is what Enoki itself decides.
fn check_conf(key: &str, value: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    if !key.starts_with("spark.") || !key.chars().all(allowed) {
        return Err("a setting's name begins with `spark.` and has letters, digits and .-_".into());
    }
    plain(key, value)?;
    not_ours(&OWN, key)
}

/// What follows from how the cluster is made.
const OWN: [(&str, &str); 16] = [
    ("spark.master", "a job is submitted to the cluster"),
    ("spark.submit.deployMode", "a job's driver is an instance of its own"),
    ("spark.master.rest.", "jobs are submitted through Enoki"),
    ("spark.master.ui.", "pages are reached through Enoki"),
    ("spark.ui.port", "pages are reached through Enoki"),
    ("spark.ui.reverseProxy", "pages are reached through Enoki"),
    ("spark.worker.", "see spec.workers"),
    ("spark.driver.host", "a driver listens on its instance's address"),
    ("spark.driver.bindAddress", "a driver listens on its instance's address"),
    ("spark.deploy.recoveryMode", "the master's state is on a volume"),
    ("spark.deploy.recoveryDirectory", "the master's state is on a volume"),
    ("spark.metrics.namespace", "the pool's size follows from the metrics"),
    ("spark.decommission.enabled", "workers leave by being decommissioned"),
    ("spark.history.ui.port", "pages are reached through Enoki"),
    ("spark.history.fs.logDirectory", "what jobs leave is on the master's volume"),
    ("spark.connect.grpc.binding.", "see spec.connect"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_4_has_no_connect_server() {
        for (version, has) in [("3.5.9", false), ("4.0.1", true), ("10.0.0", true), ("nightly", true)] {
            assert_eq!(connects(version), has, "{version}");
        }
    }

    #[test]
    fn settings_are_one_line_each_and_not_ours() {
        for (key, value) in [
            ("spark.executor.memory", "1g"),
            ("spark.sql.shuffle.partitions", "8"),
            ("spark.eventLog.dir", "/data/events"),
        ] {
            check_conf(key, value).unwrap();
        }
        for (key, value) in [
            ("hive.x", "1"),
            ("spark.a b", "1"),
            ("spark.a", "1\nspark.master local"),
            ("spark.master", "local"),
            ("spark.worker.cleanup.enabled", "true"),
            ("spark.history.fs.logDirectory", "/data/events"),
            ("spark.connect.grpc.binding.port", "1"),
        ] {
            check_conf(key, value).unwrap_err();
        }
    }
}
