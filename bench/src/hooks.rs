//! What meshnode's programs in the kernel add to connect(2): of a process that is no workload, and of one that is.
//!
//! One process opens connections within a host's network namespace; between rounds it is moved from a cgroup that
//! meshnode does not govern to one that it does. So nothing else differs: neither process nor listener nor moment.
//! Beside what the process sees stands what the kernel itself counts of each program (BPF_ENABLE_STATS), in rounds of
//! their own, for counting costs time too.

mod programs;

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Lines, Write as _},
    process::ChildStdout,
};

use anyhow::{Context as _, Result};
use mesh_tests::{process::Process, space::tool};
use serde_json::{Value, json};

use crate::{
    datapath::{
        report::{Summary, machine, markdown, summary},
        stage::{CALLER, On, PROGRAM, Place, Stage},
    },
    figures::{Found, progress, rounded},
    usage,
};
use programs::{Programs, Runs};

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub rounds: usize,
    /// Of each kind in each round.
    pub connections: usize,
}

impl Plan {
    pub fn new(quick: bool) -> Self {
        if quick { Self { rounds: 5, connections: 2_000 } } else { Self { rounds: 41, connections: 5_000 } }
    }
}

/// What the hooks may add where nothing is captured: nanoseconds, and a part of the whole.
const MOST_NS: f64 = 1_000.0;
const MOST_PART: f64 = 0.01;

/// One kind of program, and what it dials.
struct Kind {
    name: &'static str,
    /// `None`: outside of what meshnode governs.
    cgroup: Option<&'static str>,
    dials: Dials,
    /// What it is compared with.
    against: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Dials {
    /// Itself, on loopback.
    Itself,
    /// The service on its own host, with pauses: a server that is woken, and caches that are cold.
    Local,
    /// The service on the other host, in the same way: the connection ends at the listener of meshnode.
    Remote,
}

/// What the kernel counted of each program in a round.
type Counted = BTreeMap<String, Runs>;

const COUNTING_ROUNDS: usize = 5;

const OUTSIDE: &str = "outside";
const SERVED: &str = "outside-served";

const KINDS: [Kind; 6] = [
    Kind { name: OUTSIDE, cgroup: None, dials: Dials::Itself, against: OUTSIDE },
    Kind { name: "not-captured", cgroup: Some("shell"), dials: Dials::Itself, against: OUTSIDE },
    Kind { name: "workload-passthrough", cgroup: Some(CALLER), dials: Dials::Itself, against: OUTSIDE },
    Kind { name: SERVED, cgroup: None, dials: Dials::Local, against: SERVED },
    Kind { name: "workload-direct", cgroup: Some(CALLER), dials: Dials::Local, against: SERVED },
    Kind { name: "workload-captured", cgroup: Some(CALLER), dials: Dials::Remote, against: SERVED },
];

/// Measures, and returns what was found.
pub fn run(plan: Plan) -> Result<Found> {
    usage::raise_file_limit()?;
    let others = Programs::loaded()?;
    let mut stage = Stage::new();
    stage.start_mesh();
    let to = stage.at(On::MeshB, PROGRAM);
    for on in [On::MeshA, On::MeshB] {
        stage.until_answered(Place { on, cgroup: CALLER }, to);
    }
    let mut dialers = [On::MeshA, On::MeshB].map(|on| Dialer::start(&stage, on));
    let mut times: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for round in 0..=plan.rounds {
        if round % 10 == 0 {
            progress(&format!("round {round} of {}", plan.rounds));
        }
        for n in 0..KINDS.len() {
            let kind = &KINDS[(n + round) % KINDS.len()];
            let median = kind.dial(&stage, &mut dialers, plan.connections)?;
            // The first round warms up.
            if round > 0 {
                times.entry(kind.name).or_default().push(median);
            }
        }
    }
    let counting = Programs::count()?;
    let mut counted: BTreeMap<&str, Vec<Counted>> = BTreeMap::new();
    for kind in (0..COUNTING_ROUNDS).flat_map(|_| &KINDS) {
        let before = Programs::loaded()?.without(&others);
        kind.dial(&stage, &mut dialers, plan.connections)?;
        counted.entry(kind.name).or_default().push(Programs::loaded()?.since(&before));
    }
    drop(counting);
    stage.stop();
    let counted = counted.into_iter().map(|(kind, rounds)| (kind, middle(rounds))).collect();
    Ok(Seen { plan, times, counted }.found())
}

/// Returns the round that took the programs neither long nor short.
fn middle(mut rounds: Vec<Counted>) -> Counted {
    rounds.sort_by_key(|round| round.values().map(|runs| runs.ns).sum::<u64>());
    rounds.swap_remove(rounds.len() / 2)
}

impl Kind {
    /// Connects, and returns the median of what connect(2) took in nanoseconds.
    fn dial(&self, stage: &Stage, [a, b]: &mut [Dialer; 2], connections: usize) -> Result<f64> {
        let dialer = if self.dials == Dials::Remote { a } else { b };
        dialer.enter(stage, self.cgroup)?;
        let share = self.share(connections);
        match self.dials {
            Dials::Itself => dialer.ask("own", share, 0),
            Dials::Local | Dials::Remote => {
                dialer.ask(&stage.at(On::MeshB, PROGRAM).to_string(), share, PAUSE_US)
            }
        }
    }

