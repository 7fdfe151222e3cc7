//! The guard in network namespaces other than the host's: one program each, which knows its namespace's cookie, and a
//! link pinned at `vSCHEMA/guards/INODE`.
//!
//! A pinned link outlives the daemon, but does not keep its namespace: when that ends, the kernel detaches the link
//! (`netns_bpf_pernet_pre_exit`), and what is pinned is an empty husk, removed by [`Guards::keep`].

use std::{
    fs,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use super::{
    load::{self, AttachState, GUARD, Limits, LoadError},
    sys,
};

/// What it takes to guard a namespace.
#[derive(Clone, Debug)]
pub struct Guards {
    /// `vSCHEMA` below `bpf_dir`.
    dir: PathBuf,
    limits: Limits,
}

impl Guards {
    pub(super) fn new(dir: PathBuf, limits: Limits) -> Self {
        Self { dir, limits }
    }

    /// Guards the network namespace that the calling thread is in, with the inode number `inode` and the cookie `netns`;
    /// a guard that an earlier daemon left there is replaced without a gap. Returns the program's id.
    pub fn attach(&self, inode: u64, netns: u64) -> Result<u32, LoadError> {
        let failed = |source| LoadError::Program { program: GUARD.program, source: Box::new(source) };
        load::make_dir(&self.pins())?;
        let mut ebpf = load::load_object(&self.dir.join("maps"), self.limits, netns)?;
        load::load_program(&mut ebpf, &GUARD)?;
        let program = ebpf.program_mut(GUARD.program).ok_or(LoadError::Missing(GUARD.program))?;
        let target = load::open(Path::new("/proc/thread-self/ns/net"))?;
        load::attach(program, &GUARD, &target, &self.pin(inode))?;
        Ok(program.info().map_err(failed)?.id())
    }

    /// Asks the kernel whether the link that guards the namespace `inode` is attached to it, with the program `ours`.
    pub fn verify(&self, inode: u64, ours: u32) -> (AttachState, String) {
        let facts = sys::open_pinned(&self.pin(inode)).and_then(|fd| sys::link_facts(fd.as_fd(), false));
        match facts {
            Err(error) => (AttachState::Missing, format!("link {}: {error}", self.pin(inode).display())),
            Ok(facts) if facts.target != inode => {
                (AttachState::Missing, "the link's target is another or gone".into())
            }
            Ok(facts) if facts.program_id != ours => {
                (AttachState::Foreign, format!("program {} is attached, ours is {ours}", facts.program_id))
            }
            Ok(_) => (AttachState::Attached, format!("program {ours}")),
        }
    }

    /// Removes the guards of all other namespaces than those that `guarded` says.
    pub fn keep(&self, guarded: impl Fn(u64) -> bool) {
        for entry in fs::read_dir(self.pins()).into_iter().flatten().flatten() {
            let inode = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if !inode.is_some_and(&guarded)
                && let Err(error) = fs::remove_file(entry.path())
            {
                tracing::warn!(path = %entry.path().display(), %error, "cannot remove the guard of a namespace");
            }
        }
    }

    fn pins(&self) -> PathBuf {
        self.dir.join("guards")
    }

    fn pin(&self, inode: u64) -> PathBuf {
        self.pins().join(inode.to_string())
    }
}
