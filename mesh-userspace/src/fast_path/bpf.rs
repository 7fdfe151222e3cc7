//! The few calls of bpf(2), and the few instructions, that joining two sockets takes: too small for an object of its own.

use std::{
    io, mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_map_type, bpf_prog_type};

/// `BPF_F_INGRESS`: into the queue of the socket, as if it had been received.
pub const INGRESS: i32 = 1;
/// The number of `bpf_msg_redirect_hash()` (linux/bpf.h).
pub const MSG_REDIRECT_HASH: i32 = 71;
const LICENCE: &std::ffi::CStr = c"Dual MIT/GPL";

/// `struct bpf_insn`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Instruction {
    code: u8,
    /// The destination in the lower half, the source in the upper one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const _: () = assert!(mem::size_of::<Instruction>() == 8);

impl Instruction {
    const fn of(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Self {
        Self { code, registers: to | from << 4, offset, immediate }
    }

    /// `to = *(u32 *)(from + offset)`
    pub const fn load_u32(to: u8, from: u8, offset: i16) -> Self {
        Self::of(0x61, to, from, offset, 0)
    }

    /// `*(u32 *)(to + offset) = from`
    pub const fn store_u32(to: u8, from: u8, offset: i16) -> Self {
        Self::of(0x63, to, from, offset, 0)
    }

    /// `to = from`
    pub const fn copy(to: u8, from: u8) -> Self {
        Self::of(0xbf, to, from, 0, 0)
    }

    /// `to += value`
    pub const fn add(to: u8, value: i32) -> Self {
        Self::of(0x07, to, 0, 0, value)
    }

    /// `to = value`
    pub const fn set(to: u8, value: i32) -> Self {
        Self::of(0xb7, to, 0, 0, value)
    }

    /// `to = map`; [`nothing`](Self::nothing) follows, as its second half.
    pub fn map(to: u8, map: &OwnedFd) -> Self {
        const PSEUDO_MAP_FD: u8 = 1;
        Self::of(0x18, to, PSEUDO_MAP_FD, 0, map.as_raw_fd())
    }

    pub const fn nothing() -> Self {
        Self::of(0, 0, 0, 0, 0)
    }

    pub const fn call(helper: i32) -> Self {
        Self::of(0x85, 0, 0, 0, helper)
    }

    pub const fn exit() -> Self {
        Self::of(0x95, 0, 0, 0, 0)
    }
}

/// Returns a new `BPF_MAP_TYPE_SOCKHASH` with keys of four bytes.
pub fn sock_hash(entries: u32) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    // SAFETY: all zero is a value of this arm, which holds plain integers.
    let create = unsafe { &mut attr.__bindgen_anon_1 };
    create.map_type = bpf_map_type::BPF_MAP_TYPE_SOCKHASH as u32;
    create.key_size = 4;
    create.value_size = 4;
    create.max_entries = entries;
    descriptor(bpf_cmd::BPF_MAP_CREATE, &mut attr)
}

/// Puts a socket into the map, which changes its callbacks.
pub fn insert_socket(map: &OwnedFd, key: u32, socket: RawFd) -> io::Result<()> {
    let mut attr = zeroed();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attr.__bindgen_anon_2.key = &raw const key as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = &raw const socket as u64;
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

pub fn load_sk_msg(program: &[Instruction]) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    // SAFETY: as above.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = bpf_prog_type::BPF_PROG_TYPE_SK_MSG as u32;
    load.insn_cnt = program.len() as u32;
    load.insns = program.as_ptr() as u64;
    load.license = LICENCE.as_ptr() as u64;
    descriptor(bpf_cmd::BPF_PROG_LOAD, &mut attr)
}

/// What is written to sockets of `map` goes through `program`.
pub fn attach_sk_msg(map: &OwnedFd, program: &OwnedFd) -> io::Result<()> {
    let mut attr = zeroed();
    attr.__bindgen_anon_5.__bindgen_anon_1.target_fd = map.as_raw_fd() as u32;
    attr.__bindgen_anon_5.attach_bpf_fd = program.as_raw_fd() as u32;
    attr.__bindgen_anon_5.attach_type = bpf_attach_type::BPF_SK_MSG_VERDICT as u32;
    bpf(bpf_cmd::BPF_PROG_ATTACH, &mut attr).map(drop)
}

fn bpf(cmd: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i32> {
    let (cmd, size) = (cmd as libc::c_long, mem::size_of::<bpf_attr>());
    // SAFETY: `attr` is a whole, initialised `bpf_attr`, its size goes with it, and what it points to outlives the call.
    let outcome = unsafe { libc::syscall(libc::SYS_bpf, cmd, std::ptr::from_mut(attr), size) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(outcome as i32) }
}

fn descriptor(cmd: bpf_cmd, attr: &mut bpf_attr) -> io::Result<OwnedFd> {
    let fd = bpf(cmd, attr)?;
    // SAFETY: the call returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn zeroed() -> bpf_attr {
    // SAFETY: `bpf_attr` is a union of plain integers; all zero is a value of each.
    unsafe { mem::zeroed() }
}
