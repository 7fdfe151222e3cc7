//! What a run has seen: every sample, medians with their spread, ratios; as JSON and as tables.

use std::{collections::BTreeMap, fmt::Write as _, fs};

use mesh_tests::capture::tls::Chosen;
use serde_json::{Value, json};

use super::{
    Plan,
    contestants::Contestant,
    measures::{self, Measure, Sample},
    targets, wire,
};
use crate::figures::rounded;

pub struct Report {
    pub contestants: Vec<&'static Contestant>,
    pub measures: Vec<&'static Measure>,
    plan: Value,
    machine: Value,
    pub versions: BTreeMap<&'static str, String>,
    pub missing: Vec<Missing>,
    pub handshakes: BTreeMap<&'static str, Chosen>,
    /// By contestant and measure, one for each round.
    samples: BTreeMap<&'static str, BTreeMap<&'static str, Vec<Sample>>>,
}

/// A contestant that is not there.
pub struct Missing {
    pub name: &'static str,
    pub why: String,
}

/// One figure over all rounds.
#[derive(Clone, Copy)]
pub struct Summary {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Report {
    pub fn new(plan: &Plan) -> Self {
        Self {
            contestants: plan.contestants.clone(),
            measures: plan.measures.clone(),
            plan: json!({
                "rounds": plan.rounds, "seconds": plan.pace.time.as_secs_f64(),
                "warm_seconds": plan.pace.warm.as_secs_f64(), "idle_connections": plan.pace.idle,
                "intentions": plan.intentions,
            }),
            machine: machine(),
            versions: BTreeMap::new(),
            missing: Vec::new(),
            handshakes: BTreeMap::new(),
            samples: BTreeMap::new(),
        }
    }

    pub fn add(&mut self, contestant: &'static str, measure: &'static str, sample: Sample) {
        self.samples.entry(contestant).or_default().entry(measure).or_default().push(sample);
    }

    fn of(&self, contestant: &str, measure: &str) -> &[Sample] {
        self.samples.get(contestant).and_then(|all| all.get(measure)).map_or(&[], Vec::as_slice)
    }

    /// Returns the figure over all rounds, if it was measured.
    pub fn summary(&self, contestant: &str, measure: &str, figure: &str) -> Option<Summary> {
        summary(
            self.of(contestant, measure).iter().filter_map(|sample| sample.get(figure)).copied().collect(),
        )
    }

    /// Returns the median of the figure's ratio to another contestant's of the same round.
    pub fn ratio(&self, contestant: &str, to: &str, measure: &str, figure: &str) -> Option<Summary> {
        let pairs = self.of(contestant, measure).iter().zip(self.of(to, measure));
        let ratios = pairs.filter_map(|(one, other)| Some(one.get(figure)? / other.get(figure)?));
        // The baselines have no proxies whose CPU could be divided by.
        summary(ratios.filter(|ratio| ratio.is_finite()).collect())
    }

    /// Returns the newest figures of all, in a line.
    pub fn last(&self, measure: &Measure) -> String {
        let mut line = String::new();
        for Contestant { name, .. } in &self.contestants {
            if let Some(figure) = self.of(name, measure.name).last().and_then(|s| s.get(measure.figure())) {
                write!(line, "{name} {} ", short(*figure)).expect("a string takes it");
            }
        }
        line
    }

    pub fn json(&self) -> Value {
        let mut contestants = json!({});
        for contestant in &self.contestants {
            let name = contestant.name;
            let mut of_it = json!({"version": self.versions.get(name), "ratios_to": contestant.against});
            if let Some(Missing { why, .. }) = self.missing.iter().find(|missing| missing.name == name) {
                of_it["skipped"] = json!(why);
            }
            if let Some(handshake) = self.handshakes.get(name) {
                of_it["handshake"] = json!({
                    "version": "TLS 1.3", "cipher_suite": wire::suite_name(handshake.suite), "group": "X25519",
                    "resumes": handshake.resumed,
                });
            }
            contestants[name] = of_it;
        }
        json!({
            "machine": self.machine, "plan": self.plan, "contestants": contestants,
            "summary": self.summaries(), "targets": targets::json(self), "samples": self.samples,
        })
    }

