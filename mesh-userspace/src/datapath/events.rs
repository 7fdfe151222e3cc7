//! The ring buffer: what the kernel decided, told to the audit log and to `status`.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use aya::maps::{MapData, RingBuf};
use aya_log::EbpfLogger;
use mesh_common::{
    event::{self, Event},
    policy::PolicyKey,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::sleep,
};

use super::{direct::Doomed, flows::comm_text, names::NameReader};
use crate::{identity::ServiceName, proxy::RateLimit, telemetry::AUDIT};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Denied,
    WouldDeny,
    Guarded,
    GuardPassed,
    DirectOpened,
    DirectClosed,
    /// Ended by the daemon, because no intention allows it any more.
    DirectRevoked,
    FlowLost,
    /// The same of a direct flow; also of its end, which is the daemon's doing.
    DirectLost,
    /// A workload is in a network namespace that the daemon does not listen in.
    Namespace,
}

/// An event in user space's terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub kind: Kind,
    pub at: SystemTime,
    /// `intention`, `unmanaged`, …: the words of `mesh_common::event::reason_text`.
    pub reason: &'static str,
    /// What the intention that decided says about it, where there is something to explain.
    pub detail: Option<String>,
    /// `IPPROTO_*`; 0 where it is not told.
    pub protocol: u32,
    pub source: Option<ServiceName>,
    pub destination: Option<ServiceName>,
    pub pid: u32,
    pub program: String,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub cookie: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
}

impl Report {
    fn is_unserved(&self) -> bool {
        let denied = self.kind == Kind::Denied;
        self.kind == Kind::Namespace || denied && self.reason == event::reason_text(event::REASON_NO_LISTENER)
    }
}

/// Returns the record in `raw`; `None` when it is not as long as one: of another version, before an upgrade.
fn read(raw: &[u8]) -> Option<Event> {
    if raw.len() != size_of::<Event>() {
        return None;
    }
    // SAFETY: the length was checked, and an `Event` is plain integers: any bytes are one, aligned or not.
    Some(unsafe { raw.as_ptr().cast::<Event>().read_unaligned() })
}

/// Returns what `event` says; `None` when it is none that this daemon knows.
fn report(event: &Event, names: &NameReader, at: SystemTime) -> Option<Report> {
    let reason = event.reason;
    let kind = match event.kind {
        event::EVENT_DENIED => Kind::Denied,
        event::EVENT_WOULD_DENY => Kind::WouldDeny,
        event::EVENT_GUARDED => Kind::Guarded,
        event::EVENT_GUARD_PASSED => Kind::GuardPassed,
        event::EVENT_DIRECT_OPENED => Kind::DirectOpened,
        event::EVENT_DIRECT_CLOSED => Kind::DirectClosed,
        event::EVENT_FLOW_LOST => Kind::FlowLost,
        event::EVENT_NAMESPACE => Kind::Namespace,
        event::EVENT_DIRECT_LOST => Kind::DirectLost,
        _ => return None,
    };
    Some(Report {
        kind,
        at,
        reason: event::reason_text(event.reason),
        detail: matches!(reason, event::REASON_MESH_ONLY | event::REASON_PROTOCOL)
            .then(|| protocol_text(event.protocol)),
        protocol: event.protocol,
        source: names.name(event.source),
        destination: names.name(event.destination),
        pid: event.pid,
        program: comm_text(&event.comm),
        local: event.local.into(),
        remote: event.remote.into(),
        cookie: event.cookie,
        bytes_sent: event.bytes_sent,
        bytes_received: event.bytes_received,
    })
}

fn pair(event: &Event) -> PolicyKey {
    PolicyKey { source: event.source, destination: event.destination }
}

/// Returns the protocol's name, or its number (as in `/etc/protocols`).
fn protocol_text(protocol: u32) -> String {
    let name = match protocol {
        0 => "-",
        1 => "icmp",
        6 => "tcp",
        17 => "udp",
        33 => "dccp",
        58 => "icmpv6",
        132 => "sctp",
        136 => "udplite",
        255 => "raw",
        other => return format!("protocol {other}"),
    };
    name.to_owned()
}

