//! Figures from samples, and how they are printed.

use std::time::Duration;

use serde_json::{Value, json};

/// What a benchmark found, for programs and for people.
pub struct Found {
    pub json: Value,
    pub table: String,
}

/// Tells where a benchmark of minutes is.
#[expect(clippy::print_stderr, reason = "standard output is for the figures")]
pub fn progress(what: &str) {
    eprintln!("… {what}");
}

/// Returns count, p50, p99 and maximum of `samples` in milliseconds.
pub fn summary(mut samples: Vec<Duration>) -> Value {
    samples.sort_unstable();
    let at = |quantile: f64| {
        // The smallest that at least this part of all is not above.
        let rank = (samples.len() as f64 * quantile).ceil() as usize;
        samples.get(rank.saturating_sub(1)).copied().map_or(Value::Null, ms)
    };
    json!({"count": samples.len(), "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1.0)})
}

/// Returns milliseconds, to three places.
pub fn ms(duration: Duration) -> Value {
    rounded(duration.as_secs_f64() * 1e3)
}

pub fn rounded(number: f64) -> Value {
    json!((number * 1e3).round() / 1e3)
}

pub fn mib(bytes: u64) -> Value {
    rounded(bytes as f64 / f64::from(1 << 20))
}

/// Returns one line for each leaf of `report`: its path, and its value.
pub fn lines(report: &Value) -> Vec<(String, String)> {
    let mut lines = Vec::new();
    collect(report, &mut String::new(), &mut lines);
    lines
}

fn collect(value: &Value, path: &mut String, lines: &mut Vec<(String, String)>) {
    let Value::Object(fields) = value else {
        lines.push((path.clone(), value.to_string()));
        return;
    };
    for (name, value) in fields {
        let before = path.len();
        path.push_str(if path.is_empty() { "" } else { "." });
        path.push_str(name);
        collect(value, path, lines);
        path.truncate(before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_a_sample_that_enough_others_are_not_above() {
        let found = summary((1..=200).rev().map(Duration::from_millis).collect());
        assert_eq!(
            (&found["p50_ms"], &found["p99_ms"], &found["max_ms"]),
            (&json!(100.0), &json!(198.0), &json!(200.0))
        );
        assert_eq!(summary(Vec::new())["p50_ms"], Value::Null);
    }
}
