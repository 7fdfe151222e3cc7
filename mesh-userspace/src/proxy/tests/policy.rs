//! Changes under live flows: policy, certificates, configuration, and the end of the daemon.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::world::{World, allow, assert_reset, intention, local, passes, within};
use crate::{
    intention::{Action, Intentions},
    proxy::{Direction, InboundError, InboundService},
    state::Mesh,
};

/// Both programs of a live flow see a reset after the edit at one host: the change itself triggers it, no timer does.
async fn cuts(edit: impl FnOnce(&World), reason: &str, at_a: bool) {
    let world = World::start().await;
    let (mut client, mut server) = world.flow().await;
    passes(&mut client, &mut server, b"allowed so far").await;
    edit(&world);
    tokio::join!(assert_reset(&mut client), assert_reset(&mut server));
    world.idle().await;
    let seen = match at_a {
        true => world.a.refusals().of(Direction::Outbound, reason),
        false => world.b.refusals().of(Direction::Inbound, reason),
    };
    assert_eq!(seen, 1);
}

fn nothing_allowed(mesh: &mut Mesh) {
    mesh.intentions = Some(Arc::new(Intentions::new([], Action::Deny)));
}

#[tokio::test]
async fn a_revoked_intention_cuts_its_live_flows_from_either_side() {
    cuts(|world| world.edit_a(nothing_allowed), "revoked", true).await;
    cuts(|world| world.edit_b(nothing_allowed), "revoked", false).await;
}

#[tokio::test]
async fn a_deny_put_above_an_allow_cuts_its_live_flows() {
    let deny_above = |mesh: &mut Mesh| {
        let list = [allow("*", "db"), intention("web", "db", Action::Deny)];
        mesh.intentions = Some(Arc::new(Intentions::new(list, Action::Deny)));
    };
    cuts(|world| world.edit_b(deny_above), "revoked", false).await;
}

#[tokio::test]
async fn a_service_that_loses_its_leaf_or_the_roots_loses_its_flows() {
    cuts(|world| world.edit_a(|mesh| mesh.leafs.clear()), "identity-gone", true).await;
    cuts(|world| world.edit_b(|mesh| mesh.leafs.clear()), "identity-gone", false).await;
    cuts(|world| world.edit_b(|mesh| mesh.roots = None), "identity-gone", false).await;
}

#[tokio::test]
async fn a_change_that_still_allows_a_flow_leaves_it_alone() {
    let world = World::start().await;
    let (mut client, mut server) = world.flow().await;
    for state in [&world.state_a, &world.state_b] {
        state.update(|mesh| {
            let list = [allow("*", "db"), intention("cron", "db", Action::Deny)];
            mesh.intentions = Some(Arc::new(Intentions::new(list, Action::Deny)));
            mesh.stale_since = Some(std::time::SystemTime::now());
        });
    }
    // An instance that left the catalog is not dialled any more, but who talks to it may finish.
    world.edit_a(|mesh| mesh.catalog = Some(Arc::default()));
    tokio::time::sleep(Duration::from_millis(50)).await;
    passes(&mut client, &mut server, b"still here").await;
    passes(&mut server, &mut client, b"me too").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leafs_and_roots_swapped_under_load_drop_nothing() {
    let world = Arc::new(World::start().await);
    let (done, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let server = tokio::spawn({
        let world = world.clone();
        async move {
            loop {
                let (mut stream, _) = world.program.accept().await.unwrap();
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await.unwrap();
                    to.shutdown().await.unwrap();
                });
            }
        }
    });
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (world, done, calls) = (world.clone(), done.clone(), calls.clone());
            tokio::spawn(async move {
                // One connection that lives through every swap, and short ones beside it.
                let mut long = world.connect().await;
                while !done.load(Relaxed) {
                    let mut short = world.connect().await;
                    for stream in [&mut long, &mut short] {
                        within(stream.write_all(b"ping")).await.unwrap();
                        let mut got = [0; 4];
                        within(stream.read_exact(&mut got)).await.unwrap();
                    }
                    calls.fetch_add(1, Relaxed);
                }
            })
        })
        .collect();
    for _ in 0..40 {
        let before = calls.load(Relaxed);
        for (service, state) in [("web", &world.state_a), ("db", &world.state_b)] {
            let (leaf, roots) = (world.ca.leaf(service), world.ca.roots());
            state.update(|mesh| {
                mesh.leafs.insert(leaf.id.service.clone(), leaf.clone());
                mesh.roots = Some(roots.clone());
            });
        }
        super::world::eventually("calls go on", || calls.load(Relaxed) > before).await;
    }
    done.store(true, Relaxed);
    for caller in callers {
        within(caller).await.unwrap();
    }
    world.idle().await;
    server.abort();
    let cut = |name| {
        world.a.refusals().of(Direction::Outbound, name) + world.b.refusals().of(Direction::Inbound, name)
    };
    assert_eq!((cut("revoked"), cut("identity-gone"), cut("bad-certificate")), (0, 0, 0));
}

