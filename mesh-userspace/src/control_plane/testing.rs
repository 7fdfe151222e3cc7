//! What the tests of this module share: settings, and the real Consul where it is installed.

use std::path::PathBuf;

use super::settings::{Kind, Settings};

pub fn settings(address: &str) -> Settings {
    Settings {
        kind: Kind::Consul,
        address: address.parse().unwrap(),
        ca_file: None,
        client_cert: None,
        token: None,
        node: "host-a".to_owned(),
        node_address: "10.77.0.1".parse().unwrap(),
        datacenter: "dc1".to_owned(),
        state_dir: PathBuf::from("/nonexistent"),
    }
}
