//! What the kernel can do: asked by trying, where that can be tried.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    path::Path,
};

use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{is_map_supported, is_program_supported},
};
use caps::{CapSet, Capability};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};

use super::Finding;
use crate::fast_path;

/// The oldest kernel that meshnode is tested on.
const FLOOR: (u32, u32) = (6, 1);

pub fn check() -> Vec<Finding> {
    let (capabilities, privileged) = capabilities();
    let mut findings = vec![version(), capabilities];
    if privileged {
        findings.push(program_types());
        findings.push(map_types());
    }
    findings.extend([btf(), unprivileged_bpf(), lockdown(), sock_destroy(), bpf_sock_destroy()]);
    findings.extend(fast_paths());
    findings
}

fn version() -> Finding {
    const CHECK: &str = "kernel";
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    let release = release.unwrap_or_default();
    match parse_release(&release) {
        Some(version) if version >= FLOOR => Finding::ok(CHECK, release),
        _ => Finding::fail(
            CHECK,
            format!("{release}: older than {}.{}, the oldest that is supported", FLOOR.0, FLOOR.1),
            "install a newer kernel, as in Debian 12, Ubuntu 24.04, RHEL 10",
        ),
    }
}

/// Returns major and minor of a release such as `6.1.0-18-cloud-amd64`.
fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Returns the finding, and whether BPF can be tried.
fn capabilities() -> (Finding, bool) {
    const CHECK: &str = "capabilities";
    const NEEDED: [Capability; 4] =
        [Capability::CAP_BPF, Capability::CAP_NET_ADMIN, Capability::CAP_PERFMON, Capability::CAP_SYS_ADMIN];
    let effective = caps::read(None, CapSet::Effective).unwrap_or_default();
    let missing: Vec<String> =
        NEEDED.iter().filter(|cap| !effective.contains(*cap)).map(ToString::to_string).collect();
    if missing.is_empty() {
        return (Finding::ok(CHECK, "all that the daemon needs to start"), true);
    }
    let detail = format!("missing here: {}; BPF was not tried", missing.join(", "));
    (Finding::fail(CHECK, detail, "run as root: `sudo meshnode doctor`"), false)
}

fn btf() -> Finding {
    const CHECK: &str = "BTF";
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Finding::ok(CHECK, "/sys/kernel/btf/vmlinux");
    }
    Finding::fail(
        CHECK,
        "/sys/kernel/btf/vmlinux is missing: socket storage needs it",
        "a kernel with CONFIG_DEBUG_INFO_BTF=y; mount sysfs if /sys is empty",
    )
}

fn program_types() -> Finding {
    const TYPES: [(&str, ProgramType); 3] = [
        ("cgroup_sock_addr", ProgramType::CgroupSockAddr),
        ("sock_ops", ProgramType::SockOps),
        ("sk_lookup", ProgramType::SkLookup),
    ];
    let tried = TYPES.map(|(name, kind)| (name, is_program_supported(kind).map_err(|error| chain(&error))));
    supported("BPF programs", &tried, "a kernel with CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF and CONFIG_INET")
}

fn map_types() -> Finding {
    const TYPES: [(&str, MapType); 6] = [
        ("hash", MapType::Hash),
        ("lru_hash", MapType::LruHash),
        ("percpu_array", MapType::PerCpuArray),
        ("sockhash", MapType::SockHash),
        ("sk_storage", MapType::SkStorage),
        ("ringbuf", MapType::RingBuf),
    ];
    let tried = TYPES.map(|(name, kind)| (name, is_map_supported(kind).map_err(|error| chain(&error))));
    supported("BPF maps", &tried, "a kernel with CONFIG_BPF_SYSCALL, CONFIG_BPF_STREAM_PARSER and CONFIG_NET")
}

fn supported(check: &'static str, tried: &[(&str, Result<bool, String>)], fix: &str) -> Finding {
    let missing: Vec<String> = tried
        .iter()
        .filter_map(|(name, result)| match result {
            Ok(true) => None,
            Ok(false) => Some((*name).to_owned()),
            Err(error) => Some(format!("{name} ({error})")),
        })
        .collect();
    if missing.is_empty() {
        let names: Vec<&str> = tried.iter().map(|(name, _)| *name).collect();
        return Finding::ok(check, format!("loaded: {}", names.join(", ")));
    }
    Finding::fail(check, format!("not loadable: {}", missing.join(", ")), fix)
}

/// Returns an error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

fn unprivileged_bpf() -> Finding {
    const CHECK: &str = "unprivileged BPF";
    match fs::read_to_string("/proc/sys/kernel/unprivileged_bpf_disabled").as_deref().map(str::trim) {
        Ok("0") => Finding::warn(
            CHECK,
            "every user may load BPF programs: a larger attack surface than the mesh needs",
            "sysctl -w kernel.unprivileged_bpf_disabled=1 (and in /etc/sysctl.d)",
        ),
        Ok(value) => Finding::ok(CHECK, format!("disabled ({value})")),
        Err(_) => Finding::ok(CHECK, "not in this kernel"),
    }
}

