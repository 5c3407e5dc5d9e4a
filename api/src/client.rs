//! The typed client: every call of the API, over the local socket or TLS, each with a deadline that its caller chose.
//!
//! A call opens a connection of its own: on a local socket that costs less than keeping one alive, and a tool that makes
//! one call has nothing to keep. [`Endpoint`] knows what is dialled; everything here works over any connection. Calls by [`Kind`] give
//! JSON as the server wrote it (fields of a newer server included); calls by type give objects.
//! Nothing is retried here, but for a watch, which resumes where it was.

mod target;
mod watch;

pub use target::{Target, part};
pub use watch::{Change, ChangeKind, Watch};

use crate::endpoint::{Endpoint, Io};
use crate::error::Problem;
use crate::file::FileRef;
use crate::list::List;
use crate::object::{Kind, Object, Spec};
use crate::protocol::TerminalSize;
use crate::stream::{self, WebSocket};
use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Where the API of the local cloud listens.
pub const SOCKET: &str = "/run/enoki/api.sock";
/// The largest answer that is read into memory.
const ANSWER_MAX: usize = 64 << 20;
/// How much of an uploaded file is held in memory at a time.
const CHUNK: usize = 128 << 10;

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server answered, with a problem.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// Nobody answers there. Nothing was done.
    #[error("no server at {address}: {source}")]
    Unreachable { address: String, source: io::Error },
    /// No answer in time; what was asked for may have been done.
    #[error("no answer within {} s", after.as_secs_f32())]
    Timeout { after: Duration },
    /// The answer was cut off or is not what the API says; what was asked for may have been done.
    #[error("{0}")]
    Protocol(String),
}

impl Error {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Error::Problem(problem) => problem.hint.as_deref(),
            Error::Unreachable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("the socket belongs to root; try with sudo")
            }
            Error::Unreachable { address, .. } if address.starts_with("https://") => {
                Some("is it the right server, and up? `enoki context list` shows where you are")
            }
            Error::Unreachable { .. } => Some("is the cloud up? try `enoki up`"),
            Error::Timeout { .. } | Error::Protocol(_) => None,
        }
    }

    /// The server's code. None: the failure is not the server's.
    pub fn code(&self) -> Option<crate::Code> {
        match self {
            Error::Problem(problem) => Some(problem.code),
            Error::Unreachable { .. } | Error::Timeout { .. } | Error::Protocol(_) => None,
        }
    }
}

impl From<hyper::Error> for Error {
    fn from(error: hyper::Error) -> Self {
        Error::Protocol(format!("the connection to the server broke: {error}"))
    }
}

/// An answer as the server gave it.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    /// The store's revision that the answer shows.
    pub revision: Option<u64>,
    /// Set when the store is away: how old, in seconds, what is shown is.
    pub stale: Option<u64>,
    /// `null` where the answer has no body.
    pub body: Value,
}

impl Answer {
    /// Whether what a write waited for was reached in time.
    pub fn reached(&self) -> bool {
        self.status != StatusCode::ACCEPTED
    }

    /// The body as a type of the contract.
    pub fn decode<T: DeserializeOwned>(self) -> Result<T, Error> {
        serde_json::from_value(self.body)
            .map_err(|error| Error::Protocol(format!("the server's answer cannot be read: {error}")))
    }
}

/// What a write waits for.
#[derive(Clone, Debug)]
pub struct Wait {
    /// A phase, or `deleted`.
    pub until: String,
    pub timeout: Duration,
}

/// How a write is done.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Only tell what would happen.
    pub dry_run: bool,
    pub wait: Option<Wait>,
    /// Only if the object is still at this revision.
    pub if_match: Option<u64>,
    /// Makes a repeated POST safe.
    pub idempotency_key: Option<String>,
}

impl WriteOptions {
    pub fn wait(until: &str, timeout: Duration) -> Self {
        WriteOptions { wait: Some(Wait { until: until.to_owned(), timeout }), ..Default::default() }
    }
}

/// Which part of a list is asked for.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// `key=value,...`
    pub selector: Option<String>,
    /// Objects a page. None: the server's own choice.
    pub limit: Option<u32>,
}

