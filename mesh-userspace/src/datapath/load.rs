//! Loading the programs, pinning them, and attaching them so that a restarted daemon takes over without a gap.
//!
//! Layout below `bpf_dir`: `vSCHEMA/maps/NAME`, `vSCHEMA/links/PROGRAM`, and those of `guards`. Maps found there are adopted with what is in
//! them; a link found there gets the new program (`BPF_LINK_UPDATE` is atomic); what is missing is made. Pins of
//! another schema are removed once the new programs are attached.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::MapInfo,
    programs::{
        CgroupAttachMode, CgroupSock, CgroupSockAddr, Program, ProgramError, SkLookup, SockOps,
        links::{FdLink, LinkError},
    },
};
use aya_obj::generated::bpf_attach_type;
use mesh_common::{SCHEMA, map};
use nix::{
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
};
use serde::{Deserialize, Serialize};

use super::{cgroup::Governed, guards::Guards, sys};

/// The BPF object, built by `cargo xtask build-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mesh-ebpf.o"));

/// The most entries that each map takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Captured connections that the proxy has not accepted yet.
    pub flows: u32,
    /// Direct flows of one host.
    pub direct_flows: u32,
    /// Addresses of remote instances.
    pub destinations: u32,
    /// Allowed (local workload, service) pairs.
    pub policies: u32,
    /// Cgroups that belong to workloads.
    pub workloads: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            flows: 65_536,
            direct_flows: 65_536,
            destinations: 262_144,
            policies: 262_144,
            workloads: 16_384,
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    #[error("another meshnode runs on this host (it holds {path}): stop it first, or give this one its own bpf_dir, run_dir and cgroup_root", path = .0.display())]
    Running(PathBuf),
    #[error("cannot {op} {path}: {source}", path = path.display())]
    Io { op: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} is no BPF filesystem, and mounting one there failed: {source}; mount it: `mount -t bpf bpf {path}`", path = path.display())]
    BpfFs { path: PathBuf, source: io::Error },
    #[error("the kernel did not take the BPF programs: {0}; `meshnode doctor` says what is missing")]
    Load(#[from] EbpfError),
    #[error(
        "the kernel did not take BPF program {program}: {source}; `meshnode doctor` says what is missing"
    )]
    Program { program: &'static str, source: Box<ProgramError> },
    #[error("cannot pin the link of {program}: {source}")]
    Pin { program: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the BPF object has no {0}: it was built from other sources, run `cargo xtask build-ebpf`")]
    Missing(&'static str),
}

/// A program and where it is attached.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    pub program: &'static str,
    /// The hook's name as bpftool shows it.
    pub name: &'static str,
    attach_type: bpf_attach_type,
}

impl Hook {
    pub fn is_cgroup(&self) -> bool {
        self.attach_type != bpf_attach_type::BPF_SK_LOOKUP
    }
}

pub const HOOKS: [Hook; 13] = [
    Hook {
        program: "mesh_connect4",
        name: "cgroup/connect4",
        attach_type: bpf_attach_type::BPF_CGROUP_INET4_CONNECT,
    },
    Hook {
        program: "mesh_connect6",
        name: "cgroup/connect6",
        attach_type: bpf_attach_type::BPF_CGROUP_INET6_CONNECT,
    },
    Hook {
        program: "mesh_sendmsg4",
        name: "cgroup/sendmsg4",
        attach_type: bpf_attach_type::BPF_CGROUP_UDP4_SENDMSG,
    },
    Hook {
        program: "mesh_sendmsg6",
        name: "cgroup/sendmsg6",
        attach_type: bpf_attach_type::BPF_CGROUP_UDP6_SENDMSG,
    },
    Hook {
        program: "mesh_recvmsg4",
        name: "cgroup/recvmsg4",
        attach_type: bpf_attach_type::BPF_CGROUP_UDP4_RECVMSG,
    },
    Hook {
        program: "mesh_recvmsg6",
        name: "cgroup/recvmsg6",
        attach_type: bpf_attach_type::BPF_CGROUP_UDP6_RECVMSG,
    },
    Hook {
        program: "mesh_peername4",
        name: "cgroup/getpeername4",
        attach_type: bpf_attach_type::BPF_CGROUP_INET4_GETPEERNAME,
    },
    Hook {
        program: "mesh_peername6",
        name: "cgroup/getpeername6",
        attach_type: bpf_attach_type::BPF_CGROUP_INET6_GETPEERNAME,
    },
    Hook { program: "mesh_bind4", name: "cgroup/bind4", attach_type: bpf_attach_type::BPF_CGROUP_INET4_BIND },
    Hook { program: "mesh_bind6", name: "cgroup/bind6", attach_type: bpf_attach_type::BPF_CGROUP_INET6_BIND },
    Hook {
        program: "mesh_sock_create",
        name: "cgroup/sock_create",
        attach_type: bpf_attach_type::BPF_CGROUP_INET_SOCK_CREATE,
    },
    Hook { program: "mesh_sock_ops", name: "sock_ops", attach_type: bpf_attach_type::BPF_CGROUP_SOCK_OPS },
    GUARD,
];

pub(super) const GUARD: Hook =
    Hook { program: "mesh_guard", name: "sk_lookup", attach_type: bpf_attach_type::BPF_SK_LOOKUP };

const MAPS: [&str; 18] = [
    map::EGRESS,
    map::WORKLOADS,
    map::DESTINATIONS,
    map::VIRTUALS,
    map::PROTECTED,
    map::POLICY,
    map::HOST_ADDRS,
    map::SETTINGS,
    map::NAMES,
    map::SOCKETS,
    map::FLOWS,
    map::DIRECT,
    map::LISTENERS,
    map::NAMESPACES,
    map::DNS_ROUTES,
    map::EVENTS,
    map::OPENED,
    map::COUNTERS,
];

/// Loaded and attached programs, and the lock that keeps a second daemon away.
pub struct Loaded {
    pub ebpf: Ebpf,
    /// Whether the maps were there already.
    pub adopted: bool,
    dir: PathBuf,
    limits: Limits,
    cgroup: File,
    netns: File,
    others_retired: bool,
    _lock: Flock<File>,
}

/// What the kernel says of one hook right now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttachState {
    /// Our program is in effect on the governed cgroup, or the host's network namespace.
    Attached,
    /// The link is gone, or attached to a target that is gone.
    Missing,
    /// The link runs a program that this daemon did not load.
    Foreign,
}

