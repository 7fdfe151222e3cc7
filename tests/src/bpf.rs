//! The daemon's pinned maps, looked at from outside of it.

use std::ffi::CString;

use crate::host::Host;

/// Where the daemon pins, inside its host.
const PINS: &str = "/sys/fs/bpf/meshnode";
/// `BPF_OBJ_GET` and `BPF_MAP_GET_NEXT_KEY` of `enum bpf_cmd`.
const OBJ_GET: libc::c_long = 7;
const MAP_GET_NEXT_KEY: libc::c_long = 4;

/// Returns how many entries the pinned hash map has.
///
/// # Panics
/// When there is no such map.
#[track_caller]
pub fn count(host: &Host, map: &str) -> usize {
    let found = host.run("", &["find", PINS, "-name", map]).ok();
    let inside = found.lines().next().unwrap_or_else(|| panic!("`{map}` is not pinned below {PINS}"));
    let path = host.space().path(inside);
    let path = CString::new(path.to_str().expect("UTF-8")).expect("no zero byte");
    let map = open_pin(&path);
    // Longer than any key of the contract.
    let (mut key, mut next, mut count) = ([0_u8; 256], [0_u8; 256], 0);
    let mut first = true;
    while next_key(&map, (!first).then_some(&key), &mut next) {
        (key, first, count) = (next, false, count + 1);
    }
    count
}

/// The part of `union bpf_attr` for `BPF_OBJ_*`.
#[repr(C)]
struct ObjAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

/// The part of `union bpf_attr` for `BPF_MAP_*_ELEM`.
#[repr(C)]
struct ElemAttr {
    fd: u32,
    pad: u32,
    key: u64,
    next_key: u64,
    flags: u64,
}

#[track_caller]
fn open_pin(path: &CString) -> std::os::fd::OwnedFd {
    use std::os::fd::{FromRawFd as _, OwnedFd};
    let attr = ObjAttr { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: `attr` is the structure that the command reads, of the size that is passed; the path outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET, &raw const attr, size_of::<ObjAttr>()) };
    assert!(fd >= 0, "open {path:?}: {}", std::io::Error::last_os_error());
    // SAFETY: the kernel has just returned this descriptor, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).expect("a descriptor")) }
}

fn next_key(map: &std::os::fd::OwnedFd, after: Option<&[u8; 256]>, next: &mut [u8; 256]) -> bool {
    use std::os::fd::AsRawFd as _;
    let attr = ElemAttr {
        fd: map.as_raw_fd().cast_unsigned(),
        pad: 0,
        key: after.map_or(0, |key| key.as_ptr() as u64),
        next_key: next.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: `attr` is the structure that the command reads; both keys are longer than any key of the maps.
    unsafe { libc::syscall(libc::SYS_bpf, MAP_GET_NEXT_KEY, &raw const attr, size_of::<ElemAttr>()) == 0 }
}
