//! OpenSSH: a server with keys of its own, and the client's command line for it.

use std::{fs, path::PathBuf, process::Command};

use super::listens;
use crate::{host::Host, process::Process};

/// A running server that lets root in with one key.
#[derive(Debug)]
pub struct Sshd {
    pub server: Process,
    pub port: u16,
    dir: PathBuf,
}

impl Sshd {
    #[track_caller]
    pub fn start(host: &Host, cgroup: &str, port: u16) -> Self {
        let dir = host.space().scratch().join(format!("sshd-{port}"));
        fs::create_dir_all(&dir).expect("an own directory");
        for key in ["host_key", "client_key"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", key, "-f"]).arg(dir.join(key));
            crate::process::run(keygen, None, crate::host::LIMIT).ok();
        }
        let public = fs::read_to_string(dir.join("client_key.pub")).expect("ssh-keygen wrote it");
        fs::write(dir.join("authorized_keys"), public).expect("an own directory");
        let text = format!(
            "Port {port}\nListenAddress 0.0.0.0\nListenAddress ::\nHostKey {dir}/host_key\nPidFile none\n\
             AuthorizedKeysFile {dir}/authorized_keys\nPermitRootLogin prohibit-password\nStrictModes no\n\
             UsePAM no\nUseDNS no\nPrintMotd no\nSubsystem sftp internal-sftp\n",
            dir = dir.display(),
        );
        let config = dir.join("sshd_config");
        fs::write(&config, text).expect("an own directory");
        // sshd re-executes itself and wants its absolute path.
        let mut server =
            host.spawn(cgroup, &["/usr/sbin/sshd", "-D", "-e", "-f", config.to_str().expect("UTF-8")]);
        server.wait_ready(|| listens(host, port));
        Self { server, port, dir }
    }

    /// Returns the words of an `ssh` command line that runs `remote` as root on `address`.
    pub fn ssh(&self, address: &str, remote: &str) -> Vec<String> {
        let port = self.port.to_string();
        let rest = ["-p", &port, "-l", "root", address, remote];
        [&["ssh".to_owned()], &self.options()[..], &rest.map(str::to_owned)].concat()
    }

    /// Returns the words of an `scp` command line; a remote place is `root@ADDRESS:PATH`.
    pub fn scp(&self, from: &str, to: &str) -> Vec<String> {
        let port = self.port.to_string();
        let rest = ["-r", "-p", "-P", &port, from, to];
        [&["scp".to_owned()], &self.options()[..], &rest.map(str::to_owned)].concat()
    }

    /// What any client of OpenSSH takes.
    fn options(&self) -> Vec<String> {
        let key = self.dir.join("client_key").display().to_string();
        let words = [
            "-F",
            "none",
            "-i",
            &key,
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "LogLevel=ERROR",
        ];
        words.map(str::to_owned).into()
    }
}
