//! Counters and events.

use aya_ebpf::helpers::{bpf_get_current_comm, generated::bpf_get_current_pid_tgid};
use mesh_common::{addr::Endpoint, counter::Counter, event::Event, flow::COMM_LEN};

use crate::maps;

#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(slot) = maps::COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the slot is this CPU's own, and the program is not preempted by another writer of it on this
        // CPU other than by itself in softirq, where a lost increment is the worst.
        unsafe { *slot += 1 };
    }
}

/// An event with everything but its kind zero.
#[inline(always)]
pub fn blank(kind: u32) -> Event {
    Event {
        kind,
        reason: 0,
        source: 0,
        destination: 0,
        pid: 0,
        local: Endpoint::UNSPECIFIED,
        remote: Endpoint::UNSPECIFIED,
        comm: [0; 16],
        protocol: 0,
        netns: 0,
        cookie: 0,
        bytes_sent: 0,
        bytes_received: 0,
        untold: 0,
        pad: 0,
    }
}

/// An event about what the current task asked for.
#[inline(always)]
pub fn by_caller(kind: u32, reason: u32) -> Event {
    let mut event = blank(kind);
    event.reason = reason;
    event.comm = bpf_get_current_comm().unwrap_or([0; COMM_LEN]);
    // SAFETY: the helper takes nothing.
    event.pid = unsafe { (bpf_get_current_pid_tgid() >> 32) as u32 };
    event
}

/// Hands `event` to the daemon; counts it when there is no room.
#[inline(always)]
pub fn emit(event: &Event) {
    if maps::EVENTS.output(event, 0).is_err() {
        count(Counter::EventLost);
    }
}
