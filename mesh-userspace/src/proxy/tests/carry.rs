//! What programs see when all is well, and when one of them goes away: as on one TCP connection.

use std::time::Duration;

use rustls::version::{TLS12, TLS13};
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::world::{World, eventually, foreign, passes, read_to_end, reset, within};
use crate::proxy::{Direction, FlowState};

async fn ended(world: &World, reason_at_a: &str, reason_at_b: &str) {
    world.idle().await;
    let count = |refusals: &crate::proxy::Refusals, direction, name| refusals.of(direction, name);
    let seen = (
        count(world.a.refusals(), Direction::Outbound, reason_at_a),
        count(world.b.refusals(), Direction::Inbound, reason_at_b),
    );
    let all = (world.a.flows().ended_flows(), world.b.flows().ended_flows());
    assert_eq!(seen, (1, 1), "{all:?}");
}

#[tokio::test]
async fn bytes_pass_both_ways_and_are_counted() {
    let world = World::start().await;
    let (mut client, mut server) = world.flow().await;
    passes(&mut client, &mut server, b"select 1").await;
    passes(&mut server, &mut client, b"1 row").await;

    let (outbound, inbound) = (world.a.flows().live_flows(), world.b.flows().live_flows());
    let (out, inn) =
        (outbound[0].report(std::time::SystemTime::now()), inbound[0].report(std::time::SystemTime::now()));
    assert_eq!((out.bytes_out, out.bytes_in), (8, 5));
    assert_eq!((inn.bytes_out, inn.bytes_in), (5, 8));
    assert_eq!((out.state, out.tls.as_deref()), (FlowState::Open, Some("TLS 1.3")));
    assert_eq!((out.program.as_str(), out.pid, out.cookie), ("psql", 42, 7));
    assert_eq!(out.original_dst, Some(super::world::DB.parse().unwrap()));
    assert_eq!(out.upstream, Some(world.mesh_port));
    assert_eq!(inn.original_dst, Some(world.mesh_port));
    assert_eq!(inn.upstream, Some(world.program.local_addr().unwrap()));
    for report in [out, inn] {
        assert_eq!(report.source.unwrap().as_str(), "web");
        assert_eq!(report.destination.unwrap().as_str(), "db");
    }
    drop((client, server));
    world.idle().await;
}

#[tokio::test]
async fn the_server_may_speak_first() {
    let world = World::start().await;
    let (mut client, mut server) = world.flow().await;
    passes(&mut server, &mut client, b"220 ready\r\n").await;
}

#[tokio::test]
async fn a_program_that_has_sent_all_can_still_receive() {
    let world = World::start().await;
    let (mut client, mut server) = world.flow().await;
    client.write_all(b"request").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut server).await, (b"request".to_vec(), false));
    passes(&mut server, &mut client, b"a late answer").await;
    server.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut client).await, (Vec::new(), false));
    ended(&world, "finished", "finished").await;
}

#[tokio::test]
async fn a_server_that_has_sent_all_can_still_receive() {
    let world = World::start().await;
    let (mut client, mut server) = world.flow().await;
    server.write_all(b"banner").await.unwrap();
    server.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut client).await, (b"banner".to_vec(), false));
    passes(&mut client, &mut server, b"still talking").await;
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut server).await, (Vec::new(), false));
    ended(&world, "finished", "finished").await;
}

#[tokio::test]
async fn a_reset_by_the_client_reaches_the_server_as_a_reset() {
    let world = World::start().await;
    let (mut client, mut server) = world.flow().await;
    passes(&mut client, &mut server, b"half a request").await;
    reset(client);
    assert_eq!(read_to_end(&mut server).await, (Vec::new(), true));
    ended(&world, "program-reset", "peer-reset").await;
}

#[tokio::test]
async fn a_reset_by_the_server_reaches_the_client_as_a_reset() {
    let world = World::start().await;
    let (mut client, mut server) = world.flow().await;
    passes(&mut server, &mut client, b"half an answer").await;
    reset(server);
    assert_eq!(read_to_end(&mut client).await, (Vec::new(), true));
    ended(&world, "peer-reset", "program-reset").await;
}

#[tokio::test]
async fn a_reset_after_a_half_close_is_still_noticed() {
    let world = World::start().await;
    let (mut client, mut server) = world.flow().await;
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut server).await, (Vec::new(), false));
    reset(server);
    assert_eq!(read_to_end(&mut client).await, (Vec::new(), true));
    ended(&world, "peer-reset", "program-reset").await;
}

#[tokio::test]
async fn a_client_that_resets_after_its_half_close_takes_the_idle_flow_along() {
    let world = World::start().await;
    let (mut client, mut server) = world.flow().await;
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut server).await, (Vec::new(), false));
    reset(client);
    world.idle().await;
    assert!(within(server.write_all(&[0; 1])).await.is_err() || read_to_end(&mut server).await.1);
}

