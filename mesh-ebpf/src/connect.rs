//! `cgroup/connect4,6`: who calls, where to, what then. The decision itself is `mesh_ebpf::verdict`.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_ANY, BPF_TCP_LISTEN, bpf_sock, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
    },
    helpers::generated::{
        bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_map_lookup_elem, bpf_set_retval, bpf_sk_lookup_tcp,
        bpf_sk_release,
    },
    programs::SockAddrContext,
};
use mesh_common::{
    addr::{Addr, Endpoint, Port},
    counter::Counter,
    egress::EGRESS_TCP,
    event,
    flow::{self, COMM_LEN, DirectFlow, Origin, SOCKET_FLAG_VIRTUAL, SocketState},
    map::{LISTENER_DNS4, LISTENER_DNS6, LISTENER_OUTBOUND4, LISTENER_OUTBOUND6, ListenerKey},
    policy::{
        self, Destination, HostAddrKey, PolicyKey, ProtectedKey, SETTINGS_INCOMPLETE, SETTINGS_MESH_ONLY,
        SETTINGS_SAME_HOST_MTLS, SETTINGS_SYNCED, ServiceId, Settings,
    },
};
use mesh_ebpf::verdict::{Caller, Mode, Target, Verdict, decide, is_refusal};

use crate::{bound, caller, context, context::Family, dns, egress, maps, report};

const PROCEED: i32 = 1;
const EPERM: i32 = 0;
const ECONNREFUSED: i32 = 111;

/// `SOCK_STREAM` and `IPPROTO_TCP`.
const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;

/// `BPF_F_CURRENT_NETNS`, as the helper takes it.
const CURRENT_NETNS: u64 = u64::MAX;

const LOOPBACK4: Addr = Addr::from_v4(u32::from_ne_bytes([127, 0, 0, 1]));
const LOOPBACK6: Addr = Addr::from_v6([0, 0, 0, 1_u32.to_be()]);

#[inline(always)]
pub fn connect(ctx: &SockAddrContext, family: Family) -> i32 {
    // SAFETY: the kernel passes a valid context.
    let (kind, protocol) = unsafe { ((*ctx.sock_addr).type_, (*ctx.sock_addr).protocol) };
    if kind != SOCK_STREAM || protocol != IPPROTO_TCP {
        return other(ctx, family);
    }
    match try_connect(ctx, family) {
        Ok(()) => PROCEED,
        Err(denial) => {
            if is_refusal(denial.reason) {
                // SAFETY: the helper takes a plain number. In `connect` hooks since Linux 6.1 (`cgroup_common_func_proto`);
                // a program's 0 makes it EPERM only where it is no error yet (`bpf_prog_run_array_cg`).
                unsafe { bpf_set_retval(-ECONNREFUSED) };
            }
            deny(ctx, &denial);
            EPERM
        }
    }
}

/// `connect()` of a socket that is neither TCP nor UDP: one that was made before its holder was a `mesh-only` workload.
#[inline(always)]
fn other(ctx: &SockAddrContext, family: Family) -> i32 {
    let Some(settings) = maps::SETTINGS.get(0) else { return PROCEED };
    if settings.flags & SETTINGS_MESH_ONLY == 0 {
        return PROCEED;
    }
    let Caller::Workload { service: source, mesh_only: true } = caller::caller(settings) else {
        return PROCEED;
    };
    let (reason, remote) = (event::REASON_PROTOCOL, context::dialled(ctx, family));
    deny(ctx, &Denial { reason, source, destination: policy::NO_SERVICE, remote });
    EPERM
}

/// A connection that is refused, with what the event says of it.
pub struct Denial {
    pub reason: u32,
    pub source: ServiceId,
    pub destination: ServiceId,
    pub remote: Endpoint,
}

/// The socket's network namespace, and whether that is the host's.
#[derive(Clone, Copy)]
struct Place {
    netns: u64,
    home: bool,
}

