//! The configuration as a user meets it: text in, a checked value or named mistakes out.

mod any_text;
mod gateway;

use std::{collections::BTreeSet, path::Path};

use super::*;

const EXAMPLE: &str = include_str!("../../../packaging/meshnode.example.toml");

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("m.toml"))
}

/// Returns the mistakes as lines.
fn mistakes(text: &str) -> Vec<String> {
    parse(text).unwrap_err().issues().iter().map(ToString::to_string).collect()
}

#[test]
fn each_mistake_has_its_place_its_key_what_was_found_and_what_is_accepted() {
    for (text, expected) in [
        ("node = 5", "m.toml:1:8: node: found 5; accepted: 1 to 63 letters"),
        ("datacenter = \"d c\"", "m.toml:1:14: datacenter: found \"d c\"; accepted: 1 to 63"),
        ("\n\nstate_dir = \"var\"", "m.toml:3:13: state_dir: found \"var\"; accepted: an absolute path"),
        ("run_dir = \"/a/../b\"", "m.toml:1:11: run_dir: found \"/a/../b\"; accepted: an absolute path"),
        ("bpf_dir = []", "m.toml:1:11: bpf_dir: found an array; accepted: an absolute path"),
        ("drain_deadline = 10", "m.toml:1:18: drain_deadline: found 10; accepted: a duration such as"),
        (
            "drain_deadline = \"2h\"",
            "found \"2h\"; accepted: a duration such as \"500ms\", \"10s\", \"5m\", \"1h30m\", from 0s to 1h",
        ),
        ("log = \"=x=\"", "m.toml:1:7: log: found \"=x=\"; accepted: a filter"),
        ("log_format = \"xml\"", "m.toml:1:14: log_format: found \"xml\"; accepted: \"text\", \"json\""),
        ("same_host = true", "m.toml:1:13: same_host: found true; accepted: \"direct\", \"mtls\""),
        (
            "nodes = \"a\"",
            "m.toml:1:1: nodes: unknown key; did you mean `node`? accepted here: node, datacenter",
        ),
        ("address = 1", "m.toml:1:11: address: found 1; accepted: a table, as in [address]"),
        (
            "[address]\nadvertise = \"0.0.0.0\"",
            "m.toml:2:13: address.advertise: found \"0.0.0.0\"; accepted: an IP",
        ),
        (
            "[address]\nmesh_ports = \"9-1\"",
            "m.toml:2:14: address.mesh_ports: found \"9-1\"; accepted: a range",
        ),
        (
            "[address]\nvirtual_ipv4 = \"8.8.0.0/16\"",
            "m.toml:2:16: address.virtual_ipv4: found \"8.8.0.0/16\"; accepted: \"off\", or a prefix of 8 to 24 bits",
        ),
        (
            "[address]\nvirtual_ipv6 = \"10.0.0.0/8\"",
            "m.toml:2:16: address.virtual_ipv6: found \"10.0.0.0/8\"; accepted: \"off\", or a prefix of 32 to 112 bits",
        ),
        (
            "[address]\nadvertise = \"240.240.1.1\"",
            "m.toml:2:13: address.advertise: found 240.240.1.1, which is in address.virtual_ipv4; accepted: another",
        ),
        (
            "[listen]\noutbound_port = 65536",
            "m.toml:2:17: listen.outbound_port: found 65536; accepted: an integer from 0 to 65535",
        ),
        (
            "[listen]\nguard_prot = 1",
            "m.toml:2:1: listen.guard_prot: unknown key; did you mean `guard_port`? accepted here: outbound_port, guard_port",
        ),
        (
            "service = { name = \"a\" }",
            "service: found a table; accepted: an array of tables, each written [[service]]",
        ),
        ("[proxy]\npool = \"off\"", "m.toml:2:8: proxy.pool: found \"off\"; accepted: true, false"),
        ("[limits]\nflows = 0", "m.toml:2:9: limits.flows: found 0; accepted: an integer from 1 to 16777216"),
        ("[[service]]\n", "m.toml:1:1: service[0].name: missing; accepted: 1 to 63"),
        ("[[service]]\nname = \"-\"", "m.toml:2:8: service[0].name: found \"-\"; accepted: 1 to 63"),
        (
            "[[service]]\nname = \"a\"\ncgroup = \"x\"",
            "m.toml:3:10: service[0].cgroup: found \"x\"; accepted: a cgroup path",
        ),
        (
            "[[service]]\nname = \"a\"\nunit = [\"a.service\", \"b\"]",
            "m.toml:3:22: service[0].unit[1]: found \"b\"; accepted: a systemd unit with its suffix, or an array of such (the suffix is missing, as in \"b.service\")",
        ),
        ("[[service]]\nname = \"a\"\ncgroup = []", "m.toml:3:10: service[0].cgroup: found an empty array"),
        (
            "[[service]]\nname = \"a\"\nport = 0",
            "m.toml:3:8: service[0].port: found 0; accepted: an integer from 1 to 65535",
        ),
        (
            "[[service]]\nname = \"a\"\nport = 1\nguard = \"loose\"",
            "m.toml:4:9: service[0].guard: found \"loose\"; accepted: \"strict\", \"permissive\"",
        ),
        ("[[service]]\nname = \"a\"\nport = 1\naddress = \"::\"", "service[0].address: found \"::\""),
        (
            "[[service]]\nname = \"a\"\nport = 1\ncheck.interval = \"0s\"",
            "m.toml:4:18: service[0].check.interval: found \"0s\"; accepted: a duration",
        ),
        (
            "[[service]]\nname = \"a\"\nport = 1\ncheck.enabled = 1",
            "service[0].check.enabled: found 1; accepted: true, false",
        ),
        (
            "[[service]]\nname = \"a\"\negress = \"none\"",
            "service[0].egress: found \"none\"; accepted: \"passthrough\", \"mesh-only\"",
        ),
        ("[[exempt]]\ncgroup = \"/a\"", "exempt[0].reason: missing"),
        ("[[exempt]]\nreason = \"x\"", "exempt[0].cgroup: missing"),
        ("a = = 1", "m.toml:1:5: "),
        ("node = \"a\"\nnode = \"b\"", "m.toml:2:1: duplicate key"),
    ] {
        let found = mistakes(text).join("\n");
        assert!(found.contains(expected), "{text}\n  expected: {expected}\n  found: {found}");
    }
}

