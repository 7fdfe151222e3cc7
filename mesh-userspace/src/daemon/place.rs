//! The daemon's own place on the host: its cgroup, by which the kernel knows it, and its capabilities.

use std::{io, path::PathBuf};

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::datapath::cgroup::{self, CgroupError, Governed};

/// Below the governed root; the processes in it are exempt.
const OWN_CGROUP: &str = "/meshnode.daemon";

/// Programs that `meshnode exec` starts, one cgroup below it for each service.
pub const EXEC_CGROUP: &str = "/meshnode.exec";

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("cannot read the daemon's own cgroup: {0}")]
    Own(#[source] io::Error),
    #[error(
        "cannot drop capabilities: {0}; run as root, or with the capabilities that packaging/meshnode.service lists"
    )]
    Capabilities(#[from] caps::errors::CapsError),
}

/// Moves the daemon into a cgroup that nobody else is in, and returns its path below the governed root.
///
/// A systemd service is in one already. Anything else (a shell, a test) starts it in a cgroup that it shares.
pub fn enter_own_cgroup(governed: &Governed) -> Result<String, PlaceError> {
    if let Some(unit) = systemd_unit_cgroup(governed)? {
        return Ok(governed.relative(&unit));
    }
    let own = governed.make(OWN_CGROUP)?;
    cgroup::enter(&own)?;
    Ok(OWN_CGROUP.to_owned())
}

/// systemd names a service's main process in `SYSTEMD_EXEC_PID` (248 and later); its cgroup's name ends in `.service`.
fn systemd_unit_cgroup(governed: &Governed) -> Result<Option<PathBuf>, PlaceError> {
    // Inherited by what another unit's program starts, where it names that program.
    let main = std::env::var("SYSTEMD_EXEC_PID").ok();
    if main != Some(std::process::id().to_string()) {
        return Ok(None);
    }
    let own = cgroup::own_path().map_err(PlaceError::Own)?;
    let path = governed.path().join(own.trim_start_matches('/'));
    Ok((own.ends_with(".service") && path.is_dir()).then_some(path))
}

/// A proxied flow takes two descriptors; the default limit of 1024 would end at 500 flows.
const WANTED_FILES: u64 = 1_048_576;

/// Raises the limit of open files as far as it goes.
pub fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let most = WANTED_FILES.max(hard);
        setrlimit(Resource::RLIMIT_NOFILE, most, most)
            .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard.max(soft), hard))
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// What a running daemon needs: BPF maps (`CAP_BPF`), destroying sockets and asking what is attached
/// (`CAP_NET_ADMIN`), ports below 1024 (`CAP_NET_BIND_SERVICE`), and tokens and cgroups whose owner lets nobody else
/// read them (`CAP_DAC_READ_SEARCH`).
const KEPT: [Capability; 4] = [
    Capability::CAP_BPF,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_DAC_READ_SEARCH,
];

/// Drops every other capability, for good, of the calling thread. Call it before threads are made: they inherit.
pub fn drop_capabilities() -> Result<(), PlaceError> {
    keep_capabilities(&KEPT)
}

/// Drops all capabilities of the calling thread but `kept`, for good.
///
/// # Errors
/// It has not all of them.
pub fn keep_capabilities(kept: &[Capability]) -> Result<(), PlaceError> {
    let kept: CapsHashSet = kept.iter().copied().collect();
    for capability in caps::read(None, CapSet::Bounding)?.difference(&kept) {
        caps::drop(None, CapSet::Bounding, *capability)?;
    }
    caps::set(None, CapSet::Effective, &kept)?;
    caps::set(None, CapSet::Inheritable, &CapsHashSet::new())?;
    caps::set(None, CapSet::Permitted, &kept)?;
    Ok(())
}