fn lockdown() -> Finding {
    const CHECK: &str = "lockdown";
    match fs::read_to_string("/sys/kernel/security/lockdown") {
        Ok(modes) if modes.contains("[confidentiality]") => Finding::warn(
            CHECK,
            "confidentiality mode: the kernel may refuse BPF programs that read its memory",
            "boot with lockdown=integrity if the daemon's programs do not load",
        ),
        Ok(modes) => Finding::ok(CHECK, modes.trim()),
        Err(_) => Finding::ok(CHECK, "none"),
    }
}

/// Tries SOCK_DESTROY on a connection of its own.
fn sock_destroy() -> Finding {
    const CHECK: &str = "socket destruction";
    const COST: &str = "a revoked direct flow cannot be cut from outside";
    match try_sock_destroy() {
        Ok(()) => Finding::ok(CHECK, "SOCK_DESTROY works (tcp_diag, CONFIG_INET_DIAG_DESTROY)"),
        Err(error) => match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => Finding::warn(
                CHECK,
                format!("not in this kernel: {COST}"),
                "a kernel with CONFIG_INET_DIAG_DESTROY=y",
            ),
            Some(libc::ENOENT) => Finding::warn(CHECK, format!("no tcp_diag: {COST}"), "modprobe tcp_diag"),
            Some(libc::EPERM) => Finding::warn(CHECK, "not tried: needs CAP_NET_ADMIN", "run doctor as root"),
            _ => Finding::warn(CHECK, format!("{error}: {COST}"), "modprobe tcp_diag"),
        },
    }
}

fn try_sock_destroy() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let stream = TcpStream::connect(listener.local_addr()?)?;
    let (SocketAddr::V4(local), SocketAddr::V4(remote)) = (stream.local_addr()?, stream.peer_addr()?) else {
        return Err(io::Error::other("no IPv4 loopback"));
    };
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    socket.send(&destroy_request(local, remote), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    // struct nlmsghdr (16 bytes), then struct nlmsgerr, whose first field is the negated errno.
    let code = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match code {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(-code)),
        None => Err(io::Error::other("sock_diag gave a short answer")),
    }
}

/// Returns `struct nlmsghdr` and `struct inet_diag_req_v2` (linux/netlink.h, linux/inet_diag.h) for one TCP socket.
fn destroy_request(local: SocketAddrV4, remote: SocketAddrV4) -> Vec<u8> {
    const SOCK_DESTROY: u16 = 21;
    const REQUEST_AND_ACK: u16 = 1 | 4;
    const LENGTH: u32 = 16 + 56;
    let mut request = Vec::with_capacity(LENGTH as usize);
    request.extend(LENGTH.to_ne_bytes());
    request.extend(SOCK_DESTROY.to_ne_bytes());
    request.extend(REQUEST_AND_ACK.to_ne_bytes());
    request.extend([0; 8]); // sequence number and port id
    request.extend([libc::AF_INET as u8, libc::IPPROTO_TCP as u8, 0, 0]);
    request.extend(u32::MAX.to_ne_bytes()); // any state
    request.extend(local.port().to_be_bytes());
    request.extend(remote.port().to_be_bytes());
    for address in [local.ip(), remote.ip()] {
        request.extend(address.octets());
        request.extend([0; 12]);
    }
    request.extend([0; 4]); // any interface
    request.extend([0xff; 8]); // INET_DIAG_NOCOOKIE
    request
}

/// The kfunc came with Linux 6.5 (commit 4ddbcb886268); BTF names every kfunc.
fn bpf_sock_destroy() -> Finding {
    const CHECK: &str = "bpf_sock_destroy";
    const NAME: &[u8] = b"\0bpf_sock_destroy\0";
    let there = fs::read("/sys/kernel/btf/vmlinux")
        .is_ok_and(|btf| btf.windows(NAME.len()).any(|found| found == NAME));
    if there {
        return Finding::ok(CHECK, "in this kernel");
    }
    // Not needed where SOCK_DESTROY works, which 6.1 has; so it is no warning.
    Finding::ok(CHECK, "not in this kernel (from 6.5 on): the daemon uses SOCK_DESTROY")
}

/// What the kernel could do for the byte path, tried here and now.
fn fast_paths() -> impl Iterator<Item = Finding> {
    fast_path::verdicts().into_iter().map(|(name, verdict)| Finding::ok(name, verdict))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_major_and_minor() {
        assert_eq!(parse_release("6.1.0-18-cloud-amd64"), Some((6, 1)));
        assert_eq!(parse_release("5.15.0"), Some((5, 15)));
        assert!(parse_release("6.12.9+deb").unwrap() > FLOOR);
        assert_eq!(parse_release("weird"), None);
    }

    #[test]
    fn a_destroy_request_has_the_kernels_layout() {
        let request = destroy_request("127.0.0.1:258".parse().unwrap(), "10.0.0.2:772".parse().unwrap());
        assert_eq!(request.len(), 72);
        assert_eq!(request[24..28], [1, 2, 3, 4]);
        assert_eq!(request[28..32], [127, 0, 0, 1]);
        assert_eq!(request[44..48], [10, 0, 0, 2]);
    }
}
