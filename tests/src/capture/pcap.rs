//! Reading tcpdump's files: packets, TCP segments, byte streams. Ethernet, IPv4 and IPv6 only, which is what veth pairs
//! of the test networks carry.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

const MAGIC: u32 = 0xa1b2_c3d4;
const ETHERNET: u32 = 1;
const TCP: u8 = 6;

/// Returns the packets of a capture file in the byte order of this machine.
///
/// # Errors
/// Words, for another format or a packet that was cut. A packet that tcpdump had begun to write is left out.
pub fn packets(file: &[u8]) -> Result<Vec<&[u8]>, String> {
    let word = |at: usize| file.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
    if word(0) != Some(MAGIC) || word(20) != Some(ETHERNET) {
        return Err("it is no pcap file of Ethernet frames".to_owned());
    }
    let (mut found, mut at) = (Vec::new(), 24);
    while let (Some(captured), Some(length)) = (word(at + 8), word(at + 12)) {
        if captured != length {
            return Err(format!("a packet of {length} bytes was cut to {captured}"));
        }
        let Some(packet) = file.get(at + 16..at + 16 + captured as usize) else { break };
        found.push(packet);
        at += 16 + captured as usize;
    }
    Ok(found)
}

/// The payload of one packet.
#[derive(Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub seq: u32,
    pub syn: bool,
    pub payload: &'a [u8],
}

/// Returns the TCP segment in an Ethernet frame; `None` for anything else.
pub fn tcp_segment(frame: &[u8]) -> Option<Segment<'_>> {
    let ip = frame.get(14..)?;
    match frame.get(12..14)? {
        [0x08, 0x00] => {
            let header = usize::from(ip.first()? & 0xf) * 4;
            let total = usize::from(u16::from_be_bytes(ip.get(2..4)?.try_into().ok()?));
            // A super-packet of segmentation offload that is too long for the field has 0 there.
            let end = if total == 0 { ip.len() } else { total };
            let address = |at: usize| {
                Some(IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?)))
            };
            (*ip.get(9)? == TCP).then_some(())?;
            segment(address(12)?, address(16)?, ip.get(header..end.min(ip.len()))?)
        }
        [0x86, 0xdd] => {
            let length = usize::from(u16::from_be_bytes(ip.get(4..6)?.try_into().ok()?));
            let end = if length == 0 { ip.len() } else { 40 + length };
            let address = |at: usize| {
                Some(IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?)))
            };
            (*ip.get(6)? == TCP).then_some(())?;
            segment(address(8)?, address(24)?, ip.get(40..end.min(ip.len()))?)
        }
        _ => None,
    }
}

fn segment(from: IpAddr, to: IpAddr, tcp: &[u8]) -> Option<Segment<'_>> {
    let port = |at: usize| Some(u16::from_be_bytes(tcp.get(at..at + 2)?.try_into().ok()?));
    let offset = usize::from(tcp.get(12)? >> 4) * 4;
    Some(Segment {
        from: SocketAddr::new(from, port(0)?),
        to: SocketAddr::new(to, port(2)?),
        seq: u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?),
        syn: tcp.get(13)? & 2 != 0,
        payload: tcp.get(offset..)?,
    })
}

/// Returns what each end sent to each other, in order and without retransmissions. A pair of ends that is used for a
/// second connection continues the first one's bytes.
pub fn streams(segments: &[Segment<'_>]) -> BTreeMap<(SocketAddr, SocketAddr), Vec<u8>> {
    let mut streams: BTreeMap<_, Stream<'_>> = BTreeMap::new();
    for segment in segments {
        streams.entry((segment.from, segment.to)).or_insert_with(|| Stream::at(segment)).add(segment);
    }
    streams.into_iter().map(|(ends, stream)| (ends, stream.bytes)).collect()
}

/// One direction of a connection.
struct Stream<'a> {
    /// The sequence number of the byte that comes after `bytes`.
    next: u32,
    bytes: Vec<u8>,
    /// Segments that came before their turn, by sequence number.
    early: BTreeMap<u32, &'a [u8]>,
}

impl<'a> Stream<'a> {
    fn at(first: &Segment<'_>) -> Self {
        Self { next: first.seq, bytes: Vec::new(), early: BTreeMap::new() }
    }

    fn add(&mut self, segment: &Segment<'a>) {
        if segment.syn {
            self.next = segment.seq.wrapping_add(1);
            self.early.clear();
        }
        let first = segment.seq.wrapping_add(segment.syn.into());
        // What is before `next` was there already; distances are modulo 2^32.
        if !segment.payload.is_empty() && first.wrapping_sub(self.next) < u32::MAX / 2 {
            self.early.insert(first, segment.payload);
        }
        while let Some(payload) = self.early.remove(&self.next) {
            self.bytes.extend_from_slice(payload);
            self.next =
                self.next.wrapping_add(u32::try_from(payload.len()).expect("a packet is below 4 GiB"));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn part(seq: u32, syn: bool, payload: &[u8]) -> Segment<'_> {
        let [from, to] = ["10.0.0.1:1", "10.0.0.2:2"].map(|a| a.parse().unwrap());
        Segment { from, to, seq, syn, payload }
    }

    #[test]
    fn stream_is_put_together_in_order_and_once() {
        let parts = [
            part(u32::MAX - 1, true, b""),
            part(u32::MAX, false, b"ab"),
            part(3, false, b"ef"),
            part(1, false, b"cd"),
            part(1, false, b"cd"),
        ];
        assert_eq!(streams(&parts).into_values().collect::<Vec<_>>(), [b"abcdef"]);
    }

    proptest! {
        #[test]
        fn reading_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), v6: bool) {
            let _ = packets(&bytes);
            let mut frame = vec![0; 12];
            frame.extend(if v6 { [0x86, 0xdd] } else { [8, 0] });
            frame.extend(&bytes);
            let _ = tcp_segment(&frame);
            let _ = crate::capture::tls::check_tls13(&bytes, &bytes);
        }
    }
}
