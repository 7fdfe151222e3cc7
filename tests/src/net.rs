//! The network between hosts: a router in a network namespace of its own, where packets can be captured.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    process::Command,
    sync::atomic::{AtomicU8, Ordering::Relaxed},
};

use crate::{
    capture::Capture,
    host::{Host, LIMIT},
    process::run,
    space::{Options, Space},
};

/// A router to which each host is joined by a veth pair. Host number N has 10.77.N.1/24 and fd77:0:0:N::1/64.
#[derive(Debug)]
pub struct Network {
    space: Space,
    hosts: AtomicU8,
    options: Options,
}

impl Network {
    #[track_caller]
    pub fn new() -> Self {
        Self::with(Options::default())
    }

    /// With `options` for the hosts to come.
    #[track_caller]
    pub fn with(options: Options) -> Self {
        let space = Space::new("network", Options { router: true, ..options });
        let network = Self { space, hosts: 0.into(), options };
        network.ip("link set lo up\n");
        network
    }

    /// Makes a host and joins it. Its interface is `eth0`; the router is its default gateway.
    #[track_caller]
    pub fn host(&self, name: &str) -> Host {
        let n = self.hosts.fetch_add(1, Relaxed).checked_add(1).expect("fewer than 256 hosts");
        let space = Space::new(name, self.options);
        let (port, pid) = (port_of(n), space.pid());
        self.ip(&format!(
            "link add {port} type veth peer name eth0 netns {pid}\n\
             addr add 10.77.{n}.254/24 dev {port}\n\
             addr add fd77:0:0:{n}::fe/64 dev {port} nodad\n\
             link set {port} up\n"
        ));
        let v6 = Ipv6Addr::new(0xfd77, 0, 0, n.into(), 0, 0, 0, 1);
        let host = Host { space, name: name.to_owned(), v4: Ipv4Addr::new(10, 77, n, 1), v6 };
        ip_batch(
            host.space.command("", "ip"),
            &format!(
                "link set lo up\n\
                 addr add 10.77.{n}.1/24 dev eth0\n\
                 addr add fd77:0:0:{n}::1/64 dev eth0 nodad\n\
                 link set eth0 up\n\
                 route add default via 10.77.{n}.254\n\
                 route add default via fd77:0:0:{n}::fe\n"
            ),
        );
        host.write("/etc/hosts", &format!("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {name}\n"));
        host
    }

    /// Starts a capture of every packet to and from `host`, seen from outside of it.
    #[track_caller]
    pub fn capture(&self, host: &Host) -> Capture {
        Capture::start(&self.space, &port_of(host.v4.octets()[2]), host.v4)
    }

    /// Joins two hosts directly as well, for IPv4: what they send to each other does not pass the router any more.
    #[track_caller]
    pub fn wire(&self, one: &Host, other: &Host) {
        let pid = other.space.pid();
        let pair = format!("link add {} type veth peer name {} netns {pid}\n", wire_to(other), wire_to(one));
        ip_batch(one.space.command("", "ip"), &pair);
        for (here, there) in [(one, other), (other, one)] {
            let (wire, peer, own) = (wire_to(there), there.v4, here.v4);
            let route = format!("link set {wire} up\nroute add {peer}/32 dev {wire} src {own}\n");
            ip_batch(here.space.command("", "ip"), &route);
        }
    }

    /// Starts a capture at the end of a wire that is in `host`.
    #[track_caller]
    pub fn capture_wire(&self, host: &Host, peer: &Host) -> Capture {
        Capture::start(&host.space, &wire_to(peer), peer.v4)
    }

    /// Cuts `host` off, or joins it again.
    #[track_caller]
    pub fn set_link(&self, host: &Host, up: bool) {
        let n = host.v4.octets()[2];
        self.ip(&format!("link set {} {}\n", port_of(n), if up { "up" } else { "down" }));
        if up {
            // IPv6 addresses went with the link.
            self.ip(&format!("addr replace fd77:0:0:{n}::fe/64 dev {} nodad\n", port_of(n)));
        }
    }

    pub fn space(&self) -> &Space {
        &self.space
    }

    #[track_caller]
    fn ip(&self, batch: &str) {
        ip_batch(self.space.command("", "ip"), batch);
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

fn wire_to(host: &Host) -> String {
    format!("wire{}", host.v4.octets()[2])
}

fn port_of(host: u8) -> String {
    format!("port{host}")
}

/// Feeds `batch` to `ip -batch`.
#[track_caller]
pub(crate) fn ip_batch(mut ip: Command, batch: &str) {
    ip.args(["-batch", "-"]);
    run(ip, Some(batch), LIMIT).ok();
}