#[test]
fn keys_that_clash_are_refused_and_their_twins_accepted() {
    let two = |a: &str, b: &str| format!("[[service]]\nname = \"a\"\n{a}\n[[service]]\nname = \"b\"\n{b}\n");
    for (bad, expected, good) in [
        (
            two("", "").replace("\"b\"", "\"a\""),
            "service[1].name: found \"a\" again; accepted: a name that no other service has, and the one at line 2, column 8",
            two("", ""),
        ),
        (
            two("port = 80", "port = 80"),
            "service[1].port: found 80; accepted: a port that nothing else has; `service[0].port` at line 3, column 8 has it",
            two("port = 80", "port = 81"),
        ),
        (
            two("port = 80\nmesh_port = 21000", "port = 81\nmesh_port = 21000"),
            "service[1].mesh_port: found 21000",
            two("port = 80\nmesh_port = 21000", "port = 81\nmesh_port = 21001"),
        ),
        (
            two("port = 80\nmesh_port = 22000", ""),
            "service[0].mesh_port: found 22000; accepted: a port of address.mesh_ports (21000-21255)",
            two("port = 80\nmesh_port = 21255", ""),
        ),
        (
            two("port = 21001", ""),
            "service[0].port: found 21001; accepted: a port outside address.mesh_ports",
            two("port = 20999", ""),
        ),
        (
            two("port = 80", "port = 80"),
            "announced at another one: announce_port",
            two("port = 80", "port = 80\nannounce_port = 81"),
        ),
        (
            two("port = 80", "port = 81\nannounce_port = 80"),
            "service[1].announce_port: found 80; accepted: a port that nothing else has",
            two("port = 80\nannounce_port = 81", "port = 80"),
        ),
        (
            two("announce_port = 80", ""),
            "service[0].port: missing; accepted: with `announce_port`",
            two("port = 80\nannounce_port = 80", ""),
        ),
        (
            two("mesh_port = 21001", ""),
            "service[0].port: missing; accepted: with `mesh_port`",
            two("port = 1\nmesh_port = 21001", ""),
        ),
        (
            two("guard = \"strict\"", ""),
            "service[0].port: missing; accepted: with `guard`",
            two("port = 1\nguard = \"strict\"", ""),
        ),
        (
            two("port = 8500", ""),
            "service[0].port: found 8500; accepted: a port that nothing else has; `control_plane.address`, by default, has it",
            two("port = 8501", ""),
        ),
        (
            format!("[listen]\nguard_port = 9\noutbound_port = 9\n{}", two("", "")),
            "guard_port: found 9",
            "[listen]\nguard_port = 0\noutbound_port = 0\n".into(),
        ),
        (
            format!("[address]\nmesh_ports = \"21000-21000\"\n{}", two("port = 1", "port = 2")),
            "service[1]: address.mesh_ports (21000-21000) has no port left",
            two("port = 1", "port = 2"),
        ),
    ] {
        let found = mistakes(&bad).join("\n");
        assert!(found.contains(expected), "{bad}\n  expected: {expected}\n  found: {found}");
        parse(&good).unwrap();
    }
}