#[tokio::test]
async fn a_drain_waits_for_flows_that_end_in_time() {
    let world = World::start().await;
    let (mut client, mut server) = world.flow().await;
    let finish = async {
        passes(&mut client, &mut server, b"last words").await;
        client.shutdown().await.unwrap();
        server.shutdown().await.unwrap();
    };
    let (cut, ()) = tokio::join!(world.a.drain(Duration::from_secs(20)), finish);
    assert_eq!(cut, 0);
    let late = tokio::net::TcpStream::connect(world.outbound).await;
    assert!(late.is_err(), "nothing listens any more");
}

#[tokio::test]
async fn a_drain_cuts_what_is_left_at_its_deadline() {
    let world = World::start().await;
    let (mut client, mut server) = world.flow().await;
    let cut = within(world.b.drain(Duration::from_millis(50))).await;
    assert_eq!(cut, 1);
    assert_reset(&mut client).await;
    assert_reset(&mut server).await;
    assert_eq!(world.b.refusals().of(Direction::Inbound, "drain"), 1);
}

fn service(
    id: &str,
    program: std::net::SocketAddr,
    listener: Option<std::net::TcpListener>,
) -> InboundService {
    InboundService { id: id.to_owned(), name: "db".parse().unwrap(), program: program.into(), listener }
}

#[tokio::test]
async fn a_reload_keeps_live_flows_and_serves_the_new_configuration() {
    let world = World::start().await;
    let (mut client, mut server) = world.flow().await;
    let moved = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.b.set_inbound(vec![service("db-1", moved.local_addr().unwrap(), None)]).unwrap();
    passes(&mut client, &mut server, b"as before").await;
    let mut next = world.connect().await;
    let (mut accepted, _) = within(moved.accept()).await.unwrap();
    passes(&mut next, &mut accepted, b"at the new address").await;

    world.b.set_inbound(vec![]).unwrap();
    assert_eq!(world.b.mesh_address("db-1"), None);
    passes(&mut client, &mut server, b"still as before").await;
    super::world::eventually("the mesh port is closed", || {
        std::net::TcpStream::connect(world.mesh_port).is_err()
    })
    .await;
}

#[tokio::test]
async fn a_reload_that_is_wrong_changes_nothing() {
    let world = World::start().await;
    let program = world.program.local_addr().unwrap();
    let twice = vec![service("x", program, Some(local())), service("x", program, Some(local()))];
    assert!(matches!(world.b.set_inbound(twice), Err(InboundError::Twice(id)) if id == "x"));
    let missing = vec![service("y", program, None)];
    assert!(matches!(world.b.set_inbound(missing), Err(InboundError::NoListener(id)) if id == "y"));
    assert_eq!(world.b.mesh_address("db-1"), Some(world.mesh_port));
    let (mut client, mut server) = world.flow().await;
    passes(&mut client, &mut server, b"unchanged").await;
}
