//! An ordered map whose copies share what is equal in them: the store publishes one after each write, and a write
//! must not cost as much as the table is long.
//!
//! Two levels: a list of chunks, each a sorted list of entries. A copy is one reference; the first change of a copy
//! makes its own list of chunks (one reference each) and its own of the one chunk that changes.

use std::{borrow::Borrow, sync::Arc};

/// A chunk of more entries is split. Copying one costs about as much as copying the list of chunks of 100,000 entries.
const MAX_CHUNK: usize = 256;
/// A chunk of fewer is put together with its neighbour.
const MIN_CHUNK: usize = MAX_CHUNK / 8;

type Chunk<K, V> = Arc<Vec<(K, V)>>;

/// See the file's head. No chunk is empty.
#[derive(Clone, Debug)]
pub(super) struct Ordered<K, V> {
    chunks: Arc<Vec<Chunk<K, V>>>,
}

impl<K, V> Default for Ordered<K, V> {
    fn default() -> Self {
        Self { chunks: Arc::default() }
    }
}

impl<K, V> Ordered<K, V> {
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.chunks.iter().flat_map(|chunk| chunk.iter().map(|(key, value)| (key, value)))
    }

    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }
}

impl<K: Ord + Clone, V: Clone> Ordered<K, V> {
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let chunk = &self.chunks.get(self.chunk_of(key))?;
        let at = chunk.binary_search_by(|(own, _)| own.borrow().cmp(key)).ok()?;
        Some(&chunk[at].1)
    }

    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }

    /// Returns the entries after those that come `before`, in order.
    pub fn after<'a>(
        &'a self,
        before: &dyn Fn(&K) -> bool,
    ) -> impl Iterator<Item = (&'a K, &'a V)> + use<'a, K, V> {
        let first = self.chunks.partition_point(|chunk| before(&chunk[0].0)).saturating_sub(1);
        let skip = self.chunks.get(first).map_or(0, |chunk| chunk.partition_point(|(own, _)| before(own)));
        let chunks = self.chunks.get(first..).unwrap_or_default();
        chunks.iter().flat_map(|chunk| chunk.iter()).skip(skip).map(|(key, value)| (key, value))
    }

    pub fn insert(&mut self, key: K, value: V) {
        let at = self.chunk_of(&key);
        let chunks = Arc::make_mut(&mut self.chunks);
        let last = at + 1 >= chunks.len();
        let Some(chunk) = chunks.get_mut(at) else {
            chunks.push(Arc::new(vec![(key, value)]));
            return;
        };
        let chunk = Arc::make_mut(chunk);
        match chunk.binary_search_by(|(own, _)| own.cmp(&key)) {
            Ok(found) => chunk[found].1 = value,
            Err(end) if last && end == MAX_CHUNK => {
                // What comes in order fills its chunks.
                chunks.push(Arc::new(vec![(key, value)]));
            }
            Err(gap) => {
                chunk.insert(gap, (key, value));
                if chunk.len() > MAX_CHUNK {
                    let upper = chunk.split_off(MAX_CHUNK / 2);
                    chunks.insert(at + 1, Arc::new(upper));
                }
            }
        }
    }

    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let at = self.chunk_of(key);
        let found = self.chunks.get(at)?.binary_search_by(|(own, _)| own.borrow().cmp(key)).ok()?;
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(&mut chunks[at]);
        let (_, value) = chunk.remove(found);
        if chunk.is_empty() {
            chunks.remove(at);
        } else if chunk.len() < MIN_CHUNK && at + 1 < chunks.len() && chunks[at + 1].len() <= MAX_CHUNK / 2 {
            let upper = chunks.remove(at + 1);
            Arc::make_mut(&mut chunks[at]).extend(upper.iter().cloned());
        }
        Some(value)
    }

    /// Returns the number of the chunk that `key` is in, if it is in any.
    fn chunk_of<Q: Ord + ?Sized>(&self, key: &Q) -> usize
    where
        K: Borrow<Q>,
    {
        self.chunks.partition_point(|chunk| chunk[0].0.borrow() <= key).saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn holds_what_a_tree_holds_and_leaves_its_copies_alone(
            steps in prop::collection::vec((any::<bool>(), 0_u16..2_000), 1..4_000)
        ) {
            let (mut own, mut tree) = (Ordered::default(), BTreeMap::new());
            let mut before = None;
            for (n, (insert, key)) in steps.iter().enumerate() {
                if n == steps.len() / 2 {
                    before = Some((own.clone(), tree.clone()));
                }
                if *insert {
                    own.insert(*key, n);
                    tree.insert(*key, n);
                } else {
                    prop_assert_eq!(own.remove(key), tree.remove(key));
                }
            }
            for (own, tree) in before.into_iter().chain([(own, tree)]) {
                prop_assert!(own.iter().eq(tree.iter()));
                prop_assert!(own.chunks.iter().all(|chunk| !chunk.is_empty() && chunk.len() <= MAX_CHUNK));
                for key in 0..2_000 {
                    prop_assert_eq!(own.get(&key), tree.get(&key));
                    prop_assert!(own.after(&|own| *own < key).take(3).eq(tree.range(key..).take(3)));
                }
            }
        }
    }

    #[test]
    fn a_write_copies_one_chunk() {
        let mut table = Ordered::default();
        (0..10_000).for_each(|n| table.insert(n, n));
        assert!(table.chunks.len() < 10_000 / (MAX_CHUNK / 2), "what comes in order fills its chunks");
        let before = table.clone();
        table.insert(5_000, 0);
        table.remove(&5_001);
        let own = table.chunks.iter().filter(|own| before.chunks.iter().all(|old| !Arc::ptr_eq(own, old)));
        assert_eq!(own.count(), 1);
    }
}
