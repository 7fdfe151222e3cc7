//! ztunnel, the proxy of Istio's ambient mode, without Kubernetes: what a control plane would tell it is given to it, and
//! the certificates are those of the CA that is built into it for tests. Between the two, flows are streams of HTTP/2 over
//! TLS connections that stay open.
//!
//! Nothing diverts connections to it, which spares it what iptables would cost: the client dials a virtual IP that is an
//! address of its own host, at the port where ztunnel listens.

use std::{net::Ipv4Addr, path::PathBuf};

use super::{Contestant, Lane, MeshEnd, Pair, version};
use crate::datapath::{
    stage::{CALLER, On, PROGRAM, SERVICE, Stage},
    wire::AES_256,
};

/// The service's. Not on loopback: there ztunnel refuses its own port.
const VIRTUAL_IP: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);

pub const CONTESTANT: Contestant = Contestant {
    name: "ztunnel",
    against: super::PLAIN,
    find: || {
        let binary = binary().ok_or(
            "in no package: build the repository istio/ztunnel with `cargo build --release --features testing`, and set \
             ZTUNNEL_BIN to the binary",
        )?;
        version(&[binary.to_str().expect("UTF-8"), "version"])
    },
    start: |stage| {
        // Its ports can't be told.
        let pair = Pair { name: "ztunnel", listen: 15001, mesh: 15008 };
        let (address, state) = (format!("{VIRTUAL_IP}/32"), state(stage, &pair));
        stage.host(On::A).run("", &["ip", "addr", "replace", &address, "dev", "lo"]).ok();
        let binary = binary().expect("it was found").display().to_string();
        for (place, port, workload) in
            [(pair.server(), pair.mesh, SERVICE), (pair.client(), pair.listen, CALLER)]
        {
            let workload = format!("bench/{workload}/{workload}");
            let variables = [
                ("PROXY_MODE", "dedicated"),
                ("PROXY_WORKLOAD_INFO", &workload),
                ("LOCAL_XDS", &state),
                ("XDS_ADDRESS", ""),
                ("FAKE_CA", "true"),
                // With the caller's address as its own towards the program, B would have to send answers back to it.
                ("ENABLE_ORIG_SRC", "false"),
                ("ISTIO_META_DNS_CAPTURE", "false"),
                // Otherwise a line for each connection, or two.
                ("RUST_LOG", "error"),
            ];
            stage.start_with(place, port, &[&binary, "proxy"], &variables);
        }
        let lane = pair.lane(stage);
        let mesh = lane.mesh.map(|usual| MeshEnd { suite: AES_256, takes_load: false, ..usual });
        Lane { dial: (VIRTUAL_IP, pair.listen).into(), mesh, ..lane }
    },
};

/// The workloads of both hosts, and the service. No policy: everybody may connect who has a certificate.
fn state(stage: &Stage, pair: &Pair) -> String {
    let workload = |name: &str, on: On, services: &str| {
        let ip = stage.host(on).v4;
        format!(
            "- {{uid: {name}, name: {name}, namespace: bench, serviceAccount: {name}, trustDomain: cluster.local, \
             workloadIps: [\"{ip}\"], protocol: HBONE, services: {services}}}\n"
        )
    };
    let ports = format!("{{{}: {PROGRAM}}}", pair.listen);
    let served = format!("{{bench/{SERVICE}.bench: {ports}}}");
    let workloads = [workload(CALLER, On::A, "{}"), workload(SERVICE, On::B, &served)].concat();
    format!(
        "workloads:\n{workloads}services:\n- {{name: {SERVICE}, namespace: bench, hostname: {SERVICE}.bench, \
         vips: [\"/{VIRTUAL_IP}\"], ports: {ports}}}\n"
    )
}

/// Returns `$ZTUNNEL_BIN`, or the `ztunnel` on the path.
fn binary() -> Option<PathBuf> {
    if let Some(given) = std::env::var_os("ZTUNNEL_BIN") {
        return Some(given.into()).filter(|place: &PathBuf| place.is_file());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join("ztunnel")).find(|place| place.is_file())
}
