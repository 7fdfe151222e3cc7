//! What the contestants really say on the wire: the same version and key exchange, the cipher that each is said to have,
//! and no client without a certificate is let in.

use std::collections::BTreeMap;

use mesh_tests::{
    capture::{
        Capture,
        tls::{Chosen, chosen},
    },
    host::LIMIT,
    process,
};

use super::{
    contestants::{Contestant, Lane, MeshEnd},
    stage::{On, PROGRAM, Place, Stage},
};

/// Cipher suites, by their numbers.
pub const AES_128: u16 = 0x1301;
pub const AES_256: u16 = 0x1302;
/// X25519.
const GROUP: u16 = 0x001d;

/// Returns a suite's name.
pub fn suite_name(suite: u16) -> &'static str {
    match suite {
        AES_128 => "TLS_AES_128_GCM_SHA256",
        AES_256 => "TLS_AES_256_GCM_SHA384",
        _ => "unknown",
    }
}

/// Captures of both hosts that serve.
pub struct Look {
    captures: [(On, Capture); 2],
}

impl Look {
    pub fn begin(stage: &Stage) -> Self {
        let capture = |(from, to)| (to, stage.net.capture_wire(stage.host(to), stage.host(from)));
        Self { captures: [(On::A, On::B), (On::MeshA, On::MeshB)].map(capture) }
    }

    /// Returns, by the contestants' names, what their last handshakes were like.
    ///
    /// # Panics
    /// When one of them is not what was said, or not what the others do.
    pub fn end(self, stage: &Stage, lanes: &[(&'static Contestant, Lane)]) -> BTreeMap<&'static str, Chosen> {
        for (_, lane) in lanes {
            // Several times: whoever resumes sessions, perhaps in each thread its own, has one by then.
            for _ in 0..8 {
                stage.until_answered(lane.client, lane.dial);
            }
        }
        let traces = self.captures.map(|(on, capture)| (on, capture.stop()));
        let mut found = BTreeMap::new();
        for (Contestant { name, .. }, lane) in lanes {
            let Some(mesh) = lane.mesh else { continue };
            let on = if lane.client.on == On::MeshA { On::MeshB } else { On::B };
            let (_, trace) = traces.iter().find(|(of, _)| *of == on).expect("both are captured");
            let handshakes =
                trace.conversations(mesh.at.port()).into_iter().filter_map(|(_, back)| chosen(back));
            let handshakes: Vec<Chosen> = handshakes.collect();
            assert!(!handshakes.is_empty(), "{name}: no TLS 1.3 handshake was seen at {}", mesh.at);
            for Chosen { suite, group, resumed } in &handshakes {
                let same = *suite == mesh.suite && (*group == Some(GROUP) || *resumed && group.is_none());
                assert!(
                    same,
                    "{name}: cipher suite {suite:#x} and group {group:x?} instead of {:#x}, {GROUP:#x}",
                    mesh.suite
                );
            }
            if on == On::MeshB {
                let plain = trace.bytes_at(PROGRAM);
                assert_eq!(
                    plain, 0,
                    "{name}: something was not captured and went to the program's port itself"
                );
            }
            refuses_anonymous(stage, name, mesh);
            let resumes = handshakes.iter().any(|handshake| handshake.resumed);
            found.insert(*name, Chosen { resumed: resumes, ..handshakes[0] });
        }
        found
    }
}

/// Checks that the server's side answers who shows a certificate, and nobody else.
fn refuses_anonymous(stage: &Stage, name: &str, mesh: MeshEnd) {
    let at = mesh.at.to_string();
    if !mesh.takes_load {
        // The load would be refused anyway, so the reason counts. (s_client believes any server, and waits for its word.)
        let words = ["openssl", "s_client", "-tls1_3", "-alpn", "h2", "-ign_eof", "-connect", &at];
        let said = stage.host(On::A).run("", &words).fails();
        assert!(
            said.contains("alert certificate required"),
            "{name} let a client without a certificate in: {said}"
        );
        return;
    }
    let place = Place { on: On::A, cgroup: "load" };
    let dial = |more: &[&str]| {
        let mut command = stage.load(place);
        command.args(["once", "--to", &at, "--identity"]).arg(stage.identity(On::A)).args(more);
        process::run(command, None, LIMIT)
    };
    let said = dial(&[]);
    assert!(said.status.success(), "{name} did not answer the caller: {said}");
    let said = dial(&["--anonymous"]);
    assert!(!said.status.success(), "{name} let a client without a certificate in: {said}");
}
