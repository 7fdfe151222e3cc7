//! One flow: who, where to, how much, and how it ended.

use std::{
    future::poll_fn,
    net::SocketAddr,
    sync::{
        OnceLock,
        atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    task::Poll,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::task::AtomicWaker;
use serde::{Deserialize, Serialize};

use super::reason::Reason;
use crate::identity::ServiceName;

/// As seen from the workload on this host.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Direction {
    Outbound = 0,
    Inbound = 1,
}

impl Direction {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// How far a flow is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum FlowState {
    /// Being looked up, dialled, authenticated or authorized; no byte of a program has passed.
    Connecting = 0,
    Open = 1,
    Closed = 2,
}

/// What is known of a flow when its connection is accepted.
#[derive(Clone, Debug)]
pub struct FlowStart {
    pub direction: Direction,
    /// The other end of the accepted connection: the program (outbound) or the peer's host (inbound).
    pub peer: SocketAddr,
    /// Inbound: the service that was dialled. Outbound: part of [`Flow::origin`], once that is known.
    pub destination: Option<ServiceName>,
    /// Inbound and guard: the local address that was dialled.
    pub dialled: Option<SocketAddr>,
}

/// What the kernel, or the peer's certificate, says of who opened a flow and what for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub source: ServiceName,
    pub destination: ServiceName,
    /// Outbound: what the program dialled.
    pub original_dst: Option<SocketAddr>,
    /// Outbound: the command name and the process id of the program; else empty and 0.
    pub program: String,
    pub pid: u32,
    /// Outbound: the socket's cookie; else 0.
    pub cookie: u64,
}

/// A live or a recently ended flow. Everything in it is read without a lock.
#[derive(Debug)]
pub struct Flow {
    pub id: u64,
    pub start: FlowStart,
    pub opened: SystemTime,
    origin: OnceLock<Origin>,
    /// Where this side connected to: the instance's mesh address (outbound), the program's (inbound).
    upstream: OnceLock<SocketAddr>,
    tls: OnceLock<&'static str>,
    state: AtomicU8,
    /// Bytes from the workload of this host towards its peer.
    bytes_out: AtomicU64,
    /// Bytes from the peer towards the workload of this host.
    bytes_in: AtomicU64,
    cut: OnceLock<Reason>,
    cut_wake: AtomicWaker,
    ended: OnceLock<(SystemTime, Reason)>,
}

impl Flow {
    pub(super) fn new(id: u64, start: FlowStart) -> Self {
        Self {
            id,
            start,
            opened: SystemTime::now(),
            origin: OnceLock::new(),
            upstream: OnceLock::new(),
            tls: OnceLock::new(),
            state: AtomicU8::new(FlowState::Connecting as u8),
            bytes_out: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            cut: OnceLock::new(),
            cut_wake: AtomicWaker::new(),
            ended: OnceLock::new(),
        }
    }

