//! `Idempotency-Key`: a POST that is sent again gets the first one's answer.
//!
//! Answers are kept in memory, bounded. Beyond a restart of the server, creating is still safe: the key is part of
//! the new object's uid (see `objects`).

use super::answer::{self, BODY_MAX};
use super::{App, upload};
use crate::auth::actor::Actor;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use enoki_api::error::{Code, Problem};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use tokio::sync::OwnedMutexGuard;

/// Keys that are remembered.
const KEYS: usize = 4096;
/// Answers that are larger are not remembered; none of a verb's is.
const ANSWER_MAX: usize = 256 << 10;

#[derive(Clone, Default)]
pub struct Idempotency {
    slots: Arc<Mutex<Slots>>,
}

#[derive(Default)]
struct Slots {
    by_key: HashMap<String, Arc<tokio::sync::Mutex<Option<Kept>>>>,
    order: VecDeque<String>,
}

struct Kept {
    request: [u8; 32],
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Idempotency {
    /// The slot of a key; whoever has it runs, others wait for the outcome.
    async fn slot(&self, key: &str) -> OwnedMutexGuard<Option<Kept>> {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(|poison| poison.into_inner());
            if !slots.by_key.contains_key(key) {
                slots.order.push_back(key.to_owned());
                if slots.order.len() > KEYS
                    && let Some(oldest) = slots.order.pop_front()
                {
                    slots.by_key.remove(&oldest);
                }
            }
            slots.by_key.entry(key.to_owned()).or_default().clone()
        };
        slot.lock_owned().await
    }
}

pub async fn layer(State(app): State<App>, request: Request, next: Next) -> Response {
    let key = request.headers().get("idempotency-key").map(|key| key.as_bytes().to_vec());
    let (Some(key), &Method::POST, false) = (key, request.method(), upload::is(&request)) else {
        return next.run(request).await;
    };
    if key.is_empty() || key.len() > 255 {
        return answer::problem(Problem::invalid_field("Idempotency-Key", "1 to 255 characters"));
    }
    let (parts, body) = request.into_parts();
    let body = match answer::body(body).await {
        Ok(body) => body,
        Err(fault) => return answer::problem(fault),
    };
    let mut hash = Sha256::new();
    hash.update(parts.uri.to_string());
    hash.update([0]);
    hash.update(&body);
    let fingerprint: [u8; 32] = hash.finalize().into();
    // A key is its sender's own: nobody gets an answer that was another's.
    let actor = parts.extensions.get::<Actor>().map(Actor::to_string).unwrap_or_default();
    let mut slot = app.idempotency.slot(&format!("{actor}/{}", String::from_utf8_lossy(&key))).await;
    if let Some(kept) = &*slot {
        if kept.request != fingerprint {
            return answer::problem(
                Problem::new(Code::IdempotencyMismatch, "this key was sent with another request")
                    .hint("a new request needs a new key"),
            );
        }
        let mut response = Response::new(Body::from(kept.body.clone()));
        *response.status_mut() = kept.status;
        *response.headers_mut() = kept.headers.clone();
        return response;
    }
    let response = next.run(Request::from_parts(parts, Body::from(body))).await;
    // What failed for reasons of ours is tried again, not repeated.
    if response.status().is_server_error() {
        return response;
    }
    let (parts, body) = response.into_parts();
    let Ok(bytes) = axum::body::to_bytes(body, BODY_MAX.max(ANSWER_MAX)).await else {
        return answer::problem(Problem::new(Code::Internal, "the answer could not be read back"));
    };
    let headers = parts.headers.clone();
    *slot = Some(Kept { request: fingerprint, status: parts.status, headers, body: bytes.to_vec() });
    Response::from_parts(parts, Body::from(bytes))
}
