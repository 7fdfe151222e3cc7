//! When a program of this host is reset at once, and why. Each server here has its honest twin in
//! `the_instance_that_was_named_gets_the_bytes`.

use std::{sync::Arc, time::Duration};

use rustls::version::{TLS12, TLS13};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::world::{DOMAIN, World, assert_reset, foreign, local, settings, within};
use crate::{
    identity::Leaf,
    intention::{Action, Intentions},
    proxy::{Direction, ProxySettings},
    tls::test_pki::{Ca, LeafSpec},
};

const SECRET: &[u8] = b"the secret of the program";

async fn reset_with(world: &World, reason: &str, count: u64) {
    world.idle().await;
    let ended = world.a.flows().ended_flows();
    assert_eq!(world.a.refusals().of(Direction::Outbound, reason), count, "{reason}: {ended:?}");
    let last = ended.last().unwrap().report(std::time::SystemTime::now());
    assert_eq!(last.reason.as_deref(), Some(reason));
    assert_eq!(last.bytes_in + last.bytes_out, 0);
}

/// An instance's mesh port that is served by a test.
async fn impostor(world: &World) -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.set_instance(listener.local_addr().unwrap());
    listener
}

/// A server with this leaf must not get a byte of the program, whatever TLS it speaks.
async fn distrusts(world: &World, leaf: Arc<Leaf>, reason: &str) {
    let listener = impostor(world).await;
    for (attempt, version) in [&TLS12, &TLS13].into_iter().enumerate() {
        let mut client = world.connect().await;
        let sent = client.write_all(SECRET).await;
        let accepted = foreign::accept(&listener, foreign::server_config(&leaf, &[version])).await;
        assert!(accepted.is_err(), "{reason}: the handshake was finished");
        assert!(sent.is_ok());
        assert_reset(&mut client).await;
        reset_with(world, reason, attempt as u64 + 1).await;
    }
}

#[tokio::test]
async fn the_instance_that_was_named_gets_the_bytes() {
    let world = World::start().await;
    let listener = impostor(&world).await;
    for version in [&TLS12, &TLS13] {
        let mut client = world.connect().await;
        client.write_all(SECRET).await.unwrap();
        let leaf = world.ca.leaf("db");
        let mut peer = foreign::accept(&listener, foreign::server_config(&leaf, &[version])).await.unwrap();
        let mut got = vec![0; SECRET.len()];
        within(peer.read_exact(&mut got)).await.unwrap();
        assert_eq!(got, SECRET);
        let caller = crate::tls::spiffe_id(&peer.get_ref().1.peer_certificates().unwrap()[0]).unwrap();
        assert_eq!(caller.to_string(), "spiffe://td.consul/ns/default/dc/dc1/svc/web");
        assert_eq!(peer.get_ref().1.server_name(), Some("db.default.dc1.internal.td.consul"));
    }
}

#[tokio::test]
async fn another_service_of_the_same_ca_does_not_get_a_byte() {
    let world = World::start().await;
    let leaf = world.ca.leaf("cache");
    distrusts(&world, leaf, "wrong-service").await;
}

#[tokio::test]
async fn the_same_service_of_another_datacenter_does_not_get_a_byte() {
    let world = World::start().await;
    let mut other = LeafSpec::service("db", DOMAIN);
    other.uris = vec![other.id.replace("dc1", "dc2")];
    let leaf = world.ca.issue(&other);
    distrusts(&world, leaf, "wrong-service").await;
}

#[tokio::test]
async fn a_server_of_another_trust_domain_does_not_get_a_byte() {
    let world = World::start().await;
    let leaf = world.ca.issue(&LeafSpec::service("db", "other.consul"));
    distrusts(&world, leaf, "wrong-trust-domain").await;
}

#[tokio::test]
async fn a_server_outside_its_validity_does_not_get_a_byte() {
    let world = World::start().await;
    let db = LeafSpec::service("db", DOMAIN);
    distrusts(&world, world.ca.issue(&db.clone().expired()), "expired").await;
    distrusts(&world, world.ca.issue(&db.not_yet_valid()), "not-yet-valid").await;
}

#[tokio::test]
async fn a_server_that_no_root_vouches_for_does_not_get_a_byte() {
    let world = World::start().await;
    let db = LeafSpec::service("db", DOMAIN);
    distrusts(&world, world.ca.issue(&db.clone().self_signed()), "self-signed").await;
    distrusts(&world, Ca::new(DOMAIN).issue(&db), "untrusted-chain").await;
}

/// A mesh port that answers `bytes`, then waits for the end; returns all that it was told.
async fn answers(listener: &TcpListener, bytes: &[u8]) -> Vec<u8> {
    let (mut peer, _) = within(listener.accept()).await.unwrap();
    peer.write_all(bytes).await.unwrap();
    let mut told = Vec::new();
    let _ = within(peer.read_to_end(&mut told)).await;
    told
}

