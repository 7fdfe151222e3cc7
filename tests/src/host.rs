//! A test host on a [`crate::net::Network`].

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    process::Command,
    time::Duration,
};

use crate::{
    process::{Output, Process, run},
    space::{Space, tool},
};

/// How long a command of a test may run.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A machine as far as programs can tell: its own network, mounts, cgroups, host name.
#[derive(Debug)]
pub struct Host {
    pub(crate) space: Space,
    pub name: String,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl Host {
    /// Returns the host's address of the family.
    pub fn ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => self.v6.into(),
        }
    }

    pub fn space(&self) -> &Space {
        &self.space
    }

    /// Returns a command for [`run`] or [`Process`], in the host and its cgroup `cgroup` (made if missing).
    #[track_caller]
    pub fn command(&self, cgroup: &str, words: &[&str]) -> Command {
        let mut command = self.space.command(cgroup, words[0]);
        command.args(&words[1..]);
        command
    }

    /// Runs a program to its end in the cgroup `cgroup` (`""`: the host's root cgroup, which is no workload).
    #[track_caller]
    pub fn run(&self, cgroup: &str, words: &[&str]) -> Output {
        run(self.command(cgroup, words), None, LIMIT)
    }

    /// The same with `input` on standard input.
    #[track_caller]
    pub fn run_with_input(&self, cgroup: &str, words: &[&str], input: &str) -> Output {
        run(self.command(cgroup, words), Some(input), LIMIT)
    }

    /// Starts a program in the background; its outputs go to [`Process::log`].
    #[track_caller]
    pub fn spawn(&self, cgroup: &str, words: &[&str]) -> Process {
        Process::spawn(self.command(cgroup, words), &self.log_file(words[0]))
    }

    /// Runs `probe` (see its own documentation) and returns its output.
    #[track_caller]
    pub fn probe(&self, cgroup: &str, words: &[&str]) -> Output {
        let mut command = self.space.command(cgroup, tool("probe"));
        command.args(words);
        run(command, None, LIMIT)
    }

    /// Starts `probe` in the background with pipes for its standard input and output.
    #[track_caller]
    pub fn spawn_probe(&self, cgroup: &str, words: &[&str]) -> Process {
        let mut command = self.space.command(cgroup, tool("probe"));
        command.args(words);
        Process::spawn_piped(command, &self.log_file("probe"))
    }

    /// Returns a log file's path that nothing has used yet.
    pub fn log_file(&self, program: &str) -> std::path::PathBuf {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let base =
            Path::new(program).file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        self.space.scratch().join(format!("{base}-{}.log", NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    /// Makes a file of the host's own (`/etc/meshnode/…`, `/run/…`).
    #[track_caller]
    pub fn write(&self, inside: &str, text: &str) {
        let path = self.space.path(inside);
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).unwrap_or_else(|e| panic!("mkdir for {inside}: {e}"));
        }
        fs::write(&path, text).unwrap_or_else(|e| panic!("write {inside}: {e}"));
    }

    /// Reads a file of the host's own.
    #[track_caller]
    pub fn read(&self, inside: &str) -> String {
        fs::read_to_string(self.space.path(inside)).unwrap_or_else(|e| panic!("read {inside}: {e}"))
    }

    /// Makes `text` the host's `/etc/resolv.conf`. On many machines that is a link to what another mount holds.
    #[track_caller]
    pub fn resolv_conf(&self, text: &str) {
        let _ = fs::remove_file(self.space.path("/etc/resolv.conf"));
        self.write("/etc/resolv.conf", text);
    }

    /// Makes `name` mean `address` in the host's `/etc/hosts`.
    #[track_caller]
    pub fn name_address(&self, name: &str, address: IpAddr) {
        let hosts = fs::read_to_string(self.space.path("/etc/hosts")).unwrap_or_default();
        self.write("/etc/hosts", &format!("{hosts}{address} {name}\n"));
    }
}

/// Which addresses a test uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    V4,
    V6,
}
