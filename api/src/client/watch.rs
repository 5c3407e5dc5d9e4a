//! A watch: server-sent events read as a series of changes, resumed at the last revision seen when the connection
//! breaks. `revision_compacted` ends it: the caller lists again.

use super::{Client, Error, Target};
use crate::Code;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;
use std::time::{Duration, Instant};

/// The largest event that is taken.
const EVENT_MAX: usize = 4 << 20;
/// Between two attempts to find a lost server.
const PAUSE: Duration = Duration::from_millis(250);

/// One event of a watch.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub kind: ChangeKind,
    /// The store's revision: `from` here resumes after this change. None: the server gave none.
    pub revision: Option<u64>,
    /// The object (of a `delete`, as much of it as is known); `null` for a bookmark.
    pub object: Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    Put,
    Delete,
    /// Nothing changed up to this revision.
    Bookmark,
}

/// A running watch.
pub struct Watch {
    client: Client,
    target: Target,
    from: Option<u64>,
    patience: Duration,
    body: Option<Incoming>,
    parser: Parser,
}

impl Watch {
    pub(super) fn new(client: Client, target: Target, from: Option<u64>, patience: Duration) -> Self {
        Watch { client, target, from, patience, body: None, parser: Parser::default() }
    }

    /// The next change. Cancel-safe: what was read is kept. An error ends the watch; a broken connection is none
    /// unless the server stays away for longer than the watch's patience.
    pub async fn next(&mut self) -> Result<Change, Error> {
        loop {
            while let Some(event) = self.parser.next() {
                if let Some(change) = change(event)? {
                    self.from = change.revision.or(self.from);
                    return Ok(change);
                }
            }
            if self.body.is_none() {
                self.body = Some(self.connect().await?);
                self.parser = Parser::default();
            }
            let Some(body) = &mut self.body else { continue };
            match body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        self.parser.push(&bytes)?;
                    }
                }
                // The server ended it or went away: resume.
                Some(Err(_)) | None => {
                    self.body = None;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn connect(&self) -> Result<Incoming, Error> {
        let mut target = self.target.clone().flag("watch", true);
        if let Some(from) = self.from {
            target = target.query("from", &from.to_string());
        }
        let start = Instant::now();
        loop {
            match self.client.stream(&target, "text/event-stream", self.patience).await {
                Ok(answer) => return Ok(answer.into_body()),
                Err(error) if passes(&error) && start.elapsed() < self.patience => {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether a server that is starting up, or away for a moment, answers like this.
fn passes(error: &Error) -> bool {
    match error {
        Error::Unreachable { .. } | Error::Protocol(_) => true,
        Error::Problem(problem) => matches!(problem.code, Code::StoreUnavailable | Code::StaleReplica),
        Error::Timeout { .. } => false,
    }
}

/// One event as it came.
#[derive(Debug, Default, PartialEq)]
struct Event {
    name: String,
    id: Option<u64>,
    data: String,
}

/// Nothing for an event that this version does not know, or one without a body.
fn change(event: Event) -> Result<Option<Change>, Error> {
    let kind = match event.name.as_str() {
        "put" => ChangeKind::Put,
        "delete" => ChangeKind::Delete,
        "bookmark" => ChangeKind::Bookmark,
        "error" => {
            return Err(match serde_json::from_str(&event.data) {
                Ok(problem) => Error::Problem(Box::new(problem)),
                Err(_) => Error::Protocol(format!("the server ended the watch: {}", event.data)),
            });
        }
        _ => return Ok(None),
    };
    let object = match kind {
        ChangeKind::Bookmark => Value::Null,
        ChangeKind::Put | ChangeKind::Delete => serde_json::from_str(&event.data)
            .map_err(|error| Error::Protocol(format!("an event of the watch is not JSON: {error}")))?,
    };
    Ok(Some(Change { kind, revision: event.id, object }))
}

/// Cuts a stream of bytes into events, as the HTML standard's section on server-sent events says.
#[derive(Default)]
struct Parser {
    buffer: Vec<u8>,
}

impl Parser {
    fn push(&mut self, bytes: &Bytes) -> Result<(), Error> {
        if self.buffer.len() + bytes.len() > EVENT_MAX {
            return Err(Error::Protocol(format!("an event of the watch is larger than {EVENT_MAX} bytes")));
        }
        self.buffer.extend(bytes.iter().filter(|byte| **byte != b'\r'));
        Ok(())
    }

    fn next(&mut self) -> Option<Event> {
        let end = self.buffer.windows(2).position(|pair| pair == b"\n\n")?;
        let text: Vec<u8> = self.buffer.drain(..end + 2).collect();
        let mut event = Event::default();
        for line in String::from_utf8_lossy(&text).lines() {
            // A line without a colon is a field without a value; one that begins with it is a comment.
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => event.name = value.to_owned(),
                "id" => event.id = value.parse().ok(),
                "data" => {
                    if !event.data.is_empty() {
                        event.data.push('\n');
                    }
                    event.data.push_str(value);
                }
                _ => {}
            }
        }
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_cut_wherever_the_bytes_break() {
        let text = ": hello\n\nevent: put\nid: 7\ndata: {\"name\":\ndata: \"a\"}\n\nevent: bookmark\nid: 9\r\ndata\n\nevent: pu";
        for size in 1..text.len() {
            let mut parser = Parser::default();
            let mut changes = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                parser.push(&Bytes::copy_from_slice(piece)).unwrap();
                while let Some(event) = parser.next() {
                    changes.extend(change(event).unwrap());
                }
            }
            assert_eq!(
                changes,
                [
                    Change {
                        kind: ChangeKind::Put,
                        revision: Some(7),
                        object: serde_json::json!({"name": "a"})
                    },
                    Change { kind: ChangeKind::Bookmark, revision: Some(9), object: Value::Null },
                ],
                "{size}"
            );
        }
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let mut parser = Parser::default();
        let piece = Bytes::from(vec![b'x'; 1 << 20]);
        assert!((0..10).any(|_| parser.push(&piece).is_err()));
    }
}
