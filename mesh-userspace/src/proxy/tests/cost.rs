//! What a message, a flow and a handshake cost: the instructions in user space that callgrind counts, beside figures
//! that were committed. Other than time, they are the same on a busy machine. And what an idle flow holds.
//!
//! Counted are both proxies and the two programs, which do little, in the profile `dev` (meshnode not optimized, its
//! dependencies at level 1): a guard against what grows, no statement about speed. What the kernel does is not seen.

use std::{path::Path, process::Command, time::Duration};

use tokio::net::TcpStream;

use super::world::{World, passes, within};
use crate::{
    allocations,
    catalog::{Catalog, Instance},
    proxy::CapturedFlow,
};

/// Something that is done again and again, and what it may cost.
struct Cost {
    what: &'static str,
    /// How often it is done before the count begins, and while it is counted.
    warm: u64,
    count: u64,
    /// Instructions of one. Commit what the test prints when a change is worth it, or makes it cheaper.
    figure: u64,
}

const COSTS: [Cost; 3] = [
    Cost { what: "128 bytes there and back", warm: 50, count: 500, figure: 82_800 },
    Cost { what: "a flow on a link of the pool", warm: 10, count: 60, figure: 294_000 },
    Cost { what: "a flow with a full handshake", warm: 3, count: 12, figure: 4_275_000 },
];

/// A figure may be exceeded by so many per cent: another processor has other instructions for AES and P-256, another
/// compiler other code.
const MARGIN: u64 = 25;

/// callgrind writes what it has counted, and begins anew, whenever this is called.
#[inline(never)]
fn phase_ends() {
    std::hint::black_box(());
}

#[test]
fn nothing_costs_a_quarter_more_instructions_than_it_did() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        eprintln!("SKIP: no valgrind; `cargo xtask setup` installs it");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--dump-before=*phase_ends*"])
        .arg(format!("--callgrind-out-file={}", folder.path().join("out").display()))
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "proxy::tests::cost::everything", "--ignored", "--nocapture", "--test-threads=1"])
        .output()
        .unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    let mut dearer = Vec::new();
    for (n, Cost { what, count, figure, .. }) in COSTS.iter().enumerate() {
        // The first dump ends the first warming up; then they alternate.
        let found = total(folder.path(), 2 * n + 2) / count;
        let line = format!("{what}: {found} instructions, committed are {figure}");
        eprintln!("{line}");
        if found > figure * (100 + MARGIN) / 100 {
            dearer.push(line);
        } else if found < figure * (100 - MARGIN) / 100 {
            eprintln!("CHEAPER: commit the new figure, or the guard does not hold it");
        }
    }
    assert!(dearer.is_empty(), "{}", dearer.join("\n"));
}

/// Bytes that both proxies have of Rust's allocator for one flow that is open, was used, and is idle, with the two sockets of its
/// programs in this test. aws-lc's keys are not among them: it asks C's.
const HELD: usize = 6_560;

#[tokio::test]
async fn an_idle_flow_holds_no_tenth_more_memory_than_it_did() {
    const FLOWS: usize = 64;
    let world = World::start().await;
    let mut held = Vec::with_capacity(2 * FLOWS);
    let mut before = 0;
    // The first ones make what all share, and room in tables.
    for nth in 0..2 * FLOWS {
        if nth == FLOWS {
            before = allocations::live();
        }
        let (mut client, mut server) = world.flow().await;
        passes(&mut client, &mut server, &[1; 128]).await;
        passes(&mut server, &mut client, &[2; 128]).await;
        held.push((client, server));
    }
    let found = allocations::live().wrapping_sub(before) / FLOWS;
    eprintln!("an idle flow: {found} bytes, committed are {HELD}");
    if found < HELD - HELD / 10 {
        eprintln!("CHEAPER: commit the new figure, or the guard does not hold it");
    }
    assert!(found < HELD + HELD / 10, "an idle flow holds {found} bytes, {HELD} before");
}

/// Returns the instructions that callgrind's dump of this number counts.
fn total(folder: &Path, dump: usize) -> u64 {
    let path = folder.join(format!("out.{dump}"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    total.expect("callgrind writes it").trim().parse().unwrap()
}

#[tokio::test]
#[ignore = "run by its twin under callgrind"]
async fn everything() {
    let world = World::start().await;
    let [ping, flow, handshake] = &COSTS;
    let (mut client, mut server) = world.flow().await;
    for times in [ping.warm, ping.count] {
        for _ in 0..times {
            passes(&mut client, &mut server, &[1; 128]).await;
            passes(&mut server, &mut client, &[2; 128]).await;
        }
        settled().await;
    }
    drop((client, server));
    for times in [flow.warm, flow.count] {
        flows(&world, times).await;
    }
    assert!(world.a.waiting() > 0, "they were carried by links that wait now");
    foreign(&world);
    for times in [handshake.warm, handshake.count] {
        flows(&world, times).await;
    }
    assert_eq!(world.a.waiting(), 0, "each had a connection of its own");
}

async fn flows(world: &World, times: u64) {
    for _ in 0..times {
        let (mut client, mut server) = world.flow().await;
        passes(&mut client, &mut server, &[1; 128]).await;
        passes(&mut server, &mut client, &[2; 128]).await;
        drop(client);
        within(ended(&mut server)).await;
    }
    settled().await;
}

async fn ended(stream: &mut TcpStream) {
    use tokio::io::AsyncReadExt as _;
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
}

/// What the proxies do once a flow's programs are done is part of it.
async fn settled() {
    tokio::time::sleep(Duration::from_millis(300)).await;
    phase_ends();
}

/// Makes the instance of `db` one that is not known to be a meshnode's: each flow has a connection of its own.
fn foreign(world: &World) {
    let CapturedFlow { original_dst, .. } = World::captured("web");
    world.edit_a(|mesh| {
        let catalog = mesh.catalog.as_ref().expect("it is synced");
        let known = catalog.instance_at(original_dst).expect("it is dialled");
        let instance = Instance { meshnode: false, ..Instance::clone(known) };
        mesh.catalog = Some(std::sync::Arc::new(Catalog::new([instance], "")));
    });
    // Those that wait would carry its flows.
    world.a.shared.pool.clear();
}
