//! Unmodified programs, each started with a configuration of its own in a host's cgroup and ready when returned.

pub mod compiled;
pub mod connect_proxy;
pub mod consul;
pub mod dnsmasq;
pub mod envoy;
pub mod iperf;
pub mod mariadb;
pub mod nginx;
pub mod postgres;
pub mod redis;
pub mod resolved;
pub mod rsync;
pub mod script;
pub mod sshd;
pub mod vsftpd;

use std::{fs, path::Path, process::Command};

use crate::host::Host;

/// Returns whether a socket of the host listens at `port`, or that none does.
///
/// Read from `/proc`, not tried: a connection would be subject to what is tested.
///
/// # Errors
/// Words.
pub fn listens(host: &Host, port: u16) -> Result<(), String> {
    let listening = ["tcp", "tcp6"].iter().any(|table| {
        let text = fs::read_to_string(format!("/proc/{}/net/{table}", host.space().pid()));
        listening_ports(&text.unwrap_or_default()).contains(&port)
    });
    if listening { Ok(()) } else { Err(format!("nothing listens at port {port}")) }
}

/// Returns the ports of the listening sockets (state 0A) in a table as of proc(5)'s `/proc/net/tcp`.
fn listening_ports(table: &str) -> Vec<u16> {
    let lines = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines
        .filter(|fields| fields.get(3) == Some(&"0A"))
        .filter_map(|fields| u16::from_str_radix(fields[1].rsplit_once(':')?.1, 16).ok())
        .collect()
}

/// Makes `path` and what is in it the property of `user`, whom the program runs as.
#[track_caller]
pub fn give_to(user: &str, path: &Path) {
    let status = Command::new("chown").arg("-R").arg(format!("{user}:")).arg(path).status();
    assert!(status.is_ok_and(|s| s.success()), "chown {} to {user}", path.display());
}

/// Returns whether `program` is installed.
pub fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_sockets_are_told_from_connected_ones() {
        let table = "  sl  local_address rem_address   st tx_queue\n\
            0: 0100007F:1538 00000000:0000 0A 00000000:00000000\n\
            1: 0100007F:1539 0100007F:0001 01 00000000:00000000\n";
        assert_eq!(listening_ports(table), [5432]);
    }
}