    /// How many connections it opens when asked for `connections`.
    fn share(&self, connections: usize) -> usize {
        if self.dials == Dials::Itself { connections } else { (connections / 20).max(1) }
    }
}

/// A captured one is a flow through both daemons, which are given the time for it.
const PAUSE_US: u64 = 1_000;

/// A running `dialer`.
struct Dialer {
    process: Process,
    input: std::process::ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    on: On,
}

impl Dialer {
    fn start(stage: &Stage, on: On) -> Self {
        let host = stage.host(on);
        let mut process =
            Process::spawn_piped(host.space().command("shell", tool("dialer")), &host.log_file("dialer"));
        let input = process.stdin().expect("its input is piped");
        let lines = BufReader::new(process.stdout().expect("its output is piped")).lines();
        Self { process, input, lines, on }
    }

    /// Moves it to a cgroup of its host; `None`: to one that is no host's.
    fn enter(&self, stage: &Stage, cgroup: Option<&str>) -> Result<()> {
        let cgroup = match cgroup {
            Some(cgroup) => stage.host(self.on).space().cgroup().child(cgroup),
            None => stage.net.space().cgroup().child(OUTSIDE),
        };
        std::fs::write(cgroup.path().join("cgroup.procs"), self.process.pid().to_string())
            .with_context(|| format!("move the dialer to {}", cgroup.path().display()))
    }

    fn ask(&mut self, to: &str, connections: usize, pause_us: u64) -> Result<f64> {
        writeln!(self.input, "{to} {connections} {pause_us}")?;
        self.input.flush()?;
        let line = self.lines.next().with_context(|| format!("it ended: {}", self.process.log()))??;
        let said: Value = serde_json::from_str(&line).with_context(|| format!("`{line}` is no JSON"))?;
        said["median_ns"].as_f64().context("a median")
    }
}

/// Medians of the rounds by kind, and what the kernel counted.
struct Seen {
    plan: Plan,
    times: BTreeMap<&'static str, Vec<f64>>,
    counted: BTreeMap<&'static str, Counted>,
}

impl Seen {
    fn median(&self, kind: &str) -> Summary {
        summary(self.times[kind].clone()).expect("there are rounds")
    }

    /// How much longer than what it is compared with, in the same round: nanoseconds, and as a part.
    fn added(&self, kind: &Kind) -> [Summary; 2] {
        let pairs = || self.times[kind.name].iter().zip(&self.times[kind.against]);
        let all = [pairs().map(|(a, b)| a - b).collect(), pairs().map(|(a, b)| (a - b) / b).collect()];
        all.map(|values| summary(values).expect("there are rounds"))
    }

    fn found(&self) -> Found {
        let mut kinds = json!({});
        let head = ["", "connect(2), ns", "added, ns", "added", "all programs, ns", "of it connect, ns"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        for kind in &KINDS {
            let ([ns, part], median) = (self.added(kind), self.median(kind.name));
            let programs = &self.counted[kind.name];
            let connections = kind.share(self.plan.connections) as f64;
            let per_connection = |runs: &Runs| runs.ns as f64 / connections;
            let all: f64 = programs.values().map(per_connection).sum();
            // A program is named after its hook: mesh_connect4.
            let connect: f64 = programs
                .iter()
                .filter(|(name, _)| name.contains("connect"))
                .map(|(_, r)| per_connection(r))
                .sum();
            let mut row =
                vec![format!("{} (to {})", kind.name, kind.against), format!("{:.0}", median.median)];
            if kind.name == kind.against {
                row.extend(["–".to_owned(), "–".to_owned()]);
            } else {
                row.push(format!("{:.0} ({:.0} to {:.0})", ns.median, ns.min, ns.max));
                row.push(format!("{:.1} %", part.median * 100.0));
            }
            // The sum of nothing is -0.
            row.extend([format!("{:.0}", all + 0.0), format!("{:.0}", connect + 0.0)]);
            rows.push(row);
            let of_programs: BTreeMap<_, _> = programs
                .iter()
                .map(|(name, runs)| {
                    let each = json!({"ns_per_connection": rounded(per_connection(runs)), "ns_per_run": rounded(runs.each()),
                        "runs_per_connection": rounded(runs.count as f64 / connections)});
                    (name, each)
                })
                .collect();
            kinds[kind.name] = json!({
                "against": kind.against, "connect_ns": rounded(median.median), "min_ns": rounded(median.min),
                "max_ns": rounded(median.max), "added_ns": rounded(ns.median), "added_part": rounded(part.median),
                "programs": of_programs,
            });
        }
        let targets = self.targets();
        let json = json!({
            "machine": machine(), "rounds": self.plan.rounds, "connections": self.plan.connections, "kinds": kinds,
            "targets": targets,
        });
        Found { json, table: markdown(rows) + &markdown(target_rows(&targets)) }
    }

    fn targets(&self) -> Vec<Value> {
        let [ns, part] = self.added(&KINDS[1]);
        let target = |what: &str, most: f64, found: f64| json!({"what": what, "most": most, "found": rounded(found), "met": found <= most});
        vec![
            target("not captured, added ns", MOST_NS, ns.median),
            target("not captured, added part", MOST_PART, part.median),
        ]
    }
}

fn target_rows(targets: &[Value]) -> Vec<Vec<String>> {
    let mut rows = vec![["target", "at most", "found", ""].map(str::to_owned).to_vec()];
    rows.extend(targets.iter().map(|target| {
        let text = |name: &str| target[name].as_str().map_or_else(|| target[name].to_string(), str::to_owned);
        let met = if target["met"] == true { "met" } else { "NOT MET" };
        vec![text("what"), text("most"), text("found"), met.to_owned()]
    }));
    rows
}