#[inline(always)]
fn try_connect(ctx: &SockAddrContext, family: Family) -> Result<(), Denial> {
    let remote = context::dialled(ctx, family);
    let unknown = Denial { reason: event::REASON_NOT_SYNCED, source: 0, destination: 0, remote };
    let Some(settings) = maps::SETTINGS.get(0) else { return Err(unknown) };
    let caller = caller::caller(settings);
    // An earlier connect() on this socket may have left its state, whoever made it: it is over.
    forget(ctx);
    if caller == Caller::Exempt {
        return Ok(());
    }
    let netns = context::netns_of(ctx);
    let place = Place { netns, home: netns == settings.host_netns };
    let (target, virtual_ip) = resolve(remote, netns, settings);
    if let Some(asker) = dns::asker(caller, remote, target, settings) {
        let origin = origin(ctx, remote, asker, policy::NO_SERVICE);
        let denied = |reason| Denial { reason, source: asker, destination: policy::NO_SERVICE, remote };
        if dns::is_divertible(ctx, &remote) {
            match redirect(ctx, family, origin, place, (LISTENER_DNS4, LISTENER_DNS6)) {
                Ok(()) => {
                    report::count(Counter::DnsDiverted);
                    return Ok(());
                }
                Err(event::REASON_NO_LISTENER) => {}
                Err(reason) => return Err(denied(reason)),
            }
        }
        dns::missed(settings).map_err(denied)?;
    }
    let source = if let Caller::Workload { service, .. } = caller { service } else { policy::NO_SERVICE };
    let destination = match target {
        Target::Outside => policy::NO_SERVICE,
        Target::Remote { service } | Target::Local { service, .. } | Target::Virtual { service, .. } => {
            service
        }
    };
    let mode = Mode {
        synced: settings.flags & SETTINGS_SYNCED != 0,
        incomplete: settings.flags & SETTINGS_INCOMPLETE != 0,
        same_host_mtls: settings.flags & SETTINGS_SAME_HOST_MTLS != 0,
    };
    let refused = |reason| Err(Denial { reason, source, destination, remote });
    let verdict = decide(caller, target, allowed(source, destination), mode);
    #[cfg(feature = "log")]
    log(ctx, remote, source, destination, verdict);
    match verdict {
        Verdict::Pass => Ok(()),
        Verdict::WouldDeny(reason) => {
            report::count(Counter::WouldDeny);
            emit(ctx, event::EVENT_WOULD_DENY, &Denial { reason, source, destination, remote });
            Ok(())
        }
        Verdict::Direct { source, destination } => {
            let origin = origin(ctx, remote, source, destination);
            match virtual_ip {
                None => direct(ctx, origin, remote, netns, 0).or_else(|()| refused(event::REASON_MAP_FULL)),
                // Nobody is there after all: the proxy finds another instance.
                Some(local) if !is_listening(ctx, local) => {
                    capture(ctx, family, origin, place).or_else(refused)
                }
                Some(local) => {
                    direct(ctx, origin, *local, netns, SOCKET_FLAG_VIRTUAL)
                        .or_else(|()| refused(event::REASON_MAP_FULL))?;
                    context::set_address(ctx, family, *local);
                    Ok(())
                }
            }
        }
        Verdict::Capture { source, destination } => {
            capture(ctx, family, origin(ctx, remote, source, destination), place).or_else(refused)
        }
        // Looked up last: who is not confined pays nothing for it.
        Verdict::Deny(event::REASON_MESH_ONLY) if egress::lists(source, remote, EGRESS_TCP) => Ok(()),
        Verdict::Deny(reason) => refused(reason),
    }
}

/// What `remote` is.
#[inline(always)]
pub fn target(remote: Endpoint, netns: u64, settings: &Settings) -> Target {
    resolve(remote, netns, settings).0
}

/// What `remote` is; for a virtual IP that leads to this host's own instance, with where that listens.
#[inline(always)]
fn resolve(remote: Endpoint, netns: u64, settings: &Settings) -> (Target, Option<&'static Endpoint>) {
    // SAFETY: as in `caller`.
    if let Some(protected) = unsafe { maps::PROTECTED.get(ProtectedKey::new(netns, remote.port)) } {
        let own = HostAddrKey { netns, addr: remote.addr };
        // SAFETY: as in `caller`.
        if remote.addr.is_loopback() || unsafe { maps::HOST_ADDRS.get(own) }.is_some() {
            let target = Target::Local {
                service: protected.service,
                permissive: protected.flags & policy::PROTECTED_PERMISSIVE != 0,
                reachable: protected.flags & policy::PROTECTED_ELSEWHERE == 0,
            };
            return (target, None);
        }
    }
    // SAFETY: as in `caller`.
    match unsafe { maps::DESTINATIONS.get(remote) } {
        Some(Destination { service, flags }) if flags & policy::DESTINATION_HERE != 0 => {
            let target = Target::Local {
                service: *service,
                permissive: flags & policy::DESTINATION_PERMISSIVE != 0,
                reachable: false,
            };
            (target, None)
        }
        Some(destination) => (Target::Remote { service: destination.service }, None),
        None => virtual_target(&remote.addr, netns, settings),
    }
}

