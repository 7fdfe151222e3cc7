//! What a message and a connection cost the more flows there are, and the more intentions: the data path's benchmark
//! with measures and levels of its own.

use anyhow::Result;
use serde_json::{Value, json};

use crate::{
    datapath::{
        self, Plan,
        contestants::PLAIN,
        measures::Measure,
        report::{Report, markdown},
    },
    figures::progress,
    usage,
};

/// Who is measured.
const MESHNODE: &str = "meshnode";
/// What both proxies use for an operation.
const CPU: &str = "cpu_us_per_operation";

macro_rules! with_flows {
    ($($count:literal),*) => {
        [$([
            Measure::rate(concat!("ping-", $count), &["ping", "--connections", $count]),
            Measure::latency(concat!("connect-1+", $count), &["connect", "--connections", "1", "--held", $count]),
            Measure::rate(concat!("connect-16+", $count), &["connect", "--connections", "16", "--held", $count]),
        ]),*]
    };
}

/// One level of flows: messages on all of them; the next connection beside them, and 16 at once.
type Level = [Measure; 3];

static FLOWS: [Level; 5] = with_flows!("1", "10", "100", "1000", "10000");
/// Instead of the highest, where a process may not open enough files.
static FEWER: [Level; 1] = with_flows!("9500");

/// What the source's daemon opens for the highest level: two for each flow, and its own.
const FILES: u64 = 20_500;

/// What is measured at a level of intentions, of those of the data path.
const CONNECT: [&str; 2] = ["connect-1", "connect-16"];

/// How many intentions decide for the two services that are measured.
const INTENTIONS: [usize; 3] = [10, 1_000, 50_000];

pub struct Scale {
    levels: Vec<&'static Level>,
    flows: Report,
    intentions: Vec<(usize, Report)>,
}

/// Measures plain TCP and meshnode at the pace of `plan` at each of so many levels of flows, and of intentions.
///
/// # Errors
/// What [`datapath::run`] fails with.
pub fn run(mut plan: Plan, levels: usize) -> Result<Scale> {
    plan.only(&[PLAIN.to_owned(), MESHNODE.to_owned()])?;
    let mut flows: Vec<&Level> = FLOWS.iter().take(levels).collect();
    let files = usage::raise_file_limit()?;
    if flows.len() == FLOWS.len() && files < FILES {
        progress(&format!("SKIPPED: 10,000 flows: a process may open {files} files here; 9,500 instead"));
        flows[FLOWS.len() - 1] = &FEWER[0];
    }
    let of_flows = Plan { measures: flows.iter().copied().flatten().collect(), ..plan.clone() };
    plan.measures(&CONNECT.map(str::to_owned))?;
    let mut intentions = Vec::new();
    for count in INTENTIONS.into_iter().take(levels) {
        intentions.push((count, datapath::run(&Plan { intentions: count, ..plan.clone() })?));
    }
    Ok(Scale { levels: flows, flows: datapath::run(&of_flows)?, intentions })
}

impl Scale {
    pub fn json(&self) -> Value {
        let intentions: Vec<Value> = self
            .intentions
            .iter()
            .map(|(n, report)| json!({"intentions": n, "report": report.json()}))
            .collect();
        json!({"flows": self.flows.json(), "intentions": intentions})
    }

    /// Returns the curves: a row for each figure, a column for each level.
    pub fn tables(&self) -> String {
        let name = |level: &Level| level[0].name.trim_start_matches("ping-").to_owned();
        let flows: Vec<_> =
            self.levels.iter().map(|level| (name(level), &self.flows, level.each_ref())).collect();
        let intentions: Vec<_> = self
            .intentions
            .iter()
            .map(|(count, report)| (count.to_string(), report, [report.measures[0], report.measures[1]]))
            .collect();
        curves("beside so many flows", &flows) + &curves("among so many intentions", &intentions)
    }
}

/// Columns are levels: a name, what was seen there, and the measures.
fn curves<const N: usize>(what: &str, levels: &[(String, &Report, [&'static Measure; N])]) -> String {
    let mut rows = vec![vec![what.to_owned()]];
    rows[0].extend(levels.iter().map(|(name, ..)| name.clone()));
    for contestant in [PLAIN, MESHNODE] {
        for n in 0..N {
            let Some((_, _, measures)) = levels.first() else { continue };
            let measure = match measures[n].name {
                name if name.starts_with("ping-") => "ping",
                name => name.split('+').next().unwrap_or(name),
            };
            for figure in [measures[n].figure(), CPU] {
                let cell = |(_, report, measures): &(String, &Report, [&'static Measure; N])| {
                    report.cell(contestant, PLAIN, measures[n].name, figure)
                };
                if contestant != PLAIN || figure != CPU {
                    let mut row = vec![format!("{contestant} {measure} {figure}")];
                    row.extend(levels.iter().map(cell));
                    rows.push(row);
                }
            }
        }
    }
    markdown(rows)
}
