//! A server's own line in the store, by which agents find it and other servers let it in.

use crate::state::{Server, State};
use crate::store::keys::Key;
use crate::store::{Error, Store, Txn};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Between attempts, and while the store is away.
const AGAIN: Duration = Duration::from_secs(1);

/// Writes down where this server is reached, once. Where nobody else reaches it, there is nothing to write.
pub async fn enlist(state: &State, store: &dyn Store, me: &Server, stop: &CancellationToken) {
    while me.address.is_some() && !stop.is_cancelled() {
        let known = state.reached(0, AGAIN).await;
        if known && state.snapshot().servers.get(&me.name).is_some_and(|now| **now == *me) {
            return;
        }
        if known && let Err(error) = write(store, me).await {
            tracing::warn!(%error, "this server is not in the store yet");
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn write(store: &dyn Store, me: &Server) -> Result<(), Error> {
    let value = serde_json::to_vec(me).map_err(|error| Error::Invalid(error.to_string()))?;
    store.txn(Txn::new().put(Key::server(&me.name)?.to_string(), value)).await.map(drop)
}
