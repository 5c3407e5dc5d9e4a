//! A transaction: all of its writes if all of its compares hold, else none and a reading of the compared keys.
//!
//! Checked before it is sent, so that a batch that etcd would refuse never costs a round trip and both stores refuse
//! the same things with the same words.

use std::collections::BTreeSet;

use super::{Error, KeyValue, Revision};

/// etcd's `--max-txn-ops`: at most this many compares and this many writes.
pub const MAX_TXN_OPS: usize = 128;

/// Bytes of one transaction, keys and values together. etcd's default `--max-request-bytes` is 1.5 MiB with framing;
/// the rest is room for that.
pub const MAX_TXN_BYTES: usize = 1_400_000;

/// Bytes of one value. Objects are small; what is larger (images, logs) has no place in the store.
pub const MAX_VALUE_BYTES: usize = 1 << 20;

/// What protobuf may add to one key or operation; generous.
const FRAMING_BYTES: usize = 32;

/// A condition on one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key does not exist.
    Absent(String),
    /// The key exists.
    Present(String),
    /// The key exists and was last written at this revision.
    ModRevision(String, Revision),
    /// The key exists and came to be at this revision: same object, whatever was written to it since. The fence of a leader.
    CreateRevision(String, Revision),
}

impl Compare {
    /// The key it is about.
    pub fn key(&self) -> &str {
        match self {
            Compare::Absent(key)
            | Compare::Present(key)
            | Compare::ModRevision(key, _)
            | Compare::CreateRevision(key, _) => key,
        }
    }

    /// Whether it holds for what the key has now.
    pub fn holds(&self, now: Option<&KeyValue>) -> bool {
        match (self, now) {
            (Compare::Absent(_), now) => now.is_none(),
            (Compare::Present(_), now) => now.is_some(),
            (Compare::ModRevision(_, revision), Some(kv)) => kv.mod_revision == *revision,
            (Compare::CreateRevision(_, revision), Some(kv)) => kv.create_revision == *revision,
            (Compare::ModRevision(..) | Compare::CreateRevision(..), None) => false,
        }
    }
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Put {
        key: String,
        value: Vec<u8>,
    },
    /// Deleting what is not there does nothing.
    Delete {
        key: String,
    },
}

impl Op {
    /// The key it writes.
    pub fn key(&self) -> &str {
        match self {
            Op::Put { key, .. } | Op::Delete { key } => key,
        }
    }

    fn bytes(&self) -> usize {
        FRAMING_BYTES
            + match self {
                Op::Put { key, value } => key.len() + value.len(),
                Op::Delete { key } => key.len(),
            }
    }
}

/// Writes under conditions. See [`Txn::validate`] for what it must obey.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    pub compares: Vec<Compare>,
    pub ops: Vec<Op>,
}

/// What became of a transaction that the store has decided.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a conflict is not an error: nothing was written"]
pub enum Outcome {
    /// Applied. With nothing changed (deletes of absent keys, no writes) it is the store's revision at that time.
    Committed { revision: Revision },
    /// Not applied. `current` is every compared key, in the order of the compares, as it is at `revision`.
    Conflict { current: Vec<(String, Option<KeyValue>)>, revision: Revision },
}

impl Txn {
    pub fn new() -> Txn {
        Txn::default()
    }

    /// Adds a condition. The same one twice counts once, so that merged transactions can share a fence.
    pub fn when(mut self, compare: Compare) -> Txn {
        if !self.compares.contains(&compare) {
            self.compares.push(compare);
        }
        self
    }

    pub fn when_absent(self, key: impl Into<String>) -> Txn {
        self.when(Compare::Absent(key.into()))
    }

    pub fn when_present(self, key: impl Into<String>) -> Txn {
        self.when(Compare::Present(key.into()))
    }

    pub fn when_unchanged(self, key: impl Into<String>, mod_revision: Revision) -> Txn {
        self.when(Compare::ModRevision(key.into(), mod_revision))
    }

    pub fn put(mut self, key: impl Into<String>, value: impl Into<Vec<u8>>) -> Txn {
        self.ops.push(Op::Put { key: key.into(), value: value.into() });
        self
    }

    pub fn delete(mut self, key: impl Into<String>) -> Txn {
        self.ops.push(Op::Delete { key: key.into() });
        self
    }

    /// What it weighs against [`MAX_TXN_BYTES`]; a compared key counts twice, for the read of the else-branch.
    pub fn bytes(&self) -> usize {
        let compares: usize =
            self.compares.iter().map(|compare| 2 * (FRAMING_BYTES + compare.key().len())).sum();
        let ops: usize = self.ops.iter().map(Op::bytes).sum();
        compares + ops
    }

