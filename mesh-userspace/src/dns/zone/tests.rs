//! What the zone answers, message by message.

use std::net::SocketAddr;

use hickory_proto::op::Edns;
use proptest::prelude::*;

use super::*;
use crate::{
    catalog::{Catalog, InstanceHealth, StoredVirtualIps, VirtualIp, VirtualIps, VirtualRanges},
    intention::Intentions,
};

fn instance(service: &str, n: u8, port: u16, health: InstanceHealth) -> Instance {
    Instance {
        id: format!("{service}-{n}"),
        mesh: SocketAddr::from(([10, 77, 0, n], 21000)),
        health,
        ..Instance::testing(service, &format!("node-{n}"), &format!("10.77.0.{n}:{port}"))
    }
}

fn world(instances: Vec<Instance>, virtual_ips: bool) -> Mesh {
    let ranges = VirtualRanges {
        v4: Some("240.240.0.0/16".parse().unwrap()),
        v6: Some("fd6d:6573:6800::/64".parse().unwrap()),
    };
    let of_db = VirtualIp {
        v4: Some("240.240.1.1".parse().unwrap()),
        v6: Some("fd6d:6573:6800::1".parse().unwrap()),
    };
    let stored = StoredVirtualIps::from([("db".parse().unwrap(), of_db)]);
    Mesh {
        catalog: Some(Arc::new(Catalog::new(instances, "here"))),
        intentions: Some(Arc::new(Intentions::default())),
        virtual_ips: Arc::new(if virtual_ips {
            VirtualIps::restore(ranges, stored)
        } else {
            VirtualIps::default()
        }),
        ..Mesh::default()
    }
}

fn usual() -> Mesh {
    use InstanceHealth::{Critical, Gone, Passing};
    let all = vec![
        instance("db", 1, 5432, Passing),
        instance("db", 2, 5433, Passing),
        instance("db", 3, 5432, Critical),
        instance("db", 4, 5432, Gone),
        instance("Cased", 5, 80, Passing),
        instance("ill", 6, 80, Critical),
    ];
    world(all, true)
}

fn zones() -> Zones {
    Zones::new(vec!["mesh".parse().unwrap()], vec!["consul".parse().unwrap()])
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn answer_to(query: &Message, mesh: &Mesh, transport: Transport) -> Option<(Message, usize)> {
    match zones().answer(&query.to_vec().unwrap(), mesh, transport, || 7) {
        Outcome::Answer(bytes) => Some((Message::from_vec(&bytes).unwrap(), bytes.len())),
        Outcome::Forward => None,
    }
}

fn ask(name: &str, kind: RecordType, mesh: &Mesh) -> Option<Message> {
    let query = question(name, kind);
    let (answer, _) = answer_to(&query, mesh, Transport::Udp)?;
    assert_eq!(answer.metadata.id, query.metadata.id);
    assert_eq!(answer.queries, query.queries);
    assert!(answer.metadata.authoritative && answer.metadata.recursion_desired);
    Some(answer)
}

fn ips(name: &str, kind: RecordType) -> Vec<String> {
    let answer = ask(name, kind, &usual()).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError, "{name}");
    let mut all: Vec<_> =
        answer.answers.iter().map(|record| record.data.ip_addr().unwrap().to_string()).collect();
    all.sort();
    all
}

#[test]
fn a_bare_name_is_the_virtual_ip_and_the_longer_one_the_healthy_instances() {
    use RecordType::{A, AAAA, ANY};
    for name in ["db.mesh.", "db.virtual.mesh.", "db.virtual.consul.", "DB.mEsH.", "db.virtual.dc1.consul."] {
        assert_eq!(ips(name, A), ["240.240.1.1"], "{name}");
        assert_eq!(ips(name, AAAA), ["fd6d:6573:6800::1"], "{name}");
    }
    for name in ["db.service.mesh.", "db.service.consul.", "db.service.dc1.consul.", "dB.SERVICE.consul."] {
        assert_eq!(ips(name, A), ["10.77.0.1", "10.77.0.2"], "{name}");
        assert!(ips(name, AAAA).is_empty(), "{name}");
    }
    assert_eq!(ips("db.mesh.", ANY), ["240.240.1.1", "fd6d:6573:6800::1"]);
    assert_eq!(ips("cased.mesh.", A), ["10.77.0.5"], "no virtual IP: its instances");
    assert_eq!(ips("0a4d0009.addr.dc1.consul.", A), ["10.77.0.9"]);
}