    fn summaries(&self) -> Value {
        let mut all = json!({});
        for Contestant { name, against, .. } in &self.contestants {
            for (measure, samples) in self.samples.get(name).into_iter().flatten() {
                for figure in samples.first().into_iter().flat_map(Sample::keys) {
                    let Some(Summary { median, min, max }) = self.summary(name, measure, figure) else {
                        continue;
                    };
                    let mut of_it =
                        json!({"median": rounded(median), "min": rounded(min), "max": rounded(max)});
                    if let Some(ratio) =
                        self.ratio(name, against, measure, figure).filter(|_| name != against)
                    {
                        of_it["ratio"] = rounded(ratio.median);
                    }
                    all[*name][*measure][*figure] = of_it;
                }
            }
        }
        all
    }

    /// Returns the tables that people read.
    pub fn tables(&self) -> String {
        let bulk = |measure: &&&Measure| measure.figure() == "gbit_per_s";
        let (bulk, other): (Vec<_>, Vec<_>) = self.measures.iter().partition(|measure| bulk(measure));
        let mut text = String::new();
        for (name, version) in &self.versions {
            let suite = self.handshakes.get(name).map(|handshake| handshake.suite);
            let other = suite.filter(|suite| *suite != wire::AES_128).map(wire::suite_name);
            let other = other.map(|name| format!("; {name}")).unwrap_or_default();
            writeln!(text, "{name}: {version}{other}").expect("a string takes it");
        }
        text.push('\n');
        self.table(&mut text, "Gbit/s", &bulk, |measure| measure.figure());
        self.table(&mut text, "CPU of the proxies, s/GB", &bulk, |_| "cpu_s_per_gb");
        let unit = "per second; µs of one (-1); kB of one (idle)";
        self.table(&mut text, unit, &other, |measure| measure.figure());
        let other: Vec<_> = other.into_iter().filter(|measure| measure.name != measures::IDLE).collect();
        self.table(&mut text, "CPU of the proxies, µs of one", &other, |_| "cpu_us_per_operation");
        text + &targets::table(self)
    }

    fn table(
        &self,
        text: &mut String,
        unit: &str,
        measures: &[&&'static Measure],
        figure: impl Fn(&Measure) -> &'static str,
    ) {
        if measures.is_empty() {
            return;
        }
        let mut rows = vec![vec![unit.to_owned()]];
        rows[0].extend(measures.iter().map(|measure| measure.name.to_owned()));
        for Contestant { name, against, .. } in &self.contestants {
            let mut row = vec![(*name).to_owned()];
            if let Some(Missing { why, .. }) = self.missing.iter().find(|missing| missing.name == *name) {
                row.push(format!("SKIPPED: {why}"));
            } else {
                row.extend(
                    measures.iter().map(|measure| self.cell(name, against, measure.name, figure(measure))),
                );
            }
            if row[1..].iter().any(|cell| cell != "–") {
                rows.push(row);
            }
        }
        text.push_str(&markdown(rows));
    }

    /// Median, in brackets the ratio, and how far the rounds were apart.
    pub fn cell(&self, name: &str, against: &str, measure: &str, figure: &str) -> String {
        let Some(Summary { median, min, max }) = self.summary(name, measure, figure) else {
            return "–".to_owned();
        };
        // The baselines have no proxy that uses CPU.
        if median == 0.0 && figure.starts_with("cpu") {
            return "–".to_owned();
        }
        let ratio = self.ratio(name, against, measure, figure).filter(|_| name != against);
        let ratio = ratio.map(|ratio| format!(" ({:.3})", ratio.median)).unwrap_or_default();
        format!("{}{ratio} ±{:.0} %", short(median), (max - min) / 2.0 / median * 100.0)
    }
}

pub fn summary(mut values: Vec<f64>) -> Option<Summary> {
    values.sort_by(f64::total_cmp);
    let (min, max) = (*values.first()?, *values.last()?);
    let middle = values.len() / 2;
    let median = if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    };
    Some(Summary { median, min, max })
}

/// Returns a number with three digits that count, thousands apart.
pub fn short(number: f64) -> String {
    match number.abs() {
        n if n < 1.0 => format!("{number:.3}"),
        n if n < 10.0 => format!("{number:.2}"),
        n if n < 100.0 => format!("{number:.1}"),
        n if n < 1000.0 => format!("{number:.0}"),
        _ => {
            let whole = format!("{number:.0}");
            let (left, right) = whole.split_at(whole.len() - 3);
            format!("{left},{right}")
        }
    }
}

/// Returns the rows as a table of Markdown, the first being its head.
pub fn markdown(mut rows: Vec<Vec<String>>) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    rows.insert(1, vec!["---".to_owned(); columns]);
    let width = |n: usize| rows.iter().filter_map(|row| Some(row.get(n)?.chars().count())).max().unwrap_or(0);
    // A long word in a cell is not to make its column wide everywhere.
    let widths: Vec<usize> = (0..columns).map(|n| width(n).min(24)).collect();
    let mut text = String::new();
    for row in &rows {
        for (n, width) in widths.iter().enumerate() {
            write!(text, "| {:width$} ", row.get(n).map_or("", String::as_str)).expect("a string takes it");
        }
        text.push_str("|\n");
    }
    text + "\n"
}

