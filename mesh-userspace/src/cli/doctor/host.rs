//! What the host provides: mounts, directories, ports, clock, limits, the systemd unit.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use nix::sys::resource::{Resource, getrlimit};

use super::Finding;
use crate::{
    admin::StatusReport,
    config::{Config, ControlPlane},
    control_plane::TokenSource,
};

pub fn check(config: &Config, daemon: Option<&StatusReport>) -> Vec<Finding> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut findings =
        vec![cgroup2(&mounts, &config.cgroup_root), bpffs(&mounts, &config.bpf_dir), clock(), open_files()];
    findings.push(advertise(config));
    findings.push(virtual_ips(config));
    findings.push(private("state_dir", &config.state_dir, 0o700));
    findings.push(private("run_dir", &config.run_dir, 0o755));
    findings.extend(token_file(config));
    findings.push(ports(config, daemon.is_some()));
    findings.push(systemd_unit());
    findings
}

/// Returns where file systems of `kind` are mounted; proc(5) describes mountinfo.
fn mounts_of(mountinfo: &str, kind: &str) -> Vec<PathBuf> {
    let point = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        (after.split(' ').next() == Some(kind)).then(|| before.split(' ').nth(4).map(unescape)).flatten()
    };
    mountinfo.lines().filter_map(point).collect()
}

/// mountinfo writes space, tab, newline and backslash as `\ooo`.
fn unescape(text: &str) -> PathBuf {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, character)| text.replace(code, character))
        .into()
}

fn cgroup2(mountinfo: &str, root: &Path) -> Finding {
    const CHECK: &str = "cgroup v2";
    let mounts = mounts_of(mountinfo, "cgroup2");
    let Some(mount) = mounts.first() else {
        return Finding::fail(
            CHECK,
            "not mounted",
            "boot with systemd.unified_cgroup_hierarchy=1, or `mount -t cgroup2 none /sys/fs/cgroup/unified`",
        );
    };
    let governed: PathBuf = mount.join(root.strip_prefix("/").unwrap_or(root)).components().collect();
    if !governed.is_dir() {
        let detail = format!("cgroup_root {} is not there", governed.display());
        return Finding::fail(CHECK, detail, "make the cgroup, or correct cgroup_root");
    }
    let hybrid = !mounts_of(mountinfo, "cgroup").is_empty();
    let how = if hybrid { " (hybrid: v1 controllers besides it)" } else { "" };
    Finding::ok(CHECK, format!("{}{how}", governed.display()))
}

fn bpffs(mountinfo: &str, bpf_dir: &Path) -> Finding {
    const CHECK: &str = "bpffs";
    match mounts_of(mountinfo, "bpf").iter().find(|mount| bpf_dir.starts_with(mount)) {
        Some(mount) => Finding::ok(CHECK, format!("{}", mount.display())),
        None => Finding::ok(CHECK, format!("not mounted at {}: the daemon mounts it", bpf_dir.display())),
    }
}

/// Certificates are valid from a moment to a moment, so a wrong clock refuses every peer.
fn clock() -> Finding {
    const CHECK: &str = "clock";
    /// 2025-01-01: this program was not there before.
    const EPOCH: Duration = Duration::from_secs(1_735_689_600);
    if SystemTime::now() < SystemTime::UNIX_EPOCH + EPOCH {
        return Finding::fail(
            CHECK,
            "before 2025: every certificate is refused",
            "set it, and run an NTP client",
        );
    }
    if is_synchronized() {
        return Finding::ok(CHECK, "synchronized");
    }
    let detail = "not synchronized by NTP: hosts whose clocks differ refuse each other's fresh certificates";
    Finding::warn(CHECK, detail, "run chrony or systemd-timesyncd (`timedatectl set-ntp true`)")
}

fn is_synchronized() -> bool {
    // SAFETY: `timex` is a C struct of integers, for which zero is a value.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: with `modes` 0 adjtimex(2) only writes to the struct, which is live and its own.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    state >= 0 && timex.status & libc::STA_UNSYNC == 0
}

/// A flow takes two descriptors.
fn open_files() -> Finding {
    const CHECK: &str = "open files";
    const ENOUGH: u64 = 65_536;
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if hard >= ENOUGH => Finding::ok(CHECK, format!("up to {hard}")),
        Ok((_, hard)) => {
            let detail = format!("at most {hard}: some {} proxied flows at once", hard / 2);
            Finding::warn(CHECK, detail, "LimitNOFILE= in the unit (meshnode.service has it), or ulimit -Hn")
        }
        Err(error) => Finding::warn(CHECK, error.to_string(), "ulimit -Hn"),
    }
}

