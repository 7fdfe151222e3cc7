//! Service names ↔ the numbers that the kernel knows them by on this host.
//!
//! The table lives in the pinned map `NAMES` beside the maps that use the numbers, so that both survive, or are
//! lost, together.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use mesh_common::policy::{NAME_LEN, NO_SERVICE, Name, ServiceId};

use crate::identity::ServiceName;

/// Both directions; number → name is read without a lock.
#[derive(Default)]
pub struct Names {
    ids: HashMap<ServiceName, ServiceId>,
    names: Arc<ArcSwap<HashMap<ServiceId, ServiceName>>>,
    last: ServiceId,
}

/// Reads number → name; cheap to clone.
#[derive(Clone)]
pub struct NameReader(Arc<ArcSwap<HashMap<ServiceId, ServiceName>>>);

impl NameReader {
    pub fn name(&self, id: ServiceId) -> Option<ServiceName> {
        self.0.load().get(&id).cloned()
    }
}

impl Names {
    /// Continues with what the map `NAMES` holds; entries that are no names are left out, and never reused.
    pub fn adopt(entries: impl IntoIterator<Item = (ServiceId, Name)>) -> Self {
        let mut new = Self::default();
        let mut names = HashMap::new();
        for (id, raw) in entries {
            new.last = new.last.max(id);
            if let Some(name) = decode(&raw) {
                new.ids.insert(name.clone(), id);
                names.insert(id, name);
            }
        }
        new.names.store(Arc::new(names));
        new
    }

    pub fn reader(&self) -> NameReader {
        NameReader(Arc::clone(&self.names))
    }

    pub fn id(&self, name: &ServiceName) -> Option<ServiceId> {
        self.ids.get(name).copied()
    }

    /// Gives each of `wanted` a number; returns the entries that are new, for the map.
    pub fn assign<'a>(
        &mut self,
        wanted: impl IntoIterator<Item = &'a ServiceName>,
    ) -> Vec<(ServiceId, Name)> {
        let mut added = Vec::new();
        let mut names = None;
        for name in wanted {
            if self.ids.contains_key(name) {
                continue;
            }
            debug_assert_ne!(self.last.wrapping_add(1), NO_SERVICE);
            self.last += 1;
            self.ids.insert(name.clone(), self.last);
            names.get_or_insert_with(|| HashMap::clone(&self.names.load())).insert(self.last, name.clone());
            added.push((self.last, encode(name)));
        }
        if let Some(names) = names {
            self.names.store(Arc::new(names));
        }
        added
    }
}

fn encode(name: &ServiceName) -> Name {
    let mut raw = [0; NAME_LEN];
    let bytes = name.as_str().as_bytes();
    raw[..bytes.len()].copy_from_slice(bytes);
    Name(raw)
}

fn decode(raw: &Name) -> Option<ServiceName> {
    let len = raw.0.iter().position(|b| *b == 0).unwrap_or(NAME_LEN);
    std::str::from_utf8(&raw.0[..len]).ok()?.parse().ok()
}

// A name always fits with its terminating zero.
const _: () = assert!(ServiceName::MAX_LEN < NAME_LEN);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_survive_a_restart() {
        let web: ServiceName = "web".parse().unwrap();
        let db: ServiceName = "db".parse().unwrap();
        let mut names = Names::default();
        let entries = names.assign([&web, &db, &web]);
        assert_eq!(entries.len(), 2);

        let mut again = Names::adopt(entries);
        assert_eq!(again.id(&web), names.id(&web));
        assert!(again.assign([&web, &db]).is_empty());
        let new: ServiceName = "new".parse().unwrap();
        let added = again.assign([&new]);
        assert!(added[0].0 > names.id(&db).unwrap());
        assert_eq!(again.reader().name(added[0].0), Some(new));
    }

    proptest! {
        #[test]
        fn whatever_the_map_holds_is_adopted_without_panic(raw in prop::collection::vec(any::<u8>(), NAME_LEN), id in 1_u32..u32::MAX) {
            let raw: [u8; NAME_LEN] = raw.try_into().unwrap();
            let names = Names::adopt([(id, Name(raw))]);
            let _ = names.reader().name(id);
        }
    }
}