impl Loaded {
    /// Loads, or adopts what is pinned below `bpf_dir`. Call it in the host's network namespace.
    pub fn open(
        bpf_dir: &Path,
        governed: &Governed,
        limits: Limits,
        netns_cookie: u64,
    ) -> Result<Self, LoadError> {
        ensure_bpffs(bpf_dir)?;
        make_dir(bpf_dir)?;
        let lock = lock(bpf_dir)?;
        let dir = bpf_dir.join(format!("v{SCHEMA}"));
        let (maps, links) = (dir.join("maps"), dir.join("links"));
        make_dir(&maps)?;
        make_dir(&links)?;
        let adopted = maps.join(map::SETTINGS).exists();
        let mut ebpf = load_object(&maps, limits, netns_cookie)?;
        let cgroup = open(governed.path())?;
        let netns = open(Path::new("/proc/self/ns/net"))?;
        for hook in &HOOKS {
            load_program(&mut ebpf, hook)?;
        }
        for hook in &HOOKS {
            let program = ebpf.program_mut(hook.program).ok_or(LoadError::Missing(hook.program))?;
            let target = if hook.is_cgroup() { &cgroup } else { &netns };
            attach(program, hook, target, &links.join(hook.program))?;
        }
        Ok(Self { ebpf, adopted, dir, limits, cgroup, netns, others_retired: false, _lock: lock })
    }

    /// Removes the pins of other schemas, and with them their programs. Call it once this one's maps are filled.
    pub fn retire_other_schemas(&mut self) {
        if !std::mem::replace(&mut self.others_retired, true)
            && let Some(bpf_dir) = self.dir.parent()
        {
            remove_other_schemas(bpf_dir, &self.dir);
        }
    }

