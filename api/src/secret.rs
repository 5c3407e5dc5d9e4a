//! The secret: named values that are sealed in the store and never shown again.

use crate::object::{Faults, Kind, Object, Spec};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use utoipa::ToSchema;

pub type Secret = Object<SecretSpec>;

/// `data` is what a user writes and what the store seals. Reading shows the keys only.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SecretSpec {
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<String, String>,
}

impl fmt::Debug for SecretSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretSpec").field("keys", &self.data.keys()).finish()
    }
}

impl Spec for SecretSpec {
    const KIND: Kind = Kind::Secret;
    type Status = SecretStatus;

    fn validate(&self, faults: &mut Faults) {
        let size: usize = self.data.iter().map(|(key, value)| key.len() + value.len()).sum();
        if size > 256 << 10 {
            faults.invalid("spec.data", "at most 256Ki in all");
        }
        for key in self.data.keys() {
            if key.is_empty() || key.len() > 255 || key.chars().any(char::is_control) {
                faults.invalid("spec.data", "a key has 1 to 255 printable characters");
            }
        }
    }
}

/// The keys that a secret has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SecretStatus {
    #[serde(default)]
    pub keys: Vec<String>,
}
