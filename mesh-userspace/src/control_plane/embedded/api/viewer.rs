//! What an answer leaves out for its caller.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crate::{
    control_plane::embedded::{
        acl::{Caller, Right},
        model::{Check, IntentionRow},
    },
    intention::Pattern,
};

/// What a caller may see, with a note of everything that it may not.
pub struct Viewer<'r> {
    caller: Arc<Caller>,
    withheld: &'r AtomicBool,
}

impl<'r> Viewer<'r> {
    pub fn new(caller: Arc<Caller>, withheld: &'r AtomicBool) -> Self {
        Self { caller, withheld }
    }

    fn note(&self, seen: bool) -> bool {
        if !seen {
            self.withheld.store(true, Ordering::Relaxed);
        }
        seen
    }

    pub fn sees_service(&self, name: &str) -> bool {
        self.note(self.caller.may(Right::service_read(name)))
    }

    pub fn sees_node(&self, name: &str) -> bool {
        self.note(self.caller.may(Right::node_read(name)))
    }

    /// Its node, and its service if it has one.
    pub fn sees_check(&self, check: &Check) -> bool {
        let service = check.service_name.is_empty() || self.sees_service(&check.service_name);
        service && self.sees_node(&check.node)
    }

    /// Either end makes an intention readable, so that both know why something works or does not.
    pub fn sees_intention(&self, row: &IntentionRow) -> bool {
        let readable = |end: &Pattern| self.caller.may(Right::intention_read(&end.to_string()));
        self.note(readable(&row.source) || readable(&row.destination))
    }
}
