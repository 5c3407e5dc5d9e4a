//! Where this host's Docker pulls imported images from: an address of this machine, behind which the server is.
//!
//! Docker takes a registry by address alone, knows no unix sockets, and trusts loopback without being told to. So it asks
//! here, and what it asks goes on over the agent's own way to its servers, with the host's certificate where there is
//! one: whichever server has the session, nothing of it stands in Docker's configuration. Others on this machine may
//! connect here too and get nothing: each agent makes a password up, and tells it with each pull.

use crate::runtime::Login;
use crate::session::socket::Dialer;
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use enoki_api::protocol::{REGISTRY_PATH, repository};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OnceCell, Semaphore};

/// What Docker is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// `ADDRESS/REPOSITORY@DIGEST`
    pub reference: String,
    pub login: Login,
}

/// Where imported images are pulled from.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// Where the image with this digest is.
    async fn place(&self, digest: &str) -> io::Result<Place>;

    /// Why the last pull of it was refused, in the words of who refused it; Docker tells a part of it at best.
    fn refusal(&self, digest: &str) -> Option<String>;
}

/// An answer's head from the server. It waits for its registry, bounded.
const ANSWER: Duration = Duration::from_secs(20);
/// A request's head from Docker.
const HEAD: Duration = Duration::from_secs(10);
/// Docker pulls few layers at once; nobody else has business here.
const CONNECTIONS: usize = 64;
const REFUSAL_MAX: usize = 4 << 10;
/// Refusals that are remembered.
const REFUSALS: usize = 64;
/// What a pull goes by; credentials above all stay here.
const ASKED: [HeaderName; 3] = [header::ACCEPT, header::RANGE, header::USER_AGENT];

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// Listens from the first pull on. Cheap to clone.
#[derive(Clone)]
pub struct Mirror {
    shared: Arc<Shared>,
}

struct Shared {
    dialer: Dialer,
    secret: String,
    listens: OnceCell<SocketAddr>,
    refusals: Mutex<HashMap<String, String>>,
}

/// Its user's name says to who looks at the traffic what this is.
const USER: &str = "enoki";

impl Mirror {
    pub fn new(dialer: Dialer) -> Self {
        let secret = uuid::Uuid::new_v4().simple().to_string();
        let (listens, refusals) = (OnceCell::new(), Mutex::default());
        Mirror { shared: Arc::new(Shared { dialer, secret, listens, refusals }) }
    }

    async fn listen(&self) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        tokio::spawn(accept(listener, Arc::downgrade(&self.shared)));
        Ok(address)
    }
}

#[async_trait]
impl Source for Mirror {
    async fn place(&self, digest: &str) -> io::Result<Place> {
        let repository =
            repository(digest).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a digest"))?;
        let address = self.shared.listens.get_or_try_init(|| self.listen()).await?;
        self.shared.refusals().remove(digest);
        Ok(Place {
            reference: format!("{address}/{repository}@{digest}"),
            login: Login { user: USER.to_owned(), password: self.shared.secret.clone() },
        })
    }

    fn refusal(&self, digest: &str) -> Option<String> {
        self.shared.refusals().get(digest).cloned()
    }
}

/// Until the mirror is gone.
async fn accept(listener: TcpListener, shared: std::sync::Weak<Shared>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let accepted = listener.accept().await;
        let Some(shared) = shared.upgrade() else { return };
        match accepted {
            Ok((stream, _)) => {
                tokio::spawn(async move {
                    serve(stream, shared).await;
                    drop(slot);
                });
            }
            // Out of descriptors, most likely: later there may be one.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let answer = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(shared.answer(request).await) }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD);
    // Docker tries TLS first, which ends here at once; every other end is its client's affair.
    let _ = server.serve_connection(TokioIo::new(stream), answer).await;
}

impl Shared {
    fn refusals(&self) -> std::sync::MutexGuard<'_, HashMap<String, String>> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        if !self.knows(request.headers()) {
            let mut response =
                told(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "this is for this machine's Docker");
            let basic = HeaderValue::from_static("Basic realm=\"enoki\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, basic);
            return response;
        }
        let path = request.uri().path().to_owned();
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return told(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "images are imported, never pushed");
        }
        if !path.starts_with(&format!("{REGISTRY_PATH}/")) {
            return told(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "there is nothing at this address");
        }
        // Says who this is, without a server.
        if path == format!("{REGISTRY_PATH}/") {
            return Response::new(Full::default().map_err(|never| match never {}).boxed_unsync());
        }
        match tokio::time::timeout(ANSWER, self.ask(request.method().clone(), &path, request.headers())).await
        {
            Ok(Ok(answer)) if answer.status().is_success() => {
                let (head, body) = answer.into_parts();
                Response::from_parts(head, body.boxed_unsync())
            }
            Ok(Ok(answer)) => self.refused(&path, answer).await,
            Ok(Err(why)) => self.failed(&path, format!("no server gives it: {why}")),
            Err(_) => self.failed(&path, format!("no server gives it: no answer within {ANSWER:?}")),
        }
    }

    fn knows(&self, headers: &HeaderMap) -> bool {
        let expected = format!("Basic {}", STANDARD.encode(format!("{USER}:{}", self.secret)));
        headers.get(header::AUTHORIZATION).is_some_and(|given| given.as_bytes() == expected.as_bytes())
    }

    async fn ask(&self, method: Method, path: &str, asked: &HeaderMap) -> io::Result<Response<Incoming>> {
        let mut request = Request::new(Full::<Bytes>::default());
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().map_err(io::Error::other)?;
        for name in ASKED {
            for value in asked.get_all(&name) {
                request.headers_mut().append(&name, value.clone());
            }
        }
        self.dialer.request(request).await
    }

    /// Passes a refusal on, and remembers what it says.
    async fn refused(&self, path: &str, answer: Response<Incoming>) -> Response<Body> {
        let (status, headers) = (answer.status(), answer.headers().clone());
        let text =
            tokio::time::timeout(ANSWER, Limited::new(answer.into_body(), REFUSAL_MAX).collect()).await;
        let text =
            text.ok().and_then(Result::ok).map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let words = serde_json::from_slice::<serde_json::Value>(&text).ok();
        let words = words.as_ref().and_then(|words| words.pointer("/errors/0/message")?.as_str());
        self.remember(path, format!("the server answered {status}: {}", words.unwrap_or_default()));
        let mut response = Response::new(Full::from(text).map_err(|never| match never {}).boxed_unsync());
        *response.status_mut() = status;
        response
            .headers_mut()
            .extend(headers.get(header::CONTENT_TYPE).map(|kind| (header::CONTENT_TYPE, kind.clone())));
        response
    }

    fn failed(&self, path: &str, why: String) -> Response<Body> {
        let response = told(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", &why);
        self.remember(path, why);
        response
    }

    fn remember(&self, path: &str, why: String) {
        let hex =
            path.strip_prefix(&format!("{REGISTRY_PATH}/images/")).and_then(|rest| rest.split('/').next());
        let mut refusals = self.refusals();
        if refusals.len() >= REFUSALS {
            refusals.clear();
        }
        refusals.extend(hex.map(|hex| (format!("sha256:{hex}"), why)));
    }
}

/// A refusal as registries word it.
fn told(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let body = serde_json::json!({"errors": [{"code": code, "message": message}]}).to_string();
    let mut response = Response::new(Full::from(body).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
