//! Connections between meshnodes carry one flow after another.

use std::{net::SocketAddr, time::Duration};

use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::world::{World, assert_reset, eventually, passes, read_to_end, reset, settings, within};
use crate::{
    intention::{Action, Intentions},
    proxy::{Direction, PoolSettings, ProxyHandle},
};

/// A request, its answer, and both ends closed in order.
pub(super) async fn exchange(world: &World, what: &[u8]) {
    let (mut client, mut server) = world.flow().await;
    finish(&mut client, &mut server, what).await;
}

async fn finish(client: &mut TcpStream, server: &mut TcpStream, what: &[u8]) {
    passes(client, server, what).await;
    passes(server, client, b"answer").await;
    client.shutdown().await.unwrap();
    assert_eq!(read_to_end(server).await, (Vec::new(), false));
    server.shutdown().await.unwrap();
    assert_eq!(read_to_end(client).await, (Vec::new(), false));
}

/// Waits until the link of the last flow can carry the next one.
async fn pooled(world: &World, count: u64) {
    eventually("links wait for flows", || world.a.waiting() == count).await;
}

/// From where links to `b` come: a port for each.
fn ports(world: &World) -> std::collections::HashSet<u16> {
    world.b.flows().ended_flows().iter().map(|flow| flow.start.peer.port()).collect()
}

#[tokio::test]
async fn flows_that_follow_each_other_share_a_connection_and_have_records_of_their_own() {
    let world = World::start().await;
    for nth in 0..20_u8 {
        exchange(&world, &vec![nth; 1 + usize::from(nth) * 1000]).await;
        pooled(&world, 1).await;
    }
    eventually("all ended", || world.b.flows().ended_flows().len() == 20).await;
    assert_eq!(ports(&world).len(), 1);
    let (sent, refusals) = (world.b.flows().ended_flows(), world.b.refusals());
    let bytes: Vec<_> = sent.iter().map(|flow| flow.report(flow.opened).bytes_in).collect();
    assert_eq!(bytes, (0..20).map(|nth| 1 + nth * 1000).collect::<Vec<u64>>());
    assert_eq!(refusals.of(Direction::Inbound, "finished"), 20);
    world.idle().await;
}

#[tokio::test]
async fn flows_at_the_same_time_have_a_connection_each() {
    let world = World::start().await;
    let mut flows = Vec::new();
    for _ in 0..5 {
        flows.push(world.flow().await);
    }
    for (client, server) in &mut flows {
        finish(client, server, b"at once").await;
    }
    pooled(&world, 5).await;
    assert_eq!(ports(&world).len(), 5);
    world.idle().await;
}

#[tokio::test]
async fn a_flow_that_ends_in_a_reset_takes_its_connection_along() {
    let world = World::start().await;
    let (mut client, mut server) = world.flow().await;
    passes(&mut client, &mut server, b"half").await;
    reset(client);
    assert_eq!(read_to_end(&mut server).await, (Vec::new(), true));
    world.idle().await;
    assert_eq!(world.a.waiting(), 0);
}

#[tokio::test]
async fn the_next_flow_of_a_connection_is_decided_by_the_intentions_of_now() {
    let world = World::start().await;
    exchange(&world, b"allowed").await;
    pooled(&world, 1).await;
    // The caller's host has not heard of it yet.
    world.edit_b(|mesh| mesh.intentions = Some(std::sync::Arc::new(Intentions::new([], Action::Deny))));
    assert_reset(&mut world.connect().await).await;
    assert!(world.program_saw_nobody().await);
    world.idle().await;
    assert_eq!(world.b.refusals().of(Direction::Inbound, "not-allowed"), 1);
    assert_eq!(world.a.refusals().of(Direction::Outbound, "refused-by-peer"), 1);
}

