//! The network between all nodes: messages and byte streams that take their time, get lost, are cut and come back.
//!
//! Nothing crosses it while [`Net::tick`] is not called. A cut holds back what streams carry (TCP sends it again) and
//! loses messages.

use crate::clock;
use crate::dice::Dice;
use async_trait::async_trait;
use enoki_agent::session::socket::Transport;
use enoki_api::endpoint::{Authority, Io};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;

/// How long anything is under way.
const DELAY_MS: (u64, u64) = (1, 20);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

type Deliver = Box<dyn FnOnce() + Send>;

/// Cheap to clone.
#[derive(Clone)]
pub struct Net {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    dice: Dice,
    cuts: BTreeSet<(String, String)>,
    /// By the time of arrival, then in the order of sending.
    mail: BTreeMap<(Duration, u64), (String, String, Deliver)>,
    sent: u64,
    listeners: BTreeMap<String, mpsc::UnboundedSender<Pipe>>,
    ways: Vec<Weak<Way>>,
}

fn pair(a: &str, b: &str) -> (String, String) {
    if a < b { (a.to_owned(), b.to_owned()) } else { (b.to_owned(), a.to_owned()) }
}

impl Net {
    pub fn new(seed: u64) -> Self {
        let inner = Inner {
            dice: Dice::new(seed, "net"),
            cuts: BTreeSet::new(),
            mail: BTreeMap::new(),
            sent: 0,
            listeners: BTreeMap::new(),
            ways: Vec::new(),
        };
        Net { inner: Arc::new(Mutex::new(inner)) }
    }

    pub fn cut(&self, a: &str, b: &str) {
        lock(&self.inner).cuts.insert(pair(a, b));
    }

    pub fn heal(&self, a: &str, b: &str) {
        lock(&self.inner).cuts.remove(&pair(a, b));
    }

    pub fn is_cut(&self, a: &str, b: &str) -> bool {
        lock(&self.inner).cuts.contains(&pair(a, b))
    }

    fn delay(&self) -> Duration {
        lock(&self.inner).dice.millis(DELAY_MS.0, DELAY_MS.1)
    }

    /// `deliver` is done when the message has arrived, `late` later than usual. Not at all when the two are cut then.
    pub fn post(&self, from: &str, to: &str, late: Duration, deliver: impl FnOnce() + Send + 'static) {
        let at = clock::now() + self.delay() + late;
        let mut inner = lock(&self.inner);
        inner.sent += 1;
        let sent = inner.sent;
        inner.mail.insert((at, sent), (from.to_owned(), to.to_owned(), Box::new(deliver)));
    }

    /// Brings what is due.
    pub fn tick(&self) {
        loop {
            let mut inner = lock(&self.inner);
            let Some(first) = inner.mail.first_entry().filter(|first| first.key().0 <= clock::now()) else {
                break;
            };
            let (from, to, deliver) = first.remove();
            let lost = inner.cuts.contains(&pair(&from, &to));
            drop(inner);
            if !lost {
                deliver();
            }
        }
        let ways: Vec<Arc<Way>> = {
            let mut inner = lock(&self.inner);
            inner.ways.retain(|way| way.strong_count() > 0);
            inner.ways.iter().filter_map(Weak::upgrade).collect()
        };
        for way in ways {
            let cut = self.is_cut(&way.from, &way.to);
            let mut state = lock(&way.state);
            let due = state.queue.front().is_some_and(|(at, _)| *at <= clock::now());
            let end = state.queue.is_empty() && state.closed;
            if (state.reset || (!cut && (due || end)))
                && let Some(reader) = state.reader.take()
            {
                reader.wake();
            }
        }
    }

    /// From now on connections to `node` come here.
    pub fn listen(&self, node: &str) -> mpsc::UnboundedReceiver<Pipe> {
        let (sender, receiver) = mpsc::unbounded_channel();
        lock(&self.inner).listeners.insert(node.to_owned(), sender);
        receiver
    }

    /// Ends all streams between these two at once, for both.
    pub fn reset(&self, a: &str, b: &str) {
        for way in lock(&self.inner).ways.iter().filter_map(Weak::upgrade) {
            if pair(&way.from, &way.to) == pair(a, b) {
                lock(&way.state).reset = true;
            }
        }
    }

    async fn connect(&self, from: &str, to: &str) -> io::Result<Pipe> {
        tokio::time::sleep(self.delay()).await;
        while self.is_cut(from, to) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let way = |from: &str, to: &str| {
            Arc::new(Way { from: from.to_owned(), to: to.to_owned(), state: Mutex::default() })
        };
        let (there, back) = (way(from, to), way(to, from));
        let near = Pipe { net: self.clone(), read: back.clone(), write: there.clone() };
        let far = Pipe { net: self.clone(), read: there.clone(), write: back.clone() };
        let mut inner = lock(&self.inner);
        inner.ways.extend([Arc::downgrade(&there), Arc::downgrade(&back)]);
        let accepted = inner.listeners.get(to).is_some_and(|listener| !listener.is_closed());
        let listener = inner.listeners.get(to).cloned();
        drop(inner);
        match listener.filter(|_| accepted).map(|listener| listener.send(far)) {
            Some(Ok(())) => Ok(near),
            Some(Err(_)) | None => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }
}

/// How an agent dials.
pub struct Line {
    pub net: Net,
    pub from: String,
}

#[async_trait]
impl Transport for Line {
    async fn connect(&self, server: &str) -> io::Result<Box<dyn Io>> {
        let to = Authority::parse(server).map_err(io::Error::other)?;
        Ok(Box::new(self.net.connect(&self.from, to.host()).await?))
    }
}

/// One direction of a stream.
struct Way {
    from: String,
    to: String,
    state: Mutex<Bytes>,
}

#[derive(Default)]
struct Bytes {
    queue: VecDeque<(Duration, Vec<u8>)>,
    /// The writer is done.
    closed: bool,
    reset: bool,
    last: Duration,
    reader: Option<Waker>,
}

/// One end of a stream.
pub struct Pipe {
    net: Net,
    read: Arc<Way>,
    write: Arc<Way>,
}

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let cut = self.net.is_cut(&self.read.from, &self.read.to);
        let mut state = lock(&self.read.state);
        if state.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if !cut {
            if let Some((at, bytes)) = state.queue.front_mut()
                && *at <= clock::now()
            {
                let count = out.remaining().min(bytes.len());
                out.put_slice(&bytes[..count]);
                bytes.drain(..count);
                if bytes.is_empty() {
                    state.queue.pop_front();
                }
                return Poll::Ready(Ok(()));
            }
            if state.queue.is_empty() && state.closed {
                return Poll::Ready(Ok(()));
            }
        }
        state.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let delay = self.net.delay();
        let mut state = lock(&self.write.state);
        if state.reset || state.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        state.last = state.last.max(clock::now() + delay);
        let at = state.last;
        state.queue.push_back((at, bytes.to_vec()));
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(&self.write.state).closed = true;
        Poll::Ready(Ok(()))
    }
}

impl Drop for Pipe {
    /// What was sent before still arrives; what comes later from the other side is refused.
    fn drop(&mut self) {
        lock(&self.write.state).closed = true;
        lock(&self.read.state).closed = true;
    }
}
