//! The data path side by side with others': the same client, server, hosts, certificates and cipher for each, in rounds.
//!
//! In a round every contestant is started anew; then, measure by measure, each is measured once, in an order that is
//! another one each time. Ratios are taken within a round: what disturbs the machine for minutes disturbs both.

pub mod chart;
pub mod contestants;
pub mod measures;
pub mod report;
pub(crate) mod stage;
mod targets;
mod wire;

use std::time::Duration;

use anyhow::{Result, bail};

use contestants::{Contestant, Lane};
use measures::{Measure, Pace};
use report::{Missing, Report};
use stage::Stage;

use crate::{figures::progress, usage};

/// What to measure.
#[derive(Clone)]
pub struct Plan {
    pub rounds: usize,
    pub pace: Pace,
    pub contestants: Vec<&'static Contestant>,
    pub measures: Vec<&'static Measure>,
    /// So many intentions that decide for the caller and the service, beside the one that allows.
    pub intentions: usize,
}

impl Plan {
    /// Everybody and everything, in about twenty minutes, or in two of them.
    pub fn new(quick: bool) -> Self {
        let (rounds, time) = if quick { (2, 400) } else { (5, 1500) };
        let pace = Pace {
            warm: Duration::from_millis(time / 5),
            time: Duration::from_millis(time),
            idle: if quick { 200 } else { 1000 },
        };
        Self {
            rounds,
            pace,
            contestants: contestants::ALL.iter().collect(),
            measures: measures::ALL.iter().collect(),
            intentions: 0,
        }
    }

    /// Leaves only the contestants of these names, and what they are compared with.
    ///
    /// # Errors
    /// For a name that nobody has.
    pub fn only(&mut self, names: &[String]) -> Result<()> {
        let chosen = choose(&self.contestants, names, |contestant| contestant.name)?;
        let wanted =
            |one: &Contestant| chosen.iter().any(|other| other.name == one.name || other.against == one.name);
        self.contestants.retain(|one| wanted(one));
        Ok(())
    }

    /// Leaves only the measures of these names.
    ///
    /// # Errors
    /// For a name that none has.
    pub fn measures(&mut self, names: &[String]) -> Result<()> {
        self.measures = choose(&self.measures, names, |measure| measure.name)?;
        Ok(())
    }
}

fn choose<T>(
    all: &[&'static T],
    names: &[String],
    name: impl Fn(&T) -> &'static str,
) -> Result<Vec<&'static T>> {
    if let Some(unknown) = names.iter().find(|wanted| !all.iter().any(|one| name(one) == **wanted)) {
        let known: Vec<_> = all.iter().map(|one| name(one)).collect();
        bail!("`{unknown}` is none of {}", known.join(", "));
    }
    Ok(all.iter().copied().filter(|one| names.iter().any(|wanted| wanted == name(one))).collect())
}

/// Measures, and returns all that was seen.
pub fn run(plan: &Plan) -> Result<Report> {
    usage::raise_file_limit()?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    if load.split(' ').next().and_then(|load| load.parse().ok()).is_some_and(|load: f64| load > 0.7) {
        progress(&format!("OTHERS USE THIS MACHINE, figures will be too low; load average {}", load.trim()));
    }
    let mut report = Report::new(plan);
    let mut present = Vec::new();
    for contestant in &plan.contestants {
        match (contestant.find)() {
            Ok(version) => {
                report.versions.insert(contestant.name, version);
                present.push(*contestant);
            }
            Err(why) => {
                progress(&format!("SKIPPED: {}: {why}", contestant.name));
                report.missing.push(Missing { name: contestant.name, why });
            }
        }
    }
    let mut stage = Stage::new();
    stage.intend(plan.intentions)?;
    for round in 0..plan.rounds {
        let lanes = start(&mut stage, &present, (round == 0).then_some(&mut report));
        for (n, measure) in plan.measures.iter().enumerate() {
            measure_all(&stage, &lanes, measure, plan, round + n, &mut report)?;
            let figures = report.last(measure);
            progress(&format!("round {} of {}, {}: {figures}", round + 1, plan.rounds, measure.name));
        }
        stage.stop();
    }
    Ok(report)
}

/// Starts everybody; with a report, what they say on the wire is looked at and noted.
fn start(
    stage: &mut Stage,
    contestants: &[&'static Contestant],
    report: Option<&mut Report>,
) -> Vec<(&'static Contestant, Lane)> {
    let look = report.map(|report| (report, wire::Look::begin(stage)));
    let mut lanes = Vec::new();
    for contestant in contestants {
        let lane = (contestant.start)(stage);
        stage.until_answered(lane.client, lane.dial);
        lanes.push((*contestant, lane));
    }
    if let Some((report, look)) = look {
        report.handshakes = look.end(stage, &lanes);
    }
    lanes
}

fn measure_all(
    stage: &Stage,
    lanes: &[(&'static Contestant, Lane)],
    measure: &'static Measure,
    plan: &Plan,
    turn: usize,
    report: &mut Report,
) -> Result<()> {
    let first = turn % lanes.len().max(1);
    for (contestant, lane) in lanes[first..].iter().chain(&lanes[..first]) {
        if measure.fits(lane) {
            let sample = measure
                .run(stage, lane, plan.pace)
                .map_err(|error| error.context(format!("{} of {}", measure.name, contestant.name)))?;
            report.add(contestant.name, measure.name, sample);
        }
    }
    Ok(())
}
