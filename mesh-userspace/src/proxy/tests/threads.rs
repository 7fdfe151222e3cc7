//! What holds when each core has a thread of its own, as in the daemon.

use std::time::Duration;

use super::{
    links::exchange,
    world::{World, eventually, passes, read_to_end, settings},
};
use crate::proxy::{ProxySettings, Threads};

async fn per_core() -> World {
    World::with(ProxySettings { threads: Threads::PerCore, ..settings() }).await
}

#[tokio::test]
async fn flows_are_spread_evenly_over_the_threads_and_leave_nothing() {
    let world = per_core().await;
    let mut flows = Vec::new();
    for _ in 0..32 {
        flows.push(world.flow().await);
    }
    for (client, server) in &mut flows {
        passes(client, server, b"there").await;
        passes(server, client, b"and back").await;
    }
    let loads = world.a.shared.workers.loads();
    assert_eq!(loads.iter().sum::<isize>(), 32);
    let (least, most) = (loads.iter().min().unwrap(), loads.iter().max().unwrap());
    assert!(most - least <= 32 / loads.len().max(2) as isize, "{loads:?}");
    // One that waits for a flow is none: these threads could take others'.
    flows.truncate(1);
    eventually("only one is carried", || world.b.shared.workers.loads().iter().sum::<isize>() == 1).await;
    drop(flows);
    world.idle().await;
    eventually("no thread carries anything", || world.a.shared.workers.loads().iter().all(|n| *n == 0)).await;
}

#[tokio::test]
async fn a_thread_that_has_nothing_to_do_gets_the_next_flow() {
    let world = per_core().await;
    let _flows = (world.flow().await, world.flow().await);
    let loads = world.a.shared.workers.loads();
    assert!(loads.len() == 1 || loads.iter().all(|load| *load <= 1), "{loads:?}");
}

#[tokio::test]
async fn a_connection_waits_for_a_flow_on_its_own_thread() {
    let world = per_core().await;
    let cores = world.a.shared.workers.loads().len() as u64;
    for _ in 0..20 {
        exchange(&world, b"one after another").await;
        eventually("a connection waits", || world.a.waiting() > 0).await;
    }
    assert!((1..=cores).contains(&world.a.waiting()), "{} wait on {cores} threads", world.a.waiting());
}

#[tokio::test]
async fn a_drain_cuts_what_the_threads_still_carry() {
    let world = per_core().await;
    let (mut client, mut server) = world.flow().await;
    passes(&mut client, &mut server, b"still open").await;
    assert_eq!(world.a.drain(Duration::from_millis(50)).await, 1);
    assert!(read_to_end(&mut client).await.1, "the program sees a reset");
}