    /// Returns the pinned maps whose size is not what `limits` say: a map keeps its size while it is pinned.
    pub fn outsized(&self, limits: Limits) -> Vec<(&'static str, u32)> {
        [
            (map::FLOWS, limits.flows),
            (map::DIRECT, limits.direct_flows),
            (map::DESTINATIONS, limits.destinations),
            (map::POLICY, limits.policies),
            (map::WORKLOADS, limits.workloads),
        ]
        .into_iter()
        .filter_map(|(name, wanted)| {
            let info = MapInfo::from_pin(self.map_pin(name)).ok()?;
            (info.max_entries() != wanted).then_some((name, info.max_entries()))
        })
        .collect()
    }

    /// The way to guard other network namespaces.
    pub fn guards(&self) -> Guards {
        Guards::new(self.dir.clone(), self.limits)
    }

    /// Where the map `name` is pinned.
    pub fn map_pin(&self, name: &str) -> PathBuf {
        self.dir.join("maps").join(name)
    }

    /// Asks the kernel what is in effect at `hook`; nothing is remembered.
    pub fn verify(&self, hook: &Hook) -> (AttachState, String) {
        let ours = match self.ebpf.program(hook.program).map(Program::info) {
            Some(Ok(info)) => info.id(),
            _ => return (AttachState::Missing, "the program is not loaded".into()),
        };
        let pin = self.dir.join("links").join(hook.program);
        let facts = match sys::open_pinned(&pin).and_then(|fd| sys::link_facts(fd.as_fd(), hook.is_cgroup()))
        {
            Ok(facts) => facts,
            Err(e) => return (AttachState::Missing, format!("link {}: {e}", pin.display())),
        };
        if facts.target == 0 {
            return (AttachState::Missing, "the link's target is gone".into());
        }
        let target: BorrowedFd<'_> = if hook.is_cgroup() { self.cgroup.as_fd() } else { self.netns.as_fd() };
        match sys::attached_programs(target, hook.attach_type as u32) {
            Ok(ids) if !ids.contains(&facts.program_id) => {
                (AttachState::Missing, format!("program {} is not in effect there", facts.program_id))
            }
            Ok(_) if facts.program_id != ours => {
                (AttachState::Foreign, format!("program {} is attached, ours is {ours}", facts.program_id))
            }
            Ok(_) => (AttachState::Attached, format!("program {ours}")),
            Err(e) => (AttachState::Missing, format!("cannot ask the kernel: {e}")),
        }
    }
}

/// Removes every pin below `bpf_dir`: the host is as if meshnode had never run. Refused while a daemon runs.
pub fn detach(bpf_dir: &Path) -> Result<bool, LoadError> {
    if !bpf_dir.exists() {
        return Ok(false);
    }
    let _lock = lock(bpf_dir)?;
    fs::remove_dir_all(bpf_dir).map_err(|source| LoadError::Io {
        op: "remove",
        path: bpf_dir.into(),
        source,
    })?;
    Ok(true)
}

/// `netns` is the cookie of the network namespace that the guard is for.
pub(super) fn load_object(maps: &Path, limits: Limits, netns: u64) -> Result<Ebpf, LoadError> {
    let mut loader = EbpfLoader::new();
    loader
        .map_max_entries(map::FLOWS, limits.flows)
        .map_max_entries(map::DIRECT, limits.direct_flows)
        .map_max_entries(map::DESTINATIONS, limits.destinations)
        .map_max_entries(map::POLICY, limits.policies)
        .map_max_entries(map::WORKLOADS, limits.workloads);
    for name in MAPS {
        loader.map_pin_path(name, maps.join(name));
    }
    loader.override_global("GUARDED_NETNS", &netns, true);
    Ok(loader.load(OBJECT)?)
}

pub(super) fn load_program(ebpf: &mut Ebpf, hook: &Hook) -> Result<(), LoadError> {
    let program = ebpf.program_mut(hook.program).ok_or(LoadError::Missing(hook.program))?;
    let loaded = match program {
        Program::CgroupSockAddr(p) => p.load(),
        Program::CgroupSock(p) => p.load(),
        Program::SockOps(p) => p.load(),
        Program::SkLookup(p) => p.load(),
        _ => return Err(LoadError::Missing(hook.program)),
    };
    loaded.map_err(|source| LoadError::Program { program: hook.program, source: Box::new(source) })
}