#[tokio::test]
async fn a_client_that_resets_while_the_server_does_not_read_is_noticed() {
    let world = World::start().await;
    let (mut client, server) = world.flow().await;
    let chunk = vec![7; 1 << 20];
    // Until every buffer on the way is full.
    while tokio::time::timeout(Duration::from_millis(300), client.write_all(&chunk)).await.is_ok() {}
    reset(client);
    world.idle().await;
    drop(server);
}

#[tokio::test]
async fn what_a_peer_said_before_it_reset_still_arrives() {
    let world = World::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.set_instance(listener.local_addr().unwrap());
    let mut client = world.connect().await;
    let config = foreign::server_config(&world.ca.leaf("db"), &[&TLS13]);
    let mut peer = foreign::accept(&listener, config).await.unwrap();
    let chunk = vec![7; 1 << 20];
    while tokio::time::timeout(Duration::from_millis(300), client.write_all(&chunk)).await.is_ok() {}
    // The client's upload is stuck when the answer and the reset come together.
    let answer = vec![9; 60_000];
    peer.write_all(&answer).await.unwrap();
    peer.flush().await.unwrap();
    reset(peer.into_inner().0);
    assert_eq!(read_to_end(&mut client).await, (answer, true));
    world.idle().await;
    assert_eq!(world.a.refusals().of(Direction::Outbound, "peer-reset"), 1);
}

#[tokio::test]
async fn a_stream_cut_short_by_the_peer_is_a_reset_and_not_an_end() {
    let world = World::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.set_instance(listener.local_addr().unwrap());
    let leaf = world.ca.leaf("db");
    for close_notify in [true, false] {
        let mut client = world.connect().await;
        let mut peer = foreign::accept(&listener, foreign::server_config(&leaf, &[&TLS13])).await.unwrap();
        peer.write_all(b"part of it").await.unwrap();
        peer.flush().await.unwrap();
        let mut got = [0; 10];
        within(client.read_exact(&mut got)).await.unwrap();
        if close_notify {
            peer.shutdown().await.unwrap();
        } else {
            // FIN without close_notify, as an attacker on the path could make it.
            peer.get_mut().0.shutdown().await.unwrap();
        }
        assert_eq!(read_to_end(&mut client).await, (Vec::new(), !close_notify));
    }
    assert_eq!(world.a.refusals().of(Direction::Outbound, "truncated"), 1);
}

#[tokio::test]
async fn a_stream_cut_short_by_the_caller_is_a_reset_at_the_server() {
    let world = World::start().await;
    let config = foreign::client_config(Some(&world.ca.leaf("web")), &[&TLS13]);
    for close_notify in [true, false] {
        let mut peer = foreign::connect(world.mesh_port, config.clone()).await.unwrap();
        let mut server = world.accept().await;
        peer.write_all(b"half").await.unwrap();
        peer.flush().await.unwrap();
        let mut got = [0; 4];
        within(server.read_exact(&mut got)).await.unwrap();
        if close_notify {
            peer.shutdown().await.unwrap();
        } else {
            peer.get_mut().0.shutdown().await.unwrap();
        }
        assert_eq!(read_to_end(&mut server).await, (Vec::new(), !close_notify));
    }
    assert_eq!(world.b.refusals().of(Direction::Inbound, "truncated"), 1);
}

#[tokio::test]
async fn peers_without_tls_1_3_are_served_with_1_2_both_ways() {
    let world = World::start().await;
    let config = foreign::client_config(Some(&world.ca.leaf("web")), &[&TLS12]);
    let mut peer = foreign::connect(world.mesh_port, config).await.unwrap();
    let mut server = world.accept().await;
    peer.write_all(b"old").await.unwrap();
    peer.flush().await.unwrap();
    let mut got = [0; 3];
    within(server.read_exact(&mut got)).await.unwrap();
    let live = world.b.flows().live_flows();
    assert_eq!(live[0].report(live[0].opened).tls.as_deref(), Some("TLS 1.2"));

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.set_instance(listener.local_addr().unwrap());
    let mut client = world.connect().await;
    let config = foreign::server_config(&world.ca.leaf("db"), &[&TLS12]);
    let mut peer = foreign::accept(&listener, config).await.unwrap();
    peer.write_all(b"old").await.unwrap();
    peer.flush().await.unwrap();
    within(client.read_exact(&mut got)).await.unwrap();
    eventually("both are open", || world.a.flows().live() == 1).await;
}

