//! What happened, line by line: printed when a seed fails, and compared to show that a seed replays.

use crate::clock;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub struct Trace {
    kept: Arc<Mutex<Kept>>,
}

#[derive(Default)]
struct Kept {
    lines: Vec<String>,
    counts: BTreeMap<&'static str, u64>,
    violation: Option<Violation>,
}

/// Something that must never be was.
#[derive(Clone, Debug)]
pub struct Violation {
    /// As in architecture and faults: `I6`, `F2`.
    pub rule: &'static str,
    pub message: String,
}

impl Trace {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn note(&self, who: &str, what: impl Display) {
        let line = format!("{:>9.3} {who:<6} {what}", clock::now().as_secs_f64());
        self.kept().lines.push(line);
    }

    /// Something worth counting happened.
    pub fn count(&self, what: &'static str) {
        *self.kept().counts.entry(what).or_default() += 1;
    }

    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.kept().counts.clone()
    }

    /// The first one counts.
    pub fn violated(&self, rule: &'static str, message: impl Display) {
        self.note("LAW", format!("{rule} is broken: {message}"));
        let violation = Violation { rule, message: message.to_string() };
        self.kept().violation.get_or_insert(violation);
    }

    pub fn violation(&self) -> Option<Violation> {
        self.kept().violation.clone()
    }

    /// Equal for equal traces.
    pub fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.kept().lines.hash(&mut hasher);
        hasher.finish()
    }

    /// The last lines; all with `usize::MAX`.
    pub fn tail(&self, count: usize) -> String {
        let kept = self.kept();
        kept.lines[kept.lines.len().saturating_sub(count)..].join("\n")
    }
}
