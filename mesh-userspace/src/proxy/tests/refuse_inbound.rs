//! Who is refused at a mesh port, and why. Each has its twin in `a_caller_of_the_mesh_is_served`.

use std::{sync::Arc, time::Duration};

use rustls::version::{TLS12, TLS13};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::world::{DOMAIN, World, eventually, foreign, local, settings, within};
use crate::{
    identity::Leaf,
    intention::{Action, Intentions},
    proxy::{Direction, InboundService, ProxySettings},
    tls::test_pki::{Ca, LeafSpec},
};

const VERSIONS: [&rustls::SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// What a caller that speaks TLS gets: an answer of the program, or an error.
async fn call(
    world: &World,
    leaf: Option<&Leaf>,
    version: &'static rustls::SupportedProtocolVersion,
) -> bool {
    let config = foreign::client_config(leaf, &[version]);
    let Ok(mut tls) = foreign::connect(world.mesh_port, config).await else { return false };
    // With TLS 1.3 the client is done before the server has judged it.
    if tls.write_all(b"secret").await.is_err() || tls.flush().await.is_err() {
        return false;
    }
    let mut byte = [0];
    matches!(within(tls.read(&mut byte)).await, Ok(1))
}

async fn refused(world: &World, reason: &str, count: u64) {
    world.idle().await;
    let ended = world.b.flows().ended_flows();
    assert_eq!(world.b.refusals().of(Direction::Inbound, reason), count, "{reason}: {ended:?}");
    assert!(world.program_saw_nobody().await, "{reason}");
    let last = ended.last().unwrap().report(std::time::SystemTime::now());
    assert_eq!(last.reason.as_deref(), Some(reason));
    assert_eq!(last.bytes_in + last.bytes_out, 0);
}

async fn refuses(leaf: Option<Arc<Leaf>>, world: &World, reason: &str) {
    for (attempt, version) in VERSIONS.into_iter().enumerate() {
        assert!(!call(world, leaf.as_deref(), version).await, "{reason} {version:?}");
        refused(world, reason, attempt as u64 + 1).await;
    }
}

#[tokio::test]
async fn a_caller_of_the_mesh_is_served() {
    let world = World::start().await;
    for version in VERSIONS {
        let answered = async {
            let mut server = world.accept().await;
            server.write_all(b"!").await.unwrap();
            server
        };
        let leaf = world.ca.leaf("web");
        let (served, _server) = tokio::join!(call(&world, Some(&leaf), version), answered);
        assert!(served, "{version:?}");
    }
}

#[tokio::test]
async fn a_caller_of_another_trust_domain_is_refused() {
    let world = World::start().await;
    let foreign = LeafSpec::service("web", "other.consul");
    refuses(Some(world.ca.issue(&foreign)), &world, "wrong-trust-domain").await;
    let world = World::start().await;
    refuses(Some(Ca::new("other.consul").issue(&foreign)), &world, "wrong-trust-domain").await;
}

#[tokio::test]
async fn a_caller_of_another_namespace_is_refused() {
    let world = World::start().await;
    let uri = format!("spiffe://{DOMAIN}/ns/evil/dc/dc1/svc/web");
    let leaf = world.ca.issue(&LeafSpec::service("web", DOMAIN).uris(&[&uri]));
    refuses(Some(leaf), &world, "other-namespace").await;
}

#[tokio::test]
async fn a_caller_whose_leaf_is_no_longer_or_not_yet_valid_is_refused() {
    let world = World::start().await;
    let web = LeafSpec::service("web", DOMAIN);
    refuses(Some(world.ca.issue(&web.clone().expired())), &world, "expired").await;
    refuses(Some(world.ca.issue(&web.not_yet_valid())), &world, "not-yet-valid").await;
}

#[tokio::test]
async fn a_self_signed_caller_and_one_of_another_ca_are_refused() {
    let world = World::start().await;
    let web = LeafSpec::service("web", DOMAIN);
    refuses(Some(world.ca.issue(&web.clone().self_signed())), &world, "self-signed").await;
    refuses(Some(Ca::new(DOMAIN).issue(&web)), &world, "untrusted-chain").await;
}

#[tokio::test]
async fn a_caller_without_a_certificate_is_refused() {
    let world = World::start().await;
    refuses(None, &world, "no-client-certificate").await;
}

#[tokio::test]
async fn a_caller_whose_leaf_names_no_service_or_several_is_refused() {
    let world = World::start().await;
    let web = LeafSpec::service("web", DOMAIN);
    let several = [web.id.as_str(), "spiffe://td.consul/ns/default/dc/dc1/svc/db"];
    refuses(Some(world.ca.issue(&web.clone().uris(&several))), &world, "bad-san").await;
}

#[tokio::test]
async fn a_caller_that_no_intention_allows_is_refused() {
    let world = World::start().await;
    refuses(Some(world.ca.leaf("cron")), &world, "not-allowed").await;
    let world = World::start().await;
    world.edit_b(|mesh| {
        let deny = super::world::intention("web", "db", Action::Deny);
        mesh.intentions = Some(Arc::new(Intentions::new([deny], Action::Allow)));
    });
    refuses(Some(world.ca.leaf("web")), &world, "not-allowed").await;
}

#[tokio::test]
async fn nobody_is_served_before_the_first_sync_or_without_leaf_or_roots() {
    type Spoil = fn(&mut crate::state::Mesh);
    let cases: [(&str, Spoil); 4] = [
        ("not-synced", |mesh| mesh.intentions = None),
        ("not-synced", |mesh| mesh.catalog = None),
        ("no-leaf", |mesh| mesh.leafs.clear()),
        ("no-roots", |mesh| mesh.roots = None),
    ];
    for (reason, spoil) in cases {
        let world = World::start().await;
        world.edit_b(spoil);
        refuses(Some(world.ca.leaf("web")), &world, reason).await;
    }
}

/// Says `bytes` to the mesh port, and reads what it answers until the end.
async fn say(world: &World, bytes: &[u8]) -> Vec<u8> {
    let mut stranger = TcpStream::connect(world.mesh_port).await.unwrap();
    stranger.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // The reset may be what ends it.
    let _ = within(stranger.read_to_end(&mut answer)).await;
    answer
}

#[tokio::test]
async fn plain_bytes_are_refused() {
    let world = World::start().await;
    let mut count = 0;
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"SSH-2.0-OpenSSH_9.2\r\n", &[0; 64], &[0xff; 600]] {
        count += 1;
        say(&world, bytes).await;
        refused(&world, "plain-text", count).await;
    }
}

