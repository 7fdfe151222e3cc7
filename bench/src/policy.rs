//! How long the proxy takes to decide whether one service may connect to another, among few intentions and many.
//!
//! (That it allocates nothing is a test, in `intention` and in `proxy::decision` of `mesh-userspace`.)

use std::{hint::black_box, time::Instant};

use anyhow::Result;
use mesh_userspace::{
    identity::ServiceName,
    intention::{Action, Intention, Intentions, Pattern},
};
use serde_json::json;

use crate::{
    datapath::report::{machine, markdown, summary},
    figures::{Found, rounded},
    shape::name,
};

const LEVELS: [usize; 3] = [10, 1_000, 50_000];
/// Pairs that are asked for in turn: so many that names and intentions are not in the processor's nearest cache.
const PAIRS: usize = 1 << 16;

/// What is asked: a pair that an intention names; one that only the default decides.
const KINDS: [&str; 2] = ["named", "unnamed"];

/// Measures at each level.
///
/// # Errors
/// None is expected: names are well formed.
pub fn run(quick: bool) -> Result<Found> {
    let rounds = if quick { 3 } else { 21 };
    let mut rows = vec![["ns of one decision, among", "named", "unnamed"].map(str::to_owned).to_vec()];
    let mut levels = json!({});
    for level in LEVELS {
        let set =
            Intentions::new((0..level).map(|n| allow(n, level)).collect::<Result<Vec<_>>>()?, Action::Deny);
        let mut row = vec![format!("{level} intentions")];
        for kind in KINDS {
            let pairs = (0..PAIRS).map(|n| pair(n, level, kind)).collect::<Result<Vec<_>>>()?;
            let times = (0..rounds).map(|_| round(&set, &pairs, kind == KINDS[0])).collect();
            let found = summary(times).expect("there are rounds");
            row.push(format!("{:.0} ({:.0} to {:.0})", found.median, found.min, found.max));
            levels[level.to_string()][kind] = json!({
                "median_ns": rounded(found.median), "min_ns": rounded(found.min), "max_ns": rounded(found.max),
            });
        }
        rows.push(row);
    }
    Ok(Found {
        json: json!({"machine": machine(), "rounds": rounds, "decision": levels}),
        table: markdown(rows),
    })
}

/// Sources for each destination: a graph of some hundred services.
fn sources(level: usize) -> usize {
    (level as f64).sqrt().ceil() as usize
}

/// Returns intention number `n` of so many.
fn allow(n: usize, level: usize) -> Result<Intention> {
    let (source, destination) = names(n, level)?;
    Ok(Intention {
        id: String::new(),
        source: Pattern::Exact(source),
        destination: Pattern::Exact(destination),
        action: Action::Allow,
        http: false,
    })
}

fn names(n: usize, level: usize) -> Result<(ServiceName, ServiceName)> {
    let sources = sources(level);
    Ok((name(n % sources).parse()?, name(50_000 + n / sources).parse()?))
}

/// Returns pair number `n`, in no order that a cache could guess.
fn pair(n: usize, level: usize, kind: &str) -> Result<(ServiceName, ServiceName)> {
    // A prime, so that all intentions have their turn.
    let (source, destination) = names(n.wrapping_mul(7_919) % level, level)?;
    // Nobody may call a caller.
    Ok(if kind == KINDS[0] { (source, destination) } else { (destination, source) })
}

/// Asks for each pair once and returns the nanoseconds of one.
fn round(set: &Intentions, pairs: &[(ServiceName, ServiceName)], allowed: bool) -> f64 {
    let start = Instant::now();
    let found =
        pairs.iter().filter(|(source, destination)| black_box(set).allows(source, destination)).count();
    let took = start.elapsed();
    assert_eq!(
        found,
        if allowed { pairs.len() } else { 0 },
        "each pair is named by an intention, or none is"
    );
    took.as_secs_f64() * 1e9 / pairs.len() as f64
}
