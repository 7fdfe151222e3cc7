//! Names that `mesh-only` workloads may reach: which queries leave the host for them, and what the answers let them reach.

use std::{fs, net::IpAddr, path::Path, sync::Arc, time::Instant};

use super::kernel::Kernel;
use crate::{
    datapath::engine::Engine,
    dns::{Dns, Learned, Leaving},
    proxy::RateLimit,
    telemetry::AUDIT,
};

/// Who the host asks for names.
const RESOLV_CONF: &str = "/etc/resolv.conf";
const AUDITED_PER_SECOND: u32 = 100;

/// Has `dns` refuse what may not leave, and the kernel let workloads reach what they are told.
pub fn connect(dns: &Dns, kernel: &Kernel) {
    let learner = kernel.clone();
    dns.observe(Arc::new(move |learned: &Learned| {
        let mut engine = learner.lock();
        if may_ask(&engine, learned.server, &learned.service) {
            engine.let_reach(&learned.service, &learned.name, &learned.addresses, learned.ttl);
        }
    }));
    let (kernel, limit) = (kernel.clone(), RateLimit::per_second(AUDITED_PER_SECOND));
    dns.guard(Arc::new(move |leaving| {
        let may = may_leave(&kernel.lock(), leaving);
        if !may && let Some(unlogged_before) = limit.permit(Instant::now()) {
            let (source, server) = (leaving.service, leaving.server);
            let name = leaving.name.as_deref().unwrap_or("-");
            tracing::info!(target: AUDIT, decision = "deny", reason = "mesh-only", %source, name, %server, unlogged_before, "a query for a name outside the mesh was refused");
        }
        may
    }));
}

fn may_leave(engine: &Engine, leaving: &Leaving<'_>) -> bool {
    if !engine.is_mesh_only(leaving.service) {
        return true;
    }
    let named = leaving.name.as_deref().is_some_and(|name| engine.may_resolve(leaving.service, name));
    named && may_ask(engine, leaving.server, leaving.service)
}

/// Whether the server may be believed, and told what the workload asks: it is one that the host itself asks, or one that
/// the workload's list has. Else a program would name its own accomplice, who says that any name is at any address.
fn may_ask(engine: &Engine, server: std::net::SocketAddr, service: &crate::identity::ServiceName) -> bool {
    engine.lists_datagrams(service, server) || resolvers(Path::new(RESOLV_CONF)).contains(&server.ip())
}

fn resolvers(file: &Path) -> Vec<IpAddr> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let server = |line: &str| {
        let address = line.strip_prefix("nameserver")?.split_whitespace().next()?;
        address.split('%').next()?.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
    };
    text.lines().filter_map(server).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_the_name_servers_of_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "# nameserver 9.9.9.9\nsearch a.test\nnameserver 10.0.0.53\nnameserver\t::1\nnameserver fe80::1%eth0\nnameserver x\n";
        fs::write(file.path(), text).unwrap();
        let expected: Vec<IpAddr> = ["10.0.0.53", "::1", "fe80::1"].map(|ip| ip.parse().unwrap()).into();
        assert_eq!(resolvers(file.path()), expected);
        assert!(resolvers(Path::new("/nonexistent")).is_empty());
    }
}