#[tokio::test]
async fn a_flow_whose_program_is_not_there_is_refused_by_name_and_the_next_one_is_taken() {
    let world = World::start().await;
    exchange(&world, b"there").await;
    pooled(&world, 1).await;
    let at = world.program.local_addr().unwrap();
    let World { a, b, records, state_a, state_b, ca, outbound, guard, mesh_port, program } = world;
    drop(program);
    let record = World::captured("web");
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((std::net::Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    records.0.lock().unwrap().insert(socket.local_addr().unwrap(), record);
    assert_reset(&mut socket.connect(outbound).await.unwrap()).await;
    eventually("the caller's host knows why", || a.refusals().of(Direction::Outbound, "not-ready") == 1)
        .await;
    let program = tokio::net::TcpListener::bind(at).await.unwrap();
    let world = World { a, b, records, state_a, state_b, ca, outbound, guard, mesh_port, program };
    exchange(&world, b"there again").await;
    world.idle().await;
}

#[tokio::test]
async fn a_renewed_leaf_or_root_retires_the_connections_made_before() {
    let world = World::start().await;
    exchange(&world, b"before").await;
    pooled(&world, 1).await;
    let leaf = world.ca.leaf("web");
    world.edit_a(|mesh| drop(mesh.leafs.insert(leaf.id.service.clone(), leaf.clone())));
    pooled(&world, 0).await;
    exchange(&world, b"after").await;
    pooled(&world, 1).await;
    assert_eq!(ports(&world).len(), 2);
    let roots = world.ca.roots();
    world.edit_a(|mesh| mesh.roots = Some(roots.clone()));
    pooled(&world, 0).await;
    world.idle().await;
}

#[tokio::test]
async fn a_caller_that_no_root_of_now_vouches_for_gets_no_further_flow() {
    let world = World::start().await;
    exchange(&world, b"believed").await;
    pooled(&world, 1).await;
    let other = crate::tls::test_pki::Ca::new(super::world::DOMAIN).roots();
    world.edit_b(|mesh| mesh.roots = Some(other.clone()));
    assert_reset(&mut world.connect().await).await;
    assert!(world.program_saw_nobody().await);
    world.idle().await;
    assert_eq!(world.b.refusals().of(Direction::Inbound, "untrusted-chain"), 1);
}

#[tokio::test]
async fn a_peer_that_went_while_a_connection_waited_costs_no_flow() {
    let world = World::start().await;
    exchange(&world, b"first").await;
    pooled(&world, 1).await;
    // The mesh port ends, as with the peer's daemon, and with it what waits; it is served anew.
    world.b.set_inbound(vec![]).unwrap();
    eventually("the peer's side is gone", || world.b.shared.connections.is_empty()).await;
    let listener = std::net::TcpListener::bind(world.mesh_port).unwrap();
    world.b.set_inbound(vec![world.db(Some(listener))]).unwrap();
    exchange(&world, b"second").await;
    assert_eq!(ports(&world).len(), 2);
    world.idle().await;
}

/// More than the server's program and what is before it hold, less than the connection and its ends do.
const STUCK: usize = 6 << 20;

/// A flow that has ended at the caller's side while its server's program has yet to read nearly all of it.
async fn stuck(world: &World) -> TcpStream {
    socket2::SockRef::from(&world.program).set_recv_buffer_size(4096).unwrap();
    let (mut client, mut server) = world.flow().await;
    server.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut client).await, (Vec::new(), false));
    within(client.write_all(&vec![1; STUCK])).await.unwrap();
    client.shutdown().await.unwrap();
    eventually("the caller's side has ended", || world.a.flows().live() == 0).await;
    assert_eq!(world.b.flows().live(), 1);
    server
}

/// What becomes of the ends of the connections to `mesh` here when they are closed by whoever it is: `None` is in order.
fn lingers(mesh: SocketAddr) -> Vec<Option<Duration>> {
    let all = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let theirs = numbers.filter_map(|fd| {
        // SAFETY: it is used at once; one that was closed meanwhile, or is another by now, answers otherwise.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        let socket = socket2::SockRef::from(&fd);
        let peer = socket.peer_addr().ok()?.as_socket()?;
        (peer == mesh).then(|| socket.linger().ok()).flatten()
    });
    theirs.collect()
}

/// The kernel closes the sockets of a daemon that is killed.
#[tokio::test]
async fn a_waiting_connection_ends_with_a_reset_unless_the_kernel_has_yet_to_send_what_a_flow_left_there() {
    let world = World::start().await;
    exchange(&world, b"first").await;
    pooled(&world, 1).await;
    assert_eq!(lingers(world.mesh_port), [Some(Duration::ZERO)], "nothing is told of each flow");
    let mut server = stuck(&world).await;
    eventually("its end is in order", || lingers(world.mesh_port) == [None]).await;
    assert_eq!(read_to_end(&mut server).await, (vec![1; STUCK], false));
    eventually("both ended", || world.b.flows().ended_flows().len() == 2).await;
    // The next flow on it is reset again if it is cut.
    let (client, mut server) = world.flow().await;
    assert_eq!(lingers(world.mesh_port), [Some(Duration::ZERO)]);
    assert_eq!(ports(&world).len(), 1);
    reset(client);
    assert!(read_to_end(&mut server).await.1);
    world.idle().await;
}

