//! The pull half of the registry protocol, for hosts: what may be asked for, and the registry's answer passed on as it
//! comes. Who may ask is the caller's to decide, by the digest of the image's manifest.

use super::{Part, Registry, client};
use axum::body::Body;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use enoki_api::error::{Code, Problem};
use enoki_api::protocol::repository;

/// Of the question and of the answer: what a pull goes by. Ranges continue one that broke off.
const PASSED_ON: [header::HeaderName; 6] = [
    header::ACCEPT,
    header::RANGE,
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::ACCEPT_RANGES,
];
const CONTENT_DIGEST: &str = "docker-content-digest";

/// A part of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Of the image's manifest: which image it is a part of.
    pub image: String,
    part: Part,
    /// Of the part.
    digest: String,
}

impl Wanted {
    /// From `/v2/images/HEX/PART/DIGEST`. A manifest is had by the digest of its repository alone.
    pub fn parse(hex: &str, part: &str, digest: &str) -> Option<Self> {
        let image = format!("sha256:{hex}");
        let part = [Part::Manifest, Part::Blob].into_iter().find(|known| known.word() == part)?;
        let own = part == Part::Blob || digest == image;
        let named = own && repository(&image).is_some() && repository(digest).is_some();
        named.then(|| Wanted { image, part, digest: digest.to_owned() })
    }

    /// `HEX/PART/DIGEST`
    pub fn path(&self) -> String {
        let hex = self.image.trim_start_matches("sha256:");
        format!("{hex}/{}/{}", self.part.word(), self.digest)
    }
}

impl Registry {
    /// Serves a part to somebody who may have it, as far as this server's registry has it.
    pub async fn serve(&self, wanted: &Wanted, method: &Method, headers: &HeaderMap) -> Response {
        let path = format!("/v2/images/{}", wanted.path());
        match self.shared.client.read(method.clone(), &path, passed_on(headers)).await {
            Ok(answer) if answer.status() == StatusCode::NOT_FOUND => {
                let why = format!("no registry has {} of image {}", wanted.digest, wanted.image);
                let problem = Problem::not_found(why).hint("import it again: `enoki image import`");
                refuse(&problem, "MANIFEST_UNKNOWN")
            }
            Ok(answer) => {
                let mut response = Response::new(());
                *response.status_mut() = answer.status();
                *response.headers_mut() = passed_on(answer.headers());
                response.map(|()| Body::new(answer.into_body()))
            }
            Err(error @ client::Error::Away(_)) => {
                tracing::warn!(%error, image = wanted.image, "a host cannot pull");
                refuse(&Problem::new(Code::RegistryUnavailable, error.to_string()), "UNAVAILABLE")
            }
            Err(error) => refuse(&Problem::new(Code::Internal, error.to_string()), "UNKNOWN"),
        }
    }
}

/// The headers that a pull goes by.
pub fn passed_on(from: &HeaderMap) -> HeaderMap {
    let names = PASSED_ON.into_iter().chain([header::HeaderName::from_static(CONTENT_DIGEST)]);
    let mut headers = HeaderMap::new();
    for name in names {
        for value in from.get_all(&name) {
            headers.append(&name, value.clone());
        }
    }
    headers
}

/// A refusal as registries word it: Docker shows the message.
pub fn refuse(problem: &Problem, code: &str) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = serde_json::json!({"errors": [{"code": code, "message": problem.to_string()}]});
    (status, axum::Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_parts_of_images_are_asked_for() {
        let (hex, other) = ("ab".repeat(32), "cd".repeat(32));
        let parse = |hex: &str, part: &str, digest: &str| Wanted::parse(hex, part, digest);
        let own = parse(&hex, "manifests", &format!("sha256:{hex}")).unwrap();
        assert_eq!((own.image.as_str(), own.part), (format!("sha256:{hex}").as_str(), Part::Manifest));
        assert!(parse(&hex, "blobs", &format!("sha256:{other}")).is_some());
        for (hex, part, digest) in [
            // Another image's manifest under a name that may be read.
            (hex.as_str(), "manifests", format!("sha256:{other}")),
            (&hex, "manifests", "latest".to_owned()),
            (&hex, "tags", format!("sha256:{hex}")),
            (&hex, "blobs", "../../x".to_owned()),
            ("..", "blobs", format!("sha256:{other}")),
            (&hex.to_uppercase(), "blobs", format!("sha256:{other}")),
            (&hex[1..], "blobs", format!("sha256:{other}")),
        ] {
            assert_eq!(parse(hex, part, &digest), None, "{hex} {part} {digest}");
        }
    }
}