/// How logs are read.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    pub follow: bool,
    pub tail: Option<u64>,
    pub since: Option<jiff::Timestamp>,
    pub timestamps: bool,
}

/// What an exec runs, and with what.
#[derive(Clone, Debug, Default)]
pub struct ExecOptions {
    pub command: Vec<String>,
    pub tty: bool,
    pub stdin: bool,
    pub size: Option<TerminalSize>,
}

/// A client of one server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    endpoint: Endpoint,
    /// `Bearer ...`, marked as sensitive: it is not printed.
    authorization: Option<HeaderValue>,
}

impl Client {
    /// A client of the server that listens on a unix socket. Nothing is dialled yet.
    pub fn unix(socket: impl AsRef<Path>) -> Self {
        Client { endpoint: Endpoint::unix(socket), authorization: None }
    }

    /// A client of a server anywhere, known to it by a token. Nothing is dialled yet.
    pub fn new(endpoint: Endpoint, token: Option<&str>) -> Result<Self, Error> {
        let authorization = token.map(|token| HeaderValue::try_from(format!("Bearer {token}"))).transpose();
        let mut authorization = authorization
            .map_err(|_| Error::Protocol("the token has characters that no token has".to_owned()))?;
        if let Some(value) = &mut authorization {
            value.set_sensitive(true);
        }
        Ok(Client { endpoint, authorization })
    }

