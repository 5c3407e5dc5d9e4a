//! What happened to each object, in words: bounded for each and in all, in memory, newest kept. The leader's log is the
//! cloud's: what another server notes goes there too.

use enoki_api::event::Event;
use enoki_api::object::{Key, Kind, Uid};
use jiff::Timestamp;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;

/// Events kept for one object.
const EACH: usize = 32;
/// Events kept in all; the object whose first one is oldest goes first.
const ALL: usize = 16_384;
/// Events on their way to the leader; more are dropped, as all of them are with their server.
const ON_THE_WAY: usize = 1024;

/// The log of events: cheap to clone.
#[derive(Clone, Default)]
pub struct Events {
    log: Arc<Mutex<Log>>,
    outgoing: Option<mpsc::Sender<Event>>,
}

#[derive(Default)]
struct Log {
    objects: HashMap<Key, VecDeque<Event>>,
    /// Objects in the order of their first event that is still kept.
    order: VecDeque<Key>,
    /// Events in all.
    count: usize,
}

impl Events {
    /// A log whose own events can also be taken from the receiver, to tell them to others.
    pub fn telling() -> (Self, mpsc::Receiver<Event>) {
        let (outgoing, taken) = mpsc::channel(ON_THE_WAY);
        (Events { log: Arc::default(), outgoing: Some(outgoing) }, taken)
    }

    /// Notes that something happened. The same reason and message as the last one only counts it up.
    pub fn note(
        &self,
        key: &Key,
        uid: Option<&Uid>,
        warning: bool,
        reason: &str,
        message: impl Into<String>,
    ) {
        let now = Timestamp::now();
        let event = Event {
            kind: key.kind,
            project: key.project.clone(),
            name: key.name.clone(),
            uid: uid.cloned(),
            reason: reason.to_owned(),
            message: message.into(),
            warning,
            count: 1,
            first_at: now,
            last_at: now,
        };
        if let Some(outgoing) = &self.outgoing {
            // Full or closed: the leader does not take them just now, and nobody waits for an event.
            let _ = outgoing.try_send(event.clone());
        }
        self.take_in(event);
    }

    /// Notes what happened as another server saw it.
    pub fn take_in(&self, event: Event) {
        let key = Key { kind: event.kind, project: event.project.clone(), name: event.name.clone() };
        let mut log = self.log.lock().unwrap_or_else(|poison| poison.into_inner());
        if !log.objects.contains_key(&key) {
            log.order.push_back(key.clone());
        }
        let events = log.objects.entry(key).or_default();
        if let Some(last) = events.back_mut()
            && last.reason == event.reason
            && last.message == event.message
            && last.uid == event.uid
        {
            last.count += event.count;
            last.last_at = event.last_at;
            return;
        }
        events.push_back(event);
        if events.len() > EACH {
            events.pop_front();
        } else {
            log.count += 1;
        }
        while log.count > ALL
            && let Some(oldest) = log.order.pop_front()
        {
            log.count -= log.objects.remove(&oldest).map_or(0, |events| events.len());
        }
    }

    /// The events that match, oldest first.
    pub fn find(&self, kind: Option<Kind>, project: Option<&str>, name: Option<&str>) -> Vec<Event> {
        let log = self.log.lock().unwrap_or_else(|poison| poison.into_inner());
        let wanted = |key: &&Key| {
            kind.is_none_or(|kind| key.kind == kind)
                && project.is_none_or(|project| key.project.as_deref() == Some(project))
                && name.is_none_or(|name| key.name == name)
        };
        let mut events: Vec<Event> = log
            .objects
            .iter()
            .filter(|(key, _)| wanted(key))
            .flat_map(|(_, events)| events.iter().cloned())
            .collect();
        events.sort_by_key(|event| (event.last_at, event.first_at));
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_count_up_and_old_ones_go() {
        let events = Events::default();
        let key = Key { kind: Kind::Instance, project: Some("default".into()), name: "a".into() };
        events.note(&key, None, false, "placed", "on h1");
        events.note(&key, None, false, "placed", "on h1");
        assert_eq!(events.find(None, None, None)[0].count, 2);
        for at in 0..2 * EACH {
            events.note(&key, None, true, "crashed", format!("{at}"));
        }
        let kept = events.find(Some(Kind::Instance), Some("default"), Some("a"));
        assert_eq!((kept.len(), kept[EACH - 1].message.as_str()), (EACH, "63"));
        assert!(events.find(Some(Kind::Host), None, None).is_empty());
    }

    #[test]
    fn objects_that_are_long_gone_do_not_pile_up() {
        let events = Events::default();
        let key = |at: usize| Key { kind: Kind::Instance, project: None, name: format!("i{at}") };
        for at in 0..ALL {
            events.note(&key(at), None, false, "placed", "on h1");
            events.note(&key(at), None, false, "deleted", "its host has confirmed");
        }
        assert_eq!(events.find(None, None, None).len(), ALL);
        assert!(events.find(None, None, Some("i0")).is_empty());
        assert_eq!(events.find(None, None, Some(&format!("i{}", ALL - 1))).len(), 2);
    }
}