/// A ClientHello as OpenSSL sends it when told to use TLS 1.1: no supported_versions, no signature_algorithms.
fn tls_1_1_client_hello() -> Vec<u8> {
    let suites = [0xc0, 0x0a, 0xc0, 0x14, 0x00, 0x35, 0x00, 0xff];
    let groups = [0, 0x0a, 0, 4, 0, 2, 0, 0x17];
    let formats = [0, 0x0b, 0, 2, 1, 0];
    let extensions = [&groups[..], &formats].concat();
    let body = [
        &[3, 2][..],
        &[7; 32],
        &[0],
        &[0, suites.len() as u8],
        &suites,
        &[1, 0],
        &[0, extensions.len() as u8],
        &extensions,
    ]
    .concat();
    let handshake = [&[1, 0, 0, body.len() as u8][..], &body].concat();
    [&[0x16, 3, 1, 0, handshake.len() as u8][..], &handshake].concat()
}

#[tokio::test]
async fn tls_1_1_is_refused() {
    let world = World::start().await;
    let answer = say(&world, &tls_1_1_client_hello()).await;
    assert_eq!(answer.first(), Some(&0x15), "an alert");
    refused(&world, "protocol-version", 1).await;
}

#[tokio::test]
async fn a_caller_that_says_nothing_is_given_up() {
    let world =
        World::with(ProxySettings { handshake_timeout: Duration::from_millis(100), ..settings() }).await;
    let mut silent = TcpStream::connect(world.mesh_port).await.unwrap();
    super::world::assert_reset(&mut silent).await;
    refused(&world, "handshake-timeout", 1).await;
}

#[tokio::test]
async fn a_caller_that_leaves_before_the_handshake_is_counted_apart() {
    let world = World::start().await;
    drop(TcpStream::connect(world.mesh_port).await.unwrap());
    eventually("it is counted", || world.b.refusals().of(Direction::Inbound, "handshake-closed") == 1).await;
}

#[tokio::test]
async fn a_program_that_does_not_listen_is_a_reset_for_the_caller() {
    let world = World::start().await;
    let nobody = local().local_addr().unwrap();
    let db = InboundService {
        id: "db-1".to_owned(),
        name: "db".parse().unwrap(),
        program: nobody.into(),
        listener: None,
    };
    world.b.set_inbound(vec![db]).unwrap();
    refuses(Some(world.ca.leaf("web")), &world, "program-unreachable").await;
    let mut client = world.connect().await;
    super::world::assert_reset(&mut client).await;
}
