//! A table of one kind: objects by place, as they are stored, and what a newer version put into them.

use crate::store::{Revision, overlay};
use enoki_api::object::{Key as Place, Object, Spec};
use imbl::OrdMap;
use serde_json::Value;
use std::ops::Bound;
use std::sync::Arc;

/// Project and name; the project is empty for what belongs to no project.
pub type At = (String, String);

/// One stored object. The status is not in it: see [`super::Snapshot`].
#[derive(Clone, Debug)]
pub struct Row<S: Spec> {
    pub object: Object<S>,
    /// The stored JSON, kept only where it says more than the typed object: fields and values of a newer version.
    newer: Option<Arc<Value>>,
}

impl<S: Spec> Row<S> {
    /// Reads a stored value. The error says what does not decode.
    pub fn decode(value: &[u8], revision: Revision) -> Result<Self, String> {
        let raw: Value = serde_json::from_slice(value).map_err(|error| error.to_string())?;
        let mut object: Object<S> = serde_json::from_value(raw.clone()).map_err(|error| error.to_string())?;
        if object.kind != S::KIND {
            return Err(format!("a {} stands where a {} should", object.kind, S::KIND));
        }
        let newer = (stored(&object) != raw).then(|| Arc::new(raw));
        object.revision = revision;
        Ok(Row { object, newer })
    }

    /// What to store for `after`, an edited copy of this row's object: all that is not known here survives.
    pub fn encode(&self, after: &Object<S>) -> Vec<u8> {
        let value = match &self.newer {
            None => stored(after),
            Some(raw) => overlay(raw, &stored(&self.object), &stored(after)),
        };
        value.to_string().into_bytes()
    }
}

/// The stored form of a new object.
pub fn encode_new<S: Spec>(object: &Object<S>) -> Vec<u8> {
    stored(object).to_string().into_bytes()
}

/// An object without what has a key of its own (status) or is the key's (revision).
fn stored<S: Spec>(object: &Object<S>) -> Value {
    let mut value = serde_json::to_value(object).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        fields.remove("status");
        fields.remove("revision");
    }
    value
}

/// The objects of one kind, in order of project and name.
#[derive(Clone)]
pub struct Table<S: Spec>(OrdMap<At, Arc<Row<S>>>);

impl<S: Spec> Default for Table<S> {
    fn default() -> Self {
        Table(OrdMap::new())
    }
}

impl<S: Spec> Table<S> {
    pub fn get(&self, project: &str, name: &str) -> Option<&Arc<Row<S>>> {
        self.0.get(&(project.to_owned(), name.to_owned()))
    }

    pub fn at(&self, at: &At) -> Option<&Arc<Row<S>>> {
        self.0.get(at)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&At, &Arc<Row<S>>)> {
        self.0.iter()
    }

    /// All of one project, or of every project.
    pub fn of<'a>(&'a self, project: Option<&'a str>) -> impl Iterator<Item = &'a Arc<Row<S>>> {
        self.after(project, None)
    }

    /// All of one project (or of every project) that come after `at`: how pages go on.
    pub fn after<'a>(
        &'a self,
        project: Option<&'a str>,
        at: Option<&At>,
    ) -> impl Iterator<Item = &'a Arc<Row<S>>> + use<'a, S> {
        let first = (project.unwrap_or_default().to_owned(), String::new());
        let from = match at {
            Some(at) => Bound::Excluded(at.clone()),
            None => Bound::Included(first),
        };
        self.0
            .range((from, Bound::Unbounded))
            .take_while(move |((owner, _), _)| project.is_none_or(|project| owner == project))
            .map(|(_, row)| row)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn put(&mut self, at: At, row: Row<S>) {
        self.0.insert(at, Arc::new(row));
    }

    pub(super) fn remove(&mut self, at: &At) {
        self.0.remove(at);
    }

    #[cfg(test)]
    pub(super) fn seed(&mut self, object: Object<S>) {
        self.0.insert(at(&object), Arc::new(Row { object, newer: None }));
    }
}

/// The place of a row in its table.
pub fn at<S: Spec>(object: &Object<S>) -> At {
    (object.project.clone().unwrap_or_default(), object.name.clone())
}

impl<S: Spec> Row<S> {
    pub fn at(&self) -> At {
        at(&self.object)
    }

    pub fn place(&self) -> Place {
        self.object.key()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use enoki_api::instance::{InstanceSpec, RestartPolicy};
    use enoki_api::quantity::MilliCpu;
    use serde_json::json;

    #[test]
    fn a_newer_versions_fields_and_values_survive_a_resize() {
        let raw = json!({
            "kind": "instance", "project": "default", "name": "web1", "uid": "7d0a5ac4-7b0e-4a7f-8d3f-3f6f9b2f9a11",
            "labels": {}, "generation": 4, "created_at": "2026-01-01T00:00:00Z", "teleport": {"to": "mars"},
            "spec": {"image": "a", "restart": "when_asked", "cpus": "1", "gpu": 2, "nics": {"eth0": {"network": "b", "vf": 3}}},
        });
        let row = Row::<InstanceSpec>::decode(raw.to_string().as_bytes(), 9).unwrap();
        assert_eq!(row.object.spec.restart, RestartPolicy::Unknown);
        let mut resized = row.object.clone();
        resized.spec.cpus = Some(MilliCpu(1500));
        resized.generation += 1;
        let written: Value = serde_json::from_slice(&row.encode(&resized)).unwrap();
        assert_eq!(written["spec"]["cpus"], "1.5");
        assert_eq!(written["generation"], 5);
        assert_eq!(written["spec"]["gpu"], 2);
        assert_eq!(written["spec"]["restart"], "when_asked");
        assert_eq!(written["spec"]["nics"]["eth0"]["vf"], 3);
        assert_eq!(written["teleport"]["to"], "mars");
        assert!(written.get("status").is_none() && written.get("revision").is_none());
    }

    #[test]
    fn what_stands_in_the_wrong_place_does_not_decode() {
        assert!(Row::<InstanceSpec>::decode(b"{}", 1).is_err());
        assert!(Row::<InstanceSpec>::decode(b"not json", 1).is_err());
    }
}
