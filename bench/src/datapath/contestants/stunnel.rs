//! stunnel: a thread for each connection.

use super::{Contestant, Pair, program, version};
use crate::datapath::stage::On;

pub const CONTESTANT: Contestant = Contestant {
    name: "stunnel",
    against: super::PLAIN,
    find: || version(&["stunnel4", "-version"]),
    start: |stage| {
        let pair = Pair { name: "stunnel", listen: 8005, mesh: 20005 };
        let config = |on, lines: String| {
            let folder = stage.identity(on).display().to_string();
            format!(
                "foreground = yes\npid =\ndebug = 3\nsocket = l:TCP_NODELAY=1\nsocket = r:TCP_NODELAY=1\n\
                 [bench]\n{lines}\ncert = {folder}/cert.pem\nkey = {folder}/key.pem\nCAfile = {folder}/roots.pem\n\
                 verifyChain = yes\nsslVersion = TLSv1.3\nciphersuites = TLS_AES_128_GCM_SHA256\ncurves = X25519\n"
            )
        };
        let (listen, mesh, open, to) = (pair.dial(), stage.at(On::B, pair.mesh), pair.mesh, program());
        let texts = [
            config(On::A, format!("client = yes\naccept = {listen}\nconnect = {mesh}")),
            config(On::B, format!("accept = 0.0.0.0:{open}\nconnect = {to}")),
        ];
        pair.start(stage, &["stunnel4"], "stunnel.conf", texts)
    },
};
