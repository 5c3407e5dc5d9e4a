//! Who makes a request.

use super::seal::Sealer;
use crate::state::Snapshot;
use enoki_api::error::{Code, Problem};
use enoki_api::identity::Identity;
use enoki_api::object::Kind;
use enoki_api::token::{Role, TokenText};
use jiff::Timestamp;
use ring::rand::SecureRandom;
use sha2::{Digest, Sha256};
use std::fmt;

/// The one who asks, once it is known who that is.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Actor {
    /// On this machine, let in by the socket's permissions: may do everything.
    Local { uid: Option<u32>, pid: Option<i32> },
    /// The bearer of a token.
    Bearer { token: String, role: Role, projects: Vec<String> },
    /// A machine of the cloud, by its certificate.
    Machine(Identity),
    /// Nobody said who.
    Anonymous,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Actor::Local { uid: Some(uid), .. } => write!(f, "uid {uid}"),
            Actor::Local { uid: None, .. } => f.write_str("local"),
            Actor::Bearer { token, .. } => write!(f, "token {token}"),
            Actor::Machine(Identity::Host { name, .. }) => write!(f, "host {name}"),
            Actor::Machine(Identity::Server(name)) => write!(f, "server {name}"),
            Actor::Anonymous => f.write_str("nobody"),
        }
    }
}

impl Actor {
    /// Whether what reaches beyond one project is theirs to change.
    pub fn is_admin(&self) -> bool {
        match self {
            Actor::Local { .. } => true,
            Actor::Bearer { role, .. } => *role == Role::Admin,
            Actor::Machine(_) | Actor::Anonymous => false,
        }
    }

    /// Whether they may see this project at all.
    pub fn sees(&self, project: &str) -> bool {
        match self {
            Actor::Bearer { role: Role::Member | Role::Viewer, projects, .. } => {
                projects.iter().any(|own| own == project)
            }
            Actor::Local { .. } | Actor::Bearer { .. } | Actor::Machine(_) | Actor::Anonymous => {
                self.is_admin()
            }
        }
    }
}

/// What a token's hash is bound to in the store: it opens at no other place.
fn sealed_at(name: &str) -> String {
    format!("{}/{name}", Kind::Token.plural())
}

/// A new secret and the sealed hash to store for it.
pub fn new_secret(sealer: &Sealer, name: &str) -> Result<(String, String), super::seal::Error> {
    let mut bytes = [0; 32];
    ring::rand::SystemRandom::new().fill(&mut bytes).map_err(|_| super::seal::Error::NoRandom)?;
    let secret: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let sealed = sealer.seal(&sealed_at(name), &Sha256::digest(secret.as_bytes()))?;
    Ok((secret, sealed))
}

/// The bearer of a token's text. Whatever is wrong with it, the answer is the same, so that nobody learns which tokens
/// there are; only that it has expired is told, to the one who proved to have it.
pub fn bearer(snapshot: &Snapshot, sealer: &Sealer, text: &str, now: Timestamp) -> Result<Actor, Problem> {
    let refused = || {
        Problem::new(Code::Unauthenticated, "this token is not one of this cloud's")
            .hint("`enoki login` with another")
    };
    let given = TokenText::parse(text).ok_or_else(refused)?;
    let row = snapshot.tokens.get("", &given.name).ok_or_else(refused)?;
    let spec = &row.object.spec;
    let hash = sealer.open(&sealed_at(&given.name), &spec.hash).map_err(|error| {
        tracing::error!(token = given.name, %error, "a token's hash does not open");
        refused()
    })?;
    // Digests of the same length: comparing them tells nothing about the secret by its time.
    if Sha256::digest(given.secret.as_bytes())[..] != hash[..] {
        return Err(refused());
    }
    if spec.expires_at.is_some_and(|at| at <= now) {
        return Err(Problem::new(Code::Unauthenticated, format!("token {} has expired", given.name))
            .hint("ask an admin for another: `enoki token create`"));
    }
    Ok(Actor::Bearer { token: given.name, role: spec.role, projects: spec.projects.clone() })
}
