//! The image: bytes that were imported under a name. Its content is named by digest; the name can move.

use crate::object::{Faults, Kind, Object, Spec};
use crate::quantity::Bytes;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub type Image = Object<ImageSpec>;

/// What was imported. Written by the import, not by users.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ImageSpec {
    /// Docker's id of the image: the SHA-256 of its configuration (`sha256:...`).
    pub image_id: String,
    /// SHA-256 of the kept archive, 64 hexadecimal digits: its file's name.
    pub archive: String,
    /// Of the kept archive.
    pub size: Bytes,
    /// SHA-256 of the file as it was sent: importing the same bytes again changes nothing.
    pub source: String,
}

impl Spec for ImageSpec {
    const KIND: Kind = Kind::Image;
    type Status = ImageStatus;

    fn validate(&self, faults: &mut Faults) {
        for (field, digest) in [("archive", &self.archive), ("source", &self.source)] {
            if digest.len() != 64 || !digest.bytes().all(|b| b.is_ascii_hexdigit()) {
                faults.invalid(format!("spec.{field}"), "64 hexadecimal digits");
            }
        }
    }
}

/// Who uses an image. Computed on reading.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ImageStatus {
    #[serde(default)]
    pub used_by: Vec<String>,
}