    /// At most [`MAX_TXN_OPS`] compares and as many writes, each key once among either, within the byte limits, not empty.
    pub fn validate(&self) -> Result<(), Error> {
        if self.compares.is_empty() && self.ops.is_empty() {
            return Err(Error::Invalid("a transaction without content".into()));
        }
        for (what, count) in [("compares", self.compares.len()), ("writes", self.ops.len())] {
            if count > MAX_TXN_OPS {
                return Err(Error::Invalid(format!(
                    "a transaction of {count} {what}, at most {MAX_TXN_OPS} go: split it"
                )));
            }
        }
        each_once("compared", self.compares.iter().map(Compare::key))?;
        each_once("written", self.ops.iter().map(Op::key))?;
        for op in &self.ops {
            if let Op::Put { key, value } = op
                && value.len() > MAX_VALUE_BYTES
            {
                return Err(Error::TooLarge {
                    what: format!("the value of {key}"),
                    size: value.len(),
                    limit: MAX_VALUE_BYTES,
                });
            }
        }
        let bytes = self.bytes();
        if bytes > MAX_TXN_BYTES {
            return Err(Error::TooLarge { what: "a transaction".into(), size: bytes, limit: MAX_TXN_BYTES });
        }
        Ok(())
    }
}

fn each_once<'a>(what: &str, keys: impl Iterator<Item = &'a str>) -> Result<(), Error> {
    let mut seen = BTreeSet::new();
    for key in keys {
        if key.is_empty() {
            return Err(Error::Invalid(format!("an empty key is {what}")));
        }
        if !seen.insert(key) {
            return Err(Error::Invalid(format!("{key} is {what} twice in one transaction")));
        }
    }
    Ok(())
}

impl Outcome {
    /// The revision of a commit; `None` for a conflict.
    pub fn committed(&self) -> Option<Revision> {
        match self {
            Outcome::Committed { revision } => Some(*revision),
            Outcome::Conflict { .. } => None,
        }
    }

    /// The compares of `txn` that did not hold; empty for a commit.
    pub fn failed<'a>(&self, txn: &'a Txn) -> Vec<&'a Compare> {
        match self {
            Outcome::Committed { .. } => Vec::new(),
            Outcome::Conflict { current, .. } => txn
                .compares
                .iter()
                .filter(|compare| {
                    current
                        .iter()
                        .find(|(key, _)| key == compare.key())
                        .is_some_and(|(_, now)| !compare.holds(now.as_ref()))
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(create_revision: Revision, mod_revision: Revision) -> KeyValue {
        KeyValue { key: "/k".into(), value: Vec::new(), create_revision, mod_revision }
    }

    #[test]
    fn compares() {
        let k = || "/k".to_string();
        for (compare, when_absent, when_3_5) in [
            (Compare::Absent(k()), true, false),
            (Compare::Present(k()), false, true),
            (Compare::ModRevision(k(), 5), false, true),
            (Compare::ModRevision(k(), 3), false, false),
            (Compare::ModRevision(k(), 0), false, false),
            (Compare::CreateRevision(k(), 3), false, true),
            (Compare::CreateRevision(k(), 0), false, false),
        ] {
            assert_eq!(compare.holds(None), when_absent, "{compare:?}");
            assert_eq!(compare.holds(Some(&kv(3, 5))), when_3_5, "{compare:?}");
        }
    }

    #[test]
    fn validation() {
        assert!(Txn::new().validate().is_err());
        assert!(Txn::new().put("/a", "1").validate().is_ok());
        assert!(Txn::new().put("/a", "1").delete("/a").validate().is_err());
        assert!(Txn::new().put("", "1").validate().is_err());
        let fence = Compare::CreateRevision("/e".into(), 4);
        let shared = Txn::new().when(fence.clone()).when(fence.clone());
        assert_eq!(shared.compares.len(), 1);
        assert!(shared.when_present("/e").validate().is_err());
        let many = |n: usize| (0..n).fold(Txn::new(), |txn, i| txn.put(format!("/{i}"), "x"));
        assert!(many(MAX_TXN_OPS).validate().is_ok());
        assert!(matches!(many(MAX_TXN_OPS + 1).validate(), Err(Error::Invalid(_))));
        assert!(matches!(
            Txn::new().put("/a", vec![0; MAX_VALUE_BYTES + 1]).validate(),
            Err(Error::TooLarge { .. })
        ));
        let heavy = (0..2).fold(Txn::new(), |txn, i| txn.put(format!("/{i}"), vec![0; MAX_VALUE_BYTES]));
        assert!(matches!(heavy.validate(), Err(Error::TooLarge { .. })));
    }

    #[test]
    fn a_conflict_names_the_losers() {
        let txn = Txn::new().when_absent("/a").when_present("/b").put("/a", "1");
        let outcome = Outcome::Conflict {
            current: vec![("/a".into(), Some(kv(1, 1))), ("/b".into(), Some(kv(1, 1)))],
            revision: 9,
        };
        assert_eq!(outcome.failed(&txn), [&Compare::Absent("/a".into())]);
        assert_eq!(outcome.committed(), None);
    }
}
