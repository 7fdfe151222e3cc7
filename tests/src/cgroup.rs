//! Cgroup v2 subtrees: found, made, killed and removed.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Returns where cgroup v2 is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on a hybrid machine.
///
/// # Panics
/// When it is not mounted.
pub fn mount_point() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    find_mount(&mounts).expect("cgroup v2 must be mounted (`mount -t cgroup2 none /sys/fs/cgroup`)")
}

fn find_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (fields, source) = line.split_once(" - ")?;
        source.starts_with("cgroup2 ").then(|| fields.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// A directory of the cgroup v2 tree. Dropping it removes nothing; its [`crate::space::Space`] does.
#[derive(Clone, Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes the directory, and those above it, where they are missing.
    pub fn create(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        fs::create_dir_all(&path).unwrap_or_else(|e| panic!("mkdir {}: {e}", path.display()));
        Self { path }
    }

    /// An existing one.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Makes the cgroup `relative` (`web`, `/system.slice/db.service`) below this one.
    pub fn child(&self, relative: &str) -> Self {
        Self::create(self.path.join(relative.trim_start_matches('/')))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the cgroup's id, which the kernel's `bpf_get_current_cgroup_id` also returns.
    pub fn id(&self) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        fs::metadata(&self.path).map_or(0, |m| m.ino())
    }

    /// Returns the processes in it, not those in its children.
    pub fn pids(&self) -> Vec<i32> {
        let text = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Returns the processes in it and in all below it.
    pub fn all_pids(&self) -> Vec<i32> {
        let below = self.children().into_iter().flat_map(|c| c.all_pids());
        self.pids().into_iter().chain(below).collect()
    }

    pub fn children(&self) -> Vec<Self> {
        let Ok(entries) = fs::read_dir(&self.path) else { return Vec::new() };
        entries.flatten().filter(|e| e.path().is_dir()).map(|e| Self::at(e.path())).collect()
    }

    /// Kills every process in the subtree and removes the directories, deepest first.
    ///
    /// # Errors
    /// What the last attempt said, when processes or directories are still there after `within`.
    pub fn kill_and_remove(&self, within: Duration) -> io::Result<()> {
        let start = Instant::now();
        loop {
            let killed = fs::write(self.path.join("cgroup.kill"), "1");
            match killed.and_then(|()| self.remove()) {
                Ok(()) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(e) if start.elapsed() > within => return Err(e),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    fn remove(&self) -> io::Result<()> {
        for child in self.children() {
            child.remove()?;
        }
        fs::remove_dir(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_is_found_on_hybrid_and_unified_machines_and_not_elsewhere() {
        let hybrid = "30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            40 30 0:36 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(find_mount(hybrid), Some("/sys/fs/cgroup/unified".into()));
        let unified = "40 30 0:36 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(find_mount(unified), Some("/sys/fs/cgroup".into()));
        assert_eq!(find_mount("31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"), None);
    }
}
