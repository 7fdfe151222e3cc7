//! rsync's daemon, which offers one directory.

use std::{fs, path::Path};

use super::script;
use crate::{host::Host, process::Process};

/// Starts a daemon whose module `files` is `dir`, to be read and written.
#[track_caller]
pub fn start(host: &Host, cgroup: &str, port: u16, dir: &Path) -> Process {
    let config = host.space().scratch().join(format!("rsyncd-{port}.conf"));
    let text = format!(
        "use chroot = no\nuid = 0\ngid = 0\nreverse lookup = no\n[files]\npath = {}\nread only = no\n",
        dir.display()
    );
    fs::write(&config, text).expect("an own directory");
    let (config, port_option) = (format!("--config={}", config.display()), format!("--port={port}"));
    script::serve(host, cgroup, port, &["rsync", "--daemon", "--no-detach", &config, &port_option])
}
