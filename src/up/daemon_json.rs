//! Our two entries in Docker's `/etc/docker/daemon.json`, put in and taken out again: pure, text to text.
//!
//! Wanted are `runtimes.enoki` (the wrapper that hands an instance its network and disk) and `live-restore` (containers
//! outlive dockerd). Every other key stays as it is. A file that is not understood is refused with the place of the fault
//! and never touched. What was changed is recorded, so that taking out restores exactly what stood there before.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::config::paths;

pub const RUNTIME: &str = "enoki";

/// A daemon.json that dockerd itself would not take, or that we do not understand.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("line {line}, column {column}: {message}")]
    Malformed { line: usize, column: usize, message: String },
    #[error("{0}")]
    Shape(String),
}

/// What the file must say after a merge. A value that dockerd has from its command line must not stand in the file too:
/// dockerd refuses to load such a file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wanted {
    pub runtime: bool,
    pub live_restore: bool,
}

/// What stood in the place of an entry before it became ours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Before {
    Absent,
    Held(Value),
}

impl From<Option<Value>> for Before {
    fn from(old: Option<Value>) -> Self {
        old.map_or(Self::Absent, Self::Held)
    }
}

/// What a merge changed; kept until it is undone. Of several merges the first one's record counts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// There was no file before.
    pub created: bool,
    /// `None` where the entry was not set by us.
    pub runtime: Option<Before>,
    pub live_restore: Option<Before>,
}

impl Record {
    /// The record of this merge after an earlier one: what was ours stays ours.
    pub fn after(self, earlier: Option<Record>) -> Record {
        match earlier {
            None => self,
            Some(earlier) => Record {
                created: earlier.created,
                runtime: earlier.runtime.or(self.runtime),
                live_restore: earlier.live_restore.or(self.live_restore),
            },
        }
    }
}

/// A merge: the new text, or `None` when the file already says all that is wanted.
#[derive(Debug, PartialEq)]
pub struct Merged {
    pub text: Option<String>,
    pub record: Record,
}

pub fn merge(old: Option<&str>, wanted: Wanted) -> Result<Merged, Error> {
    let mut root = parse(old.unwrap_or_default())?;
    let mut record = Record { created: old.is_none(), ..Record::default() };
    if wanted.runtime {
        let runtimes = root.entry("runtimes").or_insert_with(|| json!({}));
        let Value::Object(runtimes) = runtimes else {
            return Err(Error::Shape("\"runtimes\" is not an object".to_owned()));
        };
        let ours = json!({ "path": paths::RUNTIME });
        if runtimes.get(RUNTIME) != Some(&ours) {
            record.runtime = Some(runtimes.insert(RUNTIME.to_owned(), ours).into());
        }
    }
    if wanted.live_restore && root.get("live-restore") != Some(&Value::Bool(true)) {
        record.live_restore = Some(root.insert("live-restore".to_owned(), Value::Bool(true)).into());
    }
    let changed = record.runtime.is_some() || record.live_restore.is_some();
    Ok(Merged { text: changed.then(|| print(&root)), record })
}

/// What to do with the file when our entries are taken out.
#[derive(Debug, PartialEq)]
pub enum Undone {
    Unchanged,
    Text(String),
    /// The file was made by us and says nothing any more.
    Remove,
}

/// Takes out what `record` put in. What somebody changed meanwhile stays as they left it.
pub fn undo(text: &str, record: &Record) -> Result<Undone, Error> {
    let mut root = parse(text)?;
    let before = root.clone();
    if let Some(old) = &record.runtime
        && let Some(Value::Object(runtimes)) = root.get_mut("runtimes")
        && runtimes.get(RUNTIME) == Some(&json!({ "path": paths::RUNTIME }))
    {
        restore(runtimes, RUNTIME, old);
        if runtimes.is_empty() {
            root.remove("runtimes");
        }
    }
    if let Some(old) = &record.live_restore
        && root.get("live-restore") == Some(&Value::Bool(true))
    {
        restore(&mut root, "live-restore", old);
    }
    Ok(match root {
        root if root.is_empty() && record.created => Undone::Remove,
        root if root == before => Undone::Unchanged,
        root => Undone::Text(print(&root)),
    })
}

/// The same file with the absence of our entries said aloud. A running dockerd takes over what a file says and keeps what
/// it is silent about, so it forgets nothing by a removed key.
pub fn spelled_out(text: &str) -> Result<String, Error> {
    let mut root = parse(text)?;
    root.entry("runtimes").or_insert_with(|| json!({}));
    root.entry("live-restore").or_insert(Value::Bool(false));
    Ok(print(&root))
}

/// Whether a key stands in the file; used for what dockerd takes from the file or from a flag, but not from both.
pub fn has(text: &str, key: &str) -> bool {
    parse(text).is_ok_and(|root| root.contains_key(key))
}

