//! vsftpd for anonymous users, its passive data connections at one port.

use std::{fs, path::Path};

use super::script;
use crate::{host::Host, process::Process};

/// Starts a server of `root` at `port`, whose data connections come to `data_port`.
#[track_caller]
pub fn start(host: &Host, cgroup: &str, port: u16, data_port: u16, root: &Path) -> Process {
    let scratch = host.space().scratch();
    let config = scratch.join(format!("vsftpd-{port}.conf"));
    let empty = scratch.join("vsftpd-empty");
    fs::create_dir_all(&empty).expect("an own directory");
    // The root of an anonymous user must not be writable, else vsftpd refuses; what is inside may be.
    let text = format!(
        "listen=YES\nlisten_port={port}\nbackground=NO\nlocal_enable=NO\nwrite_enable=YES\n\
         anonymous_enable=YES\nanon_root={root}\nanon_upload_enable=YES\nanon_mkdir_write_enable=YES\n\
         anon_umask=022\nno_anon_password=YES\npasv_min_port={data_port}\npasv_max_port={data_port}\n\
         secure_chroot_dir={empty}\nseccomp_sandbox=NO\nxferlog_enable=NO\nisolate_network=NO\n\
         ftp_username=daemon\nnopriv_user=daemon\n",
        root = root.display(),
        empty = empty.display(),
    );
    fs::write(&config, text).expect("an own directory");
    script::serve(host, cgroup, port, &["/usr/sbin/vsftpd", config.to_str().expect("UTF-8")])
}
