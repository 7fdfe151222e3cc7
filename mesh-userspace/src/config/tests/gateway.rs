//! `[[gateway]]`, and the files that it names.

use super::*;

#[test]
fn a_gateways_tls_is_for_the_name_of_its_address_unless_another_is_given() {
    for (address, sni, expected) in [
        ("db.example.com:5432", "", "db.example.com"),
        ("db.example.com.:5432", "", "db.example.com"),
        ("10.9.9.9:5432", "", "10.9.9.9"),
        ("[2001:db8::9]:5432", "", "2001:db8::9"),
        ("10.9.9.9:5432", "sni = \"db.example.com\"", "db.example.com"),
        ("db.example.com:5432", "sni = \"10.9.9.9\"", "10.9.9.9"),
    ] {
        let text = format!(
            "[[gateway]]\nservice = \"x\"\naddress = \"{address}\"\n[gateway.tls]\nca_file = \"/ca\"\n{sni}\n"
        );
        let tls = parse(&text).unwrap().gateways.remove(0).tls.expect("there is a table");
        assert_eq!(tls.name.to_str(), expected);
    }
}

#[test]
fn a_file_of_a_gateways_tls_is_opened_by_whoever_acts_on_it_and_a_mistake_in_it_has_a_place() {
    let dir = tempfile::tempdir().unwrap();
    let (file, ca) = (dir.path().join("m.toml"), dir.path().join("ca.pem"));
    let text = format!(
        "[[gateway]]\nservice = \"x\"\naddress = \"h:1\"\n[gateway.tls]\nca_file = \"{}\"\n",
        ca.display()
    );
    fs::write(&file, text).unwrap();
    assert!(Config::load(Some(&file)).is_ok(), "a command that only asks");
    let said = |expected: &str| {
        let error = Config::load_with_files(Some(&file)).unwrap_err().to_string();
        assert!(error.contains(":5:11: gateway[0].tls.ca_file: ") && error.contains(expected), "{error}");
    };
    said("cannot be read: No such file");
    fs::write(&ca, "no certificate").unwrap();
    said("has no certificate in PEM");
    let key = rcgen::KeyPair::generate().unwrap();
    fs::write(&ca, rcgen::CertificateParams::default().self_signed(&key).unwrap().pem()).unwrap();
    assert!(Config::load_with_files(Some(&file)).is_ok());
}

#[test]
fn a_gateway_is_taken_with_defaults_and_each_mistake_in_one_is_named() {
    let good = "[[gateway]]\nservice = \"billing-db\"\naddress = \"10.9.9.9:5432\"\n";
    let expected = GatewayConfig {
        service: "billing-db".parse().unwrap(),
        address: ExternalAddress::Literal("10.9.9.9:5432".parse().unwrap()),
        mesh_port: None,
        tls: None,
        check_interval: Some(Duration::from_secs(10)),
    };
    assert_eq!(parse(good).unwrap().gateways, [expected]);
    for (more, said) in [
        ("", "gateway[0].service: missing; accepted: 1 to 63"),
        ("service = \"x\"\n", "gateway[0].address: missing; accepted: ADDRESS:PORT or NAME:PORT"),
        ("service = \"x\"\naddress = \"10.9.9.9\"", "(the port is missing)"),
        ("service = \"x\"\naddress = \"127.0.0.1:1\"", "a program of this host is a [[service]]"),
        (
            "service = \"x\"\naddress = \"h:1\"\nmesh_port = 9",
            "gateway[0].mesh_port: found 9; accepted: a port of",
        ),
        ("service = \"x\"\naddress = \"h:1\"\nport = 9", "gateway[0].port: unknown key"),
        ("service = \"x\"\naddress = \"h:1\"\n[gateway.tls]", "m.toml:4:1: gateway[0].tls.ca_file: missing"),
        (
            "service = \"x\"\naddress = \"h:1\"\n[gateway.tls]\nca_file = \"/c\"\nsni = \"a b\"",
            "m.toml:6:7: gateway[0].tls.sni: found \"a b\"; accepted: the host name, or the address",
        ),
        (
            "service = \"x\"\naddress = \"h:1\"\n[gateway.tls]\nca_file = \"/c\"\ncert_file = \"/d\"",
            "gateway[0].tls.key_file: missing",
        ),
    ] {
        let found = mistakes(&format!("[[gateway]]\n{more}")).join("\n");
        assert!(found.contains(said), "{more:?}: {found}");
    }
    let twice = mistakes(&format!("[[service]]\nname = \"billing-db\"\n{good}")).join("\n");
    assert!(twice.contains("gateway[0].service: found \"billing-db\" again"), "{twice}");
    let tight =
        format!("[address]\nmesh_ports = \"21000-21000\"\n[[service]]\nname = \"a\"\nport = 1\n{good}");
    assert!(
        mistakes(&tight).join("\n").contains("gateway[0]: address.mesh_ports (21000-21000) has no port left")
    );
}
