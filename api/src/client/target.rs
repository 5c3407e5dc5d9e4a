//! Paths and queries of the API, with every part percent-encoded: an image's name is one part, slashes and all.

use crate::object::Kind;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use std::fmt;

/// All but the unreserved characters of RFC 3986.
const PART: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// One part of a path or query, encoded.
pub fn part(text: &str) -> String {
    utf8_percent_encode(text, PART).to_string()
}

/// A path with its query.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    path: String,
    query: String,
}

impl Target {
    /// All objects of a kind: `/v1/projects/P/instances`, `/v1/hosts`. `project` is not looked at for a kind that
    /// no project owns; left out for one that a project owns, it is the project that exists from the start.
    pub fn kind(kind: Kind, project: Option<&str>) -> Self {
        let root = Target { path: "/v1".into(), query: String::new() };
        if !kind.in_project() {
            return root.join(kind.plural());
        }
        root.join("projects").join(project.unwrap_or(crate::project::DEFAULT)).join(kind.plural())
    }

    /// A fixed path, as it stands in the protocol.
    pub fn path(path: &str) -> Self {
        Target { path: path.to_owned(), query: String::new() }
    }

    /// One object.
    pub fn object(kind: Kind, project: Option<&str>, name: &str) -> Self {
        Target::kind(kind, project).join(name)
    }

    /// One step further down.
    pub fn join(mut self, step: &str) -> Self {
        self.path.push('/');
        self.path.push_str(&part(step));
        self
    }

    pub fn query(mut self, key: &str, value: &str) -> Self {
        if !self.query.is_empty() {
            self.query.push('&');
        }
        self.query.push_str(&format!("{}={}", part(key), part(value)));
        self
    }

    /// `key=true`, or nothing.
    pub fn flag(self, key: &str, set: bool) -> Self {
        if set { self.query(key, "true") } else { self }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)?;
        if !self.query.is_empty() {
            write!(f, "?{}", self.query)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_encoded() {
        for (target, text) in [
            (Target::kind(Kind::Host, Some("p")), "/v1/hosts"),
            (Target::kind(Kind::Instance, None), "/v1/projects/default/instances"),
            (Target::object(Kind::Instance, Some("p"), "a"), "/v1/projects/p/instances/a"),
            (
                Target::object(Kind::Image, Some("p"), "enoki/debian:12").join("content"),
                "/v1/projects/p/images/enoki%2Fdebian%3A12/content",
            ),
            (
                Target::kind(Kind::Host, None).query("command", "a b&c=ü").flag("tty", true).flag("x", false),
                "/v1/hosts?command=a%20b%26c%3D%C3%BC&tty=true",
            ),
            (Target::object(Kind::Host, None, "../x"), "/v1/hosts/..%2Fx"),
        ] {
            assert_eq!(target.to_string(), text);
        }
    }
}
