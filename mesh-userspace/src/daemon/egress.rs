//! Names that `mesh-only` workloads may reach: which queries leave the host for them, and what the answers let them reach.

use std::{
    collections::HashMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Instant,
};

use arc_swap::ArcSwap;

use super::kernel::Kernel;
use crate::{
    config::{Config, Egress, EgressRule},
    datapath::events::Recent,
    dns::{Dns, Learned, Leaving},
    identity::ServiceName,
    proxy::RateLimit,
    telemetry::AUDIT,
};

/// Who the host asks for names.
const RESOLV_CONF: &str = "/etc/resolv.conf";
const AUDITED_PER_SECOND: u32 = 100;

/// The lists of `mesh-only` workloads, as the configuration has them now. Reading them waits for nobody.
#[derive(Clone, Default)]
pub struct Lists(Arc<ArcSwap<HashMap<ServiceName, Vec<EgressRule>>>>);

impl Lists {
    pub fn set(&self, config: &Config) {
        let confined = config.services.iter().filter(|s| s.egress == Egress::MeshOnly);
        let lists = confined.map(|s| (s.name.clone(), s.egress_allow.clone())).collect();
        self.0.store(Arc::new(lists));
    }

    /// Has `dns` refuse what may not leave, which `recent` is told, and the kernel let workloads reach what they are told.
    pub fn connect(&self, dns: &Dns, kernel: &Kernel, recent: Recent) {
        let (lists, kernel) = (self.clone(), kernel.clone());
        dns.observe(Arc::new(move |learned: &Learned| {
            let Learned { service, server, name, addresses, ttl } = learned;
            let lists = lists.0.load();
            if lists.get(service).is_some_and(|list| may_ask(list, *server, name)) {
                kernel.lock().let_reach(service, name, addresses, *ttl);
            }
        }));
        let (lists, limit) = (self.clone(), RateLimit::per_second(AUDITED_PER_SECOND));
        dns.guard(Arc::new(move |leaving| {
            let Some(what) = refusal(&lists, leaving) else { return true };
            recent.refused_query(leaving.service, leaving.server, what);
            if let Some(unlogged_before) = limit.permit(Instant::now()) {
                let (source, server) = (leaving.service, leaving.server);
                let name = leaving.name.as_deref().unwrap_or("-");
                tracing::info!(target: AUDIT, decision = "deny", reason = "mesh-only", %source, name, %server, unlogged_before, "a query for a name outside the mesh was refused");
            }
            false
        }));
    }
}

/// Returns what of the query its workload's list does not allow, in the words that `status` and `exec` know; `None`: it may
/// leave.
fn refusal(lists: &Lists, leaving: &Leaving<'_>) -> Option<String> {
    let lists = lists.0.load();
    let list = lists.get(leaving.service)?;
    match &leaving.name {
        Some(name) if may_ask(list, leaving.server, name) => None,
        Some(name) if list.iter().any(|rule| rule.is_for(name)) => Some(format!("{UNTRUSTED_SERVER} {name}")),
        Some(name) => Some(format!("{UNLISTED_NAME} {name}")),
        None => Some("unreadable query".to_owned()),
    }
}

/// A query for a name that is not in the list; the name follows.
pub const UNLISTED_NAME: &str = "query for";
/// A query for a name that is, to a server that nobody trusts; the name follows.
pub const UNTRUSTED_SERVER: &str = "untrusted server for";

/// Whether the list has the name, and the server may be told of it and be believed: it is one that the host itself asks,
/// or one that the list has. Else a program would name its own accomplice, who says that any name is at any address.
fn may_ask(list: &[EgressRule], server: SocketAddr, name: &str) -> bool {
    list.iter().any(|rule| rule.is_for(name))
        && (list.iter().any(|rule| rule.has_datagrams_to(server))
            || resolvers(Path::new(RESOLV_CONF)).contains(&server.ip().to_canonical()))
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
    fn a_listed_name_is_asked_of_a_trusted_server_and_of_no_other() {
        let text = "[[service]]\nname = \"web\"\negress = \"mesh-only\"\n[[service.egress_allow]]\nname = \"*.example.com\"\n[[service.egress_allow]]\ncidr = \"10.0.0.53\"\nports = \"53\"\n[[service]]\nname = \"open\"\n";
        let lists = Lists::default();
        lists.set(&Config::parse(text, Path::new("m.toml")).unwrap());
        for (service, server, name, expected) in [
            ("web", "10.0.0.53:53", Some("api.example.com"), None),
            ("web", "10.0.0.53:53", Some("secret.evil.org"), Some("query for secret.evil.org")),
            ("web", "10.0.0.53:53", None, Some("unreadable query")),
            ("web", "192.0.2.66:53", Some("api.example.com"), Some("untrusted server for api.example.com")),
            ("open", "192.0.2.66:53", Some("secret.evil.org"), None),
            ("open", "192.0.2.66:53", None, None),
        ] {
            let service = service.parse().unwrap();
            let name = name.map(str::to_owned);
            let leaving = Leaving { service: &service, server: server.parse().unwrap(), name };
            assert_eq!(refusal(&lists, &leaving).as_deref(), expected, "{leaving:?}");
        }
    }

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