/// The newest events, for `status`.
#[derive(Clone)]
pub struct Recent {
    kept: Arc<Mutex<Kept>>,
    names: NameReader,
}

#[derive(Default)]
struct Kept {
    newest: VecDeque<Newest>,
    /// Cookies of sockets that the daemon destroys, and what the end is then; the kernel's event of it is still to come.
    ending: HashMap<u64, Kind>,
}

enum Newest {
    Told(Report),
    /// The end of a direct flow, as the kernel told it: of the many thousands in a second that there may be, few are asked for.
    Ended {
        event: Event,
        at: SystemTime,
        /// Another than the event's, where the daemon ended it.
        kind: Option<Kind>,
    },
}

/// So long after a look nobody is woken by what comes: the kernel wakes only a reader that has read everything
/// (`bpf_ringbuf_commit`), so that a burst of connections costs one wake-up, not two for each of them. The buffer has room for
/// half a million events in a second.
const PAUSE: Duration = Duration::from_millis(10);
const KEPT: usize = 256;
/// More ends that the daemon made are not awaited: the events of those were lost.
const MOST_ENDING: usize = 65_536;
const AT_ONCE: u32 = 256;

impl Recent {
    pub fn new(names: NameReader) -> Self {
        Self { kept: Arc::default(), names }
    }

    fn push(&self, report: Report) {
        self.lock().push(Newest::Told(report));
    }

    /// Notes the end of a direct flow.
    fn ended(&self, event: Event, at: SystemTime) {
        let mut kept = self.lock();
        let kind = kept.ending.remove(&event.cookie);
        kept.push(Newest::Ended { event, at, kind });
    }

    /// Says that the end of this socket's flow, which is about to be reported, is the daemon's doing, and of this kind.
    pub(super) fn ending(&self, cookie: u64, kind: Kind) {
        let ending = &mut self.lock().ending;
        if ending.len() == MOST_ENDING {
            ending.clear();
        }
        ending.insert(cookie, kind);
    }

