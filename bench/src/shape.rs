//! What a synthetic mesh looks like: names, addresses and the bodies that register it. Pure.

use std::net::{Ipv4Addr, SocketAddrV4};

use serde_json::{Value, json};

/// The size of a mesh.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub services: usize,
    /// Of each service; each is a program and its proxy, as a meshnode registers them.
    pub instances: usize,
    pub nodes: usize,
    /// From each service to the ones after it.
    pub intentions: usize,
}

/// Ports of the programs and the proxies of a node, from here on.
const PROGRAMS: usize = 10_000;
const PROXIES: usize = 21_000;

/// Returns the name of service number `n`.
pub fn name(n: usize) -> String {
    format!("s{n:05}")
}

impl Shape {
    /// How many instances there are of all services.
    pub fn all_instances(&self) -> usize {
        self.services * self.instances
    }

    /// How many intentions there are of all services.
    pub fn all_intentions(&self) -> usize {
        self.services * self.intentions
    }

    /// Returns where programs dial instance `k` of service `n`. No host has these addresses.
    pub fn address(&self, n: usize, k: usize) -> SocketAddrV4 {
        let (node, slot) = self.place(n, k);
        SocketAddrV4::new(node_address(node), port(PROGRAMS, slot))
    }

    fn place(&self, n: usize, k: usize) -> (usize, usize) {
        let number = n * self.instances + k;
        (number % self.nodes, number / self.nodes)
    }

    /// Returns the bodies for `/v1/catalog/register` of instance `k` of service `n`: the program with its check, and
    /// its proxy.
    pub fn registrations(&self, n: usize, k: usize) -> [Value; 2] {
        let ((node, slot), name) = (self.place(n, k), name(n));
        let id = format!("{name}-{k}");
        let of_node = |service: Value| {
            json!({
                "Node": format!("node-{node:05}"), "Address": node_address(node), "Service": service,
            })
        };
        let mut program = of_node(json!({"Service": name, "ID": id, "Port": port(PROGRAMS, slot)}));
        program["Check"] = json!({
            "CheckID": format!("service:{id}"), "Name": "TCP", "Status": "passing", "ServiceID": id,
        });
        let proxy = of_node(json!({
            "Kind": "connect-proxy", "Service": format!("{name}-sidecar-proxy"), "ID": format!("{id}-sidecar-proxy"),
            "Port": port(PROXIES, slot),
            "Proxy": {"DestinationServiceName": name, "DestinationServiceID": id, "LocalServicePort": port(PROGRAMS, slot)},
        }));
        [program, proxy]
    }

    /// Returns source and destination of intention number `n`.
    pub fn intention(&self, n: usize) -> (String, String) {
        let source = n / self.intentions;
        (name(source), name((source + 1 + n % self.intentions) % self.services))
    }

    /// Returns the services that service `n` may call.
    pub fn upstreams(&self, n: usize) -> impl Iterator<Item = String> {
        (n * self.intentions..(n + 1) * self.intentions).map(|n| self.intention(n).1)
    }
}

fn node_address(node: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 128, 0, 0).to_bits() + u32::try_from(node).expect("few nodes") + 1)
}

fn port(base: usize, slot: usize) -> u16 {
    u16::try_from(base + slot).expect("few instances on a node")
}

/// Returns the body of an intention.
pub fn intention(source: &str, destination: &str, action: &str) -> Value {
    json!({"SourceName": source, "DestinationName": destination, "SourceType": "consul", "Action": action})
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_instance_has_an_address_of_its_own_and_every_pair_one_intention() {
        let shape = Shape { services: 50, instances: 7, nodes: 30, intentions: 9 };
        let all = (0..50).flat_map(|n| (0..7).map(move |k| (n, k)));
        let addresses: HashSet<_> = all.map(|(n, k)| shape.address(n, k)).collect();
        assert_eq!(addresses.len(), shape.all_instances());
        let pairs: HashSet<_> = (0..shape.all_intentions()).map(|n| shape.intention(n)).collect();
        assert_eq!(pairs.len(), shape.all_intentions());
        assert!(pairs.iter().all(|(source, destination)| source != destination));
    }
}