/// `resolve` for what is no instance's address. Only what may be a virtual IP costs a look-up.
#[inline(always)]
fn virtual_target(addr: &Addr, netns: u64, settings: &Settings) -> (Target, Option<&'static Endpoint>) {
    let ours = settings.virtual4.contains(addr) || settings.virtual6.contains(addr);
    if !ours && !may_be_consuls(addr) {
        return (Target::Outside, None);
    }
    // SAFETY: as in `caller`.
    let Some(found) = (unsafe { maps::VIRTUALS.get(addr) }) else {
        let nothing = Target::Virtual { service: policy::NO_SERVICE, served: false, local: false };
        return (if ours { nothing } else { Target::Outside }, None);
    };
    let local = found.flags & policy::VIRTUAL_LOCAL != 0 && netns == settings.host_netns;
    let target =
        Target::Virtual { service: found.service, served: found.flags & policy::VIRTUAL_SERVED != 0, local };
    (target, local.then_some(&found.local))
}

/// Consul takes its own virtual IPs from 240.0.0.0/4.
#[inline(always)]
fn may_be_consuls(addr: &Addr) -> bool {
    addr.v4().is_some_and(|word| word.to_ne_bytes()[0] >= 240)
}

/// Whether a program of this network namespace listens at `local`.
#[inline(always)]
fn is_listening(ctx: &SockAddrContext, local: &Endpoint) -> bool {
    // SAFETY: all bytes zero are a tuple.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    // From its own address, so that the guard lets the question pass; from no port, so that no connection answers.
    let (addr, port) = (local.addr.words(), local.port.wire());
    let size = match local.addr.v4() {
        Some(word) => {
            tuple.__bindgen_anon_1.ipv4 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
                saddr: word,
                daddr: word,
                sport: 0,
                dport: port,
            };
            size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1>()
        }
        None => {
            tuple.__bindgen_anon_1.ipv6 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
                saddr: addr,
                daddr: addr,
                sport: 0,
                dport: port,
            };
            size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2>()
        }
    };
    // SAFETY: the tuple lives through the call and has that size; the verifier demands the release of what is returned.
    let sk = unsafe { bpf_sk_lookup_tcp(ctx.as_ptr(), &raw mut tuple, size as u32, CURRENT_NETNS, 0) };
    if sk.is_null() {
        return false;
    }
    // SAFETY: not null, and referenced until the release below.
    let state = unsafe { (*sk).state };
    // SAFETY: `sk` came from the look-up above and is released once.
    unsafe { bpf_sk_release(sk.cast()) };
    state == BPF_TCP_LISTEN
}

#[inline(always)]
fn allowed(source: ServiceId, destination: ServiceId) -> bool {
    if source == policy::NO_SERVICE || destination == policy::NO_SERVICE {
        return false;
    }
    // SAFETY: as in `caller`.
    unsafe { maps::POLICY.get(PolicyKey { source, destination }) }.is_some_and(|v| *v == policy::POLICY_ALLOW)
}

#[inline(always)]
pub fn origin(
    ctx: &SockAddrContext,
    original_dst: Endpoint,
    source: ServiceId,
    destination: ServiceId,
) -> Origin {
    Origin {
        original_dst,
        pid: ctx.tgid(),
        source,
        destination,
        comm: ctx.command().unwrap_or([0; COMM_LEN]),
        // SAFETY: the helper takes nothing.
        opened_ns: unsafe { bpf_ktime_get_ns() },
    }
}

/// For debugging (`cargo xtask build-ebpf --debug`); a release has neither the call nor its map.
#[cfg(feature = "log")]
fn log(ctx: &SockAddrContext, remote: Endpoint, source: ServiceId, destination: ServiceId, verdict: Verdict) {
    let word = match verdict {
        Verdict::Pass => "pass",
        Verdict::WouldDeny(_) => "would-deny",
        Verdict::Direct { .. } => "direct",
        Verdict::Capture { .. } => "capture",
        Verdict::Deny(_) => "deny",
    };
    aya_log_ebpf::debug!(
        ctx,
        "connect to port {}: {} -> {}: {}",
        remote.port.get(),
        source,
        destination,
        word
    );
}

/// Removes what an earlier `connect()` left on the socket, and gives the program its device back.
#[inline(always)]
fn forget(ctx: &SockAddrContext) {
    // SAFETY: the look-up does not create; the pointer is checked below.
    let state = unsafe { maps::SOCKETS.get_ptr_mut(ctx) };
    if state.is_null() {
        return;
    }
    // SAFETY: not null, and valid as long as the socket, which the call holds.
    bound::restore_device(ctx, unsafe { (*state).device });
    // SAFETY: `sk` is the context's own socket.
    let _ = unsafe { maps::SOCKETS.delete((*ctx.sock_addr).__bindgen_anon_1.sk) };
}

/// Stores `state` on the socket; fails when the kernel has no room for it.
#[inline(always)]
pub fn remember(ctx: &SockAddrContext, state: &mut SocketState) -> Result<(), ()> {
    // SAFETY: `state` lives through the call, which copies it.
    let stored = unsafe { maps::SOCKETS.get_or_insert_ptr_mut(ctx, Some(state)) };
    if stored.is_null() { Err(()) } else { Ok(()) }
}