    /// Takes that back: the socket was gone already.
    pub(super) fn not_ending(&self, cookie: u64) {
        self.lock().ending.remove(&cookie);
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a query of `source` to `server` was refused; `what` it asked. The daemon refuses those, which does not
    /// know the program.
    pub fn refused_query(&self, source: &ServiceName, server: SocketAddr, what: String) {
        static NEXT: AtomicU64 = AtomicU64::new(u64::MAX);
        self.push(Report {
            kind: Kind::Denied,
            at: SystemTime::now(),
            reason: event::reason_text(event::REASON_MESH_ONLY),
            detail: Some(what),
            protocol: 0,
            source: Some(source.clone()),
            destination: None,
            pid: 0,
            program: String::new(),
            local: SocketAddr::from(([0, 0, 0, 0], 0)),
            remote: server,
            // Sockets' cookies count from 1.
            cookie: NEXT.fetch_sub(1, Relaxed),
            bytes_sent: 0,
            bytes_received: 0,
        });
    }

    /// Newest last.
    pub fn list(&self) -> Vec<Report> {
        let told = |one: &Newest| match one {
            Newest::Told(report) => Some(report.clone()),
            Newest::Ended { event, at, kind } => ended(event, &self.names, *at, *kind),
        };
        self.lock().newest.iter().filter_map(told).collect()
    }
}

impl Kept {
    fn push(&mut self, new: Newest) {
        if self.newest.len() == KEPT {
            self.newest.pop_front();
        }
        self.newest.push_back(new);
    }
}

/// Returns what `event`, the end of a direct flow, says.
fn ended(event: &Event, names: &NameReader, at: SystemTime, kind: Option<Kind>) -> Option<Report> {
    let report = report(event, names, at)?;
    Some(Report { kind: kind.unwrap_or(report.kind), ..report })
}

/// Who is told of an event when it is read.
pub struct Told<A, C, U, N, E> {
    /// Whether the policy allows a direct flow that was established.
    pub allows: A,
    /// Among those that were read together are some that it does not.
    pub cut: C,
    /// There was no room to list these direct flows, which have to end.
    pub unlisted: U,
    /// A workload is in a network namespace without a listener.
    pub unserved: N,
    /// Says why a pair was denied, where there is something to explain.
    pub explain: E,
}

/// Reads events until the task is dropped.
pub async fn follow(
    ring: RingBuf<MapData>,
    recent: Recent,
    told: Told<
        impl Fn(PolicyKey) -> bool,
        impl Fn(),
        impl Fn(Vec<Doomed>),
        impl Fn(),
        impl Fn(&ServiceName, &ServiceName) -> Option<String>,
    >,
) -> std::io::Result<()> {
    let [limit, ends] =
        [RateLimit::per_second(AUDITED_PER_SECOND), RateLimit::per_second(AUDITED_PER_SECOND)];
    let reader =
        Reader { recent, told, limit, ends, revoked: Cell::new(false), unlisted: RefCell::default() };
    // SAFETY: the ring buffer owns its descriptor, and is dropped after the registration, inside of which it is.
    let mut ring = unsafe { AsyncFd::register_with_interest(Ring(ring), Interest::READABLE) }?;
    loop {
        let mut ready = ring.readable_mut().await?;
        // A storm of events must not keep this thread from everything else; readiness stays.
        let (mut left, mut unknown) = (AT_ONCE, 0);
        while let Some(item) = ready.get_inner_mut().0.next() {
            if read(&item).and_then(|event| reader.take(event, SystemTime::now())).is_none() {
                unknown += 1;
            }
            left -= 1;
            if left == 0 {
                break;
            }
        }
        if unknown > 0 {
            tracing::warn!(
                events = unknown,
                "events that this version does not know: of another one, before an upgrade?"
            );
        }
        if reader.revoked.take() {
            (reader.told.cut)();
        }
        let unlisted = reader.unlisted.take();
        if !unlisted.is_empty() {
            (reader.told.unlisted)(unlisted);
        }
        if left > 0 {
            ready.clear_ready();
            sleep(PAUSE).await;
        } else {
            tokio::task::yield_now().await;
        }
    }
}

struct Reader<A, C, U, N, E> {
    recent: Recent,
    told: Told<A, C, U, N, E>,
    limit: RateLimit,
    ends: RateLimit,
    /// A direct flow was established that is not allowed any more.
    revoked: Cell<bool>,
    /// Direct flows that there was no room to list.
    unlisted: RefCell<Vec<Doomed>>,
}

impl<A, C, U, N, E> Reader<A, C, U, N, E>
where
    A: Fn(PolicyKey) -> bool,
    N: Fn(),
    E: Fn(&ServiceName, &ServiceName) -> Option<String>,
{
    /// `None`: an event that this daemon does not know. Direct flows, which there are by the thousand, become a [`Report`] only
    /// where somebody reads it.
    fn take(&self, event: Event, at: SystemTime) -> Option<()> {
        match event.kind {
            event::EVENT_DIRECT_OPENED => {
                if !(self.told.allows)(pair(&event)) {
                    self.revoked.set(true);
                }
                self.limit.withhold(event.untold.into());
                if let Some(unlogged_before) = self.limit.permit(Instant::now()) {
                    audit(&report(&event, &self.recent.names, at)?, unlogged_before);
                }
                Some(())
            }
            event::EVENT_DIRECT_CLOSED => {
                self.recent.ended(event, at);
                // Of no decision: it takes no other's place among the lines.
                if tracing::enabled!(tracing::Level::DEBUG) && self.ends.permit(Instant::now()).is_some() {
                    audit(&report(&event, &self.recent.names, at)?, 0);
                }
                Some(())
            }
            event::EVENT_DIRECT_LOST => {
                self.unlisted.borrow_mut().push(Doomed::unlisted(&event, self.recent.clone()));
                if let Some(unlogged_before) = self.limit.permit(Instant::now()) {
                    audit(&report(&event, &self.recent.names, at)?, unlogged_before);
                }
                Some(())
            }
            _ => self.report(report(&event, &self.recent.names, at)?),
        }
    }

    fn report(&self, mut report: Report) -> Option<()> {
        if let (Kind::Denied | Kind::WouldDeny, Some(source), Some(destination)) =
            (report.kind, &report.source, &report.destination)
        {
            report.detail = (self.told.explain)(source, destination).or(report.detail);
        }
        if report.is_unserved() {
            (self.told.unserved)();
        }
        // Not news to a person: the daemon listens there next.
        if report.kind != Kind::Namespace {
            // Of a connection that was steered to the guard, the guard says it, with the connection at hand.
            if report.kind != Kind::Guarded
                && let Some(unlogged_before) = self.limit.permit(Instant::now())
            {
                audit(&report, unlogged_before);
            }
            self.recent.push(report);
        }
        Some(())
    }
}

/// Reads what the BPF programs log; it goes where the process's own log goes.
pub type KernelLog = EbpfLogger<&'static dyn log::Log>;

/// Hands what the BPF programs log to the daemon's log, until the task is dropped. For debugging.
pub async fn follow_log(log: KernelLog) -> std::io::Result<()> {
    // SAFETY: the logger owns its descriptor, and lives inside of the registration.
    let mut log = unsafe { AsyncFd::register_with_interest(log, Interest::READABLE) }?;
    loop {
        let mut ready = log.readable_mut().await?;
        ready.get_inner_mut().flush();
        ready.clear_ready();
    }
}

struct Ring(RingBuf<MapData>);

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

/// A program that tries again and again must not fill the disk; the counters have every event.
const AUDITED_PER_SECOND: u32 = 100;

fn audit(report: &Report, unlogged_before: u64) {
    let text = |name: &Option<ServiceName>| name.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
    let (source, destination) = (text(&report.source), text(&report.destination));
    let detail = report.detail.as_deref();
    let Report { reason, pid, program, local, remote, .. } = report;
    let protocol = protocol_text(report.protocol);
    match report.kind {
        Kind::Denied => {
            tracing::info!(target: AUDIT, decision = "deny", reason, detail, source, destination, program, pid, protocol, original_dst = %remote, unlogged_before, "denied by the kernel");
        }
        Kind::WouldDeny => {
            tracing::info!(target: AUDIT, decision = "would-deny", reason, detail, source, destination, program, pid, original_dst = %remote, unlogged_before, "connect let through: the service is permissive");
        }
        Kind::GuardPassed => {
            tracing::info!(target: AUDIT, decision = "would-deny", reason = "guard", destination, from = %remote, to = %local, unlogged_before, "connection from outside the mesh let through: the service is permissive");
        }
        Kind::DirectOpened => {
            tracing::info!(target: AUDIT, decision = "allow", how = "direct", source, destination, program, pid, original_dst = %remote, unlogged_before, "connected");
        }
        Kind::DirectClosed => {
            tracing::debug!(source, destination, program, pid, original_dst = %remote, sent = report.bytes_sent, received = report.bytes_received, "direct flow ended");
        }
        // An end that the daemon made is told of where it makes it; here it is `DirectClosed`, with the counters.
        Kind::Guarded | Kind::Namespace | Kind::DirectRevoked => {}
        Kind::DirectLost => {
            tracing::warn!(source, destination, program, pid, to = %remote, unlogged_before, "no room to list a direct flow: it will be reset (raise [limits] direct_flows)");
        }
        Kind::FlowLost => {
            tracing::warn!(source, destination, program, pid, original_dst = %remote, unlogged_before, "no room for the record of a captured connection: it will be reset (raise [limits] flows)");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::datapath::names::Names;

    proptest! {
        #[test]
        fn any_bytes_are_an_event_or_none(
            raw in prop::collection::vec(any::<u8>(), size_of::<Event>()), len in 0..2 * size_of::<Event>(), whole: bool,
            kind in 0_u32..11,
        ) {
            let mut raw = raw;
            if !whole {
                raw.resize(len, 0);
            }
            if raw.len() >= 4 {
                raw[..4].copy_from_slice(&kind.to_ne_bytes());
            }
            let names = Names::default().reader();
            let report = read(&raw).and_then(|event| report(&event, &names, SystemTime::UNIX_EPOCH));
            prop_assert_eq!(report.is_some(), raw.len() == size_of::<Event>() && (1..=9).contains(&kind));
        }
    }
}
