//! Many at once: nothing is left behind. These count the process's descriptors, so each runs in a process of its own.

use std::{sync::Arc, time::Duration};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::world::{World, alone, eventually, passes, within};

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn limit_descriptors(soft: u64) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard), hard).unwrap();
}

#[test]
fn a_thousand_connections_at_once_leave_no_flow_task_or_descriptor() {
    alone("load::a_thousand_connections");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by its twin in a process of its own"]
async fn a_thousand_connections() {
    limit_descriptors(u64::MAX);
    let world = Arc::new(World::start().await);
    let (client, server) = world.flow().await;
    drop((client, server));
    world.idle().await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = (descriptors(), tasks());

    let servers = tokio::spawn({
        let world = world.clone();
        async move {
            for number in 0..1000 {
                let mut stream = world.accept().await;
                tokio::spawn(async move {
                    let mut got = [0; 5];
                    within(stream.read_exact(&mut got)).await.unwrap();
                    stream.write_all(&got).await.unwrap();
                    // Every end there is: in order, by the client first, and by force.
                    if number % 3 == 0 {
                        super::world::reset(stream);
                    } else {
                        let _ = within(stream.read(&mut got)).await;
                    }
                });
            }
        }
    });
    let barrier = Arc::new(tokio::sync::Barrier::new(1000));
    let clients: Vec<_> = (0..1000)
        .map(|number| {
            let (world, barrier) = (world.clone(), barrier.clone());
            tokio::spawn(async move {
                let mut stream = world.connect().await;
                stream.write_all(b"hello").await.unwrap();
                let mut got = [0; 5];
                let answered = within(stream.read_exact(&mut got)).await;
                barrier.wait().await;
                if number % 2 == 0 {
                    super::world::reset(stream);
                }
                answered.map_or(0, |_| 1)
            })
        })
        .collect();
    let mut answered = 0;
    for client in clients {
        answered += tokio::time::timeout(Duration::from_secs(60), client).await.unwrap().unwrap();
    }
    within(servers).await.unwrap();
    assert!(answered > 600, "{answered} were answered before the server reset them");
    world.idle().await;
    assert_eq!(world.a.flows().opened(), 1001);
    eventually("descriptors and tasks are as before", || (descriptors(), tasks()) <= before).await;
    assert_eq!((world.a.flows().live_flows().len(), world.b.flows().live_flows().len()), (0, 0));
}

#[test]
fn a_process_out_of_descriptors_recovers_when_there_are_some_again() {
    alone("load::out_of_descriptors");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by its twin in a process of its own"]
async fn out_of_descriptors() {
    let world = World::start().await;
    let (mut client, mut server) = world.flow().await;
    // One descriptor is kept back, for the program's end of the next connection.
    let own = tokio::net::TcpSocket::new_v4().unwrap();
    own.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    world.records.0.lock().unwrap().insert(own.local_addr().unwrap(), World::captured("web"));
    limit_descriptors(descriptors() as u64 - 1);
    let mut hoard = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        hoard.push(file);
    }
    let mut waiting = own.connect(world.outbound).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    passes(&mut client, &mut server, b"live flows go on").await;
    drop(hoard);
    limit_descriptors(1024);
    let mut accepted = world.accept().await;
    passes(&mut waiting, &mut accepted, b"and so does the one that waited").await;
}
