//! Redis' own test suite, in the mode that it has for a server that it did not start.

use std::{fs, os::unix::fs::symlink, path::PathBuf, process::Command, time::Duration};

use super::{
    Outcome,
    stage::{CLIENT, Ends},
};
use crate::process::run;

/// Longer than any selection of the suite takes.
const LIMIT: Duration = Duration::from_secs(1200);

/// What needs a server that the suite itself started, or would break ours.
const LEFT_OUT: &str = "-slow -needs:repl -needs:debug -needs:save -external:skip";

/// Tests that race by themselves: one connection unsubscribes and does not wait for the answer, another one publishes and
/// expects that nobody listens any more. TCP orders nothing between two connections, and the mesh does not either.
const RACING: [&str; 2] = [
    "PUBLISH/SUBSCRIBE after UNSUBSCRIBE without arguments",
    "PUBLISH/PSUBSCRIBE after PUNSUBSCRIBE without arguments",
];

/// Returns where `cargo xtask setup` unpacked the sources.
///
/// # Panics
/// When it has not.
#[track_caller]
pub fn sources() -> PathBuf {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/redis"));
    assert!(
        folder.join("tests/test_helper.tcl").is_file(),
        "Redis' sources are not in target/tools/redis: cargo xtask setup --for test"
    );
    folder
}

/// Runs the files `units` of the suite on A against the server on B's `port`, and returns how each test ended.
#[track_caller]
pub fn run_units(ends: Ends<'_>, port: u16, units: &[&str]) -> Outcome {
    let dir = ends.a.space().scratch().join("redis-suite");
    if !dir.exists() {
        fs::create_dir_all(dir.join("src")).expect("an own directory");
        let copied = Command::new("cp").arg("-a").arg(sources().join("tests")).arg(&dir).status();
        assert!(copied.is_ok_and(|s| s.success()), "copy the suite");
        for program in ["redis-cli", "redis-benchmark"] {
            symlink(format!("/usr/bin/{program}"), dir.join("src").join(program)).expect("an own directory");
        }
    }
    let (address, port) = (ends.address(), port.to_string());
    // Not `current_dir`: entering the host's mount namespace leads to its root.
    let dir_text = dir.to_str().expect("UTF-8");
    let mut words =
        vec!["env", "-C", dir_text, "tclsh", "tests/test_helper.tcl", "--host", &address, "--port", &port];
    words.extend(["--tags", LEFT_OUT, "--durable"]);
    words.extend(RACING.iter().flat_map(|test| ["--skiptest", test]));
    words.extend(units.iter().flat_map(|unit| ["--single", unit]));
    let output = run(ends.a.command(CLIENT, &words), None, LIMIT);
    let tests = results(&output.stdout);
    assert!(!tests.is_empty(), "{output}");
    tests.with("exit code", output.status)
}

/// Returns how each test ended that the suite's output names, `[ok]: NAME (12 ms)`, by its unit and name.
fn results(text: &str) -> Outcome {
    let mut unit = "";
    let plain = without_colours(text);
    let mut found = Outcome::default();
    for line in plain.lines() {
        if let Some(name) = line.strip_prefix("Testing ") {
            unit = name;
        }
        let Some((end, name)) = line.strip_prefix('[').and_then(|rest| rest.split_once("]: ")) else {
            continue;
        };
        if matches!(end, "ok" | "err" | "exception" | "timeout" | "skip") {
            let name = name.rsplit_once(" (").map_or(name, |(name, _)| name);
            // Some names are made of random numbers.
            let name: String = name.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
            let place = format!("{unit}: {name}");
            found = if end == "ok" && found.has(&place) { found } else { found.with(&place, end) };
        }
    }
    found
}

fn without_colours(text: &str) -> String {
    let mut parts = text.split('\u{1b}');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| all + part.split_once('m').map_or(part, |(_, rest)| rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_from_coloured_lines() {
        let text = "\u{1b}[1;37;49mTesting unit/multi\u{1b}[0m\n[\u{1b}[0;32;49mok\u{1b}[0m]: WATCH 12 (1107 ms)\n\
            [\u{1b}[0;31;49merr\u{1b}[0m]: MULTI in x\nExpected '1'\n[4/4 \u{1b}[0;33;49mdone\u{1b}[0m]: unit/multi (2 seconds)\n";
        let expected =
            Outcome::default().with("unit/multi: WATCH 00", "ok").with("unit/multi: MULTI in x", "err");
        assert_eq!(results(text), expected);
    }
}
