//! What is measured of each contestant, and one measurement: a client of `load` runs, and the proxies are looked at when
//! its measured time begins and when it ends.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    time::Duration,
};

use anyhow::{Context as _, Result};
use mesh_tests::process::Process;
use serde_json::Value;

use super::{
    contestants::Lane,
    stage::{On, Place, Stage},
};
use crate::usage;

/// One way to load a contestant.
pub struct Measure {
    pub name: &'static str,
    /// The first words of `load`'s command line.
    words: &'static [&'static str],
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bulk,
    /// Operations, as many as fit.
    Rate,
    /// Operations, one after the other: what counts is how long one takes.
    Latency,
    /// TLS with the server's proxy alone, from a host without meshnode.
    Handshake,
    Idle,
}

/// Idle connections first, while the proxies' memory is that of fresh processes.
pub const ALL: [Measure; 12] = [
    Measure { name: IDLE, words: &["idle", "--connections"], kind: Kind::Idle },
    Measure { name: "up-1", words: &["bulk", "up", "--streams", "1"], kind: Kind::Bulk },
    Measure { name: "down-1", words: &["bulk", "down", "--streams", "1"], kind: Kind::Bulk },
    Measure { name: "both-1", words: &["bulk", "both", "--streams", "1"], kind: Kind::Bulk },
    Measure { name: "up-8", words: &["bulk", "up", "--streams", "8"], kind: Kind::Bulk },
    Measure { name: "down-8", words: &["bulk", "down", "--streams", "8"], kind: Kind::Bulk },
    Measure { name: "both-8", words: &["bulk", "both", "--streams", "8"], kind: Kind::Bulk },
    Measure { name: "ping-32", words: &["ping", "--connections", "32"], kind: Kind::Rate },
    Measure { name: "ping-1", words: &["ping", "--connections", "1"], kind: Kind::Latency },
    Measure { name: "connect-16", words: &["connect", "--connections", "16"], kind: Kind::Rate },
    Measure { name: "connect-1", words: &["connect", "--connections", "1"], kind: Kind::Latency },
    Measure { name: "handshake-16", words: &["handshake", "--connections", "16"], kind: Kind::Handshake },
];

pub const IDLE: &str = "idle";

/// The figures of one measurement.
pub type Sample = BTreeMap<&'static str, f64>;

/// How long a measurement takes.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub warm: Duration,
    pub time: Duration,
    /// Connections that are held idle.
    pub idle: usize,
}

