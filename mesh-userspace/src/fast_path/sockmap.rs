//! Sockets of this host that the kernel joins (sk_msg): what is written to one end of a loopback connection is put into
//! the other end's queue, past TCP.

use std::{
    io,
    net::TcpStream,
    os::fd::{AsRawFd, OwnedFd},
};

use super::{
    bpf::{self, Instruction},
    self_test::{self, Pair, Path},
};

/// Connections whose bytes go past TCP. Dropped, they are plain connections again, without what was under way.
pub struct Joined {
    map: OwnedFd,
    _program: OwnedFd,
}

/// As `struct sk_msg_md` has it (linux/bpf.h): the remote port in network byte order, in four bytes.
const REMOTE_PORT: i16 = 60;

impl Joined {
    /// # Errors
    /// The kernel has no sk_msg (`CONFIG_BPF_STREAM_PARSER`), or the caller may not load BPF programs.
    pub fn new() -> io::Result<Self> {
        let map = bpf::sock_hash(1024)?;
        // Each end is found by its port, which is the other one's remote port.
        let program = [
            Instruction::load_u32(2, 1, REMOTE_PORT),
            Instruction::store_u32(10, 2, -4),
            Instruction::copy(3, 10),
            Instruction::add(3, -4),
            Instruction::map(2, &map),
            Instruction::nothing(),
            Instruction::set(4, bpf::INGRESS),
            Instruction::call(bpf::MSG_REDIRECT_HASH),
            Instruction::exit(),
        ];
        let program = bpf::load_sk_msg(&program)?;
        bpf::attach_sk_msg(&map, &program)?;
        Ok(Self { map, _program: program })
    }

    /// Takes in both ends of a connection.
    pub fn join(&self, one: &TcpStream, other: &TcpStream) -> io::Result<()> {
        for end in [one, other] {
            bpf::insert_socket(&self.map, u32::from(end.local_addr()?.port()).to_be(), end.as_raw_fd())?;
        }
        Ok(())
    }
}

impl Path for Joined {
    fn enter(&self, pair: &Pair) -> io::Result<()> {
        self.join(&pair.one, &pair.other)
    }
}

/// Returns how joined connections differ from plain ones on this kernel.
///
/// # Errors
/// The kernel has no such thing, or it may not be tried.
pub(super) fn probe() -> io::Result<Vec<self_test::Flaw>> {
    Ok(self_test::examine(&Joined::new()?))
}
