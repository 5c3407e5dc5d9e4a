//! The one way to write: plan on a snapshot, commit, and plan anew when somebody else was faster.

use super::App;
use super::answer::{self, CATCH_UP};
use crate::state::{At, Snapshot};
use crate::store::{Outcome, Txn};
use enoki_api::error::{Code, Problem};
use tokio::time::timeout;

/// Writes that lose a race are planned anew this often.
const TRIES: usize = 12;

/// What a look at the snapshot leads to.
pub enum Step<N, W> {
    /// Nothing is to be written.
    Nothing(N),
    /// This is to be written; then `W` is true.
    Write(Txn, W),
}

/// How it went.
pub enum Done<N, W> {
    Nothing(N),
    Written(W),
}

/// Commits what `plan` makes of the newest snapshot. After a good write this server's cache has seen it; where it has not in
/// time, that is told: an answer from an older view would deny what was written.
/// Each plan must compare what it looked at, or a change in between is lost.
pub async fn commit<N, W>(
    app: &App,
    at: &At,
    plan: impl Fn(&Snapshot) -> Result<Step<N, W>, Problem>,
) -> Result<Done<N, W>, Problem> {
    let mut turn = None;
    for _ in 0..TRIES {
        let snapshot = app.state.snapshot();
        let (txn, written) = match plan(&snapshot)? {
            Step::Nothing(nothing) => return Ok(Done::Nothing(nothing)),
            Step::Write(txn, written) => (txn, written),
        };
        let outcome = app.store.txn(txn).await.map_err(|error| answer::from_store(&error))?;
        let (Outcome::Committed { revision } | Outcome::Conflict { revision, .. }) = outcome;
        let reached = app.state.reached(revision, CATCH_UP).await;
        match outcome {
            Outcome::Committed { .. } if reached => return Ok(Done::Written(written)),
            Outcome::Committed { .. } => {
                let message =
                    format!("this is written, at revision {revision}, and this server has not seen it yet");
                let hint = format!("read it in a moment, with ?at_least={revision}");
                return Err(Problem::new(Code::StaleReplica, message).hint(hint));
            }
            Outcome::Conflict { .. } => {}
        }
        // Those that lost go one after the other: many that touch one key would else lose to each other again and
        // again. The next one's turn comes when this server has seen what was written in this.
        if turn.is_none() {
            turn = timeout(CATCH_UP, app.turns.acquire()).await.ok();
        }
    }
    Err(Problem::new(
        Code::StaleRevision,
        format!("{}/{} is being changed by others all the time", at.0, at.1),
    )
    .hint("try again"))
}