#[tokio::test]
async fn what_is_under_way_is_delivered_whatever_becomes_of_its_connection() {
    let tight = PoolSettings { most: 0, ..PoolSettings::default() };
    let brief = PoolSettings { idle: Duration::from_millis(100), ..PoolSettings::default() };
    for (pool, clears) in [(tight, false), (brief, false), (PoolSettings::default(), true)] {
        let world = World::with(crate::proxy::ProxySettings { pool, ..settings() }).await;
        let mut server = stuck(&world).await;
        if clears {
            world.a.shared.pool.clear();
        }
        eventually("its caller's end is gone", || world.a.waiting() == 0).await;
        let (all, was_reset) = read_to_end(&mut server).await;
        assert_eq!((all.len(), was_reset), (STUCK, false), "{pool:?}");
        world.idle().await;
        assert_eq!(world.b.flows().ended_flows().len(), 1);
    }
}

#[tokio::test]
async fn links_that_no_flow_uses_are_closed_after_a_while() {
    let pool = PoolSettings { idle: Duration::from_millis(200), ..PoolSettings::default() };
    let world = World::with(crate::proxy::ProxySettings { pool, ..settings() }).await;
    exchange(&world, b"once").await;
    pooled(&world, 0).await;
    eventually("the peer's side ended too", || world.b.shared.connections.is_empty()).await;
}

#[tokio::test]
async fn a_pool_of_no_size_makes_a_connection_for_each_flow() {
    let pool = PoolSettings { most: 0, ..PoolSettings::default() };
    let world = World::with(crate::proxy::ProxySettings { pool, ..settings() }).await;
    for _ in 0..3 {
        exchange(&world, b"each").await;
        eventually("its flow ended", || world.b.flows().live() == 0).await;
    }
    assert_eq!(ports(&world).len(), 3);
    assert_eq!(world.a.waiting(), 0);
    world.idle().await;
}

/// As with a foreign peer, in both directions, whatever the other side would like to speak.
#[tokio::test]
async fn without_a_pool_on_either_side_each_flow_is_a_connection_of_raw_bytes() {
    for on in [(true, false), (false, true), (false, false), (true, true)] {
        let with = |enabled| crate::proxy::ProxySettings {
            pool: PoolSettings { enabled, ..PoolSettings::default() },
            ..settings()
        };
        let world = World::of(with(on.0), with(on.1)).await;
        for nth in 1..=3 {
            exchange(&world, b"each").await;
            eventually("both sides' flows ended", || {
                let ended =
                    |side: &ProxyHandle| side.flows().live() == 0 && side.flows().ended_flows().len() == nth;
                ended(&world.a) && ended(&world.b)
            })
            .await;
        }
        let (connections, waiting) = if on == (true, true) { (1, 1) } else { (3, 0) };
        assert_eq!(ports(&world).len(), connections, "{on:?}");
        pooled(&world, waiting).await;
        let (client, mut server) = world.flow().await;
        reset(client);
        assert!(read_to_end(&mut server).await.1, "{on:?}: a reset is one");
        world.idle().await;
    }
}

#[tokio::test]
async fn a_connection_that_was_quiet_is_asked_before_a_byte_is_sent() {
    let world = World::start().await;
    exchange(&world, b"first").await;
    pooled(&world, 1).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    exchange(&world, b"second").await;
    pooled(&world, 1).await;
    eventually("both ended", || world.b.flows().ended_flows().len() == 2).await;
    assert_eq!(ports(&world).len(), 1);
    world.idle().await;
}

#[tokio::test]
async fn a_connection_whose_server_has_not_done_with_a_flow_does_not_carry_the_next_one() {
    let world = World::start().await;
    let server = stuck(&world).await;
    assert_eq!(world.a.waiting(), 1);
    exchange(&world, b"meanwhile").await;
    // Its end is the connection's.
    reset(server);
    exchange(&world, b"afterwards").await;
    eventually("all ended", || world.b.flows().ended_flows().len() == 3).await;
    assert_eq!(ports(&world).len(), 2);
    assert_eq!(world.b.refusals().of(Direction::Inbound, "finished"), 2);
    world.idle().await;
}