    /// Who opened it and what for; `None` until that is known.
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.get()
    }

    pub fn direction(&self) -> Direction {
        self.start.direction
    }

    pub fn state(&self) -> FlowState {
        match self.state.load(Relaxed) {
            0 => FlowState::Connecting,
            1 => FlowState::Open,
            _ => FlowState::Closed,
        }
    }

    /// Ends the flow for `reason`: both its connections are reset. Only the first reason counts.
    pub fn cut(&self, reason: Reason) {
        if self.cut.set(reason).is_ok() {
            self.cut_wake.wake();
        }
    }

    /// Waits for [`cut`](Self::cut); one waiter at a time.
    pub(super) async fn was_cut(&self) -> Reason {
        poll_fn(|cx| {
            // In this order: a cut after the look wakes.
            self.cut_wake.register(cx.waker());
            self.cut.get().map_or(Poll::Pending, |reason| Poll::Ready(reason.clone()))
        })
        .await
    }

    pub(super) fn set_origin(&self, origin: Origin) -> &Origin {
        self.origin.get_or_init(|| origin)
    }

    pub(super) fn set_upstream(&self, address: SocketAddr) {
        self.upstream.set(address).expect("invariant: a flow connects once");
    }

    pub(super) fn upstream(&self) -> Option<SocketAddr> {
        self.upstream.get().copied()
    }

    pub(super) fn set_tls(&self, version: &'static str) {
        self.tls.set(version).expect("invariant: a flow has one handshake");
    }

    pub(super) fn set_open(&self) {
        self.state.store(FlowState::Open as u8, Relaxed);
    }

    pub(super) fn add_out(&self, bytes: usize) {
        self.bytes_out.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn add_in(&self, bytes: usize) {
        self.bytes_in.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn set_ended(&self, reason: Reason) {
        self.state.store(FlowState::Closed as u8, Relaxed);
        // A flow ends once: its record is taken out of the table by its one owner.
        let _first = self.ended.set((SystemTime::now(), reason));
        // It would keep the memory of the task, for as long as `status` shows the flow.
        drop(self.cut_wake.take());
    }

    /// Returns what `status` shows of the flow at `now`.
    pub fn report(&self, now: SystemTime) -> FlowReport {
        let origin = self.origin();
        let ended = self.ended.get();
        let until = ended.map_or(now, |(at, _)| *at);
        FlowReport {
            id: self.id,
            direction: self.start.direction,
            source: origin.map(|o| o.source.clone()),
            destination: origin.map(|o| o.destination.clone()).or_else(|| self.start.destination.clone()),
            program: origin.map(|o| o.program.clone()).unwrap_or_default(),
            pid: origin.map_or(0, |o| o.pid),
            cookie: origin.map_or(0, |o| o.cookie),
            peer: self.start.peer,
            original_dst: origin.and_then(|o| o.original_dst).or(self.start.dialled),
            upstream: self.upstream.get().copied(),
            tls: self.tls.get().map(|version| (*version).to_owned()),
            state: self.state(),
            bytes_out: self.bytes_out.load(Relaxed),
            bytes_in: self.bytes_in.load(Relaxed),
            opened_ms: millis(self.opened.duration_since(UNIX_EPOCH)),
            age_ms: millis(until.duration_since(self.opened)),
            reason: ended.map(|(_, reason)| reason.name().to_owned()),
            detail: ended.map(|(_, reason)| reason.to_string()),
        }
    }
}

fn millis(duration: Result<Duration, std::time::SystemTimeError>) -> u64 {
    duration.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// A flow as the admin API and `status --json` show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowReport {
    pub id: u64,
    pub direction: Direction,
    /// `None` where it was refused before that was known.
    pub source: Option<ServiceName>,
    pub destination: Option<ServiceName>,
    /// The program's command name and process id (outbound); empty and 0 otherwise.
    pub program: String,
    pub pid: u32,
    pub cookie: u64,
    /// The other end of the accepted connection: the program (outbound) or the peer's host (inbound).
    pub peer: SocketAddr,
    /// What was dialled: by the program (outbound), by the peer (inbound: the mesh port; guard: the protected one).
    pub original_dst: Option<SocketAddr>,
    /// The instance's mesh address (outbound) or the program's address (inbound).
    pub upstream: Option<SocketAddr>,
    /// `TLS 1.3` or `TLS 1.2`; `None` before the handshake is done.
    pub tls: Option<String>,
    pub state: FlowState,
    /// From this host's workload to its peer.
    pub bytes_out: u64,
    /// From the peer to this host's workload.
    pub bytes_in: u64,
    /// Milliseconds since 1970.
    pub opened_ms: u64,
    /// How long it has been, or was, there.
    pub age_ms: u64,
    /// Why it ended: a name of [`super::reason::NAMES`], and a sentence. `None` while it lives.
    pub reason: Option<String>,
    pub detail: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> Flow {
        Flow::new(
            1,
            FlowStart {
                direction: Direction::Outbound,
                peer: "127.0.0.1:4000".parse().unwrap(),
                destination: None,
                dialled: None,
            },
        )
    }

    #[tokio::test]
    async fn a_cut_is_seen_whether_it_came_before_or_after_the_wait() {
        let flow = flow();
        flow.cut(Reason::Revoked);
        flow.cut(Reason::Drain);
        assert_eq!(flow.was_cut().await, Reason::Revoked);

        let flow = std::sync::Arc::new(super::tests::flow());
        let waiting = tokio::spawn({
            let flow = flow.clone();
            async move { flow.was_cut().await }
        });
        tokio::task::yield_now().await;
        flow.cut(Reason::Drain);
        assert_eq!(waiting.await.unwrap(), Reason::Drain);
    }

    #[test]
    fn a_report_survives_json() {
        let flow = flow();
        flow.set_ended(Reason::NotCaptured);
        let report = flow.report(SystemTime::now());
        assert_eq!(report.reason.as_deref(), Some("not-captured"));
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<FlowReport>(&text).unwrap(), report);
    }
}
