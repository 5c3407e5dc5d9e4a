//! The token: what a bearer may do, until when. What it looks like is told once, when it is made.

use crate::object::{Faults, Kind, Object, Spec};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

pub type Token = Object<TokenSpec>;

/// What a token is for. All of it is immutable: make another one.
#[derive(Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TokenSpec {
    pub role: Role,
    /// The projects that a member or a viewer may enter.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub projects: Vec<String>,
    /// None: it does not expire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = "date-time")]
    pub expires_at: Option<Timestamp>,
    /// The sealed SHA-256 of its secret part. Written by the server, never shown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hash: String,
}

impl fmt::Debug for TokenSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TokenSpec { role, projects, expires_at, hash: _ } = self;
        f.debug_struct("TokenSpec")
            .field("role", role)
            .field("projects", projects)
            .field("expires_at", expires_at)
            .finish()
    }
}

/// What a bearer may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything, in every project.
    Admin,
    /// Everything in its projects but what reaches beyond them.
    Member,
    /// Reading in its projects.
    Viewer,
    /// Nothing but to join the cloud as a host.
    Host,
    /// Nothing but to join the cloud as a server.
    Server,
    /// A role of a newer version: may do nothing.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Admin => "admin",
            Role::Member => "member",
            Role::Viewer => "viewer",
            Role::Host => "host",
            Role::Server => "server",
            Role::Unknown => "unknown",
        })
    }
}

impl Spec for TokenSpec {
    const KIND: Kind = Kind::Token;
    type Status = TokenStatus;

    fn validate(&self, faults: &mut Faults) {
        match self.role {
            Role::Member | Role::Viewer if self.projects.is_empty() => {
                faults.invalid("spec.projects", format!("a {} has at least one project", self.role));
            }
            Role::Admin | Role::Host | Role::Server if !self.projects.is_empty() => {
                faults.invalid("spec.projects", format!("a token of role {} has no projects", self.role));
            }
            Role::Unknown => faults.invalid("spec.role", "is one of admin, member, viewer, host, server"),
            Role::Admin | Role::Member | Role::Viewer | Role::Host | Role::Server => {}
        }
    }
}

/// Computed on reading.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TokenStatus {
    #[serde(default)]
    pub expired: bool,
    /// The token itself: in the answer to its making, and never again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

impl fmt::Debug for TokenStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenStatus").field("expired", &self.expired).finish_non_exhaustive()
    }
}

/// The parts of a token's text, `enoki_NAME_SECRET_CA`: which token it is, what proves it, and the fingerprint of the
/// CA of the cloud that made it.
#[derive(Clone, PartialEq)]
pub struct TokenText {
    pub name: String,
    pub secret: String,
    pub ca: String,
}

impl TokenText {
    /// None: it is not a token.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.strip_prefix("enoki_")?.split('_');
        let (name, secret, ca) = (parts.next()?, parts.next()?, parts.next()?);
        let hex = |text: &str| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        (parts.next().is_none() && !name.is_empty() && hex(secret) && hex(ca)).then(|| TokenText {
            name: name.to_owned(),
            secret: secret.to_owned(),
            ca: ca.to_owned(),
        })
    }
}

impl fmt::Display for TokenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "enoki_{}_{}_{}", self.name, self.secret, self.ca)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_what_it_prints() {
        let text = TokenText { name: "ci-1".into(), secret: "a".repeat(64), ca: "0f".repeat(32) };
        assert!(TokenText::parse(&text.to_string()).as_ref() == Some(&text));
        for strange in ["", "enoki_a_b_c", "x", &format!("{text}_more"), &text.to_string()[..100]] {
            assert!(TokenText::parse(strange).is_none(), "{strange}");
        }
    }

    #[test]
    fn roles_and_projects_go_together() {
        let faults = |role, projects: &[&str]| {
            let projects = projects.iter().map(|name| (*name).to_owned()).collect();
            let mut faults = Faults::default();
            TokenSpec { role, projects, expires_at: None, hash: String::new() }.validate(&mut faults);
            faults.into_result().is_err()
        };
        assert!(faults(Role::Member, &[]) && faults(Role::Admin, &["a"]) && faults(Role::Unknown, &[]));
        assert!(!faults(Role::Viewer, &["a"]) && !faults(Role::Host, &[]));
    }
}
