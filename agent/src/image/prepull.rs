//! Images that this host is to have before an instance needs them: brought one after the other, kept, and told.
//!
//! A server says which, whole, each time it changes; an agent without a server keeps to what it heard last. One that was
//! pruned comes back at the next look. What cannot be brought is tried again, longer apart each time; instances that need
//! it meanwhile say so themselves.

use super::{Images, Wanted};
use crate::session::outbox::Outbox;
use backon::{BackoffBuilder, ExponentialBuilder};
use enoki_api::protocol::Prepull;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What is here is looked at this often.
const LOOK: Duration = Duration::from_secs(60);
const AGAIN_FIRST: Duration = Duration::from_secs(1);

/// What the servers want, and the task that does it. Cheap to clone.
#[derive(Clone)]
pub struct Prepulls {
    /// None: no server has said anything yet, and perhaps none understands an answer.
    wanted: watch::Sender<Option<Vec<Prepull>>>,
}

impl Default for Prepulls {
    fn default() -> Self {
        Prepulls { wanted: watch::Sender::new(None) }
    }
}

impl Prepulls {
    /// The whole set.
    pub fn want(&self, images: Vec<Prepull>) {
        self.wanted.send_replace(Some(images));
    }

    /// Brings what is wanted until `stop`.
    pub async fn run(&self, images: &Images, outbox: &Outbox, stop: &CancellationToken) {
        let mut wanted = self.wanted.subscribe();
        let waits = ExponentialBuilder::default()
            .with_min_delay(AGAIN_FIRST)
            .with_max_delay(LOOK)
            .without_max_times()
            .with_jitter();
        let mut wait = waits.build();
        let mut last = String::new();
        'look: loop {
            let now = wanted.borrow_and_update().clone();
            let mut why = String::new();
            if let Some(now) = now {
                let mut have = BTreeSet::new();
                for image in &now {
                    let one = Wanted {
                        name: &image.name,
                        imported: Some(&image.imported),
                        current: true,
                        pinned: None,
                    };
                    // Cancel-safe: nothing half loaded counts.
                    let brought = tokio::select! {
                        () = stop.cancelled() => return,
                        changed = wanted.changed() => match changed {
                            Ok(()) => continue 'look,
                            Err(_) => return,
                        },
                        brought = images.ensure(&one) => brought,
                    };
                    match brought {
                        Ok(_) => drop(have.insert(image.imported.image_id.clone())),
                        Err(error) => why = error.to_string(),
                    }
                }
                outbox.prepulled(have);
            }
            if why.is_empty() {
                wait = waits.build();
            } else if why != last {
                tracing::warn!(why, "an image cannot be brought beforehand; trying again");
            }
            let pause = if why.is_empty() { LOOK } else { wait.next().unwrap_or(LOOK) };
            last = why;
            tokio::select! {
                () = stop.cancelled() => return,
                changed = wanted.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}
