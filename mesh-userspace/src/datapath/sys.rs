//! The few calls of bpf(2) that aya 0.14 does not offer: replacing a link's program, asking what is attached, and
//! taking an entry out of a hash map in one step.

use std::{
    ffi::CString,
    io, mem,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya::Pod;
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_link_info};

fn bpf(cmd: bpf_cmd, attr: &mut bpf_attr) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is a whole, initialised `bpf_attr`, and its size goes with it.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            cmd as libc::c_long,
            std::ptr::from_mut(attr),
            mem::size_of::<bpf_attr>(),
        )
    };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

fn zeroed() -> bpf_attr {
    // SAFETY: `bpf_attr` is a union of plain integers; all zero is a value of each.
    unsafe { mem::zeroed() }
}

/// Opens the object pinned at `path`.
pub fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    let fd = bpf(bpf_cmd::BPF_OBJ_GET, &mut attr)?;
    // SAFETY: the call returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Makes `link` run `program` from now on, without a moment in which neither the old nor the new one is attached.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed();
    attr.link_update.link_fd = link.as_raw_fd() as u32;
    attr.link_update.__bindgen_anon_1.new_prog_fd = program.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// What the kernel says of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkFacts {
    pub program_id: u32,
    /// Cgroup id, or network namespace inode; 0 when the target is gone.
    pub target: u64,
    pub attach_type: u32,
}

pub fn link_facts(link: BorrowedFd<'_>, is_cgroup: bool) -> io::Result<LinkFacts> {
    // SAFETY: all zero is a value of this plain struct.
    let mut info: bpf_link_info = unsafe { mem::zeroed() };
    let mut attr = zeroed();
    attr.info.bpf_fd = link.as_raw_fd() as u32;
    attr.info.info = &raw mut info as u64;
    attr.info.info_len = mem::size_of::<bpf_link_info>() as u32;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    // SAFETY: the caller says which kind of link it is, and the kernel filled that arm; both are plain integers.
    let (target, attach_type) = unsafe {
        if is_cgroup {
            (info.__bindgen_anon_1.cgroup.cgroup_id, info.__bindgen_anon_1.cgroup.attach_type)
        } else {
            (u64::from(info.__bindgen_anon_1.netns.netns_ino), info.__bindgen_anon_1.netns.attach_type)
        }
    };
    Ok(LinkFacts { program_id: info.prog_id, target, attach_type })
}

/// Returns the ids of the programs in effect on `target` (a cgroup or network namespace) for `attach_type`.
pub fn attached_programs(target: BorrowedFd<'_>, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; 64];
    let mut attr = zeroed();
    attr.query.__bindgen_anon_1.target_fd = target.as_raw_fd() as u32;
    attr.query.attach_type = attach_type;
    attr.query.prog_ids = &raw mut ids as u64;
    attr.query.__bindgen_anon_2.prog_cnt = ids.len() as u32;
    bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr)?;
    // SAFETY: the kernel wrote the count into this arm.
    let count = unsafe { attr.query.__bindgen_anon_2.prog_cnt } as usize;
    Ok(ids[..count.min(ids.len())].to_vec())
}

/// Takes the entry of `key` out of the hash map `map`: look-up and deletion are one step, so that of two callers
/// only one gets it. Linux 5.14 and later.
pub fn take<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = mem::MaybeUninit::<V>::zeroed();
    let mut attr = zeroed();
    attr.__bindgen_anon_2.map_fd = map.as_raw_fd() as u32;
    attr.__bindgen_anon_2.key = std::ptr::from_ref(key) as u64;
    attr.__bindgen_anon_2.__bindgen_anon_1.value = value.as_mut_ptr() as u64;
    match bpf(bpf_cmd::BPF_MAP_LOOKUP_AND_DELETE_ELEM, &mut attr) {
        // SAFETY: the kernel filled all of it; `V: Pod` takes any bytes.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}
