//! Bodies from outside: refused with a 4xx that names the field, never a 5xx, and without a trace in the store.

use proptest::{prelude::*, test_runner::TestRunner};

use super::harness::{Server, send};

/// Everything that a client can see of the store.
async fn store(server: &Server) -> Vec<String> {
    let mut all = Vec::new();
    for path in [
        "/v1/catalog/nodes",
        "/v1/catalog/node-services/host-a",
        "/v1/catalog/services",
        "/v1/health/state/any",
        "/v1/connect/intentions",
        "/v1/connect/ca/configuration",
        "/v1/connect/ca/roots",
    ] {
        let answer = server.get(path).await;
        all.push(format!("{} {:?}", answer.text, answer.index));
    }
    all
}

/// (method, path, a body that is accepted).
/// No TCP check is among them, not even a sidecar's default one: these bodies are mutated, and the server would dial
/// whatever address comes out.
const WRITES: [(&str, &str, &str); 9] = [
    (
        "PUT",
        "/v1/agent/service/register",
        r#"{"Name":"db","ID":"db1","Port":5432,"Address":"127.0.0.1","Tags":["a"],"Meta":{"k":"v"},
            "Weights":{"Passing":1,"Warning":1},"EnableTagOverride":false,
            "TaggedAddresses":{"lan":{"Address":"127.0.0.1","Port":5432}},
            "Checks":[{"Name":"t","TTL":"10s","Status":"passing"},{"CheckID":"u","TTL":"20s"}],
            "Connect":{"SidecarService":{"Check":{"TTL":"10s"},"Proxy":{"Upstreams":[
                {"DestinationName":"cache","LocalBindPort":9191}]}}}}"#,
    ),
    (
        "PUT",
        "/v1/agent/service/register",
        r#"{"Name":"p","Kind":"connect-proxy","Port":21000,"Proxy":{"DestinationServiceName":"db",
            "DestinationServiceID":"db1","LocalServiceAddress":"127.0.0.1","LocalServicePort":5432,
            "Config":{"a":[1,{"b":null}]},"MeshGateway":{},"Expose":{"Checks":false}}}"#,
    ),
    (
        "PUT",
        "/v1/agent/check/register",
        r#"{"Name":"c","ID":"c1","Notes":"n","TTL":"10s","Status":"warning"}"#,
    ),
    (
        "PUT",
        "/v1/catalog/register",
        r#"{"Node":"ext","Address":"10.9.9.9","NodeMeta":{"k":"v"},"Service":{"Service":"s","Port":1},
            "Check":{"Name":"c","Status":"passing"},"SkipNodeUpdate":false}"#,
    ),
    ("PUT", "/v1/catalog/deregister", r#"{"Node":"ext","ServiceID":"s","CheckID":"c","Datacenter":"dc1"}"#),
    (
        "POST",
        "/v1/connect/intentions",
        r#"{"SourceName":"web","DestinationName":"db","Action":"allow","SourceType":"consul",
            "Description":"d","Meta":{"a":"b"},"SourceNS":"default","DestinationNS":"default"}"#,
    ),
    (
        "PUT",
        "/v1/connect/intentions/exact?source=a&destination=b",
        r#"{"SourceName":"a","Action":"deny","Description":"x"}"#,
    ),
    ("PUT", "/v1/connect/ca/configuration", r#"{"Provider":"consul","Config":{"LeafCertTTL":"1h"}}"#),
    (
        "POST",
        "/v1/agent/connect/authorize",
        r#"{"Target":"db","ClientCertURI":"spiffe://x/ns/default/dc/dc1/svc/a","ClientCertSerial":"1"}"#,
    ),
];

#[tokio::test]
async fn the_bodies_of_these_tests_are_accepted_as_they_are() {
    let server = Server::start().await;
    for (method, path, body) in WRITES {
        let answer = server.send(method, path, body).await;
        assert_eq!(answer.status, 200, "{method} {path}: {}", answer.text);
    }
}

