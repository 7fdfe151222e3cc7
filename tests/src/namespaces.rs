//! What a test host's first process does to itself: namespaces, mounts, sysctls. Used by the `keeper` binary only.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

/// Where the host finds cgroup v2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CgroupLayout {
    /// At `/sys/fs/cgroup`, as systemd has it by default.
    Unified,
    /// At `/sys/fs/cgroup/unified`, beside directories for version 1.
    Hybrid,
}

/// Moves the calling process, which must have one thread, into the cgroup and then into namespaces of its own.
///
/// # Errors
/// The operation that failed, in words.
pub fn become_host(cgroup: &Path, hostname: &str, layout: CgroupLayout, router: bool) -> Result<(), String> {
    let step = |what: &str| {
        let what = what.to_owned();
        move |e: nix::Error| format!("{what}: {e}")
    };
    write(&cgroup.join("cgroup.procs"), "0")?;
    let all = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWCGROUP;
    unshare(all).map_err(step("unshare"))?;
    nix::unistd::sethostname(hostname).map_err(step("sethostname"))?;
    mount(none(), "/", none(), MsFlags::MS_PRIVATE | MsFlags::MS_REC, none()).map_err(step("private /"))?;
    mount_sys(layout)?;
    mount_tmpfs("/run", "mode=755")?;
    mount_tmpfs("/dev/shm", "mode=1777")?;
    for dir in ["/etc", "/var/lib"] {
        shadow(Path::new(dir))?;
    }
    for dir in ["/etc/meshnode", "/var/lib/meshnode", "/run/sshd"] {
        fs::create_dir_all(dir).map_err(|e| format!("mkdir {dir}: {e}"))?;
    }
    set_sysctls(router)
}

/// A sysfs of the new network namespace, with cgroup v2 (its root is the host's subtree) and an empty bpffs.
fn mount_sys(layout: CgroupLayout) -> Result<(), String> {
    umount2("/sys", MntFlags::MNT_DETACH).map_err(|e| format!("umount /sys: {e}"))?;
    mount_type("sysfs", "/sys")?;
    match layout {
        CgroupLayout::Unified => mount_type("cgroup2", "/sys/fs/cgroup")?,
        CgroupLayout::Hybrid => {
            mount_tmpfs("/sys/fs/cgroup", "mode=755")?;
            fs::create_dir("/sys/fs/cgroup/unified").map_err(|e| format!("mkdir unified: {e}"))?;
            mount_type("cgroup2", "/sys/fs/cgroup/unified")?;
        }
    }
    mount_type("bpf", "/sys/fs/bpf")
}

/// Replaces `dir` by a private tmpfs in which every entry of the machine's `dir` is a link to the original, so that the
/// host has its own files there, and the machine's file system gets none.
fn shadow(dir: &Path) -> Result<(), String> {
    let say = |e: &dyn std::fmt::Display| format!("shadow {}: {e}", dir.display());
    let original = Path::new("/run").join(format!(".machine{}", dir.display()).replace('/', "-"));
    fs::create_dir_all(&original).map_err(|e| say(&e))?;
    mount(Some(dir), &original, none(), MsFlags::MS_BIND | MsFlags::MS_REC, none()).map_err(|e| say(&e))?;
    mount_tmpfs(dir.to_str().expect("a literal path"), "mode=755")?;
    for entry in fs::read_dir(&original).map_err(|e| say(&e))?.flatten() {
        // A relative link means something else when it is looked up from another directory: keep it as it is.
        let target = fs::read_link(entry.path())
            .ok()
            .filter(|t| t.is_relative())
            .unwrap_or_else(|| PathBuf::from(&original).join(entry.file_name()));
        if entry.file_name() != "hosts" && entry.file_name() != "meshnode" {
            symlink(target, dir.join(entry.file_name())).map_err(|e| say(&e))?;
        }
    }
    Ok(())
}

fn set_sysctls(router: bool) -> Result<(), String> {
    // Duplicate address detection would keep IPv6 addresses unusable for a second or two.
    for scope in ["all", "default"] {
        write(Path::new(&format!("/proc/sys/net/ipv6/conf/{scope}/accept_dad")), "0")?;
    }
    if router {
        write(Path::new("/proc/sys/net/ipv4/ip_forward"), "1")?;
        write(Path::new("/proc/sys/net/ipv6/conf/all/forwarding"), "1")?;
    }
    // As most hosts have it; where network namespaces may not choose it, they keep the machine's default.
    let _ = fs::write("/proc/sys/net/ipv4/tcp_congestion_control", "cubic");
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|e| format!("write {text} to {}: {e}", path.display()))
}

fn none() -> Option<&'static str> {
    None
}

fn mount_type(kind: &str, target: &str) -> Result<(), String> {
    mount(Some(kind), target, Some(kind), MsFlags::empty(), none())
        .map_err(|e| format!("mount {kind} at {target}: {e}"))
}

fn mount_tmpfs(target: &str, mode: &str) -> Result<(), String> {
    mount(Some("tmpfs"), target, Some("tmpfs"), MsFlags::empty(), Some(mode))
        .map_err(|e| format!("mount tmpfs at {target}: {e}"))
}
