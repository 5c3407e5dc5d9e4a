//! The job: a program that runs on a compute cluster, with a driver that is an instance of its own.

use crate::file::{self, FILES_MAX, FileRef};
use crate::instance::choice;
use crate::object::{Faults, Kind, Object, Spec, check_name};
use crate::quantity::{Bytes, MilliCpu};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use utoipa::ToSchema;

pub type Job = Object<JobSpec>;

const ARGS_MAX: usize = 1024;
/// Of all arguments together, in bytes: what a kernel takes is 2 MiB, and the store has to hold it.
const ARGS_BYTES_MAX: usize = 128 << 10;
const RETRIES_MAX: u32 = 100;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobSpec {
    /// Where it runs. Taken from the address that it is sent to.
    #[serde(default)]
    pub cluster: String,
    /// The program: a `.py` or a `.jar`.
    pub file: JobFile,
    /// Of a `.jar`: the class whose `main` begins, if the archive does not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    #[serde(default)]
    pub args: Vec<String>,
    /// Settings of this job, over the cluster's.
    #[serde(default)]
    pub conf: BTreeMap<String, String>,
    /// Modules that the program imports: `.py`, `.zip`, `.egg`.
    #[serde(default)]
    pub py_files: Vec<JobFile>,
    /// Java archives for driver and executors.
    #[serde(default)]
    pub jars: Vec<JobFile>,
    /// Files that each executor finds in its folder.
    #[serde(default)]
    pub files: Vec<JobFile>,
    /// Packages of Maven, `GROUP:ARTIFACT:VERSION` each, that the driver brings.
    #[serde(default)]
    pub packages: Vec<String>,
    /// Of the driver.
    #[serde(default = "default_cpus")]
    pub cpus: MilliCpu,
    #[serde(default = "default_memory")]
    pub memory: Bytes,
    /// How often it is begun again after it failed.
    #[serde(default)]
    pub retries: u32,
    /// It is to end. Set by `kill`, and never taken back.
    #[serde(default)]
    pub killed: bool,
}

/// A file that was sent before, by what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobFile {
    /// How it is called inside: one part of a path.
    pub name: String,
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    /// In bytes.
    pub size: u64,
}

/// Of a driver, where nobody says otherwise: one for its own work, one for what Java compiles while it starts.
pub fn default_cpus() -> MilliCpu {
    MilliCpu(2000)
}

/// Of a driver, where nobody says otherwise.
pub fn default_memory() -> Bytes {
    Bytes(1 << 30)
}

impl JobSpec {
    /// All its files, the program first.
    pub fn all_files(&self) -> impl Iterator<Item = &JobFile> {
        [&self.file].into_iter().chain(&self.py_files).chain(&self.jars).chain(&self.files)
    }

    pub fn all_files_mut(&mut self) -> impl Iterator<Item = &mut JobFile> {
        let JobSpec { file, py_files, jars, files, .. } = self;
        [file].into_iter().chain(py_files).chain(jars).chain(files)
    }
}

impl Spec for JobSpec {
    const KIND: Kind = Kind::Job;
    type Status = JobStatus;

    /// What holds for any engine. The rest: [`crate::cluster::ClusterSpec::check_job`].
    fn validate(&self, faults: &mut Faults) {
        if let Err(problem) = check_name("spec.cluster", &self.cluster) {
            faults.push(problem);
        }
        if !self.file.name.ends_with(".py") && !self.file.name.ends_with(".jar") {
            faults.invalid("spec.file.name", format!("`{}` is neither a .py nor a .jar", self.file.name));
        }
        self.validate_files(faults);
        let bytes: usize = self.args.iter().map(|arg| arg.len() + 1).sum();
        if self.args.len() > ARGS_MAX || bytes > ARGS_BYTES_MAX {
            let detail = format!(
                "at most {ARGS_MAX} arguments of {ARGS_BYTES_MAX} bytes together: write them to a file"
            );
            faults.invalid("spec.args", detail);
        }
        if self.args.iter().any(|arg| arg.contains('\0')) {
            faults.invalid("spec.args", "an argument cannot have a NUL in it");
        }
        for package in &self.packages {
            let part = |part: &str| {
                !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
            };
            if package.split(':').count() != 3 || !package.split(':').all(part) {
                faults.invalid("spec.packages", format!("`{package}` is not GROUP:ARTIFACT:VERSION"));
            }
        }
        let name = |c: char| c.is_ascii_alphanumeric() || "._$".contains(c);
        if let Some(class) =
            self.class.as_deref().filter(|class| class.is_empty() || !class.chars().all(name))
        {
            faults.invalid("spec.class", format!("`{class}` is not a class"));
        }
        if self.cpus.0 < 100 {
            faults.invalid("spec.cpus", format!("{} is too little for a driver: at least 0.1", self.cpus));
        }
        if self.retries > RETRIES_MAX {
            faults.invalid("spec.retries", format!("{} is more than {RETRIES_MAX}", self.retries));
        }
    }
}

