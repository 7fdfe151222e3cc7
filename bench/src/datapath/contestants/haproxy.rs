//! HAProxy in TCP mode.

use super::{Contestant, Pair, program, version};
use crate::datapath::stage::On;

pub const CONTESTANT: Contestant = Contestant {
    name: "haproxy",
    against: super::PLAIN,
    find: || version(&["haproxy", "-v"]),
    start: |stage| {
        let pair = Pair { name: "haproxy", listen: 8003, mesh: 20003 };
        let tls = |on| {
            let folder = stage.identity(on).display().to_string();
            format!(
                "ssl crt {folder}/both.pem ca-file {folder}/roots.pem verify required ssl-min-ver TLSv1.3 \
                 ciphersuites TLS_AES_128_GCM_SHA256"
            )
        };
        let (listen, mesh, open) = (pair.dial(), stage.at(On::B, pair.mesh), pair.mesh);
        let texts = [
            config(&format!("bind {listen}"), &format!("server next {mesh} {}", tls(On::A))),
            config(
                &format!("bind 0.0.0.0:{open} {} curves X25519", tls(On::B)),
                &format!("server next {}", program()),
            ),
        ];
        pair.start(stage, &["haproxy", "-db", "-f"], "haproxy.cfg", texts)
    },
};

fn config(bind: &str, server: &str) -> String {
    format!(
        "global\n  maxconn 8000\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
         listen bench\n  {bind}\n  {server}\n"
    )
}
