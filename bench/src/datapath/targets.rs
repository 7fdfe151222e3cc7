//! What meshnode is to reach, and whether it did: the targets of issue 5 that this benchmark can judge.

use serde_json::{Value, json};

use super::{
    contestants::{PLAIN, PLAIN_LOCAL},
    measures::IDLE,
    report::{Report, markdown, short},
};
use crate::figures::rounded;

/// A figure of meshnode, its limit, and whose figure it is a multiple of.
struct Target {
    of: &'static str,
    measure: &'static str,
    figure: &'static str,
    limit: Limit,
    to: Option<&'static str>,
    /// Further than the target.
    beyond: bool,
}

#[derive(Clone, Copy)]
enum Limit {
    AtLeast(f64),
    AtMost(f64),
}
use Limit::{AtLeast, AtMost};

fn all() -> Vec<Target> {
    let mesh =
        |measure, figure, limit, to| Target { of: "meshnode", measure, figure, limit, to, beyond: false };
    let local = |measure, figure, limit| Target {
        of: "meshnode-local",
        ..mesh(measure, figure, AtLeast(limit), Some(PLAIN_LOCAL))
    };
    let further = |target: Target| Target { beyond: true, ..target };
    let mut all = Vec::new();
    for bulk in ["up-1", "down-1", "up-8", "down-8"] {
        all.push(local(bulk, "gbit_per_s", 0.97));
    }
    all.push(local("ping-32", "per_s", 0.97));
    all.push(local("connect-16", "per_s", 0.9));
    for bulk in ["up-1", "down-1", "up-8", "down-8"] {
        all.push(mesh(bulk, "gbit_per_s", AtLeast(1.4), Some("envoy")));
        all.push(mesh(bulk, "cpu_s_per_gb", AtMost(0.65), None));
        // What a relay that does AES-GCM in place and no TLS reaches.
        all.push(further(mesh(bulk, "gbit_per_s", AtLeast(0.4), Some(PLAIN))));
        all.push(further(mesh(bulk, "gbit_per_s", AtLeast(1.0), Some("relay"))));
    }
    all.push(mesh("ping-32", "per_s", AtLeast(1.15), Some("haproxy")));
    all.push(further(mesh("ping-32", "per_s", AtLeast(1.0), Some("relay"))));
    all.push(mesh("connect-16", "per_s", AtLeast(1.2), Some("ztunnel")));
    all.push(further(mesh("connect-16", "per_s", AtLeast(0.9), Some("relay"))));
    all.push(mesh("connect-1", "p50_us", AtMost(1.0), Some("ztunnel")));
    all.push(further(mesh("connect-1", "p50_us", AtMost(1.2), Some("relay"))));
    all.push(mesh("handshake-16", "per_s", AtLeast(1.6), Some("envoy")));
    all.push(mesh(IDLE, "kb_per_connection", AtMost(25.0), None));
    all.push(further(mesh(IDLE, "kb_per_connection", AtMost(11.0), None)));
    all
}

impl Target {
    /// Returns what was measured; `None` where one of the two was not.
    fn found(&self, report: &Report) -> Option<f64> {
        let summary = match self.to {
            Some(other) => report.ratio(self.of, other, self.measure, self.figure),
            None => report.summary(self.of, self.measure, self.figure),
        };
        Some(summary?.median)
    }

    /// Returns whose figure is missing, as it is not there at all; not of one that was not to be measured.
    fn lacks(&self, report: &Report) -> Option<&'static str> {
        let other = self.to.filter(|other| report.missing.iter().any(|missing| missing.name == *other))?;
        report.summary(self.of, self.measure, self.figure).map(|_| other)
    }

    fn is_met(&self, found: f64) -> bool {
        match self.limit {
            AtLeast(limit) => found >= limit,
            AtMost(limit) => found <= limit,
        }
    }

    fn wanted(&self) -> String {
        let (sign, limit) = match self.limit {
            AtLeast(limit) => ("≥", limit),
            AtMost(limit) => ("≤", limit),
        };
        let to = self.to.map(|other| format!(" × {other}")).unwrap_or_default();
        format!("{sign} {limit:.2}{to}{}", if self.beyond { " (beyond)" } else { "" })
    }
}

pub fn json(report: &Report) -> Value {
    let one = |target: &Target| {
        let found = target.found(report)?;
        Some(json!({
            "contestant": target.of, "measure": target.measure, "figure": target.figure, "wanted": target.wanted(),
            "beyond": target.beyond, "found": rounded(found), "met": target.is_met(found),
        }))
    };
    all().iter().filter_map(one).collect()
}

/// Returns the targets that could be judged, and what became of them; and those that could not for want of a peer.
pub fn table(report: &Report) -> String {
    let mut rows = vec![["target", "", "wanted", "found", ""].map(str::to_owned).to_vec()];
    for target in all() {
        let (found, met) = match (target.found(report), target.lacks(report)) {
            (Some(found), _) if target.is_met(found) => (short(found), "met".to_owned()),
            (Some(found), _) => (short(found), "NOT MET".to_owned()),
            (None, Some(other)) => ("–".to_owned(), format!("NOT JUDGED: no {other}")),
            (None, None) => continue,
        };
        let what = format!("{} {}", target.of, target.measure);
        rows.push(vec![what, target.figure.to_owned(), target.wanted(), found, met]);
    }
    if rows.len() > 1 { markdown(rows) } else { String::new() }
}
