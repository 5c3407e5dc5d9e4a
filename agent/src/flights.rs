//! One at a time for each name: who comes for what is being fetched waits for the first, and then finds it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Table = HashMap<String, Arc<tokio::sync::Mutex<()>>>;

/// Cheap to clone.
#[derive(Clone, Default)]
pub struct Flights {
    table: Arc<Mutex<Table>>,
}

impl Flights {
    /// Does `work` when nobody else does under this name. Dropping the future gives up.
    pub async fn alone<T>(&self, name: &str, work: impl Future<Output = T>) -> T {
        let flight = self.table().entry(name.to_owned()).or_default().clone();
        let landed = {
            let _first = flight.lock().await;
            work.await
        };
        // The last one out takes the entry along (the table's own and ours). One whose caller gave up leaves it for the
        // next.
        let mut table = self.table();
        if Arc::strong_count(&flight) <= 2 {
            table.remove(name);
        }
        landed
    }

    /// Whether nobody is under way or waits.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.table().is_empty()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
