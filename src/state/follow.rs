//! Feeds the state from the store's watch.

use super::{Snapshot, State};
use crate::store::keys::{Key, ROOT};
use crate::store::reflector::{self, Event, Options};
use crate::store::{Change, Error, KeyValue, Revision, Store};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Keeps `state` a true copy of the store until `stop`. An error means that the store was replaced or refuses us:
/// nothing that was read can be trusted, so the process has to start over.
pub async fn feed(state: State, store: Arc<dyn Store>, stop: CancellationToken) -> Result<(), Error> {
    let (sender, mut events) = mpsc::channel(64);
    let watching = reflector::run(store, ROOT.to_owned(), Options::default(), sender, stop);
    let applying = async {
        while let Some(event) = events.recv().await {
            take(&state, event);
        }
    };
    let (result, ()) = tokio::join!(watching, applying);
    result
}

fn take(state: &State, event: Event) {
    match event {
        Event::Snapshot { revision, items } => replace(state, revision, &items),
        Event::Changes { revision, changes } => {
            let mut snapshot = Snapshot::clone(&state.snapshot());
            let keys = changes.iter().filter_map(|change| snapshot.apply(change)).collect();
            snapshot.revision = revision;
            state.publish(keys, snapshot);
        }
        Event::Fresh { as_of, .. } => state.set_fresh(as_of),
    }
}

/// A new listing replaces everything: what it does not name is gone, and whoever follows hears of both.
fn replace(state: &State, revision: Revision, items: &[KeyValue]) {
    let mut snapshot = Snapshot { loaded: true, ..Snapshot::default() };
    let mut keys: BTreeSet<Key> = state.snapshot().keys().collect();
    keys.extend(items.iter().filter_map(|item| snapshot.apply(&Change::Put(item.clone()))));
    snapshot.revision = revision;
    if state.is_loaded() {
        state.publish(keys.into_iter().collect(), snapshot);
    } else {
        state.begin(snapshot);
    }
}
