//! What goes wrong with single calls, and how often: answers that are lost, processes that die between two steps.

use crate::dice::Dice;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Each so many times of a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rates {
    /// A request to the store is lost on its way: its outcome is unknown.
    pub lose_request: u64,
    /// A transaction is applied and its answer is lost: the same to the caller.
    pub lose_answer: u64,
    /// A request takes longer than a lease.
    pub slow_request: u64,
    /// The server dies when it has decided and before it has written.
    pub kill_before_commit: u64,
    /// The server dies when it has written and before it has heard.
    pub kill_after_commit: u64,
    /// The agent dies before an act of its, and after one.
    pub kill_before_act: u64,
    pub kill_after_act: u64,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Chaos {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    dice: Dice,
    rates: Rates,
    doomed: BTreeSet<String>,
}

impl Chaos {
    /// Nothing goes wrong yet.
    pub fn new(seed: u64) -> Self {
        let inner =
            Inner { dice: Dice::new(seed, "chaos"), rates: Rates::default(), doomed: BTreeSet::new() };
        Chaos { inner: Arc::new(Mutex::new(inner)) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set(&self, rates: Rates) {
        self.inner().rates = rates;
    }

    pub fn strikes(&self, rate: impl Fn(&Rates) -> u64) -> bool {
        let mut inner = self.inner();
        let rate = rate(&inner.rates);
        rate > 0 && inner.dice.chance(rate)
    }

    /// The process is killed as soon as its turn is over.
    pub fn doom(&self, node: &str) {
        self.inner().doomed.insert(node.to_owned());
    }

    /// For what is called within the process: nothing comes after.
    pub async fn die(&self, node: &str) {
        self.doom(node);
        std::future::pending().await
    }

    pub fn take_doomed(&self) -> BTreeSet<String> {
        std::mem::take(&mut self.inner().doomed)
    }
}