#[test]
fn a_tag_before_the_name_means_those_instances_that_have_it() {
    let tagged = |n: u8, tags: &[&str]| Instance {
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        ..instance("db", n, 5432, InstanceHealth::Passing)
    };
    let dotted = instance("old.db", 9, 5432, InstanceHealth::Passing);
    let mesh = world(vec![tagged(1, &["Primary", "v1.2"]), tagged(2, &["replica"]), dotted], true);
    let ask = |name: &str, kind| ask(name, kind, &mesh);
    let ips = |name: &str| {
        let answer = ask(name, RecordType::A).unwrap();
        answer.answers.iter().map(|record| record.data.ip_addr().unwrap().to_string()).collect::<Vec<_>>()
    };
    for name in [
        "primary.db.service.consul.",
        "PRIMARY.db.service.dc1.consul.",
        "_db._primary.service.consul.",
        "v1.2.db.service.consul.",
        "primary.db.service.mesh.",
    ] {
        assert_eq!(ips(name), ["10.77.0.1"], "{name}");
    }
    assert_eq!(ips("old.db.service.consul."), ["10.77.0.9"], "a service of that very name is meant first");
    assert_eq!(ask("replica.db.service.consul.", RecordType::SRV).unwrap().answers.len(), 1);
    assert_eq!(ask("nope.db.service.consul.", RecordType::A), None, "somebody else may know");
    let nope = ask("nope.db.service.mesh.", RecordType::A).unwrap();
    assert_eq!(nope.metadata.response_code, ResponseCode::NXDomain);
}

#[test]
fn a_node_with_an_instance_has_a_name() {
    let on = |node: &str, n: u8, health| Instance {
        node: node.to_owned(),
        node_address: Some(IpAddr::from([10, 77, 0, n])),
        ..instance("db", n, 5432, health)
    };
    let mesh =
        world(vec![on("Host-A", 1, InstanceHealth::Critical), on("gone", 2, InstanceHealth::Gone)], true);
    for name in ["host-a.node.consul.", "HOST-a.node.dc1.consul.", "host-a.node.mesh."] {
        let answer = ask(name, RecordType::A, &mesh).unwrap();
        assert_eq!(answer.answers[0].data.ip_addr(), Some(IpAddr::from([10, 77, 0, 1])), "{name}");
    }
    assert!(ask("host-a.node.mesh.", RecordType::AAAA, &mesh).unwrap().answers.is_empty());
    for name in ["gone.node.consul.", "other.node.consul.", "host-a.node.dc9.consul."] {
        assert_eq!(ask(name, RecordType::A, &mesh), None, "{name}");
    }
}

#[test]
fn the_case_of_a_question_is_that_of_its_answer() {
    let answer = ask("dB.MeSh.", RecordType::A, &usual()).unwrap();
    assert_eq!(answer.answers[0].name.to_string(), "dB.MeSh.");
}

#[test]
fn what_does_not_exist_is_said_not_to_in_our_own_domain_and_left_to_others_elsewhere() {
    for name in ["nope.mesh.", "nope.service.mesh.", "ill.service.mesh.", "db.service.dc9.mesh.", "*.mesh."] {
        let answer = ask(name, RecordType::A, &usual()).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain, "{name}");
        assert_eq!(answer.authorities[0].record_type(), RecordType::SOA, "{name}");
    }
    let left = [
        "nope.service.consul.",
        "ill.service.consul.",
        "db.consul.",
        "_db._tcp.consul.",
        "consul.",
        "db.connect.consul.",
        "example.com.",
        "db.mesh.example.com.",
        "db.",
        ".",
    ];
    for name in left {
        assert_eq!(ask(name, RecordType::A, &usual()), None, "{name}");
    }
}

#[test]
fn other_types_and_names_in_between_have_no_data() {
    for (name, kind) in [
        ("db.mesh.", RecordType::MX),
        ("db.service.mesh.", RecordType::TXT),
        ("mesh.", RecordType::A),
        ("service.mesh.", RecordType::A),
        ("_tcp.mesh.", RecordType::A),
    ] {
        let answer = ask(name, kind, &usual()).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError, "{name}");
        assert!(answer.answers.is_empty() && !answer.authorities.is_empty(), "{name}");
    }
    let soa = ask("mesh.", RecordType::SOA, &usual()).unwrap();
    assert_eq!(soa.answers[0].record_type(), RecordType::SOA);
}

#[test]
fn srv_records_have_ports_and_the_addresses_of_what_they_name() {
    for name in ["db.service.consul.", "_db._tcp.service.consul.", "_db._tcp.service.mesh."] {
        let answer = ask(name, RecordType::SRV, &usual()).unwrap();
        assert_eq!((answer.answers.len(), answer.additionals.len()), (2, 2), "{name}");
        for record in &answer.answers {
            let RData::SRV(srv) = &record.data else { panic!("{record}") };
            let address = answer.additionals.iter().find(|a| a.name == srv.target).unwrap();
            let again = ask(&srv.target.to_string(), RecordType::A, &usual()).unwrap();
            assert_eq!(again.answers[0].data, address.data);
            let expected = if srv.port == 5432 { "10.77.0.1" } else { "10.77.0.2" };
            assert_eq!(address.data.ip_addr().unwrap().to_string(), expected);
        }
    }
    let answer = ask("_db._tcp.mesh.", RecordType::SRV, &usual()).unwrap();
    assert_eq!((answer.answers.len(), answer.additionals.len()), (2, 2), "two ports, two families");
    let RData::SRV(srv) = &answer.answers[0].data else { panic!() };
    assert_eq!((srv.port, srv.target.to_string()), (5432, "db.mesh.".to_owned()));
}

