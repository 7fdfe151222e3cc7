//! What this host's proxy knows of an instance by itself: how many of its flows go there, and whether that just failed.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

/// Milliseconds for which an instance that failed is tried after the others.
const SHUNNED_MS: u64 = 5_000;

/// Read and written without a lock. It outlives the catalog that it was made for, as long as the instance is in the next.
#[derive(Debug, Default)]
pub struct Load {
    live: AtomicU32,
    /// Until when it is shunned; 0: it is not.
    shunned_until_ms: AtomicU64,
}

impl Load {
    /// Returns how many flows go there.
    pub fn live(&self) -> u32 {
        self.live.load(Relaxed)
    }

    /// Counts one flow more, until what is returned is dropped.
    pub fn enter(self: &Arc<Self>) -> Entered {
        self.live.fetch_add(1, Relaxed);
        Entered(Arc::clone(self))
    }

    /// It did not take a flow; `now_ms` is any clock that only grows.
    pub fn failed(&self, now_ms: u64) {
        self.shunned_until_ms.store(now_ms + SHUNNED_MS, Relaxed);
    }

    /// It took a flow.
    pub fn succeeded(&self) {
        // Most often nothing is to be written, and the line stays shared between the CPUs.
        if self.shunned_until_ms.load(Relaxed) != 0 {
            self.shunned_until_ms.store(0, Relaxed);
        }
    }

    pub fn is_shunned(&self, now_ms: u64) -> bool {
        self.shunned_until_ms.load(Relaxed) > now_ms
    }
}

/// One flow of a [`Load`].
#[derive(Debug)]
pub struct Entered(Arc<Load>);

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_counts_while_it_is_there() {
        let load = Arc::new(Load::default());
        let (one, two) = (load.enter(), load.enter());
        assert_eq!(load.live(), 2);
        drop((one, two));
        assert_eq!(load.live(), 0);
    }

    #[test]
    fn what_failed_is_shunned_for_a_while_or_until_it_works_again() {
        let load = Load::default();
        assert!(!load.is_shunned(0));
        load.failed(10);
        assert!(load.is_shunned(10) && load.is_shunned(9 + SHUNNED_MS) && !load.is_shunned(10 + SHUNNED_MS));
        load.failed(10);
        load.succeeded();
        assert!(!load.is_shunned(10));
    }
}
