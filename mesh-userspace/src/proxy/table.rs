//! All flows of this host's proxy: the live ones, and the most recently ended.

use std::{
    collections::{HashMap, VecDeque},
    ops::Deref,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::SystemTime,
};

use tokio::sync::Notify;

use super::{
    flow::{Flow, FlowReport, FlowStart},
    reason::{Reason, Refusals},
};

/// Flows are spread over the shards by their ids, which count up: two connections at the same moment hardly ever
/// want the same lock, and it is held for one map operation.
const SHARDS: usize = 64;
/// Ended flows that each shard remembers.
const REMEMBERED: usize = 16;

/// The live flows and the recently ended ones.
pub struct FlowTable {
    shards: [Mutex<Shard>; SHARDS],
    next_id: AtomicU64,
    live: AtomicU64,
    none_live: Notify,
    ended: Refusals,
}

#[derive(Default)]
struct Shard {
    live: HashMap<u64, Arc<Flow>>,
    ended: VecDeque<Arc<Flow>>,
}

impl Default for FlowTable {
    fn default() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            next_id: AtomicU64::new(1),
            live: AtomicU64::new(0),
            none_live: Notify::new(),
            ended: Refusals::default(),
        }
    }
}

impl FlowTable {
    /// Adds a flow; it leaves the table when the returned owner ends it or is dropped.
    pub fn open(self: &Arc<Self>, start: FlowStart) -> OpenFlow {
        let id = self.next_id.fetch_add(1, Relaxed);
        let flow = Arc::new(Flow::new(id, start));
        self.live.fetch_add(1, Relaxed);
        self.shard(id).live.insert(id, flow.clone());
        OpenFlow { table: self.clone(), flow, reason: None }
    }

    /// Returns the number of live flows.
    pub fn live(&self) -> u64 {
        self.live.load(Relaxed)
    }

    /// Returns how many flows were ever opened.
    pub fn opened(&self) -> u64 {
        self.next_id.load(Relaxed) - 1
    }

    /// How flows ended, by direction and reason.
    pub fn ended(&self) -> &Refusals {
        &self.ended
    }

    /// Returns the live flows, oldest first.
    pub fn live_flows(&self) -> Vec<Arc<Flow>> {
        let mut flows: Vec<_> = self
            .shards
            .iter()
            .flat_map(|shard| lock(shard).live.values().cloned().collect::<Vec<_>>())
            .collect();
        flows.sort_unstable_by_key(|flow| flow.id);
        flows
    }

    /// Returns the most recently ended or refused flows, oldest first; about a thousand at most.
    pub fn ended_flows(&self) -> Vec<Arc<Flow>> {
        let mut flows: Vec<_> = self
            .shards
            .iter()
            .flat_map(|shard| lock(shard).ended.iter().cloned().collect::<Vec<_>>())
            .collect();
        flows.sort_unstable_by_key(|flow| flow.id);
        flows
    }

    /// Returns what `status` shows: live flows, and ended ones.
    pub fn report(&self, now: SystemTime) -> (Vec<FlowReport>, Vec<FlowReport>) {
        let reports = |flows: Vec<Arc<Flow>>| flows.iter().map(|flow| flow.report(now)).collect();
        (reports(self.live_flows()), reports(self.ended_flows()))
    }

    /// Cuts each live flow that `verdict` gives a reason for, and returns how many. Flows whose origin is not known
    /// yet are left alone: they are decided after it is.
    pub fn recheck(&self, mut verdict: impl FnMut(&Flow) -> Option<Reason>) -> usize {
        // Pairs with the fence after `set_origin`: either this sees the origin, or the connection sees the new policy.
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let mut cut = 0;
        for shard in &self.shards {
            let flows: Vec<_> = lock(shard).live.values().cloned().collect();
            for flow in flows {
                if let Some(reason) = verdict(&flow) {
                    flow.cut(reason);
                    cut += 1;
                }
            }
        }
        cut
    }

    /// Waits until no flow is live.
    pub async fn idle(&self) {
        loop {
            let woken = self.none_live.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            if self.live() == 0 {
                return;
            }
            woken.await;
        }
    }

