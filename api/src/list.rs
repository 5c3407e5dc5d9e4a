//! Lists, pages and selectors.

use crate::error::Problem;
use crate::object::Labels;
use serde::{Deserialize, Serialize};

/// One page of a list. `continue` is the token for the next page, `null` on the last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct List<T> {
    pub items: Vec<T>,
    pub revision: u64,
    #[serde(rename = "continue")]
    pub continue_: Option<String>,
    /// What stands in the store under this kind and cannot be read by this server: nobody acts on it. On every page.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undecodable: Vec<Undecodable>,
}

/// A stored object that does not decode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Undecodable {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    pub name: String,
    pub reason: String,
}

/// `key=value,other=value`: every pair must match an object's labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selector(Vec<(String, String)>);

impl Selector {
    pub fn parse(field: &str, text: &str) -> Result<Self, Problem> {
        let mut pairs = Vec::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (key, value) = part
                .split_once('=')
                .filter(|(key, _)| !key.is_empty())
                .ok_or_else(|| Problem::invalid_field(field, format!("`{part}` is not key=value")))?;
            pairs.push((key.to_owned(), value.to_owned()));
        }
        Ok(Selector(pairs))
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors() {
        let labels = Labels::from([("tier".into(), "db".into()), ("zone".into(), "a".into())]);
        for (text, matches) in
            [("", true), ("tier=db", true), ("tier=db,zone=a", true), ("tier=web", false), ("x=", false)]
        {
            assert_eq!(Selector::parse("selector", text).unwrap().matches(&labels), matches, "{text}");
        }
        assert!(Selector::parse("selector", "tier").is_err());
        assert!(Selector::parse("selector", "=a").is_err());
    }
}
