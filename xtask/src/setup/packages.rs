//! The distribution's packages that building and testing need.

use anyhow::{Result, bail};

use super::{Purpose, said};
use crate::apt;

const BUILD: [&str; 2] = ["gcc", "libc6-dev"];

const TEST: [&str; 35] = [
    "bind9-dnsutils",
    "curl",
    "dnsmasq-base",
    "gcc-multilib",
    "golang-go",
    "haproxy",
    "iperf3",
    "iproute2",
    "libc6-dev-i386",
    "libnginx-mod-stream",
    "libpython3.11-testsuite",
    "mariadb-server",
    "musl-tools",
    "nginx-light",
    "openjdk-17-jdk-headless",
    "openssh-client",
    "openssh-server",
    "openssl",
    "perl",
    "postgresql",
    "procps",
    "python3",
    "python3-aiosmtpd",
    "python3-grpcio",
    "python3-websockets",
    "python3.11",
    "redis-server",
    "redis-tools",
    "rsync",
    "stunnel4",
    "tcl",
    "tcpdump",
    "util-linux",
    "valgrind",
    "vsftpd",
];

const VM: [&str; 5] = ["busybox-static", "cpio", "kmod", "qemu-system-x86", "xz-utils"];

/// Services that installing `TEST` would leave to be started at the next boot.
const SERVICES: [(&str, &str); 9] = [
    ("haproxy", "haproxy.service"),
    ("mariadb-server", "mariadb.service"),
    ("nginx-light", "nginx.service"),
    ("openssh-server", "ssh.service"),
    ("postgresql", "postgresql.service"),
    ("redis-server", "redis-server.service"),
    ("rsync", "rsync.service"),
    ("stunnel4", "stunnel4.service"),
    ("vsftpd", "vsftpd.service"),
];

/// Installs those of the packages for `purpose` that are missing.
pub fn install_missing(purpose: Purpose) -> Result<()> {
    let wanted: Vec<&str> = [(Purpose::Build, &BUILD[..]), (Purpose::Test, &TEST), (Purpose::Vm, &VM)]
        .into_iter()
        .filter(|(one, _)| purpose == *one || purpose == Purpose::All)
        .flat_map(|(_, packages)| packages)
        .copied()
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    if !apt::is_here() {
        said(
            "packages",
            "this is no Debian or Ubuntu: install by your system's means what these packages hold:",
        );
        said("", &wanted.join(" "));
        return Ok(());
    }
    let missing = apt::missing(&wanted)?;
    if missing.is_empty() {
        said("packages", &format!("all {} are installed", wanted.len()));
        return Ok(());
    }
    said("packages", &format!("installing {}", missing.join(" ")));
    install(&missing)?;
    keep_services_off(&missing);
    Ok(())
}

fn install(missing: &[&str]) -> Result<()> {
    // A qemu-utils from backports breaks the QEMU of the release itself: apt finds no way to have both.
    let conflict = missing.contains(&"qemu-system-x86") && apt::missing(&["qemu-utils"])?.is_empty();
    if !conflict || apt::could_install(missing) {
        return apt::install(missing);
    }
    let without: Vec<&str> = missing.iter().copied().chain(["qemu-utils-"]).collect();
    if !apt::could_install(&without) {
        bail!("apt can't install {}: see `apt-get install --simulate`", missing.join(" "));
    }
    said("packages", "removing qemu-utils: apt can't have its version beside qemu-system-x86");
    apt::install(&without)
}

/// What was just installed for the tests is started by the tests, not by the machine.
fn keep_services_off(installed: &[&str]) {
    let has_systemd = std::path::Path::new("/run/systemd/system").is_dir();
    for (package, unit) in SERVICES {
        if !installed.contains(&package) {
            continue;
        }
        let disable = crate::process::output(std::process::Command::new("systemctl").args(["disable", unit]));
        match disable {
            Ok(_) => said("services", &format!("{unit} was not started, and is disabled")),
            Err(_) if !has_systemd => said("services", &format!("{unit} was not started")),
            Err(error) => {
                said("services", &format!("{unit} was not started, but may be at the next boot: {error:#}"))
            }
        }
    }
}