    fn close(&self, flow: &Arc<Flow>, reason: Reason) {
        self.ended.count(flow.direction(), &reason);
        flow.set_ended(reason);
        let mut shard = self.shard(flow.id);
        shard.live.remove(&flow.id);
        if shard.ended.len() == REMEMBERED {
            shard.ended.pop_front();
        }
        shard.ended.push_back(flow.clone());
        drop(shard);
        if self.live.fetch_sub(1, Relaxed) == 1 {
            self.none_live.notify_waiters();
        }
    }

    fn shard(&self, id: u64) -> MutexGuard<'_, Shard> {
        let index = usize::try_from(id % SHARDS as u64).expect("invariant: a shard's index is small");
        lock(&self.shards[index])
    }
}

/// A map operation that panicked leaves the map usable: nothing is half-done in a shard.
fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The owner of a live flow: the task that serves it. Dropped without [`end`](Self::end), as by a panic, the flow
/// ends with [`Reason::Internal`].
pub struct OpenFlow {
    table: Arc<FlowTable>,
    flow: Arc<Flow>,
    reason: Option<Reason>,
}

impl OpenFlow {
    pub fn end(mut self, reason: Reason) {
        self.reason = Some(reason);
    }
}

impl Deref for OpenFlow {
    type Target = Flow;
    fn deref(&self) -> &Flow {
        &self.flow
    }
}

impl Drop for OpenFlow {
    fn drop(&mut self) {
        self.table.close(&self.flow, self.reason.take().unwrap_or(Reason::Internal));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::flow::{Direction, Origin};

    fn start() -> FlowStart {
        FlowStart {
            direction: Direction::Inbound,
            peer: "10.0.0.1:4000".parse().unwrap(),
            destination: None,
            dialled: None,
        }
    }

    fn origin(source: &str) -> Origin {
        Origin {
            source: source.parse().unwrap(),
            destination: "db".parse().unwrap(),
            original_dst: None,
            program: String::new(),
            pid: 0,
            cookie: 0,
        }
    }

    #[test]
    fn a_flow_moves_from_the_live_to_the_ended_ones() {
        let table = Arc::new(FlowTable::default());
        let flow = table.open(start());
        assert_eq!((table.live(), table.live_flows().len(), table.ended_flows().len()), (1, 1, 0));
        flow.end(Reason::Finished);
        assert_eq!((table.live(), table.live_flows().len(), table.ended_flows().len()), (0, 0, 1));
        assert_eq!(table.ended().of(Direction::Inbound, "finished"), 1);
    }

    #[test]
    fn a_flow_whose_task_panicked_is_not_left_behind() {
        let table = Arc::new(FlowTable::default());
        let flow = table.open(start());
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _flow = flow;
            panic!("a test of panics");
        }));
        assert!(panicked.is_err());
        assert_eq!((table.live(), table.ended().of(Direction::Inbound, "internal")), (0, 1));
    }

    #[test]
    fn the_memory_of_ended_flows_is_bounded_and_keeps_the_latest() {
        let table = Arc::new(FlowTable::default());
        let most = (SHARDS * REMEMBERED) as u64;
        for _ in 0..most + 500 {
            table.open(start()).end(Reason::Finished);
        }
        let ids: Vec<_> = table.ended_flows().iter().map(|flow| flow.id).collect();
        assert_eq!(ids, (501..=most + 500).collect::<Vec<_>>());
    }

    #[test]
    fn recheck_cuts_what_it_is_told_to_and_nothing_else() {
        let table = Arc::new(FlowTable::default());
        let (web, cron, unknown) = (table.open(start()), table.open(start()), table.open(start()));
        web.set_origin(origin("web"));
        cron.set_origin(origin("cron"));
        let cut = table.recheck(|flow| (flow.origin()?.source.as_str() == "web").then_some(Reason::Revoked));
        assert_eq!(cut, 1);
        let is_cut = |flow: &OpenFlow| futures_util::FutureExt::now_or_never(flow.was_cut()).is_some();
        assert!(is_cut(&web) && !is_cut(&cron) && !is_cut(&unknown));
    }
}
