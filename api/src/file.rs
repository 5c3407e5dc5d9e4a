//! Files that the system puts into an instance: read-only, all in one folder, each named there and known by its content.
//!
//! A user uploads them into a project; what owns an instance (a job) names them in its spec.

use crate::instance::Mount;
use crate::object::Faults;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// The folder inside.
pub const INSIDE: &str = "/job";
/// Of one instance.
pub const FILES_MAX: usize = 64;
/// The longest name that Linux takes, in bytes.
const NAME_MAX: usize = 255;

/// An uploaded file, by its content.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct FileRef {
    /// SHA-256: `sha256:` and 64 of `0-9a-f`.
    pub digest: String,
    /// In bytes.
    pub size: u64,
}

/// The hexadecimal digits of a digest. None: it is none.
pub fn hex(digest: &str) -> Option<&str> {
    let hex = digest.strip_prefix("sha256:")?;
    let valid = hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    valid.then_some(hex)
}

/// Checks the files of an instance, by name inside of [`INSIDE`].
pub(crate) fn validate(
    files: &BTreeMap<String, FileRef>,
    mounts: &BTreeMap<String, Mount>,
    faults: &mut Faults,
) {
    if files.len() > FILES_MAX {
        faults.invalid("spec.files", format!("{} files; at most {FILES_MAX}", files.len()));
    }
    for (name, file) in files {
        let field = format!("spec.files.{name}");
        let plain = (1..=NAME_MAX).contains(&name.len())
            && !name.contains(['/', '\0'])
            && name != "."
            && name != "..";
        if !plain {
            faults.invalid(
                &field,
                format!("a name has 1 to {NAME_MAX} bytes and no slash, and is neither . nor .."),
            );
        }
        if hex(&file.digest).is_none() {
            faults.invalid(format!("{field}.digest"), "`sha256:` and 64 hexadecimal digits");
        }
    }
    let within = |path: &str| path == INSIDE || path.starts_with(&format!("{INSIDE}/"));
    for path in mounts.keys().filter(|path| !files.is_empty() && within(path)) {
        faults
            .invalid(format!("spec.mounts.{path}"), format!("its files are at {INSIDE}: mount it elsewhere"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::InstanceSpec;
    use crate::object::Spec;

    fn spec(files: &[(&str, &str)]) -> InstanceSpec {
        let files = files
            .iter()
            .map(|&(name, digest)| (name.to_owned(), FileRef { digest: digest.to_owned(), size: 1 }));
        InstanceSpec { files: files.collect(), ..InstanceSpec::new("a") }
    }

    fn fault(spec: &InstanceSpec) -> Option<String> {
        let mut faults = Faults::default();
        spec.validate(&mut faults);
        faults.into_result().err().and_then(|problem| problem.field)
    }

    #[test]
    fn names_are_of_one_folder_and_digests_are_whole() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for name in ["job.py", "..data", "a b", "ü", &"x".repeat(255)] {
            assert_eq!(fault(&spec(&[(name, &digest)])), None, "{name}");
        }
        for name in ["", ".", "..", "a/b", "/", "a\0b", &"x".repeat(256)] {
            assert_eq!(fault(&spec(&[(name, &digest)])), Some(format!("spec.files.{name}")), "{name:?}");
        }
        for digest in ["", "ab", &digest[7..], &digest.to_uppercase(), &format!("{digest}0"), &digest[..70]] {
            assert_eq!(fault(&spec(&[("a", digest)])).as_deref(), Some("spec.files.a.digest"), "{digest}");
        }
        let names: Vec<String> = (0..=FILES_MAX).map(|n| n.to_string()).collect();
        let all: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), digest.as_str())).collect();
        assert_eq!(fault(&spec(&all[1..])), None);
        assert_eq!(fault(&spec(&all)).as_deref(), Some("spec.files"));
    }

    #[test]
    fn nothing_is_mounted_over_them() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        for (path, files, field) in [
            ("/job", true, Some("spec.mounts./job")),
            ("/job/deep", true, Some("spec.mounts./job/deep")),
            ("/jobs", true, None),
            ("/job", false, None),
        ] {
            let mut spec = if files { spec(&[("a", &digest)]) } else { spec(&[]) };
            spec.mounts.insert(path.to_owned(), Mount { volume: "v".to_owned(), read_only: false });
            assert_eq!(fault(&spec).as_deref(), field, "{path}");
        }
    }
}
