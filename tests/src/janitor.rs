//! Names of what tests leave in the kernel and the file system, and the removal of what dead test runs left.
//!
//! Each name carries the pid and the start time of the process that made it, so that a leftover is told from the
//! property of a run that is still going on, also after pids were used again.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use crate::cgroup::{self, Cgroup};

/// What every name begins with.
pub const PREFIX: &str = "mesh-test-";
/// What the names of things begin with that outlive their maker on purpose (`demo --keep`).
pub const KEPT_PREFIX: &str = "mesh-keep-";

/// Returns a name that nobody else has: `mesh-test-PID.START-N-WHAT`.
pub fn fresh_name(what: &str, kept: bool) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let pid = std::process::id();
    let start = start_time(pid).expect("this process has a start time");
    let prefix = if kept { KEPT_PREFIX } else { PREFIX };
    format!("{prefix}{pid}.{start}-{}-{what}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Returns the directory for temporary files of this run; it is made readable for programs that drop their privileges.
pub fn scratch_root() -> PathBuf {
    std::env::temp_dir()
}

/// Removes the cgroups, with the processes in them, and the temporary directories of runs that are dead. Namespaces,
/// mounts and pins vanish with the last process.
pub fn sweep() {
    for dir in leftovers() {
        remove(&dir);
    }
}

fn remove(dir: &Path) {
    let removed = if dir.starts_with(scratch_root()) {
        fs::remove_dir_all(dir)
    } else {
        Cgroup::at(dir).kill_and_remove(Duration::from_secs(5))
    };
    match removed {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            eprintln!("a dead run's {} is still there: {e}", dir.display());
        }
        _ => {}
    }
}

/// Removes what was kept on purpose by runs that are over.
pub fn sweep_kept() {
    let all = [cgroup::mount_point(), scratch_root()];
    let entries = all.iter().flat_map(fs::read_dir).flatten().flatten().map(|entry| entry.path());
    for dir in entries.filter(|path| has_prefix(path, KEPT_PREFIX)) {
        remove(&dir);
    }
}

fn has_prefix(path: &Path, prefix: &str) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(prefix))
}

/// Returns what dead runs left.
pub fn leftovers() -> Vec<PathBuf> {
    named().into_iter().filter(|dir| owner_of(dir).is_some_and(|owner| !is_alive(owner))).collect()
}

/// Returns what the process `pid` made and did not remove.
pub fn left_by(pid: u32) -> Vec<PathBuf> {
    named().into_iter().filter(|dir| owner_of(dir).is_some_and(|(owner, _)| owner == pid)).collect()
}

fn named() -> Vec<PathBuf> {
    [cgroup::mount_point(), scratch_root()]
        .iter()
        .flat_map(fs::read_dir)
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| owner_of(path).is_some())
        .collect()
}

fn owner_of(path: &Path) -> Option<(u32, u64)> {
    let rest = path.file_name()?.to_str()?.strip_prefix(PREFIX)?;
    let (owner, _) = rest.split_once('-')?;
    let (pid, start) = owner.split_once('.')?;
    Some((pid.parse().ok()?, start.parse().ok()?))
}

fn is_alive((pid, start): (u32, u64)) -> bool {
    start_time(pid) == Some(start)
}

/// Returns when the process started, in clock ticks since boot (field 22 of `/proc/PID/stat`).
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name, in parentheses, may hold anything; what follows its end is fields from 3 on.
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_names_belong_to_a_live_process_and_are_unique() {
        let (a, b) = (fresh_name("a", false), fresh_name("a", false));
        assert_ne!(a, b);
        assert!(is_alive(owner_of(Path::new(&a)).unwrap()));
    }

    #[test]
    fn a_reused_pid_is_not_the_owner() {
        let pid = std::process::id();
        assert!(!is_alive((pid, start_time(pid).unwrap() + 1)));
    }

    #[test]
    fn foreign_names_have_no_owner() {
        for name in [
            "user.slice",
            "mesh-test-",
            "mesh-test-x.1-0",
            "mesh-test-1-0",
            "mesh-tests",
            "mesh-keep-1.1-0-a",
        ] {
            assert_eq!(owner_of(Path::new(name)), None, "{name}");
        }
    }
}