#[test]
fn control_plane_combinations_are_refused_and_their_twins_accepted() {
    let cp = |text: &str| format!("[control_plane]\n{text}\n");
    for (bad, expected, good) in [
        (
            "kind = \"remote\"",
            "control_plane.address: missing; accepted: with kind = \"remote\"",
            "kind = \"remote\"\naddress = \"unix:///run/x.sock\"",
        ),
        (
            "kind = \"consul\"\naddress = \"http://10.0.0.1:8500\"",
            "control_plane.address: found \"http://10.0.0.1:8500\"; accepted: https:// (with ca_file)",
            "kind = \"consul\"\naddress = \"http://127.0.0.1:8500\"",
        ),
        (
            "kind = \"consul\"\naddress = \"https://10.0.0.1:8501\"",
            "without ca_file",
            "kind = \"consul\"\naddress = \"https://10.0.0.1:8501\"\nca_file = \"/ca.pem\"",
        ),
        (
            "kind = \"consul\"\naddress = \"127.0.0.1:8500\"",
            "the scheme must be http, https or unix",
            "kind = \"consul\"",
        ),
        (
            "kind = \"consul\"\nca_file = \"/ca.pem\"\naddress = \"unix:///x\"",
            "control_plane.ca_file: only with an https:// address",
            "kind = \"consul\"\naddress = \"unix:///x\"",
        ),
        (
            "kind = \"consul\"\ntoken = \"a\"\ntoken_file = \"/t\"",
            "control_plane.token_file: found besides token",
            "kind = \"consul\"\ntoken_file = \"/t\"",
        ),
        (
            "kind = \"consul\"\nembedded.leaf_ttl = \"1h\"",
            "control_plane.embedded: only with kind = \"embedded\"",
            "embedded.leaf_ttl = \"1h\"",
        ),
        (
            "token = \"a\"",
            "control_plane.token: only with kind = \"remote\" or \"consul\"",
            "kind = \"consul\"\ntoken = \"a\"",
        ),
        (
            "address = \"http://0.0.0.0:8500\"",
            "control_plane.address: found \"http://0.0.0.0:8500\"; accepted with kind = \"embedded\": http:// with a loopback",
            "address = \"http://[::1]:8600\"",
        ),
        (
            "embedded.leaf_ttl = \"59s\"",
            "control_plane.embedded.leaf_ttl: found \"59s\"; accepted: a duration such as \"500ms\", \"10s\", \"5m\", \"1h30m\", from 1m to 72h",
            "embedded.leaf_ttl = \"1m\"",
        ),
        ("embedded.leaf_ttl = \"73h\"", "leaf_ttl: found \"73h\"", "embedded.leaf_ttl = \"72h\""),
        (
            "embedded.trust_domain = \"UPPER\"",
            "trust_domain: found \"UPPER\"",
            "embedded.trust_domain = \"lower.consul\"",
        ),
        (
            "embedded.default_policy = \"drop\"",
            "default_policy: found \"drop\"; accepted: \"deny\", \"allow\"",
            "embedded.default_policy = \"allow\"",
        ),
        (
            "embedded.expose.listen = \"10.0.0.1:8501\"",
            "expose.token_file: missing; accepted: with listen beyond loopback",
            "embedded.expose.listen = \"10.0.0.1:8501\"\nembedded.expose.token_file = \"/t\"",
        ),
        (
            "embedded.acl = true\nembedded.expose.listen = \"10.0.0.1:8501\"\nembedded.expose.token_file = \"/t\"",
            "control_plane.embedded.expose.token_file: only with acl = false: with ACLs on, other hosts present ACL tokens",
            "embedded.acl = true\nembedded.expose.listen = \"10.0.0.1:8501\"",
        ),
        (
            "embedded.expose.listen = \"0.0.0.0:8501\"",
            "expose.token_file: missing",
            "embedded.expose.listen = \"127.0.0.1:8501\"",
        ),
        (
            "embedded.expose.token_file = \"/t\"",
            "expose.listen: missing",
            "embedded.expose.listen = \"[::1]:8501\"\nembedded.expose.token_file = \"/t\"",
        ),
        (
            "embedded.expose.listen = \"127.0.0.1:8501\"\nembedded.expose.cert_file = \"/c\"",
            "expose.key_file: missing",
            "embedded.expose.listen = \"127.0.0.1:8501\"\nembedded.expose.cert_file = \"/c\"\nembedded.expose.key_file = \"/k\"",
        ),
        (
            "embedded.expose.listen = \"127.0.0.1:8500\"\naddress = \"http://127.0.0.1:8500\"",
            "found 8500; accepted: a port that nothing else has; `control_plane.address`",
            "embedded.expose.listen = \"127.0.0.1:8501\"\naddress = \"http://127.0.0.1:8500\"",
        ),
    ] {
        let found = mistakes(&cp(bad)).join("\n");
        assert!(found.contains(expected), "{bad}\n  expected: {expected}\n  found: {found}");
        parse(&cp(good)).unwrap_or_else(|error| panic!("{good}\n{error}"));
    }
}

