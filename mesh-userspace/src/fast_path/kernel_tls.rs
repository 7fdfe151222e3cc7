//! TLS records made by the kernel (kTLS): whether it is there, and whether it does what the byte path would need of it.

use std::{
    io::{self, IoSliceMut, Read, Write},
    mem,
    net::TcpStream,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use nix::{
    fcntl::{OFlag, SpliceFFlags, splice},
    sys::socket::{
        ControlMessageOwned, MsgFlags, TlsGetRecordType, recvmsg, setsockopt,
        sockopt::{TcpTlsRx, TcpTlsTx, TcpUlp, TlsCryptoInfo},
    },
    unistd::{pipe2, read, write},
};

use super::self_test::{self, Flaw, Pair, Path};

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const CLOSE_NOTIFY: [u8; 2] = [1, 0];
/// The message KeyUpdate, which asks for none in return.
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
/// What goes through a pipe at once.
const PIECE: usize = 16 * 1024;

/// Whether the kernel has it now. To try it would load the module.
pub(super) fn is_there() -> bool {
    let all = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_ulp").unwrap_or_default();
    all.split_whitespace().any(|one| one == "tls")
}

/// Returns what is wrong with it; nothing if nothing is.
pub(super) fn probe() -> Vec<Flaw> {
    let checks: [fn() -> Result<(), Flaw>; 6] = [
        || self_test::transfers(&Sealed),
        ends,
        || self_test::resets(&Sealed),
        renews_keys,
        splices_out,
        splices_in,
    ];
    checks.iter().filter_map(|check| check().err()).collect()
}

/// Both ends have keys of the kernel's.
struct Sealed;

impl Path for Sealed {
    fn enter(&self, pair: &Pair) -> io::Result<()> {
        for end in [&pair.one, &pair.other] {
            setsockopt(end, TcpUlp::default(), b"tls")?;
        }
        setsockopt(&pair.one, TcpTlsTx, &keys(1))?;
        setsockopt(&pair.other, TcpTlsRx, &keys(1))?;
        setsockopt(&pair.other, TcpTlsTx, &keys(2))?;
        setsockopt(&pair.one, TcpTlsRx, &keys(2))?;
        Ok(())
    }
}

/// Keys for TLS 1.3 with AES-128-GCM that are nobody's to keep.
fn keys(of: u8) -> TlsCryptoInfo {
    TlsCryptoInfo::Aes128Gcm(libc::tls12_crypto_info_aes_gcm_128 {
        info: libc::tls_crypto_info {
            version: libc::TLS_1_3_VERSION,
            cipher_type: libc::TLS_CIPHER_AES_GCM_128,
        },
        iv: [of; 8],
        key: [of; 16],
        salt: [of; 4],
        rec_seq: [0; 8],
    })
}

/// The end of what one side sends is an alert, in its place, and the other direction goes on.
fn ends() -> Result<(), Flaw> {
    let Pair { mut one, mut other } = self_test::on(&Sealed)?;
    one.write_all(b"the last").map_err(self_test::failed("a write"))?;
    send_record(&one, ALERT, &CLOSE_NOTIFY).map_err(self_test::failed("an alert"))?;
    let mut last = [0; 8];
    other.read_exact(&mut last).map_err(|_| Flaw::LostBeforeEnd)?;
    if !is_next(&other, TlsGetRecordType::Alert, &CLOSE_NOTIFY) {
        return Err(Flaw::HalfClose);
    }
    other.write_all(b"and back").map_err(self_test::failed("a write after the other side's end"))?;
    one.read_exact(&mut last).map_err(|_| Flaw::LostBeforeEnd)?;
    if &last == b"and back" { Ok(()) } else { Err(Flaw::Bytes) }
}

/// A peer may renew its keys at any time. The kernel lets one since Linux 6.14.
fn renews_keys() -> Result<(), Flaw> {
    let Pair { mut one, mut other } = self_test::on(&Sealed)?;
    for generation in 3..6 {
        let renewed = send_record(&one, HANDSHAKE, &KEY_UPDATE)
            .and_then(|()| Ok(setsockopt(&one, TcpTlsTx, &keys(generation))?))
            .and_then(|()| one.write_all(b"fresh"));
        let is_seen = renewed.is_ok() && is_next(&other, TlsGetRecordType::Handshake, &KEY_UPDATE);
        let mut found = [0; 5];
        let read = setsockopt(&other, TcpTlsRx, &keys(generation))
            .map_err(io::Error::from)
            .and_then(|()| if is_seen { other.read_exact(&mut found) } else { Ok(()) });
        if read.is_err() || &found != b"fresh" {
            return Err(Flaw::KeyUpdate);
        }
    }
    Ok(())
}

/// From a connection into a pipe, without a copy.
fn splices_out() -> Result<(), Flaw> {
    let Pair { mut one, other } = self_test::on(&Sealed)?;
    let (from, into) = pipe()?;
    let mut found = vec![0; PIECE];
    for piece in pattern().chunks(PIECE) {
        let found = &mut found[..piece.len()];
        let passed = one
            .write_all(piece)
            .and_then(|()| pass(&other, &into, piece.len()))
            .and_then(|()| Ok(read(&from, found)?));
        if passed.ok() != Some(piece.len()) || found != piece {
            return Err(Flaw::SpliceOut);
        }
    }
    Ok(())
}

/// From a pipe into a connection, without a copy.
fn splices_in() -> Result<(), Flaw> {
    let Pair { one, mut other } = self_test::on(&Sealed)?;
    let (from, into) = pipe()?;
    let mut found = vec![0; PIECE];
    for piece in pattern().chunks(PIECE) {
        let found = &mut found[..piece.len()];
        let passed = write(&into, piece)
            .map_err(io::Error::from)
            .and_then(|_| pass(&from, &one, piece.len()))
            .and_then(|()| other.read_exact(found));
        if passed.is_err() || found != piece {
            return Err(Flaw::SpliceIn);
        }
    }
    Ok(())
}

/// Bytes whose place can be told.
fn pattern() -> Vec<u8> {
    (0..500_000_u32).map(|nth| (nth ^ nth >> 8) as u8).collect()
}

fn pipe() -> Result<(OwnedFd, OwnedFd), Flaw> {
    pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(|error| self_test::failed("a pipe")(error.into()))
}

/// Moves `length` bytes with splice(2).
fn pass(from: &impl AsFd, to: &impl AsFd, length: usize) -> io::Result<()> {
    let mut left = length;
    while left > 0 {
        match splice(from.as_fd(), None, to.as_fd(), None, left, SpliceFFlags::empty())? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            moved => left = left.saturating_sub(moved),
        }
    }
    Ok(())
}

