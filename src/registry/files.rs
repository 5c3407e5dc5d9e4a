//! Uploaded files: one repository a project and file, `files/PROJECT/HEX`, so that a digest is good only where its bytes were
//! brought.
//!
//! A manifest names the file and nothing else: the registry's own program frees what no manifest names. A file stays as
//! long as the store names it; one that is new, or was asked for, stays for an hour in which somebody may name it ([`sweep`]).
//!
//! [`sweep`]: super::sweep

use super::archive::{MANIFEST_TYPE, Room, digest_of};
use super::client::{self, ASK, Error as Fault};
use super::pull::passed_on;
use super::{Error, Part, Registry, repositories};
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use enoki_api::error::Problem;
use enoki_api::file::{FileRef, hex};
use enoki_api::object::check_name;
use enoki_api::quantity::Bytes;
use serde_json::json;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::SystemTime;
use tokio::io::AsyncSeekExt;
use tokio::time::timeout;

/// Where the repositories of files are among those of the registry.
pub(super) const ALL: &str = "files";
const FILE_TYPE: &str = "application/octet-stream";

/// A file of a project, as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wanted {
    pub project: String,
    pub digest: String,
}

impl Wanted {
    /// None: that is no project's name, or no digest.
    pub fn parse(project: &str, digest: &str) -> Option<Self> {
        let named = check_name("project", project).is_ok() && hex(digest).is_some();
        named.then(|| Wanted { project: project.to_owned(), digest: digest.to_owned() })
    }

    /// `PROJECT/DIGEST`
    pub fn path(&self) -> String {
        format!("{}/{}", self.project, self.digest)
    }

    pub(super) fn repository(&self) -> String {
        format!("{ALL}/{}/{}", self.project, self.digest.trim_start_matches("sha256:"))
    }

    /// What is told where no registry has it.
    pub fn missing(&self) -> Problem {
        Problem::not_found(format!("file {} in project {}", self.digest, self.project))
            .hint("upload it again; what nobody names is removed after an hour")
    }
}

/// What the registry names the file by: always the same bytes for the same file.
fn manifest(file: &FileRef) -> Vec<u8> {
    let content = json!({"mediaType": FILE_TYPE, "size": file.size, "digest": file.digest});
    json!({"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": content, "layers": []})
        .to_string()
        .into_bytes()
}

impl Registry {
    /// The largest file that is taken.
    pub fn largest_file(&self) -> Bytes {
        self.shared.largest_file
    }

    /// Keeps a file that was received whole. The same bytes again store nothing, and mend what is damaged.
    ///
    /// # Errors
    /// Nothing is kept then. `file` must say what `upload` holds: the registry refuses other bytes.
    pub async fn keep(&self, project: &str, file: &FileRef, upload: Room) -> Result<(), Error> {
        let wanted = Wanted::parse(project, &file.digest)
            .ok_or_else(|| io::Error::other(format!("{project}/{} names no file", file.digest)))?;
        let _kept = self.shared.sweeping.read().await;
        let repository = wanted.repository();
        if self.must_put(&repository, &file.digest, Part::Blob).await? {
            let mut bytes = tokio::fs::File::from_std(upload.file);
            bytes.rewind().await?;
            self.shared.client.put_blob(&repository, &file.digest, file.size, bytes).await?;
        }
        let manifest = manifest(file);
        let digest = digest_of(&manifest);
        if self.must_put(&repository, &digest, Part::Manifest).await? {
            self.shared.client.put_manifest(&repository, &digest, manifest).await?;
        }
        Ok(self.renew(&wanted)?)
    }

    /// The file, if the project has uploaded it and this server's registry has it. Its hour begins anew: whoever asks may
    /// be about to name it.
    pub async fn present(&self, wanted: &Wanted) -> Result<Option<FileRef>, Error> {
        let sweeping = timeout(ASK, self.shared.sweeping.read()).await;
        let _kept = sweeping.map_err(|_| Fault::Away("it is freeing its disk".to_owned()))?;
        let repository = wanted.repository();
        let Some(size) = self.length(&repository, Part::Blob, &wanted.digest).await? else { return Ok(None) };
        let file = FileRef { digest: wanted.digest.clone(), size };
        // Without it the file would not outlast the next sweep.
        if self.length(&repository, Part::Manifest, &digest_of(&manifest(&file))).await?.is_none() {
            return Ok(None);
        }
        self.renew(wanted)?;
        Ok(Some(file))
    }

    /// How long a part is, as the registry tells. None: it is not there.
    async fn length(&self, repository: &str, part: Part, digest: &str) -> Result<Option<u64>, client::Error> {
        let path = format!("/v2/{repository}/{}/{digest}", part.word());
        let accept = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(MANIFEST_TYPE))]);
        let answer = self.shared.client.read(Method::HEAD, &path, accept).await?;
        match answer.status() {
            StatusCode::OK => Ok(client::length(answer.headers())),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(client::refused(answer).await),
        }
    }

    /// From now on it is as new.
    fn renew(&self, wanted: &Wanted) -> io::Result<()> {
        File::open(self.folder_of(wanted))?.set_modified(SystemTime::now())
    }

    pub(super) fn folder_of(&self, wanted: &Wanted) -> PathBuf {
        repositories(&self.shared.folder, &wanted.repository())
    }

    /// Serves a file to somebody who may have it, as far as this server's registry has it. HEAD says how long it is, and
    /// keeps it for another hour.
    pub async fn serve_file(&self, wanted: &Wanted, method: &Method, headers: &HeaderMap) -> Response {
        let answer = if *method == Method::HEAD {
            self.present(wanted).await.map(|file| file.map(|file| told(file.size)))
        } else {
            let path = format!("/v2/{}/{}/{}", wanted.repository(), Part::Blob.word(), wanted.digest);
            let read = self.shared.client.read(method.clone(), &path, passed_on(headers)).await;
            read.map_err(Error::from).map(|answer| {
                let there = answer.status() != StatusCode::NOT_FOUND;
                there.then(|| {
                    let mut response = Response::new(());
                    *response.status_mut() = answer.status();
                    *response.headers_mut() = passed_on(answer.headers());
                    response.map(|()| Body::new(answer.into_body()))
                })
            })
        };
        match answer {
            Ok(Some(response)) => response,
            Ok(None) => refuse(&wanted.missing()),
            Err(error) => {
                tracing::warn!(%error, file = wanted.path(), "a file is not given");
                refuse(&error.problem())
            }
        }
    }
}

fn told(size: u64) -> Response {
    let mut response = Response::new(Body::empty());
    response.headers_mut().insert(header::CONTENT_LENGTH, size.into());
    response
}

/// A refusal as the API words it.
pub fn refuse(problem: &Problem) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, axum::Json(problem)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_projects_are_asked_for() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let wanted = Wanted::parse("shop", &digest).unwrap();
        assert_eq!(wanted.repository(), format!("files/shop/{}", "ab".repeat(32)));
        for (project, digest) in [
            ("", digest.as_str()),
            ("..", &digest),
            ("a/b", &digest),
            ("Shop", &digest),
            ("shop", &digest[7..]),
            ("shop", "sha256:.."),
            ("shop", &digest.to_uppercase()),
        ] {
            assert_eq!(Wanted::parse(project, digest), None, "{project} {digest}");
        }
    }
}