    /// Where it dials.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    async fn dial(&self) -> Result<Box<dyn Io>, Error> {
        let unreachable = |source| Error::Unreachable { address: self.endpoint.to_string(), source };
        self.endpoint.connect().await.map_err(unreachable)
    }

    /// Sends a request and gives the answer's head; problems are errors. The deadline covers the head.
    async fn open(
        &self,
        request: http::request::Builder,
        target: &Target,
        body: Body,
        deadline: Duration,
    ) -> Result<Response<Incoming>, Error> {
        let mut request = request
            .uri(target.to_string())
            .header(header::HOST, "enoki")
            .body(body)
            .map_err(|error| Error::Protocol(format!("`{target}` cannot be asked for: {error}")))?;
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
        }
        let exchange = async {
            let io = TokioIo::new(self.dial().await?);
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
            // Ends by itself when sender and answer are dropped; its error reaches the one who reads the answer.
            tokio::spawn(connection);
            let answer = sender.send_request(request).await?;
            if answer.status().is_success() { Ok(answer) } else { Err(refused(answer).await) }
        };
        tokio::time::timeout(deadline, exchange).await.unwrap_or(Err(Error::Timeout { after: deadline }))
    }

    /// Any call with a JSON body or none, answered by JSON or nothing.
    pub async fn call(
        &self,
        method: Method,
        target: &Target,
        body: Option<&Value>,
        deadline: Duration,
    ) -> Result<Answer, Error> {
        let media = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        self.call_with(http::Request::builder().method(method), target, body, media, deadline).await
    }

    async fn call_with(
        &self,
        mut request: http::request::Builder,
        target: &Target,
        body: Option<&Value>,
        media: &str,
        deadline: Duration,
    ) -> Result<Answer, Error> {
        let bytes = match body {
            None => Bytes::new(),
            Some(value) => {
                request = request.header(header::CONTENT_TYPE, media);
                Bytes::from(value.to_string())
            }
        };
        let body = Full::new(bytes).map_err(|never| match never {}).boxed_unsync();
        let whole = async { read(self.open(request, target, body, deadline).await?).await };
        tokio::time::timeout(deadline, whole).await.unwrap_or(Err(Error::Timeout { after: deadline }))
    }

    async fn write(
        &self,
        method: Method,
        target: Target,
        body: Option<&Value>,
        options: &WriteOptions,
        deadline: Duration,
    ) -> Result<Answer, Error> {
        let mut target = target.flag("dry_run", options.dry_run);
        let mut deadline = deadline;
        if let Some(wait) = &options.wait {
            let timeout = format!("{}ms", wait.timeout.as_millis());
            target = target.query("wait", &wait.until).query("timeout", &timeout);
            // The caller's deadline is for the call; the wait comes on top.
            deadline += wait.timeout;
        }
        let media = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let mut request = http::Request::builder().method(method);
        if let Some(revision) = options.if_match {
            request = request.header(header::IF_MATCH, format!("\"{revision}\""));
        }
        if let Some(key) = &options.idempotency_key {
            request = request.header("idempotency-key", key);
        }
        self.call_with(request, &target, body, media, deadline).await
    }

    /// GET of one address.
    pub async fn read(&self, target: &Target, deadline: Duration) -> Result<Answer, Error> {
        self.call(Method::GET, target, None, deadline).await
    }

    /// GET of a list, all its pages put together: `{"items", "revision", "continue": null}`. The deadline is for
    /// each page. The revision is the first page's, so that a watch from there misses nothing.
    pub async fn read_list(
        &self,
        target: &Target,
        options: &ListOptions,
        deadline: Duration,
    ) -> Result<Answer, Error> {
        let mut base = target.clone();
        if let Some(selector) = &options.selector {
            base = base.query("selector", selector);
        }
        if let Some(limit) = options.limit {
            base = base.query("limit", &limit.to_string());
        }
        let mut whole = self.read(&base, deadline).await?;
        let mut token = next_page(&whole.body);
        while let Some(page) = token {
            let mut more = self.read(&base.clone().query("continue", &page), deadline).await?;
            token = next_page(&more.body).filter(|next| *next != page);
            if let (Some(Value::Array(items)), Some(Value::Array(new))) =
                (whole.body.get_mut("items"), more.body.get_mut("items"))
            {
                items.append(new);
            }
            whole.stale = whole.stale.max(more.stale);
        }
        if let Some(place) = whole.body.get_mut("continue") {
            *place = Value::Null;
        }
        Ok(whole)
    }

    /// POST of a new object.
    pub async fn create_value(
        &self,
        target: Target,
        object: &Value,
        options: &WriteOptions,
        deadline: Duration,
    ) -> Result<Answer, Error> {
        self.write(Method::POST, target, Some(object), options, deadline).await
    }

    /// PUT: makes or replaces.
    pub async fn put_value(
        &self,
        target: Target,
        object: &Value,
        options: &WriteOptions,
        deadline: Duration,
    ) -> Result<Answer, Error> {
        self.write(Method::PUT, target, Some(object), options, deadline).await
    }

    /// PATCH with a JSON merge-patch.
    pub async fn patch(
        &self,
        target: Target,
        patch: &Value,
        options: &WriteOptions,
        deadline: Duration,
    ) -> Result<Answer, Error> {
        self.write(Method::PATCH, target, Some(patch), options, deadline).await
    }

    pub async fn delete(
        &self,
        target: Target,
        options: &WriteOptions,
        deadline: Duration,
    ) -> Result<Answer, Error> {
        self.write(Method::DELETE, target, None, options, deadline).await
    }

    /// `POST NAME/VERB`.
    pub async fn action(
        &self,
        target: Target,
        verb: &str,
        body: Option<&Value>,
        options: &WriteOptions,
        deadline: Duration,
    ) -> Result<Answer, Error> {
        self.write(Method::POST, target.join(verb), body, options, deadline).await
    }

    /// One object. `project` is left out for kinds that no project owns.
    pub async fn get<S: Spec>(
        &self,
        project: Option<&str>,
        name: &str,
        deadline: Duration,
    ) -> Result<Object<S>, Error> {
        self.read(&Target::object(S::KIND, project, name), deadline).await?.decode()
    }

    /// All objects of a kind, with all pages followed.
    pub async fn list<S: Spec>(
        &self,
        project: Option<&str>,
        options: &ListOptions,
        deadline: Duration,
    ) -> Result<List<Object<S>>, Error> {
        self.read_list(&Target::kind(S::KIND, project), options, deadline).await?.decode()
    }

    /// Makes a new object.
    pub async fn create<S: Spec>(
        &self,
        project: Option<&str>,
        name: &str,
        labels: &crate::Labels,
        spec: &S,
        options: &WriteOptions,
        deadline: Duration,
    ) -> Result<Answer, Error> {
        let draft = draft(S::KIND, name, labels, spec)?;
        self.create_value(Target::kind(S::KIND, project), &draft, options, deadline).await
    }

    /// Makes or replaces an object.
    pub async fn put<S: Spec>(
        &self,
        project: Option<&str>,
        name: &str,
        labels: &crate::Labels,
        spec: &S,
        options: &WriteOptions,
        deadline: Duration,
    ) -> Result<Answer, Error> {
        let draft = draft(S::KIND, name, labels, spec)?;
        self.put_value(Target::object(S::KIND, project, name), &draft, options, deadline).await
    }

    /// Follows the changes of a kind that come after `from` (None: from now on).
    /// `patience` bounds each attempt to connect and how long a lost server is looked for.
    pub fn watch(&self, kind: Kind, project: Option<&str>, from: Option<u64>, patience: Duration) -> Watch {
        Watch::new(self.clone(), Target::kind(kind, project), from, patience)
    }

    /// Imports an image from an archive's bytes. `length` saves the server a guess where it is known; the
    /// deadline covers the whole transfer. Answers the image object.
    pub async fn upload<R: AsyncRead + Send + Unpin + 'static>(
        &self,
        project: &str,
        image: &str,
        archive: R,
        length: Option<u64>,
        deadline: Duration,
    ) -> Result<Answer, Error> {
        let target = Target::object(Kind::Image, Some(project), image).join("content");
        self.send(&target, "application/x-tar", archive, length, deadline).await
    }

    /// Brings a file into a project, for a job to name. Answers its digest and size.
    pub async fn upload_file<R: AsyncRead + Send + Unpin + 'static>(
        &self,
        project: &str,
        file: R,
        length: Option<u64>,
        deadline: Duration,
    ) -> Result<FileRef, Error> {
        let target = Target::object(Kind::Project, None, project).join("files");
        self.send(&target, "application/octet-stream", file, length, deadline).await?.decode()
    }

    async fn send<R: AsyncRead + Send + Unpin + 'static>(
        &self,
        target: &Target,
        content: &'static str,
        bytes: R,
        length: Option<u64>,
        deadline: Duration,
    ) -> Result<Answer, Error> {
        let mut request =
            http::Request::post("/").header(header::CONTENT_TYPE, HeaderValue::from_static(content));
        if let Some(length) = length {
            request = request.header(header::CONTENT_LENGTH, length);
        }
        let chunks = futures::stream::try_unfold(bytes, |mut bytes| async move {
            let mut chunk = bytes::BytesMut::with_capacity(CHUNK);
            let read = bytes.read_buf(&mut chunk).await?;
            Ok::<_, io::Error>((read > 0).then(|| (Frame::data(chunk.freeze()), bytes)))
        });
        let body = StreamBody::new(chunks).boxed_unsync();
        let whole = async { read(self.open(request, target, body, deadline).await?).await };
        tokio::time::timeout(deadline, whole).await.unwrap_or(Err(Error::Timeout { after: deadline }))
    }

    /// The log of an instance, or of a job's driver, as text. The deadline is for the answer's head; the text takes as long as it takes.
    pub async fn logs(
        &self,
        of: Target,
        options: &LogOptions,
        deadline: Duration,
    ) -> Result<TextStream, Error> {
        let mut target =
            of.join("logs").flag("follow", options.follow).flag("timestamps", options.timestamps);
        if let Some(tail) = options.tail {
            target = target.query("tail", &tail.to_string());
        }
        if let Some(since) = options.since {
            target = target.query("since", &since.to_string());
        }
        let answer = self.stream(&target, "text/plain", deadline).await?;
        Ok(TextStream(answer.into_body()))
    }

    async fn stream(
        &self,
        target: &Target,
        accept: &str,
        deadline: Duration,
    ) -> Result<Response<Incoming>, Error> {
        let body = Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync();
        self.open(http::Request::get("/").header(header::ACCEPT, accept), target, body, deadline).await
    }

    /// Runs a command in an instance: a stream of [`stream::Frame`]s.
    pub async fn exec(
        &self,
        project: &str,
        name: &str,
        options: &ExecOptions,
        deadline: Duration,
    ) -> Result<WebSocket, Error> {
        let mut target = Target::object(Kind::Instance, Some(project), name).join("exec");
        for word in &options.command {
            target = target.query("command", word);
        }
        target = target
            .query("tty", if options.tty { "true" } else { "false" })
            .query("stdin", if options.stdin { "true" } else { "false" });
        self.socket(target, options.size, deadline).await
    }

    /// A login shell on a new terminal: a stream of [`stream::Frame`]s.
    pub async fn console(
        &self,
        project: &str,
        name: &str,
        size: Option<TerminalSize>,
        term: Option<&str>,
        deadline: Duration,
    ) -> Result<WebSocket, Error> {
        let mut target = Target::object(Kind::Instance, Some(project), name).join("console");
        if let Some(term) = term {
            target = target.query("term", term);
        }
        self.socket(target, size, deadline).await
    }

    /// A connection to a port of an instance: a stream of [`stream::Frame`]s.
    pub async fn connect_to(
        &self,
        project: &str,
        name: &str,
        port: u16,
        deadline: Duration,
    ) -> Result<WebSocket, Error> {
        let target = Target::object(Kind::Instance, Some(project), name).join("connect");
        self.socket(target.query("port", &port.to_string()), None, deadline).await
    }

    async fn socket(
        &self,
        mut target: Target,
        size: Option<TerminalSize>,
        deadline: Duration,
    ) -> Result<WebSocket, Error> {
        if let Some(size) = size {
            target = target.query("columns", &size.columns.to_string()).query("rows", &size.rows.to_string());
        }
        let connecting = tokio::time::timeout(deadline, self.dial()).await;
        let io = connecting.unwrap_or(Err(Error::Timeout { after: deadline }))?;
        let authorization = self.authorization.as_ref();
        stream::open(io, &target.to_string(), authorization, stream::MESSAGE_MAX, deadline).await
    }
}