#[tokio::test]
async fn a_server_that_speaks_no_tls_or_an_old_one_does_not_get_a_byte() {
    let world = World::start().await;
    let listener = impostor(&world).await;
    let old = [0x15, 3, 1, 0, 2, 2, 70];
    for (bytes, reason) in
        [(&b"220 mail.example.org ESMTP\r\n"[..], "plain-text"), (&old, "protocol-version")]
    {
        let mut client = world.connect().await;
        client.write_all(SECRET).await.unwrap();
        let told = answers(&listener, bytes).await;
        assert_reset(&mut client).await;
        assert!(!told.windows(SECRET.len()).any(|window| window == SECRET));
        reset_with(&world, reason, 1).await;
    }
}

#[tokio::test]
async fn a_server_that_hangs_up_or_says_nothing_resets_the_program() {
    let world =
        World::with(ProxySettings { handshake_timeout: Duration::from_millis(100), ..settings() }).await;
    let listener = impostor(&world).await;
    let mut client = world.connect().await;
    drop(within(listener.accept()).await.unwrap());
    let (bytes, was_reset) = super::world::read_to_end(&mut client).await;
    assert_eq!((bytes.len(), was_reset), (0, true));
    let mut client = world.connect().await;
    let _silent = within(listener.accept()).await.unwrap();
    assert_reset(&mut client).await;
    reset_with(&world, "handshake-timeout", 1).await;
}

#[tokio::test]
async fn an_instance_that_cannot_be_reached_resets_the_program_at_once() {
    let world = World::start().await;
    let nobody = local().local_addr().unwrap();
    world.set_instance(nobody);
    let mut client = world.connect().await;
    assert_reset(&mut client).await;
    reset_with(&world, "unreachable", 1).await;
    let last = world.a.flows().ended_flows().last().unwrap().report(std::time::SystemTime::now());
    assert_eq!(last.upstream, Some(nobody));
}

#[tokio::test]
async fn a_connection_that_the_kernel_did_not_put_there_is_reset() {
    let world = World::start().await;
    let mut thief = world.connect_as(None).await;
    assert_reset(&mut thief).await;
    reset_with(&world, "not-captured", 1).await;
    assert!(world.program_saw_nobody().await);
}

#[tokio::test]
async fn a_record_serves_one_connection_only() {
    let world = World::start().await;
    let (client, _server) = world.flow().await;
    let address = client.local_addr().unwrap();
    super::world::reset(client);
    world.idle().await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    let mut thief = socket.connect(world.outbound).await.unwrap();
    assert_reset(&mut thief).await;
    reset_with(&world, "not-captured", 1).await;
}

#[tokio::test]
async fn a_record_that_cannot_be_read_resets_the_program() {
    let world = World::start().await;
    let mut record = World::captured("web");
    record.program = "unreadable".to_owned();
    let mut client = world.connect_as(Some(record)).await;
    assert_reset(&mut client).await;
    reset_with(&world, "lookup-failed", 1).await;
}

#[tokio::test]
async fn what_policy_or_catalog_do_not_allow_is_reset() {
    type Spoil = fn(&mut crate::state::Mesh);
    let cases: [(&str, Spoil); 6] = [
        ("not-allowed", |mesh| mesh.intentions = Some(Arc::new(Intentions::new([], Action::Deny)))),
        ("not-synced", |mesh| mesh.intentions = None),
        ("not-synced", |mesh| mesh.catalog = None),
        ("no-instance", |mesh| mesh.catalog = Some(Arc::default())),
        ("no-leaf", |mesh| mesh.leafs.clear()),
        ("no-roots", |mesh| mesh.roots = None),
    ];
    for (reason, spoil) in cases {
        let world = World::start().await;
        world.edit_a(spoil);
        let mut client = world.connect().await;
        assert_reset(&mut client).await;
        reset_with(&world, reason, 1).await;
        assert!(world.program_saw_nobody().await, "{reason}");
    }
}

#[tokio::test]
async fn a_caller_that_only_the_destination_refuses_sees_a_reset_and_no_byte() {
    let world = World::start().await;
    world.edit_b(|mesh| mesh.intentions = Some(Arc::new(Intentions::new([], Action::Deny))));
    let mut client = world.connect().await;
    assert_reset(&mut client).await;
    world.idle().await;
    assert_eq!(world.b.refusals().of(Direction::Inbound, "not-allowed"), 1);
    assert!(world.program_saw_nobody().await);
}

#[tokio::test]
async fn a_host_whose_leaf_the_destination_does_not_believe_is_told_so() {
    let world = World::start().await;
    let stranger = Ca::new(DOMAIN).leaf("web");
    world.edit_a(|mesh| mesh.leafs = [(stranger.id.service.clone(), stranger.clone())].into());
    for said in [&b""[..], SECRET] {
        let mut client = world.connect().await;
        client.write_all(said).await.unwrap();
        assert_reset(&mut client).await;
    }
    world.idle().await;
    assert_eq!(world.b.refusals().of(Direction::Inbound, "untrusted-chain"), 2);
    assert_eq!(world.a.refusals().of(Direction::Outbound, "refused-by-peer"), 2);
    assert!(world.program_saw_nobody().await);
}
