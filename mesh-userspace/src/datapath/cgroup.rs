//! Cgroup v2 on this host: where it is mounted, which subtree the daemon governs, and who is in a cgroup.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CgroupError {
    #[error(
        "no cgroup v2 hierarchy is mounted (looked into /proc/self/mountinfo): mount one, `mount -t cgroup2 none /sys/fs/cgroup`, or boot with systemd.unified_cgroup_hierarchy=1"
    )]
    NotMounted,
    #[error("cgroup_root {path} is no cgroup below {mount}: {source}", path = path.display(), mount = mount.display())]
    Root { path: PathBuf, mount: PathBuf, source: io::Error },
    #[error("cannot {op} {path}: {source}", path = path.display())]
    Io { op: &'static str, path: PathBuf, source: io::Error },
}

/// The subtree that the daemon governs.
#[derive(Clone, Debug)]
pub struct Governed {
    path: PathBuf,
    id: u64,
}

/// The id of the root of the whole hierarchy (`cgroup_setup_root`: the first kernfs node).
const REAL_ROOT_ID: u64 = 1;

impl Governed {
    /// Finds the cgroup v2 mount, also beside v1 ("hybrid"), and `cgroup_root` below it.
    pub fn find(cgroup_root: &str) -> Result<Self, CgroupError> {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").map_err(|source| CgroupError::Io {
            op: "read",
            path: "/proc/self/mountinfo".into(),
            source,
        })?;
        let mount = mount_point(&mountinfo).ok_or(CgroupError::NotMounted)?;
        let path: PathBuf = mount.join(cgroup_root.trim_start_matches('/')).components().collect();
        let id = id_of(&path).map_err(|source| CgroupError::Root { path: path.clone(), mount, source })?;
        Ok(Self { path, id })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    /// Whether nothing on the machine is outside of it.
    pub fn is_whole_machine(&self) -> bool {
        self.id == REAL_ROOT_ID
    }

    /// Returns the path of `cgroup` below the governed root as selectors see it: `/system.slice/x.service`.
    pub fn relative(&self, cgroup: &Path) -> String {
        let rest = cgroup.strip_prefix(&self.path).unwrap_or(cgroup);
        format!("/{}", rest.display())
    }

    /// Creates `relative` (and what is above it), and returns its path.
    pub fn make(&self, relative: &str) -> Result<PathBuf, CgroupError> {
        let path = self.path.join(relative.trim_start_matches('/'));
        fs::create_dir_all(&path).map_err(|source| CgroupError::Io {
            op: "create",
            path: path.clone(),
            source,
        })?;
        Ok(path)
    }
}

/// Moves the calling process into `cgroup`.
pub fn enter(cgroup: &Path) -> Result<(), CgroupError> {
    let path = cgroup.join("cgroup.procs");
    fs::write(&path, "0").map_err(|source| CgroupError::Io { op: "write", path, source })
}

/// Returns the calling process's own cgroup v2 path as /proc shows it.
pub fn own_path() -> io::Result<String> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    Ok(text.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/").to_owned())
}

/// The id of a cgroup is the inode number of its directory (kernfs, 64-bit inode numbers).
pub fn id_of(cgroup: &Path) -> io::Result<u64> {
    let meta = fs::metadata(cgroup)?;
    if !meta.is_dir() || !cgroup.join("cgroup.procs").exists() {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, "not a cgroup"));
    }
    Ok(meta.ino())
}

/// Counts the processes in `cgroup`, not in its children.
pub fn process_count(cgroup: &Path) -> usize {
    fs::read_to_string(cgroup.join("cgroup.procs")).map_or(0, |text| text.lines().count())
}

/// Returns where cgroup v2 is mounted; the standard places win over others.
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    let mut found: Vec<&str> = mountinfo
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let is_v2 = after.split(' ').next()? == "cgroup2";
            is_v2.then(|| before.split(' ').nth(4))?
        })
        .collect();
    found.sort_by_key(|path| match *path {
        "/sys/fs/cgroup" => 0,
        "/sys/fs/cgroup/unified" => 1,
        _ => 2,
    });
    found.first().map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 24 0:26 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw
31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
32 30 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn hybrid_hosts_have_v2_below_unified() {
        assert_eq!(mount_point(HYBRID), Some("/sys/fs/cgroup/unified".into()));
    }

    #[test]
    fn a_v1_only_host_has_none() {
        assert_eq!(mount_point("31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"), None);
    }

    #[test]
    fn the_standard_mount_wins_over_a_bind_elsewhere() {
        let text =
            "40 1 0:28 / /mnt/cg rw - cgroup2 cgroup2 rw\n41 1 0:28 / /sys/fs/cgroup rw - cgroup2 none rw\n";
        assert_eq!(mount_point(text), Some("/sys/fs/cgroup".into()));
    }
}
