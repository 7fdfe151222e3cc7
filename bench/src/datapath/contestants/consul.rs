//! Consul's built-in proxy; meshnode's embedded server is its agent.

use mesh_tests::{
    config::{API_PORT, CA_FILE, TOKEN},
    fixture::share_ca,
    program::consul::binary,
};
use serde_json::json;

use super::{Contestant, Pair, version_of};
use crate::datapath::stage::{CALLER, On, PROGRAM, Stage};

/// Its service: the other one's instance is meshnode's.
const SERVICE: &str = "echo-behind-consul";

pub const CONTESTANT: Contestant = Contestant {
    name: "consul",
    against: super::PLAIN,
    find: || version_of(binary(), &["version"]),
    start: |stage| {
        let pair = Pair { name: "consul", listen: 8006, mesh: 20006 };
        register(stage, &pair);
        let upstream = format!("{SERVICE}:{}", pair.listen);
        let server = ["-sidecar-for", SERVICE];
        let client = ["-service", CALLER, "-upstream", &upstream];
        let binary = binary().expect("it was found").display().to_string();
        let address = format!("https://{}:{API_PORT}", stage.control().host.v4);
        let variables =
            [("CONSUL_HTTP_ADDR", &*address), ("CONSUL_CACERT", CA_FILE), ("CONSUL_HTTP_TOKEN", TOKEN)];
        for (place, port, more) in
            [(pair.server(), pair.mesh, &server[..]), (pair.client(), pair.listen, &client[..])]
        {
            share_ca(stage.control(), stage.host(place.on));
            let words = [&[&*binary, "connect", "proxy", "-log-level", "err"], more].concat();
            stage.start_with(place, port, &words, &variables);
        }
        pair.lane(stage)
    },
};

fn register(stage: &Stage, pair: &Pair) {
    let ip = stage.host(On::B).v4;
    let body = json!({
        "Name": SERVICE, "Port": PROGRAM, "Address": ip,
        "Connect": {"SidecarService": {
            "Port": pair.mesh, "Address": ip,
            // By default there is a TCP check, the first of them later than a measurement wants to wait.
            "Checks": [{"Name": "the service itself", "AliasService": SERVICE}],
        }},
    });
    let control = stage.control();
    let (code, said) = control.api("PUT", "/v1/agent/service/register", Some(&body.to_string()));
    assert_eq!(code, 200, "{said}");
    control.intention(CALLER, SERVICE, "allow");
}
