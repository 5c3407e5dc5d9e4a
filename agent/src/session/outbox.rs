//! What the agent has to say, kept until a session can say it: the latest report of each instance, never a queue
//! of them, so that it is bounded by the number of instances however long no server answers.

use enoki_api::object::Uid;
use enoki_api::protocol::{FromAgent, Health, Orphan, Report};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Lines for the log of events that wait; the oldest go first.
const HAPPENED: usize = 512;
/// Reports a message.
const REPORTS: usize = 100;

#[derive(Default)]
struct Kept {
    reports: BTreeMap<Uid, Report>,
    unsent: BTreeSet<Uid>,
    orphans: Vec<Orphan>,
    orphans_unsent: bool,
    /// None: no server has asked.
    prepulled: Option<BTreeSet<String>>,
    prepulled_unsent: bool,
    buried: BTreeSet<Uid>,
    happened: VecDeque<FromAgent>,
    health: Health,
}

/// Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub struct Outbox {
    kept: Arc<Mutex<Kept>>,
    filled: Arc<Notify>,
}

impl Outbox {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces what was to be told of this instance.
    pub fn report(&self, report: Report) {
        {
            let mut kept = self.kept();
            kept.unsent.insert(report.uid.clone());
            kept.reports.insert(report.uid.clone(), report);
        }
        self.filled.notify_one();
    }

    /// What was last told, or is to be told, of this instance.
    pub fn last(&self, uid: &Uid) -> Option<Report> {
        self.kept().reports.get(uid).cloned()
    }

    pub fn reports(&self) -> Vec<Report> {
        self.kept().reports.values().cloned().collect()
    }

    /// Nothing is to be told of it any more.
    pub fn forget(&self, uid: &Uid) {
        let mut kept = self.kept();
        kept.reports.remove(uid);
        kept.unsent.remove(uid);
    }

    /// The whole set; told when it changed.
    pub fn orphans(&self, orphans: Vec<Orphan>) {
        {
            let mut kept = self.kept();
            if kept.orphans == orphans {
                return;
            }
            kept.orphans = orphans;
            kept.orphans_unsent = true;
        }
        self.filled.notify_one();
    }

    /// The whole set; told when it changed.
    pub fn prepulled(&self, images: BTreeSet<String>) {
        {
            let mut kept = self.kept();
            if kept.prepulled.as_ref() == Some(&images) {
                return;
            }
            kept.prepulled = Some(images);
            kept.prepulled_unsent = true;
        }
        self.filled.notify_one();
    }

    /// The server of this session asks: it is told what was told before, too.
    pub fn prepulls_asked(&self) {
        {
            let mut kept = self.kept();
            kept.prepulled_unsent = kept.prepulled.is_some();
        }
        self.filled.notify_one();
    }

    pub fn buried(&self, uid: Uid) {
        self.kept().buried.insert(uid);
        self.filled.notify_one();
    }

    pub fn happened(&self, line: FromAgent) {
        {
            let mut kept = self.kept();
            if kept.happened.len() == HAPPENED {
                kept.happened.pop_front();
            }
            kept.happened.push_back(line);
        }
        self.filled.notify_one();
    }

    pub fn set_health(&self, health: Health) {
        self.kept().health = health;
    }

    pub fn health(&self) -> Health {
        self.kept().health.clone()
    }

    /// A new session knows nothing yet.
    pub fn renew(&self) {
        {
            let mut kept = self.kept();
            kept.unsent = kept.reports.keys().cloned().collect();
            kept.orphans_unsent = true;
            // Not every server understands it: one that does asks first.
            kept.prepulled_unsent = false;
        }
        self.filled.notify_one();
    }

    /// These are told again: the server did not take a report of what it had not assigned.
    pub fn again(&self, uids: impl IntoIterator<Item = Uid>) {
        {
            let mut kept = self.kept();
            let known: Vec<Uid> = uids.into_iter().filter(|uid| kept.reports.contains_key(uid)).collect();
            kept.unsent.extend(known);
        }
        self.filled.notify_one();
    }

    /// Waits until there may be something to take. Cancel-safe: a notification stays until it is taken.
    pub async fn filled(&self) {
        self.filled.notified().await;
    }

    /// Everything unsent, in messages of bounded size. What is lost with a session is told again by [`Self::renew`];
    /// a tombstone whose end was lost is sent again by the server and done again at no cost.
    pub fn take(&self) -> Vec<FromAgent> {
        let mut kept = self.kept();
        let mut messages = Vec::new();
        let unsent: Vec<Uid> = std::mem::take(&mut kept.unsent).into_iter().collect();
        for part in unsent.chunks(REPORTS) {
            let reports = part.iter().filter_map(|uid| kept.reports.get(uid).cloned()).collect();
            messages.push(FromAgent::Reports { reports });
        }
        if std::mem::take(&mut kept.orphans_unsent) {
            messages.push(FromAgent::Orphans { orphans: kept.orphans.clone() });
        }
        if std::mem::take(&mut kept.prepulled_unsent) {
            messages.extend(kept.prepulled.clone().map(|images| FromAgent::Prepulled { images }));
        }
        if !kept.buried.is_empty() {
            let uids = std::mem::take(&mut kept.buried).into_iter().collect();
            messages.push(FromAgent::Buried { uids });
        }
        messages.extend(std::mem::take(&mut kept.happened));
        messages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(number: usize) -> FromAgent {
        let (reason, message) = ("n".to_owned(), number.to_string());
        FromAgent::Happened {
            uid: Uid::parse("00000000-0000-4000-8000-000000000000").unwrap(),
            reason,
            message,
            warning: false,
        }
    }

    #[test]
    fn it_never_grows_past_its_bound() {
        let outbox = Outbox::default();
        (0..HAPPENED + 10).for_each(|number| outbox.happened(line(number)));
        let taken = outbox.take();
        assert_eq!(taken.len(), HAPPENED);
        assert_eq!(taken[0], line(10));
        assert!(outbox.take().is_empty());
    }

    #[test]
    fn orphans_are_told_when_they_change_and_on_a_new_session() {
        let outbox = Outbox::default();
        outbox.orphans(Vec::new());
        assert!(outbox.take().is_empty());
        outbox.renew();
        assert_eq!(outbox.take(), [FromAgent::Orphans { orphans: Vec::new() }]);
    }
}
