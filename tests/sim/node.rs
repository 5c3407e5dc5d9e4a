//! One simulated process: a runtime of its own, so that a kill takes all of its tasks with it, wherever they stand, and a
//! pause stops them all at once.

use crate::clock;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

/// Looks at timers and tasks in one turn: what a timer wakes, runs in the same turn.
const LOOKS: u8 = 2;

pub struct Node {
    pub name: String,
    process: Option<Process>,
    paused_until: Duration,
    /// By how much its wall clock was set forward.
    pub ahead: Duration,
}

struct Process {
    runtime: Runtime,
    main: JoinHandle<()>,
}

impl Node {
    /// Nothing runs in it yet.
    pub fn new(name: &str) -> Self {
        Node { name: name.to_owned(), process: None, paused_until: Duration::ZERO, ahead: Duration::ZERO }
    }

    /// Starts the process; it ends with `main`.
    pub fn boot(&mut self, main: impl Future<Output = ()> + Send + 'static) {
        let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
        let main = runtime.spawn(main);
        self.process = Some(Process { runtime, main });
    }

    pub fn is_up(&self) -> bool {
        self.process.is_some()
    }

    /// Whether its `main` has ended by itself.
    pub fn has_ended(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.main.is_finished())
    }

    /// As by `kill -9`: nothing of it runs any further.
    pub fn kill(&mut self) {
        self.process = None;
        self.paused_until = Duration::ZERO;
    }

    /// As by `kill -STOP`, until then.
    pub fn pause(&mut self, until: Duration) {
        self.paused_until = until;
    }

    pub fn is_paused(&self) -> bool {
        clock::now() < self.paused_until
    }

    /// Runs beside its `main`. Nothing happens in a process that is not there.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(process) = &self.process {
            process.runtime.spawn(task);
        }
    }

    /// Lets it run until all its tasks wait for something.
    pub fn turn(&self) {
        if let Some(process) = self.process.as_ref().filter(|_| !self.is_paused()) {
            clock::set_ahead(self.ahead);
            process.runtime.block_on(Turn(LOOKS));
            clock::set_ahead(Duration::ZERO);
        }
    }
}

/// Is never waited for: between two polls of it the runtime does what there is to do and looks at its timers.
struct Turn(u8);

impl Future for Turn {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.0 == 0 {
            return Poll::Ready(());
        }
        self.0 -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
