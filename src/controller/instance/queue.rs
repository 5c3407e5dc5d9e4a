//! Instances that are to be looked at: higher priority first, then by name.

use crate::state::At;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
pub struct Queue {
    order: BTreeSet<(Reverse<i64>, At)>,
    priorities: BTreeMap<At, i64>,
}

impl Queue {
    /// Each stands in it once, with the priority that was told last.
    pub fn push(&mut self, at: At, priority: i64) {
        match self.priorities.insert(at.clone(), priority) {
            Some(before) if before == priority => {}
            Some(before) => {
                self.order.remove(&(Reverse(before), at.clone()));
                self.order.insert((Reverse(priority), at));
            }
            None => drop(self.order.insert((Reverse(priority), at))),
        }
    }

    /// Takes the next one that does not have to wait.
    pub fn next(&mut self, waits: impl Fn(&At) -> bool) -> Option<At> {
        let next = self.order.iter().find(|(_, at)| !waits(at)).cloned()?;
        self.order.remove(&next);
        self.priorities.remove(&next.1);
        Some(next.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_urgent_first_each_once_and_who_waits_stays() {
        let at = |name: &str| ("default".to_owned(), name.to_owned());
        let mut queue = Queue::default();
        for (name, priority) in [("b", 0), ("a", 0), ("u", 5), ("b", 0), ("c", 1), ("c", 9)] {
            queue.push(at(name), priority);
        }
        let waits = |now: &At| *now == at("u");
        let taken: Vec<At> = std::iter::from_fn(|| queue.next(waits)).collect();
        assert_eq!(taken, [at("c"), at("a"), at("b")]);
        assert_eq!(queue.next(|_| false), Some(at("u")));
        assert_eq!(queue.next(|_| false), None);
    }
}
