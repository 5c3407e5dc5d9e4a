//! How much memory a part of a cloud holds.

use std::fs;

use crate::cloud::Cloud;

/// Resident memory of a process, in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Resident {
    pub all: u64,
    /// Without pages of files: those of the program itself are shared by all processes that run it.
    pub own: u64,
}

impl Resident {
    /// What `/proc/PID/status` says. `None` for a process without memory: one of the kernel's, or one that has ended.
    fn read(status: &str) -> Option<Self> {
        let bytes = |field: &str| {
            let rest = status.lines().find_map(|line| line.strip_prefix(field))?;
            let kib: u64 = rest.trim().strip_suffix(" kB")?.parse().ok()?;
            Some(kib << 10)
        };
        Some(Self { all: bytes("VmRSS:")?, own: bytes("RssAnon:")? })
    }
}

impl Cloud {
    /// The memory of a part (as [`Cloud::find`] names them) that must be running.
    ///
    /// # Panics
    /// When it is not.
    #[track_caller]
    pub fn resident(&self, part: &str) -> Resident {
        let pid = self.pid(part);
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        Resident::read(&status).unwrap_or_else(|| panic!("{part} ({pid}) has no memory:\n{status}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let status = "Name:\tenoki\nVmHWM:\t   99999 kB\nVmRSS:\t   20480 kB\nRssAnon:\t    4096 kB\nRssFile:\t   16384 kB\n";
        assert_eq!(Resident::read(status), Some(Resident { all: 20 << 20, own: 4 << 20 }));
        assert_eq!(Resident::read("Name:\tkthreadd\nState:\tS (sleeping)\n"), None);
    }
}