fn advertise(config: &Config) -> Finding {
    const CHECK: &str = "address";
    let Some(ip) = config.advertised().first().copied() else {
        return Finding::fail(CHECK, "this host has none that others reach", "set address.advertise");
    };
    // A port is not needed to see whether the address is this host's.
    match TcpListener::bind((ip, 0)) {
        Ok(_) => Finding::ok(
            CHECK,
            format!("{ip}{}", if !config.address.advertise.is_empty() { "" } else { " (discovered)" }),
        ),
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => Finding::warn(
            CHECK,
            format!("{ip} is no address of this host"),
            "correct address.advertise, unless NAT is meant",
        ),
        Err(error) => Finding::warn(CHECK, format!("{ip}: {error}"), "correct address.advertise"),
    }
}

fn virtual_ips(config: &Config) -> Finding {
    const CHECK: &str = "virtual IPs";
    let ranges = config.address.virtual_ranges;
    match crate::daemon::virtual_ips::conflicts(&ranges).into_iter().next() {
        Some(conflict) => {
            Finding::fail(CHECK, conflict, "correct the range; the daemon does not start with it")
        }
        None => {
            let shown: Vec<_> = ranges.iter().map(ToString::to_string).collect();
            Finding::ok(CHECK, if shown.is_empty() { "off".to_owned() } else { shown.join(", ") })
        }
    }
}

/// A directory that exists has no more rights than `most`, and belongs to who runs this.
fn private(check: &'static str, path: &Path, most: u32) -> Finding {
    let shown = path.display();
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Finding::ok(check, format!("{shown} is made by the daemon"));
        }
        Err(error) => return Finding::warn(check, format!("{shown}: {error}"), "run doctor as root"),
    };
    let mode = metadata.permissions().mode() & 0o7777;
    if !metadata.is_dir() {
        return Finding::fail(
            check,
            format!("{shown} is no directory"),
            format!("move it away, or set {check}"),
        );
    }
    if metadata.uid() != 0 && metadata.uid() != nix::unistd::geteuid().as_raw() {
        let detail = format!("{shown} belongs to uid {}", metadata.uid());
        return Finding::fail(check, detail, format!("chown root: {shown}"));
    }
    if mode & !most != 0 {
        let detail = format!("{shown} has mode {mode:04o}: others reach what is the daemon's");
        return Finding::fail(check, detail, format!("chmod {most:04o} {shown}"));
    }
    Finding::ok(check, format!("{shown}, mode {mode:04o}"))
}

/// A token that others can read is no token.
fn token_file(config: &Config) -> Option<Finding> {
    const CHECK: &str = "token file";
    let path = match &config.control_plane {
        ControlPlane::Remote(access) | ControlPlane::Consul(access) => access.token.as_ref()?.path()?,
        ControlPlane::Embedded(embedded) => embedded.expose.as_ref()?.token_file.as_ref()?,
    };
    let shown = path.display();
    Some(match fs::metadata(path) {
        Ok(metadata) if metadata.permissions().mode() & 0o077 != 0 => {
            Finding::fail(CHECK, format!("{shown} can be read by others"), format!("chmod 0600 {shown}"))
        }
        Ok(_) => match TokenSource::file(path).current() {
            Ok(_) => Finding::ok(CHECK, shown.to_string()),
            Err(error) => Finding::fail(CHECK, error.to_string(), "write the token into it"),
        },
        Err(error) => Finding::fail(CHECK, format!("{shown}: {error}"), "write the token into it, mode 0600"),
    })
}

/// Ports that the configuration fixes must be free, unless the running daemon has them.
fn ports(config: &Config, running: bool) -> Finding {
    const CHECK: &str = "ports";
    if running {
        return Finding::ok(CHECK, "held by the running daemon");
    }
    let local = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut wanted = Vec::new();
    wanted.extend([config.listen.outbound_port, config.listen.guard_port].map(local));
    if let ControlPlane::Embedded(embedded) = &config.control_plane {
        wanted.push(embedded.listen);
        wanted.extend(embedded.expose.iter().map(|expose| expose.listen));
    }
    let mesh_ports = config.services.iter().filter_map(|service| service.protected.as_ref()?.mesh_port);
    wanted.extend(mesh_ports.map(|port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))));
    wanted.retain(|address| address.port() != 0);
    let taken: Vec<String> = wanted
        .iter()
        .filter_map(|address| TcpListener::bind(address).err().map(|error| format!("{address} ({error})")))
        .collect();
    if taken.is_empty() {
        return Finding::ok(CHECK, format!("{} fixed ports are free", wanted.len()));
    }
    let fix = "`ss -ltnp` shows who has them; or choose other ports in the configuration";
    Finding::fail(CHECK, format!("not free: {}", taken.join(", ")), fix)
}

