//! nginx with its stream module.

use std::process::Command;

use super::{Contestant, Pair, program, version};
use crate::datapath::stage::{On, Stage};

/// Where Debian has it; elsewhere it may be built in, or in another place.
const MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

pub const CONTESTANT: Contestant = Contestant {
    name: "nginx",
    against: super::PLAIN,
    find: || {
        if !std::path::Path::new(MODULE).is_file() {
            return Err(format!("no {MODULE}; `cargo xtask setup` installs it"));
        }
        version(&["nginx", "-v"])
    },
    start: |stage| {
        let pair = Pair { name: "nginx", listen: 8004, mesh: 20004 };
        let [client, server] = [On::A, On::B].map(|on| stage.identity(on).display().to_string());
        let (listen, mesh, open, name) =
            (pair.dial(), stage.at(On::B, pair.mesh), pair.mesh, common_name(stage));
        let client = format!(
            "listen {listen}; proxy_pass {mesh}; proxy_ssl on; proxy_ssl_protocols TLSv1.3;
             proxy_ssl_certificate {client}/cert.pem; proxy_ssl_certificate_key {client}/key.pem;
             proxy_ssl_trusted_certificate {client}/roots.pem; proxy_ssl_verify on; proxy_ssl_name {name};
             proxy_ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;"
        );
        let server = format!(
            "listen {open} ssl; proxy_pass {}; ssl_protocols TLSv1.3; ssl_ecdh_curve X25519;
             ssl_certificate {server}/cert.pem; ssl_certificate_key {server}/key.pem;
             ssl_client_certificate {server}/roots.pem; ssl_verify_client on;
             ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;",
            program()
        );
        let texts = [(On::A, client), (On::B, server)].map(|(on, lines)| config(stage, on, &lines));
        pair.start(stage, &["nginx", "-e", "stderr", "-c"], "nginx.conf", texts)
    },
};

fn config(stage: &Stage, on: On, lines: &str) -> String {
    let folder = stage.host(on).space().scratch().display();
    format!(
        "load_module {MODULE};\ndaemon off;\nuser root;\nworker_processes auto;\npid {folder}/nginx.pid;\n\
         error_log stderr error;\nevents {{ worker_connections 8192; }}\n\
         stream {{ server {{ {lines} proxy_timeout 1h; }} }}\n"
    )
}

/// The name that nginx insists on: it knows no SPIFFE IDs, and takes the leaf's common name for want of DNS names.
fn common_name(stage: &Stage) -> String {
    let mut openssl = Command::new("openssl");
    openssl.args(["x509", "-noout", "-subject", "-nameopt", "multiline", "-in"]);
    let said = openssl.arg(stage.identity(On::B).join("cert.pem")).output().expect("openssl is installed");
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let name = text.lines().find_map(|line| line.trim().strip_prefix("commonName")?.split_once('='));
    name.unwrap_or_else(|| panic!("no common name in {text}")).1.trim().to_owned()
}