pub fn machine() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim()));
    json!({
        "cpu": model, "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "kernel": read("/proc/sys/kernel/osrelease").trim(), "load_average": read("/proc/loadavg").trim(),
        "congestion_control": super::stage::CONGESTION_CONTROL,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(samples: &[(&'static str, &[f64])]) -> Report {
        let mut report = Report::new(&Plan::new(true));
        for (contestant, values) in samples {
            for value in *values {
                report.add(contestant, "ping-32", [("per_s", *value)].into());
            }
        }
        report
    }

    #[test]
    fn ratio_is_taken_within_each_round() {
        // The machine was twice as fast in the second round, for both.
        let report = report(&[("plain", &[10.0, 20.0, 10.0]), ("relay", &[5.0, 10.0, 4.0])]);
        let ratio = report.ratio("relay", "plain", "ping-32", "per_s").unwrap();
        assert_eq!((ratio.median, ratio.min, ratio.max), (0.5, 0.4, 0.5));
        assert!(report.ratio("envoy", "plain", "ping-32", "per_s").is_none());
        assert_eq!(report.summary("relay", "ping-32", "per_s").unwrap().median, 5.0);
        assert_eq!(report.json()["summary"]["relay"]["ping-32"]["per_s"]["ratio"], 0.5);
    }

    #[test]
    fn median_of_an_even_count_is_between_the_two_in_the_middle() {
        assert_eq!(summary(vec![4.0, 1.0, 3.0, 2.0]).unwrap().median, 2.5);
        assert!(summary(Vec::new()).is_none());
    }

    #[test]
    fn targets_say_met_and_not_met() {
        let text =
            report(&[("meshnode", &[116.0, 20.0]), ("haproxy", &[100.0, 10.0]), ("relay", &[200.0, 50.0])]);
        let text = targets::table(&text);
        let line = |words: &str| text.lines().find(|line| line.contains(words)).unwrap().to_owned();
        assert!(line("1.15 × haproxy").contains("| met "), "{text}");
        assert!(line("1.00 × relay").contains("| NOT MET "), "{text}");
        assert!(!text.contains("envoy"), "it was not measured: {text}");
    }

    #[test]
    fn targets_say_which_peer_is_not_there() {
        let mut report = report(&[]);
        report.add("meshnode", "connect-16", [("per_s", 100.0)].into());
        assert_eq!(targets::table(&report), "", "nobody was to be measured beside it");
        report.missing.push(Missing { name: "ztunnel", why: "in no package".to_owned() });
        let text = targets::table(&report);
        assert!(text.contains("1.20 × ztunnel") && text.contains("| NOT JUDGED: no ztunnel |"), "{text}");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [0.5, 9.876, 98.76, 987.6, 65_822.4].map(short),
            ["0.500", "9.88", "98.8", "988", "65,822"]
        );
    }
}