#[inline(always)]
fn direct(ctx: &SockAddrContext, origin: Origin, remote: Endpoint, netns: u64, flags: u32) -> Result<(), ()> {
    remember(ctx, &mut SocketState { origin, disposition: flow::SOCKET_DIRECT, flags, device: 0, pad: 0 })?;
    let flow = DirectFlow {
        origin,
        netns,
        local: Endpoint::UNSPECIFIED,
        remote,
        state: flow::DIRECT_ALLOWED,
        pad: 0,
    };
    // SAFETY: the helper takes the program's own context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    maps::DIRECT.insert(cookie, flow, BPF_ANY.into()).map_err(|_| ())?;
    report::count(Counter::Direct);
    Ok(())
}

/// Redirects the call to the daemon's listener in the caller's namespace; the error is a `REASON_*`.
#[inline(always)]
fn capture(ctx: &SockAddrContext, family: Family, origin: Origin, at: Place) -> Result<(), u32> {
    redirect(ctx, family, origin, at, (LISTENER_OUTBOUND4, LISTENER_OUTBOUND6))?;
    report::count(Counter::Captured);
    Ok(())
}

#[inline(always)]
fn redirect(
    ctx: &SockAddrContext,
    family: Family,
    origin: Origin,
    Place { netns, home }: Place,
    (role4, role6): (u32, u32),
) -> Result<(), u32> {
    // A v4 destination dialled through a v6 socket stays a v4 connection.
    let v4 = origin.original_dst.addr.v4().is_some();
    let (role, loopback) = if v4 { (role4, LOOPBACK4) } else { (role6, LOOPBACK6) };
    let port = listener_port(&ListenerKey { netns, role, pad: 0 }).ok_or(event::REASON_NO_LISTENER)?;
    bound::check_source(ctx, family, netns, home)?;
    let device = bound::release_device(ctx)?;
    remember(ctx, &mut SocketState { origin, disposition: flow::SOCKET_CAPTURED, flags: 0, device, pad: 0 })
        .map_err(|()| event::REASON_MAP_FULL)?;
    context::set_address(ctx, family, Endpoint::new(loopback, port));
    Ok(())
}

/// The port of the daemon's listener, read from the socket itself: what is not listening has none, and a port that
/// somebody else took over after the daemon died is never answered.
#[inline(always)]
pub fn listener_port(key: &ListenerKey) -> Option<Port> {
    // SAFETY: the map's key type is `ListenerKey`; the verifier demands the release of what is returned.
    let sk: *mut bpf_sock = unsafe {
        bpf_map_lookup_elem((&raw const maps::LISTENERS).cast_mut().cast(), (&raw const *key).cast())
    }
    .cast();
    if sk.is_null() {
        return None;
    }
    // SAFETY: not null, and referenced until the release below. `src_port` is in host order.
    let port = unsafe { (*sk).src_port };
    // SAFETY: `sk` came from the look-up above and is released once.
    unsafe { bpf_sk_release(sk.cast()) };
    Some(Port::new(port as u16))
}

#[inline(always)]
pub fn deny(ctx: &SockAddrContext, denial: &Denial) {
    report::count(match denial.reason {
        event::REASON_INTENTION => Counter::DeniedIntention,
        event::REASON_UNMANAGED => Counter::DeniedUnmanaged,
        event::REASON_UNCLASSIFIED => Counter::DeniedUnclassified,
        event::REASON_NOT_SYNCED => Counter::DeniedNotSynced,
        event::REASON_MESH_ONLY => Counter::DeniedMeshOnly,
        event::REASON_PROTOCOL => Counter::DeniedProtocol,
        event::REASON_NO_LISTENER => Counter::DeniedNoListener,
        event::REASON_SOURCE | event::REASON_DEVICE => Counter::DeniedBound,
        event::REASON_NO_RESOLVER => Counter::DeniedNoResolver,
        event::REASON_NO_INSTANCE => Counter::RefusedNoInstance,
        event::REASON_NO_SERVICE => Counter::DeniedNoService,
        _ => Counter::DeniedMapFull,
    });
    emit(ctx, event::EVENT_DENIED, denial);
}

#[inline(always)]
fn emit(ctx: &SockAddrContext, kind: u32, denial: &Denial) {
    let mut event = report::by_caller(kind, denial.reason);
    event.source = denial.source;
    event.destination = denial.destination;
    event.remote = denial.remote;
    // SAFETY: the kernel passes a valid context.
    event.protocol = unsafe { (*ctx.sock_addr).protocol };
    event.netns = context::netns_of(ctx);
    // SAFETY: the helper takes the program's own context.
    event.cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    report::emit(&event);
}