impl Measure {
    /// Operations of `load`, as many as fit.
    pub(crate) const fn rate(name: &'static str, words: &'static [&'static str]) -> Self {
        Self { name, words, kind: Kind::Rate }
    }

    /// The same, one after the other.
    pub(crate) const fn latency(name: &'static str, words: &'static [&'static str]) -> Self {
        Self { name, words, kind: Kind::Latency }
    }

    /// What it is about first of all: a figure of its samples.
    pub fn figure(&self) -> &'static str {
        match self.kind {
            Kind::Bulk => "gbit_per_s",
            Kind::Rate | Kind::Handshake => "per_s",
            Kind::Latency => "p50_us",
            Kind::Idle => "kb_per_connection",
        }
    }

    /// Whether a contestant can be measured so.
    pub fn fits(&self, lane: &Lane) -> bool {
        match self.kind {
            Kind::Handshake => lane.mesh.is_some_and(|mesh| mesh.takes_load),
            // The baselines have no proxies; within one host, none is used.
            Kind::Idle => lane.proxies.len() == 2,
            _ => true,
        }
    }

    /// Measures once.
    pub fn run(&self, stage: &Stage, lane: &Lane, pace: Pace) -> Result<Sample> {
        let (client, to, proxies) = match self.kind {
            Kind::Handshake => {
                let to = lane.mesh.context("there is TLS")?.at;
                (Place { on: On::A, cgroup: "load" }, to, &lane.proxies[1..])
            }
            _ => (lane.client, lane.dial, &lane.proxies[..]),
        };
        let mut words: Vec<String> = self.words.iter().map(|word| (*word).to_owned()).collect();
        match self.kind {
            Kind::Idle => words.push(pace.idle.to_string()),
            Kind::Handshake => {
                words.extend(["--identity".to_owned(), stage.identity(On::A).display().to_string()]);
            }
            _ => {}
        }
        let mut load = Load::start(stage, client, to, &words, pace)?;
        load.expect("begin")?;
        let before = Usage::now(stage, proxies, self.kind)?;
        load.go_on()?;
        load.expect("end")?;
        let after = Usage::now(stage, proxies, self.kind)?;
        load.go_on()?;
        let said = load.figures()?;
        Ok(self.sample(&said, after.cpu.saturating_sub(before.cpu), after.memory - before.memory))
    }

    fn sample(&self, said: &Value, cpu: Duration, memory: f64) -> Sample {
        let figure = |name: &str| said[name].as_f64().unwrap_or_default();
        let (seconds, gigabytes, operations) =
            (figure("seconds"), figure("bytes") / 1e9, figure("operations"));
        let cpu = cpu.as_secs_f64();
        match self.kind {
            Kind::Idle => [("kb_per_connection", memory / 1e3 / operations)].into(),
            Kind::Bulk => {
                [("gbit_per_s", gigabytes * 8.0 / seconds), ("cpu_s_per_gb", cpu / gigabytes)].into()
            }
            Kind::Rate | Kind::Latency | Kind::Handshake => [
                ("per_s", operations / seconds),
                ("p50_us", figure("p50_us")),
                ("p99_us", figure("p99_us")),
                ("cpu_us_per_operation", cpu * 1e6 / operations),
            ]
            .into(),
        }
    }
}

/// What the proxies have used up to a moment.
pub(crate) struct Usage {
    cpu: Duration,
    /// Bytes; read for idle connections only, as the kernel walks all pages of the process for it.
    pub(crate) memory: f64,
}

impl Usage {
    /// Returns the memory of proxies that hold idle connections.
    pub(crate) fn of_idle(stage: &Stage, proxies: &[Place]) -> Result<Self> {
        Self::now(stage, proxies, Kind::Idle)
    }

    fn now(stage: &Stage, proxies: &[Place], kind: Kind) -> Result<Self> {
        let mut all = Self { cpu: Duration::ZERO, memory: 0.0 };
        for place in proxies {
            let cgroup = stage.host(place.on).space().cgroup().child(place.cgroup);
            all.cpu += usage::cpu_of_cgroup(cgroup.path())?;
            if kind == Kind::Idle {
                for pid in cgroup.pids() {
                    all.memory += usage::pss(pid)? as f64;
                }
            }
        }
        Ok(all)
    }
}

/// A running client.
pub(crate) struct Load {
    process: Process,
    input: std::process::ChildStdin,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Load {
    pub(crate) fn start(
        stage: &Stage,
        place: Place,
        to: SocketAddr,
        words: &[String],
        pace: Pace,
    ) -> Result<Self> {
        let mut command = stage.load(place);
        command.args(words).args(["--to", &to.to_string()]);
        command.args(["--warm", &pace.warm.as_millis().to_string()]);
        command.args(["--time", &pace.time.as_millis().to_string()]);
        let mut process = Process::spawn_piped(command, &stage.host(place.on).log_file("load"));
        let input = process.stdin().context("its input is piped")?;
        let lines = BufReader::new(process.stdout().context("its output is piped")?).lines();
        Ok(Self { process, input, lines })
    }

    fn line(&mut self) -> Result<String> {
        Ok(self.lines.next().with_context(|| format!("the load ended: {}", self.process.log()))??)
    }

    pub(crate) fn expect(&mut self, word: &str) -> Result<()> {
        let line = self.line()?;
        anyhow::ensure!(line == word, "the load said `{line}` instead of `{word}`");
        Ok(())
    }

    pub(crate) fn go_on(&mut self) -> Result<()> {
        writeln!(self.input)?;
        Ok(self.input.flush()?)
    }

    pub(crate) fn figures(&mut self) -> Result<Value> {
        let line = self.line()?;
        // The server and the proxies are rid of its connections before the next client comes.
        self.process.wait();
        serde_json::from_str(&line).with_context(|| format!("`{line}` is no JSON"))
    }
}
