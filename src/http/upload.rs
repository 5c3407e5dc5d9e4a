//! Receiving what is uploaded: bodies of any length, into a file without a name that goes with its request.

use super::App;
use crate::registry::Error;
use crate::registry::archive::Room;
use axum::body::Body;
use axum::extract::Request;
use bytes::Bytes;
use enoki_api::error::{Code, Problem};
use futures::StreamExt;
use tokio::io::AsyncWriteExt;

/// Whether the body of this request is not to be read into memory.
pub fn is(request: &Request) -> bool {
    let path = request.uri().path();
    path.ends_with("/content") || path.ends_with("/files")
}

/// The whole body, as long as the disk keeps room for others. `look` sees each piece before it is written, and may refuse.
pub async fn receive(
    app: &App,
    body: Body,
    mut look: impl FnMut(&Bytes) -> Result<(), Problem>,
) -> Result<Room, Problem> {
    let kept = |error: std::io::Error| failed(Error::Io(error));
    let mut room = app.registry.receive().map_err(kept)?;
    let mut file = tokio::fs::File::from_std(room.file.try_clone().map_err(kept)?);
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk
            .map_err(|error| Problem::new(Code::MalformedBody, format!("the upload broke off: {error}")))?;
        look(&chunk)?;
        room.take(chunk.len() as u64).map_err(kept)?;
        file.write_all(&chunk).await.map_err(kept)?;
    }
    file.flush().await.map_err(kept)?;
    Ok(room)
}

/// Why what was uploaded is not kept, as its sender is told.
pub fn failed(error: Error) -> Problem {
    let problem = error.problem();
    if problem.status >= 500 {
        tracing::error!(%error, "what was uploaded could not be kept");
    }
    problem
}