/// Writes `total` bytes in odd pieces, pausing at random; returns their digest.
async fn pour(mut to: tokio::net::tcp::OwnedWriteHalf, total: usize, seed: u64) -> Vec<u8> {
    let (mut digest, mut left, mut random) = (Sha256::new(), total, Random(seed));
    let mut piece = vec![0; 200_000];
    while left > 0 {
        let length = (1 + random.next() % piece.len()).min(left);
        piece[..length].iter_mut().enumerate().for_each(|(i, byte)| *byte = (i as u8) ^ (left as u8));
        digest.update(&piece[..length]);
        to.write_all(&piece[..length]).await.unwrap();
        left -= length;
        random.pause().await;
    }
    to.shutdown().await.unwrap();
    digest.finalize().to_vec()
}

async fn drink(mut from: tokio::net::tcp::OwnedReadHalf, seed: u64) -> (usize, Vec<u8>) {
    let (mut digest, mut total, mut random) = (Sha256::new(), 0, Random(seed));
    let mut piece = vec![0; 150_000];
    loop {
        let length = 1 + random.next() % piece.len();
        match from.read(&mut piece[..length]).await.unwrap() {
            0 => return (total, digest.finalize().to_vec()),
            count => {
                digest.update(&piece[..count]);
                total += count;
            }
        }
        random.pause().await;
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize
    }

    async fn pause(&mut self) {
        match self.next() % 16 {
            0 => tokio::time::sleep(Duration::from_millis(self.next() as u64 % 5)).await,
            1..4 => tokio::task::yield_now().await,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tens_of_megabytes_both_ways_under_random_stalls_arrive_unchanged() {
    let world = World::start().await;
    let (client, server) = world.flow().await;
    let ((client_in, client_out), (server_in, server_out)) = (client.into_split(), server.into_split());
    let total = 24 << 20;
    let transfer = async {
        tokio::join!(
            tokio::spawn(pour(client_out, total, 1)),
            tokio::spawn(drink(server_in, 2)),
            tokio::spawn(pour(server_out, total, 3)),
            tokio::spawn(drink(client_in, 4)),
        )
    };
    let (sent_up, got_up, sent_down, got_down) =
        tokio::time::timeout(Duration::from_secs(120), transfer).await.unwrap();
    assert_eq!(got_up.unwrap(), (total, sent_up.unwrap()));
    assert_eq!(got_down.unwrap(), (total, sent_down.unwrap()));
    ended(&world, "finished", "finished").await;
    let flow = world.a.flows().ended_flows()[0].report(std::time::SystemTime::now());
    assert_eq!((flow.bytes_out, flow.bytes_in), (total as u64, total as u64));
}

#[tokio::test]
async fn a_program_behind_ipv6_is_served_alike() {
    let Ok(program) = TcpListener::bind("[::1]:0").await else {
        eprintln!("skipped: no IPv6 here");
        return;
    };
    let world = World::start().await;
    let mesh = std::net::TcpListener::bind("[::1]:0").unwrap();
    let address = mesh.local_addr().unwrap();
    world
        .b
        .set_inbound(vec![crate::proxy::InboundService {
            id: "six".to_owned(),
            name: "db".parse().unwrap(),
            program: program.local_addr().unwrap().into(),
            listener: Some(mesh),
        }])
        .unwrap();
    world.set_instance(address);
    let mut client = world.connect().await;
    let (mut server, _) = within(program.accept()).await.unwrap();
    passes(&mut client, &mut server, b"six").await;
    passes(&mut server, &mut client, b"sechs").await;
}

#[tokio::test]
async fn a_panic_in_one_connection_resets_that_one_and_leaves_the_others() {
    let world = World::start().await;
    let (mut client, mut server) = world.flow().await;
    let mut record = World::captured("web");
    record.program = "panics".to_owned();
    let mut unlucky = world.connect_as(Some(record)).await;
    assert_eq!(read_to_end(&mut unlucky).await, (Vec::new(), true));
    assert_eq!(world.a.refusals().of(Direction::Outbound, "internal"), 1);
    passes(&mut client, &mut server, b"unmoved").await;
    let (mut next, mut accepted) = world.flow().await;
    passes(&mut next, &mut accepted, b"and new ones too").await;
}

#[tokio::test]
async fn a_connection_to_a_guarded_port_is_reset_and_counted_with_its_source() {
    let world = World::start().await;
    let mut stranger = TcpStream::connect(world.guard).await.unwrap();
    let source = stranger.local_addr().unwrap();
    assert_eq!(read_to_end(&mut stranger).await, (Vec::new(), true));
    eventually("it is counted", || world.b.refusals().of(Direction::Inbound, "guarded") == 1).await;
    let flow = world.b.flows().ended_flows()[0].report(std::time::SystemTime::now());
    assert_eq!((flow.peer, flow.original_dst), (source, Some(world.guard)));
}