#[test]
fn a_virtual_ip_has_a_name_and_others_are_left_alone() {
    let answer = ask("1.1.240.240.in-addr.arpa.", RecordType::PTR, &usual()).unwrap();
    assert_eq!(answer.answers[0].data, RData::PTR(PTR(Name::from_ascii("db.mesh.").unwrap())));
    for other in ["2.1.240.240.in-addr.arpa.", "240.240.in-addr.arpa.", "x.in-addr.arpa."] {
        assert_eq!(ask(other, RecordType::PTR, &usual()), None, "{other}");
    }
}

#[test]
fn before_anything_is_known_a_client_is_told_to_ask_again() {
    let answer = ask("db.mesh.", RecordType::A, &Mesh::default()).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(ask("db.service.consul.", RecordType::A, &Mesh::default()), None);
}

#[test]
fn a_changed_catalog_is_seen_at_once() {
    let zones = zones();
    let query = question("db.service.mesh.", RecordType::A).to_vec().unwrap();
    let count = |mesh: &Mesh| match zones.answer(&query, mesh, Transport::Udp, || 0) {
        Outcome::Answer(bytes) => Message::from_vec(&bytes).unwrap().answers.len(),
        Outcome::Forward => panic!("it is ours"),
    };
    assert_eq!(count(&usual()), 2);
    assert_eq!(count(&world(vec![instance("db", 1, 1, InstanceHealth::Passing)], true)), 1);
}

#[test]
fn large_answers_are_cut_for_datagrams_and_whole_over_tcp() {
    let many = (1..=200).map(|n| instance("big", n, 80, InstanceHealth::Passing)).collect();
    let mesh = world(many, true);
    let plain = question("big.service.mesh.", RecordType::SRV);
    let mut roomy = plain.clone();
    let mut edns = Edns::new();
    edns.set_max_payload(1400);
    roomy.set_edns(edns);
    let (cut, len) = answer_to(&plain, &mesh, Transport::Udp).unwrap();
    assert!(cut.metadata.truncation && len <= 512 && !cut.answers.is_empty());
    assert!(cut.edns.is_none());
    let (roomy, longer) = answer_to(&roomy, &mesh, Transport::Udp).unwrap();
    assert!(roomy.metadata.truncation && longer <= 1400 && longer > len);
    assert!(roomy.edns.is_some());
    let (whole, _) = answer_to(&plain, &mesh, Transport::Tcp).unwrap();
    assert_eq!((whole.answers.len(), whole.metadata.truncation), (200, false));
}

#[test]
fn an_edns_version_that_is_not_known_is_refused() {
    let mut query = question("db.mesh.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_version(1);
    query.set_edns(edns);
    let (answer, _) = answer_to(&query, &usual(), Transport::Udp).unwrap();
    // BADVERS and BADSIG are one number (RFC 6895, 2.3).
    assert_eq!(u16::from(answer.metadata.response_code), 16);
    assert!(answer.answers.is_empty());
}

#[test]
fn what_is_no_plain_question_is_for_the_server_to_judge() {
    let mut two = question("db.mesh.", RecordType::A);
    two.add_query(Query::query(Name::from_ascii("x.mesh.").unwrap(), RecordType::A));
    let mut chaos = question("db.mesh.", RecordType::TXT);
    chaos.queries[0].query_class = DNSClass::CH;
    let mut update = question("db.mesh.", RecordType::SOA);
    update.metadata.op_code = OpCode::Notify;
    for query in [two, chaos, update, Message::query()] {
        assert_eq!(answer_to(&query, &usual(), Transport::Udp), None);
    }
}

proptest! {
    #[test]
    fn any_bytes_are_answered_or_left_alone(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = zones().answer(&bytes, &usual(), Transport::Udp, || 0);
    }

    #[test]
    fn any_labels_are_answered_within_bounds(
        labels in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..6),
        kind in any::<u16>(),
    ) {
        let name = Name::from_labels(labels.iter().map(Vec::as_slice)).unwrap();
        let mesh_domain: Domain = "mesh".parse().unwrap();
        let Ok(name) = name.append_domain(mesh_domain.name()) else { return Ok(()) };
        let mut message = Message::query();
        message.add_query(Query::query(name, RecordType::from(kind)));
        let Ok(bytes) = message.to_vec() else { return Ok(()) };
        if let Outcome::Answer(bytes) = zones().answer(&bytes, &usual(), Transport::Udp, || 0) {
            prop_assert!(bytes.len() <= 512);
            prop_assert!(Message::from_vec(&bytes).is_ok());
        }
    }
}