/// Puts the program behind the pinned link, or makes and pins a link where there is none that still holds.
pub(super) fn attach(program: &mut Program, hook: &Hook, target: &File, pin: &Path) -> Result<(), LoadError> {
    let failed = |source| LoadError::Program { program: hook.program, source: Box::new(source) };
    if let Ok(link) = sys::open_pinned(pin) {
        let fd = program.fd().map_err(failed)?;
        if adopt(&link, fd.as_fd(), hook, target) {
            return Ok(());
        }
    }
    // The new link first: until it holds, what the old one does is better than nothing.
    let link = new_link(program, target).map_err(failed)?;
    let link = link.map_err(|e| LoadError::Pin { program: hook.program, source: Box::new(e) })?;
    match fs::remove_file(pin) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(LoadError::Io { op: "remove", path: pin.into(), source: e });
        }
        _ => {}
    }
    link.pin(pin).map_err(|e| LoadError::Pin { program: hook.program, source: Box::new(e) })?;
    Ok(())
}

/// Whether `link` is attached to `target`, and now runs `program`.
fn adopt(link: &OwnedFd, program: BorrowedFd<'_>, hook: &Hook, target: &File) -> bool {
    let Ok(facts) = sys::link_facts(link.as_fd(), hook.is_cgroup()) else { return false };
    let Ok(meta) = target.metadata() else { return false };
    facts.target == std::os::unix::fs::MetadataExt::ino(&meta)
        && sys::link_update(link.as_fd(), program).is_ok()
}

fn new_link(program: &mut Program, target: &File) -> Result<Result<FdLink, LinkError>, ProgramError> {
    // No flags: a cgroup link always allows others beside it, and BPF_LINK_CREATE refuses to be told so (EINVAL).
    let mode = CgroupAttachMode::Single;
    Ok(match program {
        Program::CgroupSockAddr(p) => {
            let id = p.attach(target, mode)?;
            CgroupSockAddr::take_link(p, id)?.try_into()
        }
        Program::CgroupSock(p) => {
            let id = p.attach(target, mode)?;
            CgroupSock::take_link(p, id)?.try_into()
        }
        Program::SockOps(p) => {
            let id = p.attach(target, mode)?;
            SockOps::take_link(p, id)?.try_into()
        }
        Program::SkLookup(p) => {
            let id = p.attach(target)?;
            Ok(SkLookup::take_link(p, id)?.into())
        }
        _ => return Err(ProgramError::UnexpectedProgramType),
    })
}

/// Mounts bpffs on the parent that is meant to be one, where nothing is.
fn ensure_bpffs(bpf_dir: &Path) -> Result<(), LoadError> {
    let is_bpffs = |path: &Path| {
        nix::sys::statfs::statfs(path).is_ok_and(|s| s.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC)
    };
    let existing = bpf_dir.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    if is_bpffs(existing) {
        return Ok(());
    }
    let mount_point = bpf_dir.parent().unwrap_or(bpf_dir);
    let failed = |source: io::Error| LoadError::BpfFs { path: mount_point.into(), source };
    fs::create_dir_all(mount_point).map_err(failed)?;
    mount(
        Some("bpf"),
        mount_point,
        Some("bpf"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some("mode=700"),
    )
    .map_err(|e| failed(e.into()))
}

fn lock(bpf_dir: &Path) -> Result<Flock<File>, LoadError> {
    let dir = open(bpf_dir)?;
    Flock::lock(dir, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => LoadError::Running(bpf_dir.into()),
        other => LoadError::Io { op: "lock", path: bpf_dir.into(), source: other.into() },
    })
}

pub(super) fn make_dir(path: &Path) -> Result<(), LoadError> {
    fs::create_dir_all(path).map_err(|source| LoadError::Io { op: "create", path: path.into(), source })
}

pub(super) fn open(path: &Path) -> Result<File, LoadError> {
    File::open(path).map_err(|source| LoadError::Io { op: "open", path: path.into(), source })
}

fn remove_other_schemas(bpf_dir: &Path, keep: &Path) {
    for entry in fs::read_dir(bpf_dir).into_iter().flatten().flatten() {
        if entry.path() != keep
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            tracing::warn!(path = %entry.path().display(), %error, "cannot remove pins of another version");
        }
    }
}
