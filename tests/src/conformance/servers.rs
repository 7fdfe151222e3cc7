//! A Consul server and a meshnode daemon with its embedded server, alone on a network each, so that both have the same
//! name and addresses.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::wire::{self, Answer};
use crate::{
    config::{Config, ControlPlane, STATE_DIR},
    host::Host,
    meshnode::Meshnode,
    net::Network,
    process::Output,
    program::consul::{self, Consul, Role},
    wait,
};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Consul,
    Embedded,
}

pub const SIDES: [Side; 2] = [Side::Consul, Side::Embedded];

#[derive(Debug)]
pub struct Servers {
    pub consul: Consul,
    pub consul_host: Host,
    pub embedded: Meshnode,
    consul_socket: PathBuf,
    embedded_socket: PathBuf,
    token: String,
    _networks: [Network; 2],
}

impl Servers {
    /// Starts both. What the two have defaults for is set alike: everybody may connect, leafs live for 72 hours.
    #[track_caller]
    pub fn start() -> Self {
        let networks = [Network::new(), Network::new()];
        let (consul_host, host) = (networks[0].host("a"), networks[1].host("a"));
        let consul_socket = consul_host.space().scratch().join("api.sock");
        let http = format!("127.0.0.1 unix://{}", consul_socket.display());
        let mut consul =
            Consul::launch(&consul_host, Role::server().with(json!({"addresses": {"http": http}})));
        let config = Config {
            node: "host-a".to_owned(),
            advertise: host.v4.into(),
            control_plane: ControlPlane::Embedded {
                lines: "default_policy = \"allow\"\nleaf_ttl = \"72h\"".to_owned(),
            },
            services: Vec::new(),
            top: String::new(),
            sections: String::new(),
        };
        let embedded = Meshnode::start(host, config);
        consul.wait_ready(&consul_host);
        let embedded_socket = embedded.host.space().path("/run/meshnode/api.sock");
        let token = embedded.host.read(&format!("{STATE_DIR}/api-token")).trim().to_owned();
        let servers = Self {
            consul,
            consul_host,
            embedded,
            consul_socket,
            embedded_socket,
            token,
            _networks: networks,
        };
        servers.wait_for_own_node();
        servers
    }

    /// A Consul that has just elected itself is not in its own catalog yet.
    fn wait_for_own_node(&self) {
        wait::until("both in their own catalogs", || {
            for side in SIDES {
                let said = self.request(side, "GET", "/v1/catalog/nodes", &[], "");
                if !said.body.contains("lan_ipv4") {
                    return Err(format!("{side:?}: {}", said.body));
                }
            }
            Ok(())
        });
    }

    #[track_caller]
    pub fn request(
        &self,
        side: Side,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        wire::request(self.socket(side), method, path, headers, body)
    }

    /// The unix socket at which the API is served.
    pub fn socket(&self, side: Side) -> &Path {
        match side {
            Side::Consul => &self.consul_socket,
            Side::Embedded => &self.embedded_socket,
        }
    }

    pub fn host(&self, side: Side) -> &Host {
        match side {
            Side::Consul => &self.consul_host,
            Side::Embedded => &self.embedded.host,
        }
    }

    /// Runs `consul WORDS…` through the loopback port, where both listen at Consul's own 8500; with the token that the
    /// embedded server's loopback port asks for.
    #[track_caller]
    pub fn cli(&self, side: Side, words: &[&str]) -> Output {
        consul::run_cli(self.host(side), consul::API, self.token(side), words)
    }

    /// The token for the server's loopback port.
    pub fn token(&self, side: Side) -> &str {
        match side {
            Side::Consul => "",
            Side::Embedded => &self.token,
        }
    }

    /// What both have logged, for a test that fails.
    pub fn logs(&self) -> String {
        format!("--- consul\n{}\n--- meshnode\n{}", self.consul.log(), self.embedded.log())
    }
}
