//! nginx, serving files of a directory.

use std::fs;

use super::listens;
use crate::{host::Host, process::Process};

/// A running server.
#[derive(Debug)]
pub struct Nginx {
    pub server: Process,
    pub port: u16,
}

impl Nginx {
    /// Starts a server of `files` (name, content) at `port`.
    #[track_caller]
    pub fn start(host: &Host, cgroup: &str, port: u16, files: &[(&str, &str)]) -> Self {
        Self::start_with(host, cgroup, port, "", "", files)
    }

    /// The same, with further words of `listen` (`http2`, `ssl`) and further lines of the server's section.
    #[track_caller]
    pub fn start_with(
        host: &Host,
        cgroup: &str,
        port: u16,
        listen: &str,
        lines: &str,
        files: &[(&str, &str)],
    ) -> Self {
        let dir = host.space().scratch().join(format!("nginx-{port}"));
        fs::create_dir_all(dir.join("www")).expect("an own directory");
        for (name, content) in files {
            fs::write(dir.join("www").join(name), content).expect("an own directory");
        }
        let text = format!(
            "daemon off;\nuser root;\nworker_processes 1;\npid {dir}/pid;\nerror_log stderr;\n\
             events {{ worker_connections 4096; }}\n\
             http {{\n  access_log off;\n  client_body_temp_path {dir}/body;\n  proxy_temp_path {dir}/proxy;\n\
             fastcgi_temp_path {dir}/fastcgi;\n  uwsgi_temp_path {dir}/uwsgi;\n  scgi_temp_path {dir}/scgi;\n\
             server {{ listen {port} {listen}; listen [::]:{port} {listen}; root {dir}/www; {lines} }}\n}}\n",
            dir = dir.display(),
        );
        let config = dir.join("nginx.conf");
        fs::write(&config, text).expect("an own directory");
        let mut server =
            host.spawn(cgroup, &["nginx", "-e", "stderr", "-c", config.to_str().expect("UTF-8")]);
        server.wait_ready(|| listens(host, port));
        Self { server, port }
    }
}