impl JobSpec {
    fn validate_files(&self, faults: &mut Faults) {
        let mut names = BTreeSet::new();
        let mut count = 0;
        let lists = [("py_files", &self.py_files), ("jars", &self.jars), ("files", &self.files)];
        let listed = lists.into_iter().flat_map(|(field, files)| {
            files.iter().enumerate().map(move |(at, file)| (format!("spec.{field}.{at}"), file))
        });
        for (field, file) in std::iter::once(("spec.file".to_owned(), &self.file)).chain(listed) {
            count += 1;
            if let Err(why) = file.check() {
                faults.invalid(field, why);
            } else if !names.insert(file.name.as_str()) {
                faults.invalid(field, format!("two files are called `{}`", file.name));
            }
        }
        if count > FILES_MAX {
            faults.invalid("spec.files", format!("{count} files; at most {FILES_MAX}"));
        }
    }
}

impl JobFile {
    /// What is in it.
    pub fn content(&self) -> FileRef {
        FileRef { digest: self.digest.clone(), size: self.size }
    }

    fn check(&self) -> Result<(), String> {
        // A comma would part it in Spark's own lists.
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-+=@ ".contains(c);
        let fits = !self.name.is_empty() && self.name.len() <= 255 && self.name.chars().all(plain);
        if !fits || self.name.starts_with('.') {
            return Err(format!(
                "`{}` is no name of a file here: letters, digits and ._-+=@, not a dot first",
                self.name
            ));
        }
        if file::hex(&self.digest).is_none() {
            return Err(format!("`{}` is not sha256: and 64 hexadecimal digits", self.digest));
        }
        Ok(())
    }
}

choice!(
    /// Where a job stands. The last three are its end.
    JobPhase {
        /// Its driver does not run yet.
        Queued,
        Running,
        Succeeded,
        Failed,
        Killed,
    }
);

/// How a job is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobStatus {
    pub phase: JobPhase,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Of the program, when it has ended: 128+n for a signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// How often it was begun.
    #[serde(default)]
    pub attempts: u32,
    /// The instance that its driver is, or was: `enoki logs` and `enoki exec` take it while it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// What the driver printed, kept when it had ended: a file of the project. The driver is gone then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<FileRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = "date-time")]
    pub started_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = "date-time")]
    pub ended_at: Option<Timestamp>,
}

impl JobStatus {
    /// Whether nothing more comes.
    pub fn ended(&self) -> bool {
        match self.phase {
            // A phase of a newer version is its to end.
            JobPhase::Queued | JobPhase::Running | JobPhase::Unknown => false,
            JobPhase::Succeeded | JobPhase::Failed | JobPhase::Killed => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn file(name: &str) -> Value {
        json!({"name": name, "digest": format!("sha256:{}", "0a".repeat(32)), "size": 10})
    }

    fn faults(field: &str, value: Value) -> Vec<String> {
        let mut spec = json!({"cluster": "lake", "file": file("job.py")});
        spec[field] = value;
        let spec: JobSpec = serde_json::from_value(spec).unwrap();
        let mut faults = Faults::default();
        spec.validate(&mut faults);
        faults.into_result().err().into_iter().filter_map(|problem| problem.field).collect()
    }

    #[test]
    fn what_cannot_be_is_told_by_its_field() {
        assert_eq!(faults("args", json!(["1", "-x", "ü"])), [""; 0]);
        assert_eq!(faults("file", file("job.sh")), ["spec.file.name"]);
        assert_eq!(faults("file", json!({"name": "a.py", "digest": "sha256:00", "size": 1})), ["spec.file"]);
        assert_eq!(faults("files", json!([file("../x")])), ["spec.files.0"]);
        assert_eq!(faults("jars", json!([file("a,b.jar")])), ["spec.jars.0"]);
        assert_eq!(faults("py_files", json!([file("a.py"), file("job.py")])), ["spec.py_files.1"]);
        assert_eq!(faults("packages", json!(["org.x:y_2.13:1.0", "x"])), ["spec.packages"]);
        assert_eq!(faults("args", json!(["\0"])), ["spec.args"]);
        assert_eq!(faults("class", json!("a b")), ["spec.class"]);
        let many: Vec<Value> = (0..64).map(|n| file(&format!("f{n}"))).collect();
        assert_eq!(faults("files", json!(many)), ["spec.files"]);
    }
}