#[tokio::test]
async fn an_unknown_field_is_named_wherever_it_is() {
    let server = Server::start().await;
    let before = store(&server).await;
    for (method, path, body) in WRITES {
        let spoiled = body.replacen('{', r#"{"Bogus":1,"#, 1);
        let answer = server.send(method, path, &spoiled).await;
        assert!(answer.status == 400 && answer.text.contains("`Bogus`"), "{path}: {}", answer.text);
        assert!(answer.text.contains("line 1 column"), "{}", answer.text);
    }
    let nested = WRITES[0].2.replace(r#""LocalBindPort""#, r#""LocalBindPart""#);
    let answer = server.send("PUT", WRITES[0].1, &nested).await;
    assert!(
        answer.text.contains("Connect.SidecarService.Proxy.Upstreams[0].LocalBindPart"),
        "{}",
        answer.text
    );
    assert_eq!(store(&server).await, before);
}

#[tokio::test]
async fn a_bad_value_is_refused_by_its_fields_name_with_what_is_accepted() {
    let server = Server::start().await;
    let before = store(&server).await;
    let register = "/v1/agent/service/register";
    let intention = "/v1/connect/intentions";
    for (method, path, body, words) in [
        ("PUT", register, r#"{"Name":"a b"}"#, ["Name", "letters, digits"]),
        ("PUT", register, r#"{"Name":"a","ID":"a/../\u0000"}"#, ["ID", "digits"]),
        ("PUT", register, r#"{"Name":"a","Port":70000}"#, ["Port", "65535"]),
        ("PUT", register, r#"{"Name":"a","Port":"80"}"#, ["Port", "column"]),
        ("PUT", register, r#"{"Name":"a","Address":"0.0.0.0"}"#, ["Address", "dial"]),
        ("PUT", register, r#"{"Name":"a","Address":"a b"}"#, ["Address", "host name"]),
        ("PUT", register, r#"{"Name":"a","Meta":{"k y":"v"}}"#, ["Meta", "digits"]),
        ("PUT", register, r#"{"Name":"a","Kind":"mesh-gateway"}"#, ["Kind", "connect-proxy"]),
        ("PUT", register, r#"{"Name":"a","Check":{"HTTP":"http://x"}}"#, ["HTTP", "not supported"]),
        ("PUT", register, r#"{"Name":"a","Check":{"TTL":"soon"}}"#, ["TTL", "duration"]),
        ("PUT", register, r#"{"Name":"a","Check":{"TTL":"1s","TCP":"x:1"}}"#, ["TTL", "TCP"]),
        ("PUT", register, r#"{"Name":"a","Namespace":"other"}"#, ["Namespace", "default"]),
        (
            "PUT",
            register,
            r#"{"Name":"a","Proxy":{"DestinationServiceName":"x"}}"#,
            ["Proxy", "connect-proxy"],
        ),
        (
            "POST",
            intention,
            r#"{"SourceName":"we*","DestinationName":"b","Action":"deny"}"#,
            ["SourceName", "wildcard"],
        ),
        (
            "POST",
            intention,
            r#"{"SourceName":"a","DestinationName":"b/c","Action":"deny"}"#,
            ["DestinationName", "digits"],
        ),
        (
            "POST",
            intention,
            r#"{"SourceName":"a","DestinationName":"b","Action":"maybe"}"#,
            ["Action", "'allow' or 'deny'"],
        ),
        (
            "POST",
            intention,
            r#"{"SourceName":"a","DestinationName":"b","Permissions":[{}],"Action":"deny"}"#,
            ["Permissions", "supported"],
        ),
        (
            "PUT",
            "/v1/agent/check/register",
            r#"{"Name":"x","TTL":"1s","Status":"fine"}"#,
            ["fine", "passing"],
        ),
        ("PUT", "/v1/catalog/register", r#"{"Node":"a b","Address":"10.0.0.1"}"#, ["Node", "digits"]),
        ("PUT", "/v1/catalog/register", r#"{"Node":"n"}"#, ["Address", "SkipNodeUpdate"]),
        (
            "PUT",
            "/v1/catalog/register",
            r#"{"Node":"n","Address":"1.1.1.1","Check":{"ServiceID":"s","Name":"c"}}"#,
            ["service", "s"],
        ),
        ("PUT", "/v1/agent/service/register?mesh-node=a%20b", r#"{"Name":"a"}"#, ["mesh-node", "digits"]),
        (
            "PUT",
            "/v1/agent/service/register?mesh-node=b&mesh-address=here",
            r#"{"Name":"a"}"#,
            ["mesh-address", "IP address"],
        ),
    ] {
        let answer = server.send(method, path, body).await;
        assert!((400..500).contains(&answer.status), "{body}: {} {}", answer.status, answer.text);
        for word in words {
            assert!(answer.text.contains(word), "{body}: {}", answer.text);
        }
    }
    assert_eq!(store(&server).await, before);
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused() {
    let server = Server::start().await;
    let before = store(&server).await;
    let long = format!(r#"{{"Name":"{}"}}"#, "x".repeat(600 * 1024));
    for (method, path, _) in WRITES {
        let answer = server.send(method, path, &long).await;
        assert!(answer.status == 413 && answer.text.contains("524288"), "{path}: {}", answer.text);
    }
    assert_eq!(server.send("PUT", "/v1/connect/ca/sign/db", &long).await.status, 413);
    assert_eq!(store(&server).await, before);
}

#[tokio::test]
async fn a_write_with_a_part_that_fails_leaves_no_part_behind() {
    let server = Server::start().await;
    let before = store(&server).await;
    // The node and the service are fine; the check's service does not exist.
    let body = r#"{"Node":"ext","Address":"10.9.9.9","Service":{"Service":"s"},
        "Check":{"Name":"c","ServiceID":"nope","Status":"passing"}}"#;
    assert_eq!(server.send("PUT", "/v1/catalog/register", body).await.status, 404);
    assert_eq!(store(&server).await, before);
}

/// JSON of any shape, with the names that the API knows among the keys.
fn json() -> impl Strategy<Value = serde_json::Value> {
    let keys = "Name|ID|Port|Check|Checks|TTL|Tags|Meta|Proxy|Connect|SidecarService|Kind|Node|Address|Service\
        |SourceName|DestinationName|Action|Config|Provider|Target|ClientCertURI|Upstreams|Weights|[A-Za-z]{0,6}";
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        "\\PC{0,12}".prop_map(Into::into),
        "[a-z]{1,6}|connect-proxy|allow|deny|10s|10\\.0\\.0\\.1|consul|passing".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 24, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::vec((keys, inner), 0..6)
                .prop_map(|pairs| serde_json::Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// A body that is accepted with one piece replaced by something else.
fn mutated() -> impl Strategy<Value = String> {
    (
        0..WRITES.len(),
        any::<prop::sample::Index>(),
        any::<prop::sample::Index>(),
        "\\PC{0,4}|[{}\\[\\]\",:0-9]{0,3}",
    )
        .prop_map(|(n, from, len, with)| {
            let body = WRITES[n].2;
            let start = from.index(body.len());
            let end = start + len.index(8.min(body.len() - start + 1).max(1));
            format!("{}{with}{}", &body[..start], &body[end.min(body.len())..])
        })
}

#[test]
fn no_body_makes_the_server_fail_and_what_is_refused_changes_nothing() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(Server::start());
    let body = prop_oneof![json().prop_map(|json| json.to_string()), mutated(), "\\PC{0,40}"];
    let config = ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() };
    let outcome = TestRunner::new(config).run(&(0..WRITES.len(), body), |(n, body)| {
        let (method, path, _) = WRITES[n];
        runtime.block_on(async {
            let before = store(&server).await;
            let answer = server.send(method, path, &body).await;
            prop_assert!(answer.status < 500, "{} {}", answer.status, answer.text);
            if answer.status != 200 {
                prop_assert_eq!(store(&server).await, before);
            }
            Ok(())
        })
    });
    outcome.unwrap();
}

#[test]
fn no_path_or_query_makes_the_server_fail() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(Server::start());
    let part = "[a-zA-Z0-9%._~:@!$&'()*+,;=/-]{0,20}|%ff|%00|%2e%2e%2f";
    let query = "(index|wait|passing|tag|dc|ns|hash|mesh-node|mesh-address|by|name|source|destination|enable|pem|note)";
    let route = prop::sample::select(vec![
        "/v1/agent/service/",
        "/v1/agent/services",
        "/v1/agent/check/pass/",
        "/v1/catalog/node/",
        "/v1/health/service/",
        "/v1/health/state/",
        "/v1/connect/intentions/",
        "/v1/connect/intentions/match",
        "/v1/connect/intentions/check",
        "/v1/connect/intentions/exact",
        "/v1/agent/connect/ca/leaf/",
        "/v1/connect/ca/roots",
        "/v1/connect/ca/sign/",
        "/v1/agent/service/deregister/",
        "/v1/agent/service/maintenance/",
        "/v1/",
    ]);
    let method = prop::sample::select(vec!["GET", "PUT", "DELETE", "POST"]);
    let config = ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() };
    let outcome = TestRunner::new(config).run(
        &(method, route, part, query, part),
        |(method, route, tail, key, value)| {
            // A wait of any length but the default of five minutes.
            let path = format!("{route}{tail}?wait=1ms&{key}={value}");
            prop_assume!(path.parse::<http::Uri>().is_ok());
            runtime.block_on(async {
                let stream =
                    tokio::net::UnixStream::connect(server.dir.path().join("api.sock")).await.unwrap();
                let answer = send(stream, method, &path, "", None).await;
                prop_assert!(answer.status < 500, "{method} {path}: {} {}", answer.status, answer.text);
                Ok(())
            })
        },
    );
    outcome.unwrap();
}