fn systemd_unit() -> Finding {
    const CHECK: &str = "systemd unit";
    if !Path::new("/run/systemd/system").exists() {
        return Finding::ok(CHECK, "systemd does not run here");
    }
    let arguments = ["show", "meshnode.service", "--property=LoadState,Delegate,ControlGroup"];
    let Ok(output) = Command::new("systemctl").args(arguments).output() else {
        return Finding::ok(CHECK, "systemctl is not there");
    };
    unit_finding(&String::from_utf8_lossy(&output.stdout))
}

fn unit_finding(properties: &str) -> Finding {
    const CHECK: &str = "systemd unit";
    let is = |line: &str| properties.lines().any(|found| found == line);
    if !is("LoadState=loaded") {
        return Finding::ok(CHECK, "not installed");
    }
    if is("Delegate=yes") {
        return Finding::ok(CHECK, "installed, with its own cgroup subtree");
    }
    Finding::fail(
        CHECK,
        "meshnode.service has no Delegate=yes: systemd may move the daemon's cgroups, and with them who is who",
        "install packaging/meshnode.service, or `systemctl edit meshnode` with [Service] Delegate=yes",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Verdict;

    const HYBRID: &str = "\
25 30 0:23 / /sys/fs/cgroup rw - tmpfs tmpfs rw
26 25 0:24 / /sys/fs/cgroup/cpu rw shared:1 - cgroup cgroup rw,cpu
27 25 0:25 / / rw,relatime shared:2 - cgroup2 cgroup2 rw
28 25 0:26 / /sys/fs/bpf\\040x rw - bpf bpf rw
";

    #[test]
    fn mounts_are_found_in_mountinfo_and_unescaped() {
        assert_eq!(mounts_of(HYBRID, "cgroup2"), [PathBuf::from("/")]);
        assert_eq!(mounts_of(HYBRID, "bpf"), [PathBuf::from("/sys/fs/bpf x")]);
    }

    #[test]
    fn cgroup_v2_is_found_also_where_it_is_hybrid_and_missed_where_it_is_not() {
        let found = cgroup2(HYBRID, Path::new("/proc"));
        assert_eq!(found.verdict, Verdict::Ok);
        assert!(found.detail.contains("hybrid"), "{}", found.detail);
        assert_eq!(cgroup2(HYBRID, Path::new("/proc/no-such")).verdict, Verdict::Fail);
        assert_eq!(cgroup2("", Path::new("/")).verdict, Verdict::Fail);
    }

    #[test]
    fn a_state_dir_that_others_read_fails_and_a_private_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |mode| fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
        mode(0o755);
        assert_eq!(private("state_dir", dir.path(), 0o700).verdict, Verdict::Fail);
        mode(0o700);
        assert_eq!(private("state_dir", dir.path(), 0o700).verdict, Verdict::Ok);
        assert_eq!(private("state_dir", &dir.path().join("none"), 0o700).verdict, Verdict::Ok);
    }

    #[test]
    fn a_taken_port_fails_unless_the_daemon_has_it() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let text = format!("[control_plane]\naddress = \"http://127.0.0.1:{port}\"\n");
        let config = Config::parse(&text, Path::new("m.toml")).unwrap();
        assert_eq!(ports(&config, false).verdict, Verdict::Fail);
        assert_eq!(ports(&config, true).verdict, Verdict::Ok);
    }

    #[test]
    fn an_installed_unit_needs_delegate() {
        assert_eq!(unit_finding("LoadState=loaded\nDelegate=yes\n").verdict, Verdict::Ok);
        assert_eq!(unit_finding("LoadState=loaded\nDelegate=no\n").verdict, Verdict::Fail);
        assert_eq!(unit_finding("LoadState=not-found\n").verdict, Verdict::Ok);
    }
}
