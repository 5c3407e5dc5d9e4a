//! Images: pulled by name or digest, tagged, untagged.
//!
//! Progress is read to its end, since errors come inside it. A transfer ends when nothing moves for a while, and in
//! any case after a long time.

use super::super::Login;
use super::{Docker, Error, Fault, Instant};
use bollard::auth::DockerCredentials;
use bollard::query_parameters::{
    CreateImageOptionsBuilder, RemoveImageOptionsBuilder, TagImageOptionsBuilder,
};
use futures::{Stream, TryStreamExt};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::sleep_until;

/// `registry:5000/name:tag` as Docker takes it: repository and tag, or repository and digest.
fn reference(name: &str) -> (&str, &str) {
    if let Some((repository, digest)) = name.split_once('@') {
        return (repository, digest);
    }
    match name.rsplit_once(':') {
        // A colon before a slash belongs to the registry's port.
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        // Without a tag, Docker would pull every one there is.
        _ => (name, "latest"),
    }
}

/// When something last moved.
#[derive(Clone)]
struct Pulse(Arc<Mutex<Instant>>);

impl Pulse {
    fn new() -> Self {
        Pulse(Arc::new(Mutex::new(Instant::now())))
    }

    fn beat(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Ends once nothing has moved for `idle`.
    async fn stopped(&self, idle: Duration) {
        loop {
            let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner) + idle;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }
}

/// Reads progress to its end; gives up when nothing moves.
async fn finish<T>(
    progress: impl Stream<Item = Result<T, Fault>>,
    pulse: &Pulse,
    idle: Duration,
) -> Result<(), Fault> {
    let mut progress = std::pin::pin!(progress);
    loop {
        // Both arms are cancel-safe: a stream's next item, and a timer that is asked anew.
        tokio::select! {
            item = progress.try_next() => match item? {
                Some(_) => pulse.beat(),
                None => return Ok(()),
            },
            () = pulse.stopped(idle) => return Err(Fault::RequestTimeoutError),
        }
    }
}

pub async fn pull(docker: &Docker, name: &str, login: Option<&Login>) -> Result<(), Error> {
    let (repository, tag) = reference(name);
    let options = CreateImageOptionsBuilder::default().from_image(repository).tag(tag).build();
    let credentials = login.map(|login| DockerCredentials {
        username: Some(login.user.clone()),
        password: Some(login.password.clone()),
        ..DockerCredentials::default()
    });
    let idle = docker.deadlines.idle;
    let pulled = docker
        .call("pull image", &docker.transfers, docker.deadlines.transfer, |client| async move {
            finish(client.create_image(Some(options), None, credentials), &Pulse::new(), idle).await
        })
        .await;
    pulled.map_err(|error| match error {
        Error::Refused(text) if is_absent(&text) => Error::NotFound(text),
        other => other,
    })
}

/// What registries say of an image that they do not have (or do not show).
fn is_absent(text: &str) -> bool {
    let lower = text.to_lowercase();
    ["manifest unknown", "not found", "access denied", "access to the resource is denied", "does not exist"]
        .iter()
        .any(|words| lower.contains(words))
}

pub async fn tag(docker: &Docker, id: &str, name: &str) -> Result<(), Error> {
    if name.contains('@') {
        return Err(Error::Refused(format!("`{name}` names a digest, which cannot be given to an image")));
    }
    let (repository, tag) = reference(name);
    let options = TagImageOptionsBuilder::default().repo(repository).tag(tag).build();
    docker.quick("tag image", |client| async move { client.tag_image(id, Some(options)).await }).await
}

pub async fn untag(docker: &Docker, name: &str) -> Result<(), Error> {
    let options = RemoveImageOptionsBuilder::default().noprune(true).build();
    let removed = docker
        .quick("untag image", |client| async move { client.remove_image(name, Some(options), None).await })
        .await;
    match removed {
        Ok(_) | Err(Error::NotFound(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;

    #[test]
    fn references() {
        for (name, parts) in [
            ("debian", ("debian", "latest")),
            ("enoki/debian:12", ("enoki/debian", "12")),
            ("localhost:5000/a/b", ("localhost:5000/a/b", "latest")),
            ("localhost:5000/a/b:c", ("localhost:5000/a/b", "c")),
            ("a/b@sha256:00", ("a/b", "sha256:00")),
        ] {
            assert_eq!(reference(name), parts, "{name}");
        }
    }

    #[tokio::test]
    async fn a_transfer_that_stands_still_ends() {
        let idle = Duration::from_millis(300);
        let silent = futures::stream::pending::<Result<(), Fault>>();
        assert!(finish(silent, &Pulse::new(), idle).await.is_err());
        // One that moves now and then goes on for longer than the pause that ends it.
        let slow = futures::stream::iter(0..5).then(|_| async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok::<(), Fault>(())
        });
        assert!(finish(slow, &Pulse::new(), idle).await.is_ok());
    }
}
