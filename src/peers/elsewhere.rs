//! What this server's registry does not have: whoever imported the image, or received the file, has it.

use super::Peers;
use crate::registry::pull::passed_on;
use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};

impl Peers {
    /// Asks the other servers for a part of an image or for a file, one after the other. None: none of those that answer
    /// has it.
    pub async fn elsewhere(
        &self,
        path: &str,
        method: &Method,
        headers: &HeaderMap,
    ) -> Option<Response<Body>> {
        for server in self.others() {
            let mut request = Request::builder().method(method).uri(path);
            if let Some(own) = request.headers_mut() {
                own.extend(passed_on(headers));
            }
            let address = server.address.as_deref().unwrap_or_default();
            match self.exchange(address, request, Bytes::new()).await {
                Ok(answer) if answer.status().is_success() => return Some(answer),
                Ok(answer) if answer.status() == StatusCode::NOT_FOUND => {}
                Ok(answer) => {
                    tracing::warn!(server = server.name, status = %answer.status(), path, "a server does not give it");
                }
                Err(why) => tracing::warn!(server = server.name, why, path, "a server is not asked"),
            }
        }
        None
    }
}
