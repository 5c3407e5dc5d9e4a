//! Reading manifests: YAML or JSON, many documents a file, told with file, line and column where they are wrong.
//!
//! A key that stands twice is refused: the parsers would let the last one win, and a user would never know.

use super::failure::Failure;
use enoki_api::Kind;
use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::fmt;

/// One document: what to apply, and what it is called in messages.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    pub kind: Kind,
    pub name: String,
    /// None: the project of the command line.
    pub project: Option<String>,
    pub body: Value,
}

/// Reads all documents of a text. A list (`{"items": [...]}`, as `get -o json` prints it) is taken as its items.
pub fn parse(file: &str, text: &str) -> Result<Vec<Document>, Failure> {
    let mut found = Vec::new();
    if text.trim_start().starts_with('{') {
        // Starting with a brace it is JSON, or YAML in its flow style.
        match json(text) {
            Ok(documents) => found = documents,
            Err(error) if error.is_data() || file.ends_with(".json") => {
                return Err(fault(file, Some((error.line(), error.column())), &error.to_string()));
            }
            Err(_) => yaml(file, text, &mut found)?,
        }
    } else {
        yaml(file, text, &mut found)?;
    }
    let documents: Vec<Document> = found.into_iter().flat_map(|top| top.0).collect();
    if documents.is_empty() {
        return Err(Failure::failed(format!("{file} has no objects")));
    }
    Ok(documents)
}

fn json(text: &str) -> Result<Vec<Top>, serde_json::Error> {
    serde_json::Deserializer::from_str(text).into_iter::<Top>().collect()
}

fn yaml(file: &str, text: &str, found: &mut Vec<Top>) -> Result<(), Failure> {
    for document in serde_yaml::Deserializer::from_str(text) {
        let top = Top::deserialize(document).map_err(|error| {
            let at = error.location().map(|place| (place.line(), place.column()));
            fault(file, at, &error.to_string())
        })?;
        found.push(top);
    }
    Ok(())
}

/// `web.yaml:3:5: spec: the key `image` stands twice`.
fn fault(file: &str, at: Option<(usize, usize)>, message: &str) -> Failure {
    // Both parsers end their message with the place, which stands in front here.
    let message = match message.rfind(" at line ") {
        Some(cut) if at.is_some() => &message[..cut],
        _ => message,
    };
    match at {
        Some((line, column)) => Failure::failed(format!("{file}:{line}:{column}: {message}")),
        None => Failure::failed(format!("{file}: {message}")),
    }
}

/// What a document holds: nothing, an object, or a list of objects.
struct Top(Vec<Document>);

impl<'de> Deserialize<'de> for Top {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TopVisitor;
        impl<'de> Visitor<'de> for TopVisitor {
            type Value = Top;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with kind, name and spec")
            }

            /// A text without documents.
            fn visit_none<E: de::Error>(self) -> Result<Top, E> {
                Ok(Top(Vec::new()))
            }

            /// An empty document.
            fn visit_unit<E: de::Error>(self) -> Result<Top, E> {
                Ok(Top(Vec::new()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Top, A::Error> {
                // The faults of the object as a whole are told here, where the parser knows its place.
                let object = NodeVisitor.visit_map(map)?;
                match object.get("items").and_then(Value::as_array) {
                    Some(items) if object.get("kind").is_none() => {
                        items.iter().cloned().map(document).collect::<Result<_, _>>().map(Top)
                    }
                    _ => document(object).map(|document| Top(vec![document])),
                }
                .map_err(de::Error::custom)
            }
        }
        deserializer.deserialize_any(TopVisitor)
    }
}

fn document(body: Value) -> Result<Document, String> {
    let text = |field: &str| body.get(field).and_then(Value::as_str);
    let kind = text("kind").ok_or("an object needs a `kind`, as in `kind: instance`")?;
    let kind: Kind = kind.parse()?;
    let name = text("name").ok_or_else(|| format!("this {kind} needs a `name`"))?.to_owned();
    if kind == Kind::Event {
        return Err("an event happens; it is not applied".into());
    }
    if kind == Kind::Operation {
        return Err("an operation is begun by its verb, as in `enoki host drain`; it is not applied".into());
    }
    let project = text("project").map(str::to_owned);
    Ok(Document { kind, name, project, body })
}

/// A value of a document.
struct Node(Value);

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor).map(Node)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value without tags")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom(format!("{value} is not a number")))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Node(value)) = list.next_element()? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(key) = map.next_key_seed(NewKey(&fields))? {
            let Node(value) = map.next_value()?;
            fields.insert(key, value);
        }
        Ok(fields.into())
    }
}

/// Reads a key that does not stand in the map yet. Refused while the key is read, so that its own place is told.
struct NewKey<'a>(&'a Map<String, Value>);

impl<'de> DeserializeSeed<'de> for NewKey<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for NewKey<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text as key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<String, E> {
        if self.0.contains_key(key) {
            return Err(E::custom(format!("the key `{key}` stands twice")));
        }
        Ok(key.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn error(text: &str) -> String {
        format!("{:?}", parse("f.yaml", text).unwrap_err())
    }

    #[test]
    fn many_documents() {
        let text = "---\nkind: volume\nname: data\nspec: {type: local}\n---\n# nothing\n---\nkind: instances\n\
                    name: a\nproject: p\nspec:\n  image: x\n  cpus: 1.5\n  pids: 10\n  env: {A: \"1\", B: no}\n";
        let documents = parse("f.yaml", text).unwrap();
        assert_eq!(documents.len(), 2);
        assert_eq!((documents[1].kind, documents[1].project.as_deref()), (Kind::Instance, Some("p")));
        assert_eq!(
            documents[1].body["spec"],
            json!({"image": "x", "cpus": 1.5, "pids": 10, "env": {"A": "1", "B": "no"}})
        );
    }

    #[test]
    fn json_and_lists_of_it() {
        let text = r#"{"kind":"volume","name":"a","spec":{}} {"kind":"volume","name":"b","spec":{}}"#;
        assert_eq!(parse("f.json", text).unwrap().len(), 2);
        let list = r#"{"items":[{"kind":"volume","name":"a","spec":{}}],"revision":3,"continue":null}"#;
        assert_eq!(parse("f.json", list).unwrap()[0].name, "a");
        assert_eq!(parse("f.yaml", "{kind: volume, name: a, spec: {}}").unwrap()[0].name, "a");
    }

    #[test]
    fn faults_tell_their_place() {
        for (text, place) in [
            (
                "kind: volume\nname: a\nspec:\n  type: local\n  type: shared\n",
                "f.yaml:5:3: spec: the key `type` stands twice",
            ),
            ("kind: volume\nname: [a\n", "f.yaml:3:1: "),
            ("kind: volume\nspec: {}\n", "f.yaml:1:1: this volume needs a `name`"),
            ("kind: volume\nname: a\n---\nname: b\n", "f.yaml:4:1: an object needs a `kind`"),
            ("kind: cat\nname: b\n", "f.yaml:1:1: no kind `cat`"),
            ("kind: volume\nname: b\nspec: {a: .nan}\n", "f.yaml:3:"),
            ("- a\n", "f.yaml:1:1: "),
            ("", "f.yaml has no objects"),
            ("{\"kind\": \"volume\",\n \"kind\": \"x\"}", "f.yaml:2:"),
        ] {
            let error = error(text);
            assert!(error.contains(place), "{text:?}: {error}");
        }
    }
}