/// A text that arrives piece by piece.
pub struct TextStream(Incoming);

impl TextStream {
    /// The next piece; `None` at its end. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        loop {
            match self.0.frame().await? {
                Err(error) => return Some(Err(error.into())),
                // Trailers carry nothing for us.
                Ok(frame) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Some(Ok(bytes));
                    }
                }
            }
        }
    }
}

/// What a user sends to make or replace an object.
pub fn draft<S: Serialize>(kind: Kind, name: &str, labels: &crate::Labels, spec: &S) -> Result<Value, Error> {
    let unwritable = |error| Error::Protocol(format!("the {kind} cannot be written as JSON: {error}"));
    let spec = serde_json::to_value(spec).map_err(unwritable)?;
    Ok(serde_json::json!({"kind": kind, "name": name, "labels": labels, "spec": spec}))
}

fn next_page(list: &Value) -> Option<String> {
    list.get("continue").and_then(Value::as_str).filter(|token| !token.is_empty()).map(str::to_owned)
}

async fn read(answer: Response<Incoming>) -> Result<Answer, Error> {
    let number = |name: &str| {
        answer.headers().get(name).and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok())
    };
    let (status, revision, stale) = (answer.status(), number("enoki-revision"), number("enoki-stale"));
    let bytes = bytes_of(answer).await?;
    let body = if bytes.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&bytes)
            .map_err(|error| Error::Protocol(format!("the server's answer is not JSON: {error}")))?
    };
    Ok(Answer { status, revision, stale, body })
}

async fn bytes_of(answer: Response<Incoming>) -> Result<Bytes, Error> {
    let cut = |error| Error::Protocol(format!("the server's answer was cut off: {error}"));
    Ok(Limited::new(answer.into_body(), ANSWER_MAX).collect().await.map_err(cut)?.to_bytes())
}

/// The problem in an answer that is not a success.
pub(crate) async fn refused(answer: Response<Incoming>) -> Error {
    let status = answer.status();
    match bytes_of(answer).await {
        Err(error) => error,
        Ok(bytes) => match serde_json::from_slice::<Problem>(&bytes) {
            Ok(problem) => Error::Problem(Box::new(problem)),
            Err(_) => Error::Protocol(format!("the server answered {status} without saying why")),
        },
    }
}