#[test]
fn all_mistakes_are_reported_at_once_in_the_order_of_the_file() {
    let found = mistakes("nod = \"a\"\nlog_format = 1\n[[service]]\nport = \"x\"\n");
    let keys: Vec<&str> = found.iter().map(|line| line.split(": ").nth(1).unwrap()).collect();
    assert_eq!(keys, ["nod", "log_format", "service[0].name", "service[0].port"]);
}

#[test]
fn a_token_is_never_repeated_in_a_mistake() {
    for text in ["token = \"hunter 2\"", "token = [\"hunter2\"]"] {
        let found = mistakes(&format!("[control_plane]\nkind = \"consul\"\n{text}")).join("\n");
        assert!(found.contains("control_plane.token: not shown"), "{found}");
        assert!(!found.contains("hunter"), "{found}");
    }
}

#[test]
fn an_empty_file_is_the_defaults() {
    let config = parse("").unwrap();
    assert_eq!(config, Config::default());
    assert_eq!((config.datacenter(), config.datacenter.as_deref(), config.catalog_limit), ("dc1", None, 500));
    assert_eq!(config.admin_socket(), Path::new("/run/meshnode/admin.sock"));
    assert_eq!(config.control_plane, ControlPlane::Embedded(Embedded::default()));
    assert_eq!(config.address.mesh_ports, PortRange { first: 21000, last: 21255 });
}

#[test]
fn a_service_has_the_defaults_of_the_documentation() {
    let config = parse("[[service]]\nname = \"db\"\nunit = \"postgresql.service\"\nport = 5432\n").unwrap();
    let db = config.service(&"db".parse().unwrap()).unwrap();
    assert!(db.selector.matches("/system.slice/postgresql.service"));
    assert_eq!(db.egress, Egress::Passthrough);
    let expected = ProtectedPort {
        announce_port: None,
        port: 5432,
        address: Ipv4Addr::LOCALHOST.into(),
        guard: GuardMode::Strict,
        mesh_port: None,
        check_interval: Some(Duration::from_secs(10)),
    };
    assert_eq!(db.protected, Some(expected));
}

