//! Packets seen on the wire, and what must, or must not, be in them.

pub mod pcap;
pub mod tls;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::PathBuf,
};

use nix::sys::signal::Signal;

use crate::{
    process::Process,
    space::{Enter, Space},
    wait,
};

use self::pcap::Segment;

/// A running `tcpdump`.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Process,
    file: PathBuf,
    network: Enter,
    peer: Ipv4Addr,
}

/// The last packet of a capture, sent by the capture itself: what came before it has been seen.
const END: &[u8] = b"this is the last packet of the capture";

impl Capture {
    /// Starts to capture whole packets on `interface`, behind which is `peer`; returns when packets are being seen.
    #[track_caller]
    pub(crate) fn start(space: &Space, interface: &str, peer: Ipv4Addr) -> Self {
        let file = space.scratch().join(format!("{interface}-{}.pcap", unique()));
        let mut command = space.command("", "tcpdump");
        // -U: each packet is written at once. -Z root: it may write to the scratch directory.
        command.args([
            "-i",
            interface,
            "--immediate-mode",
            "-U",
            "-n",
            "-s",
            "0",
            "-B",
            "65536",
            "-Z",
            "root",
        ]);
        command.arg("-w").arg(&file);
        let mut tcpdump = Process::spawn(command, &file.with_extension("log"));
        tcpdump.wait_for_log("listening on");
        Self { tcpdump, file, network: space.enter().clone(), peer }
    }

    /// Stops, and returns what was seen.
    ///
    /// # Panics
    /// When the kernel dropped packets, so that a search would prove nothing.
    #[track_caller]
    pub fn stop(mut self) -> Trace {
        let send = || UdpSocket::bind("0.0.0.0:0")?.send_to(END, (self.peer, 9));
        wait::until("the capture's last packet", || {
            self.network.in_network(send).map_err(|e| format!("send: {e}"))?;
            std::thread::sleep(std::time::Duration::from_millis(5));
            let seen = std::fs::read(&self.file).map_err(|e| e.to_string())?;
            // Only the tail is searched: a capture may be long.
            let tail = &seen[seen.len().saturating_sub(64 * 1024)..];
            if occurrences(tail, END) > 0 { Ok(()) } else { Err(self.tcpdump.log()) }
        });
        self.tcpdump.signal(Signal::SIGINT);
        self.tcpdump.wait();
        let log = self.tcpdump.log();
        assert!(log.contains("0 packets dropped by kernel"), "the capture is incomplete:\n{log}");
        let bytes = std::fs::read(&self.file).expect("tcpdump wrote its file");
        Trace::of(&bytes)
    }
}

fn unique() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The packets of a capture.
#[derive(Debug)]
pub struct Trace {
    packets: Vec<Vec<u8>>,
    streams: BTreeMap<(SocketAddr, SocketAddr), Vec<u8>>,
    /// Of the streams, those that were seen from their beginning.
    begun: BTreeSet<(SocketAddr, SocketAddr)>,
}

impl Trace {
    /// # Panics
    /// When `file` is not a pcap file of Ethernet frames.
    #[track_caller]
    pub fn of(file: &[u8]) -> Self {
        let packets = pcap::packets(file).unwrap_or_else(|e| panic!("the capture can't be read: {e}"));
        let segments: Vec<Segment<'_>> = packets.iter().filter_map(|p| pcap::tcp_segment(p)).collect();
        let streams = pcap::streams(&segments);
        let begun = segments.iter().filter(|s| s.syn).map(|s| (s.from, s.to)).collect();
        Self { packets: packets.iter().map(|p| p.to_vec()).collect(), streams, begun }
    }

    /// Returns how many packets were seen.
    pub fn packet_count(&self) -> usize {
        self.packets.len()
    }

    /// Returns how many bytes TCP carried to or from `port`.
    pub fn bytes_at(&self, port: u16) -> usize {
        let here = |(from, to): &(SocketAddr, SocketAddr)| from.port() == port || to.port() == port;
        self.streams.iter().filter(|(ends, _)| here(ends)).map(|(_, bytes)| bytes.len()).sum()
    }

    /// Returns the byte streams to `port`, each with the stream that came back.
    pub fn conversations(&self, port: u16) -> Vec<(&[u8], &[u8])> {
        let to_port = self.streams.iter().filter(|((_, to), _)| to.port() == port);
        to_port
            .map(|(&(from, to), bytes)| {
                (bytes.as_slice(), self.streams.get(&(to, from)).map_or(&[][..], Vec::as_slice))
            })
            .collect()
    }

    /// Returns how often `needle` is in a packet, or in a stream across packets.
    pub fn count(&self, needle: &str) -> usize {
        let haystacks = self.packets.iter().chain(self.streams.values());
        haystacks.map(|bytes| occurrences(bytes, needle.as_bytes())).sum()
    }

    /// Asserts that the wire carried something to or from `port`, and no byte of it was plaintext.
    #[track_caller]
    pub fn assert_secret(&self, port: u16, needles: &[&str]) {
        assert!(self.bytes_at(port) > 0, "nothing went to port {port}: the search would prove nothing");
        for needle in needles {
            assert_eq!(self.count(needle), 0, "`{needle}` was on the wire in clear");
        }
    }

    /// Asserts that every conversation with `port` is TLS 1.3 from its first to its last byte. One that began before the
    /// capture (between meshnodes a connection carries one flow after another) has nothing but encrypted records.
    #[track_caller]
    pub fn assert_tls13(&self, port: u16) {
        let to_port = self.streams.iter().filter(|((_, to), _)| to.port() == port);
        let mut seen = 0;
        for (&(from, to), sent) in to_port.filter(|(_, sent)| !sent.is_empty()) {
            let returned = self.streams.get(&(to, from)).map_or(&[][..], Vec::as_slice);
            let checked = if self.begun.contains(&(from, to)) {
                tls::check_tls13(sent, returned)
            } else {
                tls::check_sealed(sent).and_then(|()| tls::check_sealed(returned))
            };
            checked.unwrap_or_else(|e| panic!("a conversation with port {port}: {e}"));
            seen += 1;
        }
        assert!(seen > 0, "nobody talked to port {port}");
    }
}

fn occurrences(haystack: &[u8], needle: &[u8]) -> usize {
    assert!(needle.len() >= 6, "a shorter needle would be found in random bytes");
    haystack.windows(needle.len()).filter(|window| *window == needle).count()
}