/// Sends a record of another type than data.
fn send_record(end: &TcpStream, kind: u8, data: &[u8]) -> io::Result<()> {
    #[repr(C, align(8))]
    struct Control([u8; 64]);
    let mut control = Control([0; 64]);
    let mut part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // SAFETY: all zero is a value of this plain struct.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    // SAFETY: it computes a length.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(1) } as _;
    // SAFETY: the message has room for a control message of one byte, is aligned as one, and says so.
    unsafe {
        let about = libc::CMSG_FIRSTHDR(&raw const message);
        (*about).cmsg_level = libc::SOL_TLS;
        (*about).cmsg_type = libc::TLS_SET_RECORD_TYPE;
        (*about).cmsg_len = libc::CMSG_LEN(1) as _;
        *libc::CMSG_DATA(about) = kind;
    }
    // SAFETY: all that the message points to is alive, and the kernel only reads it.
    let sent = unsafe { libc::sendmsg(end.as_raw_fd(), &raw const message, 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether the next record is of this type and says this.
fn is_next(end: &TcpStream, kind: TlsGetRecordType, says: &[u8]) -> bool {
    let (mut data, mut control) = ([0; 16], nix::cmsg_space!(u8));
    let mut parts = [IoSliceMut::new(&mut data)];
    let received = recvmsg::<()>(end.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty());
    let (length, found) = match &received {
        Ok(message) => (message.bytes, message.cmsgs().ok().and_then(|mut all| all.next())),
        Err(_) => return false,
    };
    found == Some(ControlMessageOwned::TlsGetRecordType(kind)) && data.get(..length) == Some(says)
}