#[test]
fn an_egress_list_is_read_and_each_mistake_in_one_is_named() {
    let of = |rule: &str| {
        format!("[[service]]\nname = \"a\"\negress = \"mesh-only\"\n[[service.egress_allow]]\n{rule}")
    };
    let words = |rule: &str| parse(&of(rule)).unwrap().services[0].egress_allow[0].to_string();
    for (rule, expected) in [
        (
            "cidr = \"10.0.0.0/8\"\nports = [\"443\", \"8000-8100\"]\nprotocol = \"tcp\"",
            "10.0.0.0/8 443,8000-8100 tcp",
        ),
        ("cidr = \"10.1.2.3\"\nports = \"53\"\nprotocol = \"udp\"", "10.1.2.3/32 53 udp"),
        ("name = \"*.Example.com\"", "*.example.com all ports tcp+udp"),
    ] {
        assert_eq!(words(rule), expected);
    }
    for (rule, said) in [
        ("", "service[0].egress_allow[0].cidr: missing; accepted: a network such as"),
        ("cidr = \"10.0.0.1/8\"", "(bits after the prefix are not zero)"),
        ("cidr = \"::ffff:10.0.0.1\"", "(IPv4 is written as IPv4)"),
        (
            "cidr = \"::/0\"\nname = \"a\"",
            "egress_allow[0].name: found besides cidr; accepted: one of cidr, name",
        ),
        ("name = \"10.0.0.1\"", "(an address is written as cidr)"),
        ("cidr = \"::/0\"\nports = [\"0\"]", "egress_allow[0].ports[0]: found \"0\""),
        ("cidr = \"::/0\"\nports = []", "found an empty array"),
        ("cidr = \"::/0\"\nprotocol = \"icmp\"", "accepted: \"tcp\", \"udp\", \"both\""),
    ] {
        let found = mistakes(&of(rule)).join("\n");
        assert!(found.contains(said), "{rule:?}: {found}");
    }
    let open = "[[service]]\nname = \"a\"\n[[service.egress_allow]]\ncidr = \"::/0\"";
    assert!(mistakes(open).join("\n").contains("only with egress = \"mesh-only\""));
    let ports: Vec<String> = (1..=33).map(|n| format!("\"{}\"", n * 2)).collect();
    let many = of(&format!("cidr = \"::/0\"\nports = [{}]", ports.join(", ")));
    assert!(mistakes(&many).join("\n").contains("at most 32 different port ranges in one service's list"));
}

#[test]
fn the_example_loads_and_documents_each_key() {
    // Every key stands in the example, set or commented out: uncommented, it is the whole schema and no more.
    parse(EXAMPLE).unwrap_or_else(|error| panic!("{error}"));
    let (mut table, mut documented) = (String::new(), BTreeSet::new());
    for line in EXAMPLE.lines() {
        let line = line.strip_prefix("# ").unwrap_or(line).trim();
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            table = name.trim_start_matches('[').to_owned();
            documented.insert(table.clone());
            continue;
        }
        let Some((key, _)) = line.split_once(" = ") else { continue };
        if !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') {
            documented.insert(if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") });
        }
    }
    assert_eq!(documented, Config::keys());
}

#[test]
fn load_takes_a_missing_default_as_defaults_and_refuses_a_missing_explicit_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.toml");
    assert!(matches!(Config::load(Some(&path)), Err(ConfigError::Missing(missing)) if missing == path));
    std::fs::write(&path, "node = \"a\"\n").unwrap();
    assert_eq!(Config::load(Some(&path)).unwrap().node, "a");
    std::fs::write(&path, b"node = \"a\"\n# \xff\n").unwrap();
    let shown = Config::load(Some(&path)).unwrap_err().to_string();
    assert!(shown.ends_with("m.toml:2:3: found the byte 0xff; accepted: UTF-8"), "{shown}");
    std::fs::write(&path, vec![b'\n'; LARGEST_FILE as usize + 1]).unwrap();
    assert!(matches!(Config::load(Some(&path)), Err(ConfigError::Read { .. })));
}

#[test]
fn reload_takes_services_and_names_what_needs_a_restart() {
    let old = parse("").unwrap();
    let services = parse("log = \"debug\"\ndrain_deadline = \"1s\"\n[[service]]\nname = \"a\"\n").unwrap();
    assert_eq!(old.diff_reloadable(&services), Ok(()));
    let other = parse(
        "node = \"other\"\nsame_host = \"mtls\"\n[proxy]\npool = false\n[limits]\nflows = 4\n[listen]\nguard_port = 5\n[control_plane]\naddress = \"http://127.0.0.1:1\"\nembedded.leaf_ttl = \"1h\"\n",
    )
    .unwrap();
    let keys = [
        "node",
        "same_host",
        "limits",
        "proxy.pool",
        "listen.guard_port",
        "control_plane.address",
        "control_plane.embedded.leaf_ttl",
    ];
    assert_eq!(old.diff_reloadable(&other), Err(keys.map(str::to_owned).to_vec()));
    let consul = parse("[control_plane]\nkind = \"consul\"\n").unwrap();
    assert_eq!(old.diff_reloadable(&consul), Err(vec!["control_plane.kind".to_owned()]));
}
