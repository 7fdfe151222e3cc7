//! Many idle connections held at once, each used at the beginning and, to see that it is there, at the end.
//!
//! A daemon opens two files for a flow. Where a process may not open enough of them (and this one may not raise the
//! limit), connections are spread over as many pairs of daemons as it takes; the memory is that of all of them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::{
    datapath::{
        contestants::{self, Lane},
        measures::{Load, Pace, Usage},
        report::{machine, markdown},
        stage::Stage,
    },
    figures::{Found, progress, rounded},
    usage,
};

/// Files of a daemon that are no flow's.
const OWN_FILES: u64 = 1_000;

/// A pair of hosts with its part of the connections.
struct Pair {
    // Before the hosts: it ends first.
    load: Load,
    stage: Stage,
    lane: Lane,
    /// The daemons' memory before.
    before: f64,
}

/// Holds `count` connections and returns what one takes.
pub fn run(count: usize) -> Result<Found> {
    let files = usage::raise_file_limit()?;
    let most = usize::try_from(files.saturating_sub(OWN_FILES) / 2)?.max(1);
    let pairs = count.div_ceil(most);
    let mut held = Vec::new();
    let (mut opening, mut machine_took) = (Duration::ZERO, 0);
    for n in 0..pairs {
        let (mut pair, share) = (Pair::start(count, n, pairs)?, share(count, n, pairs));
        let (start, free) = (Instant::now(), available()?);
        pair.load.go_on()?;
        pair.load.expect("end")?;
        opening += start.elapsed();
        machine_took += free.saturating_sub(available()?);
        progress(&format!("pair {} of {pairs} holds {share}", n + 1));
        held.push(pair);
    }
    let mut memory = 0.0;
    for pair in &held {
        memory += Usage::of_idle(&pair.stage, &pair.lane.proxies)?.memory - pair.before;
    }
    for pair in &mut held {
        pair.load.go_on()?;
        // It says so only when each was answered once more.
        pair.load.figures().context("the connections are there no more")?;
        pair.stage.stop();
    }
    let of_one = |bytes: f64| bytes / 1e3 / count as f64;
    let json = json!({
        "machine": machine(), "connections": count, "pairs_of_daemons": pairs, "files_of_a_process": files,
        "kb_per_connection": rounded(of_one(memory)), "opened_per_s": rounded(count as f64 / opening.as_secs_f64()),
        "kb_per_connection_of_the_machine": rounded(of_one(machine_took as f64)),
    });
    let rows = vec![
        ["held", "pairs of daemons", "kB of one, both proxies", "kB of one, whole machine", "opened per s"]
            .map(str::to_owned)
            .to_vec(),
        vec![
            count.to_string(),
            pairs.to_string(),
            format!("{:.1}", of_one(memory)),
            format!("{:.1}", of_one(machine_took as f64)),
            format!("{:.0}", count as f64 / opening.as_secs_f64()),
        ],
    ];
    Ok(Found { json, table: markdown(rows) })
}

/// How many of `count` connections pair `n` holds.
fn share(count: usize, n: usize, pairs: usize) -> usize {
    count * (n + 1) / pairs - count * n / pairs
}

impl Pair {
    /// Starts the daemons, and a load that has opened nothing yet.
    fn start(count: usize, n: usize, pairs: usize) -> Result<Self> {
        let mut stage = Stage::new();
        let lane = (contestants::named("meshnode").context("it is one of them")?.start)(&mut stage);
        stage.until_answered(lane.client, lane.dial);
        let words = ["idle".to_owned(), "--connections".to_owned(), share(count, n, pairs).to_string()];
        let pace = Pace { warm: Duration::ZERO, time: Duration::ZERO, idle: 0 };
        let mut load = Load::start(&stage, lane.client, lane.dial, &words, pace)?;
        load.expect("begin")?;
        let before = Usage::of_idle(&stage, &lane.proxies)?.memory;
        Ok(Self { load, stage, lane, before })
    }
}

/// Returns the machine's memory that programs could have, in bytes.
fn available() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).context("no MemAvailable")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}
