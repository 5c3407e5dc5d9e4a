//! What can be asked of a cluster of Dask's, and of its jobs.

use super::{ClusterSpec, floor, not_ours, plain, settings};
use crate::job::JobSpec;
use crate::object::Faults;
use crate::quantity::Bytes;

/// The least memory of a scheduler, of a worker and of a driver: what a Python with Dask has resident (67 MB were seen, before
/// anything else is imported), and something to work with.
const LEAST: Bytes = Bytes(256 << 20);

pub fn validate(spec: &ClusterSpec, faults: &mut Faults) {
    floor(faults, "spec.workers.memory", spec.workers.memory, LEAST, "a worker");
    floor(faults, "spec.master.memory", spec.master.memory, LEAST, "a scheduler");
    settings(faults, "spec.dask_conf", &spec.dask_conf, check_conf);
    let sparks = [
        ("spec.spark_conf", !spec.spark_conf.is_empty()),
        ("spec.spark_conf_secret", spec.spark_conf_secret.is_some()),
        ("spec.connect", spec.connect),
    ];
    refuse(faults, &sparks);
}

pub fn check_job(job: &JobSpec, faults: &mut Faults) {
    settings(faults, "spec.conf", &job.conf, check_conf);
    floor(faults, "spec.memory", job.memory, LEAST, "a driver");
    if !job.file.name.ends_with(".py") {
        faults.invalid("spec.file.name", format!("`{}` is not a .py, and the engine is dask", job.file.name));
    }
    let sparks = [
        ("spec.class", job.class.is_some()),
        ("spec.jars", !job.jars.is_empty()),
        ("spec.packages", !job.packages.is_empty()),
    ];
    refuse(faults, &sparks);
}

/// Fields that only Spark has.
fn refuse(faults: &mut Faults, fields: &[(&str, bool)]) {
    for (field, _) in fields.iter().filter(|(_, set)| *set) {
        faults.invalid(*field, "only spark has this, and the engine is dask");
    }
}

/// Whether a setting can be given. The error says why not.
///
/// Settings are variables of the environment, of which the name is made.
fn check_conf(key: &str, value: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-_".contains(c);
    if key.is_empty() || !key.chars().all(allowed) {
        return Err(
            "a setting's name has small letters, digits and .-_, as distributed.worker.memory.spill".into()
        );
    }
    if key.starts_with("spark.") {
        return Err("this is a setting of Spark's, and the engine is dask".into());
    }
    plain(key, value)?;
    // To Dask they are one.
    not_ours(&OWN, &key.replace('_', "-"))
}

/// What follows from how the cluster is made.
const OWN: [(&str, &str); 3] = [
    ("scheduler-address", "a job is submitted to the cluster"),
    ("distributed.scheduler.http.", "the pool's size follows from the scheduler's pages"),
    ("distributed.scheduler.contact-address", "a scheduler listens on its instance's address"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_have_dasks_names_and_are_not_ours() {
        for (key, value) in [("distributed.worker.memory.spill", "0.5"), ("array.chunk-size", "64MiB")] {
            check_conf(key, value).unwrap();
        }
        for (key, value) in [
            ("", "1"),
            ("distributed.worker=x", "1"),
            ("spark.executor.memory", "1g"),
            ("Distributed.a", "1"),
            ("distributed.a", "1\n2"),
            ("scheduler_address", "tcp://elsewhere:8786"),
            ("distributed.scheduler.http.routes", "[]"),
        ] {
            check_conf(key, value).unwrap_err();
        }
    }
}