fn restore(map: &mut Map<String, Value>, key: &str, old: &Before) {
    match old {
        Before::Absent => map.remove(key),
        Before::Held(old) => map.insert(key.to_owned(), old.clone()),
    };
}

fn parse(text: &str) -> Result<Map<String, Value>, Error> {
    let text = text.trim_start_matches('\u{feff}');
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    match serde_json::from_str(text) {
        Ok(Value::Object(root)) => Ok(root),
        Ok(_) => Err(Error::Shape("the file does not hold a JSON object".to_owned())),
        Err(e) => {
            let message = e.to_string();
            let message = message.split(" at line ").next().unwrap_or_default().to_owned();
            Err(Error::Malformed { line: e.line(), column: e.column(), message })
        }
    }
}

fn print(root: &Map<String, Value>) -> String {
    // A map of JSON values always prints: keys are strings and there is no I/O.
    format!("{:#}\n", Value::Object(root.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Wanted = Wanted { runtime: true, live_restore: true };

    fn value(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_missing_or_empty_file_gets_our_entries_and_nothing_else() {
        for old in [None, Some(""), Some(" \n"), Some("{}")] {
            let merged = merge(old, ALL).unwrap();
            assert_eq!(
                value(&merged.text.unwrap()),
                json!({"runtimes": {"enoki": {"path": "/usr/local/lib/enoki/runtime"}}, "live-restore": true})
            );
            assert_eq!(merged.record.created, old.is_none());
        }
    }

    #[test]
    fn every_other_key_stays_and_a_second_merge_changes_nothing() {
        let old = r#"{"data-root":"/srv/docker","unknown":{"a":[1,2.5,null]},"runtimes":{"nvidia":{"path":"n","runtimeArgs":["x"]}},
                      "live-restore":false,"log-opts":{"max-size":"10m"}}"#;
        let merged = merge(Some(old), ALL).unwrap();
        let text = merged.text.unwrap();
        let mut expected = value(old);
        expected["runtimes"]["enoki"] = json!({"path": "/usr/local/lib/enoki/runtime"});
        expected["live-restore"] = json!(true);
        assert_eq!(value(&text), expected);
        assert_eq!(
            merged.record,
            Record {
                created: false,
                runtime: Some(Before::Absent),
                live_restore: Some(Before::Held(json!(false)))
            }
        );

        let again = merge(Some(&text), ALL).unwrap();
        assert_eq!(again.text, None);
        // As it comes back from up.json.
        let record: Record = serde_json::from_str(&serde_json::to_string(&merged.record).unwrap()).unwrap();
        let record = again.record.after(Some(record));
        let Undone::Text(undone) = undo(&text, &record).unwrap() else { panic!("nothing undone") };
        assert_eq!(value(&undone), value(old));
    }

    #[test]
    fn what_dockerd_has_from_its_flags_is_left_out() {
        let merged = merge(None, Wanted { runtime: false, live_restore: false }).unwrap();
        assert_eq!(merged.text, None);
        let merged = merge(Some("{}"), Wanted { runtime: true, live_restore: false }).unwrap();
        assert!(!has(&merged.text.unwrap(), "live-restore"));
    }

    #[test]
    fn a_file_of_ours_goes_and_a_changed_entry_stays() {
        let merged = merge(None, ALL).unwrap();
        let text = merged.text.unwrap();
        assert_eq!(undo(&text, &merged.record).unwrap(), Undone::Remove);
        let theirs = r#"{"runtimes":{"enoki":{"path":"/opt/other"}},"live-restore":false}"#;
        assert_eq!(undo(theirs, &merged.record).unwrap(), Undone::Unchanged);
        assert_eq!(undo(&text, &Record::default()).unwrap(), Undone::Unchanged);
    }

    #[test]
    fn absence_is_spelled_out_without_touching_the_rest() {
        assert_eq!(value(&spelled_out("").unwrap()), json!({"runtimes": {}, "live-restore": false}));
        let own = json!({"runtimes": {"x": {"path": "x"}}, "live-restore": true, "debug": true});
        assert_eq!(value(&spelled_out(&own.to_string()).unwrap()), own);
    }

    #[test]
    fn a_malformed_file_is_refused_with_its_place() {
        let error = merge(Some("{\n  \"debug\": true,\n  oops\n}\n"), ALL).unwrap_err();
        assert_eq!(
            error,
            Error::Malformed { line: 3, column: 3, message: "key must be a string".to_owned() }
        );
        for shape in ["[]", "3", r#"{"runtimes": []}"#] {
            assert!(matches!(merge(Some(shape), ALL), Err(Error::Shape(_))), "{shape}");
        }
    }
}
