//! The image: bytes that were imported under a name. Its content is named by digest; the name can move.

use crate::object::{Faults, Kind, Object, Spec};
use crate::quantity::Bytes;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub type Image = Object<ImageSpec>;

/// What was imported, and which hosts are to have it beforehand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ImageSpec {
    /// Docker's id of the image: the SHA-256 of its configuration (`sha256:...`).
    pub image_id: String,
    /// The registry's name of the image: the SHA-256 of its manifest (`sha256:...`). Empty: imported by a version
    /// that had no registry, so that no host can get it until it is imported again.
    #[serde(default)]
    pub digest: String,
    /// Of its layers and its configuration.
    pub size: Bytes,
    /// SHA-256 of the file as it was sent: importing the same bytes again changes nothing.
    pub source: String,
    /// Hosts that have all of these labels (`key=value`) get the image before an instance needs it; `[]`: all hosts.
    /// None: no host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prepull: Option<Vec<String>>,
}

impl ImageSpec {
    /// What the name means now. None: hosts cannot get it.
    pub fn imported(&self) -> Option<Imported> {
        let imported = Imported { image_id: self.image_id.clone(), digest: self.digest.clone() };
        (!imported.digest.is_empty()).then_some(imported)
    }
}

/// An imported image by its content: what a name meant at some time.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct Imported {
    /// Docker's id of the image: the SHA-256 of its configuration (`sha256:...`).
    pub image_id: String,
    /// The registry's name of the image: the SHA-256 of its manifest (`sha256:...`).
    pub digest: String,
}

impl Spec for ImageSpec {
    const KIND: Kind = Kind::Image;
    type Status = ImageStatus;

    fn validate(&self, faults: &mut Faults) {
        let hexadecimal = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
        for (field, digest) in [("image_id", &self.image_id), ("digest", &self.digest)] {
            if !digest.strip_prefix("sha256:").is_some_and(hexadecimal) {
                faults.invalid(format!("spec.{field}"), "`sha256:` and 64 hexadecimal digits");
            }
        }
        for (index, rule) in self.prepull.iter().flatten().enumerate() {
            if rule.split_once('=').is_none_or(|(key, _)| key.is_empty()) {
                faults.invalid(format!("spec.prepull[{index}]"), "`key=value`");
            }
        }
        if !hexadecimal(&self.source) {
            faults.invalid("spec.source", "64 hexadecimal digits");
        }
    }
}

/// Who uses an image, and where it is. Computed on reading.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ImageStatus {
    #[serde(default)]
    pub used_by: Vec<String>,
    /// Of the hosts that are to have it beforehand: those that have it.
    #[serde(default)]
    pub hosts: Vec<String>,
}
