//! Errors as RFC 9457 problems: a code for programs, a sentence for people, a hint of what to do.

use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// What went wrong, for a program to act on. Each code has one HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    MalformedBody,
    Unauthenticated,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    AlreadyExists,
    StaleRevision,
    AddressTaken,
    SegmentTaken,
    CidrTaken,
    InUse,
    Owned,
    Deleting,
    NotRunning,
    HostReachable,
    QuotaExceeded,
    RevisionCompacted,
    TooLarge,
    UnknownField,
    InvalidField,
    InvalidQuantity,
    UnknownReference,
    AddressOutsideNetwork,
    NeedsRebuild,
    ImmutableField,
    IdempotencyMismatch,
    Undecodable,
    RateLimited,
    Internal,
    StoreUnavailable,
    RegistryUnavailable,
    HostUnreachable,
    StaleReplica,
    /// A code of a newer server.
    #[serde(other)]
    Unknown,
}

impl Code {
    /// The HTTP status that goes with the code.
    pub fn status(self) -> u16 {
        use Code::*;
        match self {
            MalformedBody => 400,
            Unauthenticated => 401,
            Forbidden => 403,
            NotFound => 404,
            MethodNotAllowed => 405,
            AlreadyExists | StaleRevision | AddressTaken | SegmentTaken | CidrTaken | InUse | Owned
            | Deleting | NotRunning | HostReachable | QuotaExceeded | Undecodable => 409,
            RevisionCompacted => 410,
            TooLarge => 413,
            UnknownField
            | InvalidField
            | InvalidQuantity
            | UnknownReference
            | AddressOutsideNetwork
            | NeedsRebuild
            | ImmutableField
            | IdempotencyMismatch => 422,
            RateLimited => 429,
            Internal | Unknown => 500,
            StoreUnavailable | RegistryUnavailable | HostUnreachable => 503,
            StaleReplica => 504,
        }
    }

    fn title(self) -> &'static str {
        use Code::*;
        match self {
            MalformedBody => "The request could not be read",
            Unauthenticated => "Who are you?",
            Forbidden => "Not allowed",
            NotFound => "Not found",
            MethodNotAllowed => "This address does not take that method",
            AlreadyExists => "The name is taken",
            StaleRevision => "Changed in the meantime",
            AddressTaken => "The address is taken",
            SegmentTaken => "The segment is taken",
            CidrTaken => "The address range is taken",
            InUse => "Still in use",
            Owned => "Owned by another object",
            Deleting => "Being deleted",
            NotRunning => "Not running",
            HostReachable => "The host answers",
            QuotaExceeded => "Over the quota",
            RevisionCompacted => "That revision is gone",
            TooLarge => "Too large",
            UnknownField => "Unknown field",
            InvalidField => "Invalid value",
            InvalidQuantity => "Invalid quantity",
            UnknownReference => "No such object",
            AddressOutsideNetwork => "Address outside the network",
            NeedsRebuild => "Only a rebuild changes this",
            ImmutableField => "This cannot be changed",
            IdempotencyMismatch => "The idempotency key was used for another request",
            Undecodable => "Stored in a form that this version cannot read",
            RateLimited => "Too many requests",
            Internal | Unknown => "Something went wrong inside",
            StoreUnavailable => "The store is away",
            RegistryUnavailable => "The registry is away",
            HostUnreachable => "The host does not answer",
            StaleReplica => "This server has not caught up",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::String(text)) => f.write_str(&text),
            _ => f.write_str("unknown"),
        }
    }
}

/// An error as every client sees it (`application/problem+json`, RFC 9457).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    pub code: Code,
    /// What is wrong, with the values that matter.
    pub detail: String,
    /// The path of the field at fault, as in `spec.nics.eth0.address`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Who holds what was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
}

impl Problem {
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Problem {
            kind: format!("urn:enoki:error:{code}"),
            title: code.title().to_owned(),
            status: code.status(),
            code,
            detail: detail.into(),
            field: None,
            hint: None,
            holder: None,
        }
    }

    pub fn invalid_field(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Problem::new(Code::InvalidField, detail).field(field)
    }

    pub fn not_found(what: impl fmt::Display) -> Self {
        Problem::new(Code::NotFound, format!("there is no {what}"))
    }

    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub fn holder(mut self, holder: impl Into<String>) -> Self {
        self.holder = Some(holder.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.detail)?;
        if let Some(holder) = &self.holder {
            write!(f, " (held by {holder})")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_reads_as_a_sentence() {
        let problem = Problem::new(Code::AddressTaken, "198.18.0.2 is taken")
            .field("spec.nics.eth0.address")
            .holder("default/db1")
            .hint("leave the address out to get a free one");
        assert_eq!(
            problem.to_string(),
            "spec.nics.eth0.address: 198.18.0.2 is taken (held by default/db1); leave the address out to get a free one"
        );
        assert_eq!(problem.status, 409);
    }

    #[test]
    fn a_newer_servers_code_is_read() {
        let text = r#"{"type":"x","title":"t","status":418,"code":"teapot","detail":"d"}"#;
        let problem: Problem = serde_json::from_str(text).unwrap();
        assert_eq!((problem.code, problem.status), (Code::Unknown, 418));
    }
}
