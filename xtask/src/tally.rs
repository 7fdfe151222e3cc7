//! Counts what test runs print: the test runner's results, and tests that say that they skipped themselves.

use std::{fs, path::Path};

/// A test that does not run says so by this word and its reason, and then passes as far as the test runner knows.
const SKIP: &str = "SKIP: ";

/// The sums over all runs so far.
#[derive(Default)]
pub struct Tally {
    passed: usize,
    failed: usize,
    skipped: usize,
    failures: Vec<String>,
    skips: Vec<Skip>,
    run: String,
    failed_before: usize,
}

struct Skip {
    run: String,
    reason: String,
}

impl Tally {
    /// Starts the run called `run`.
    pub fn begin(&mut self, run: &str) {
        run.clone_into(&mut self.run);
        self.failed_before = self.failed;
    }

    /// Shows a line that the run printed, and counts it if it is a result.
    pub fn line(&mut self, line: &str) {
        println!("{line}");
        if let Some(start) = line.find(SKIP) {
            self.skips
                .push(Skip { run: self.run.clone(), reason: line[start + SKIP.len()..].trim().to_owned() });
            self.skipped += 1;
            self.passed = self.passed.wrapping_sub(1);
        } else if let Some(counts) = line.strip_prefix("test result: ") {
            self.passed = self.passed.wrapping_add(count(counts, "passed"));
            self.failed += count(counts, "failed");
            self.skipped += count(counts, "ignored");
        } else if let Some(name) =
            line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failures.push(format!("{}: {name}", self.run));
        }
    }

    /// Ends the run. One that failed without a test that failed (it crashed, it did not build) counts as a failure.
    pub fn end(&mut self, succeeded: bool) {
        if !succeeded && self.failed == self.failed_before {
            self.failed += 1;
            self.failures.push(format!("{}: ended badly, though no test of it failed", self.run));
        }
    }

    pub fn has_failed(&self) -> bool {
        self.failed > 0
    }

    /// Says what failed, and what was skipped that `expected` does not list, and at last the sums. Returns whether all
    /// is well; a skip that is not listed is not, where `strict`.
    pub fn finish(&self, expected: &Expected, strict: bool) -> bool {
        for failure in &self.failures {
            println!("FAILED: {failure}");
        }
        let mut unexpected = 0;
        for skip in self.skips.iter().filter(|skip| !expected.lists(skip)) {
            unexpected += 1;
            println!("SKIPPED, not expected: {}: {}", skip.run, skip.reason);
        }
        if strict && unexpected > 0 {
            println!("{unexpected} skipped here that {EXPECTED} does not list");
        }
        println!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped);
        self.failed == 0 && self.passed > 0 && !(strict && unexpected > 0)
    }
}

fn count(counts: &str, what: &str) -> usize {
    let mut parts = counts.split([';', '.']).map(str::trim);
    let number = parts.find_map(|part| part.strip_suffix(what));
    number.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

/// Where the skips are listed that are no failure in CI.
pub const EXPECTED: &str = "tests/expected-skips.txt";

/// Skips that are no failure in CI, one a line: its reason, or the run, ": " and the reason; `*` at the end stands for
/// any rest.
#[derive(Default)]
pub struct Expected(Vec<String>);

impl Expected {
    /// Reads the list of the workspace at `root`; without the file nothing is expected.
    pub fn read(root: &Path) -> Self {
        Self::parse(&fs::read_to_string(root.join(EXPECTED)).unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self(lines.map(str::to_owned).collect())
    }

    fn lists(&self, skip: &Skip) -> bool {
        let whole = format!("{}: {}", skip.run, skip.reason);
        self.0.iter().any(|line| match line.strip_suffix('*') {
            Some(start) => skip.reason.starts_with(start) || whole.starts_with(start),
            None => *line == skip.reason || *line == whole,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(lines: &[&str], succeeded: bool) -> Tally {
        let mut tally = Tally::default();
        tally.begin("unit");
        for line in lines {
            tally.line(line);
        }
        tally.end(succeeded);
        tally
    }

    const THREE: &str =
        "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s";

    #[test]
    fn results_of_several_binaries_add_up() {
        let tally = tally(
            &[THREE, "test result: FAILED. 4 passed; 2 failed; 0 ignored", "test a::b ... FAILED"],
            false,
        );
        assert_eq!((tally.passed, tally.failed, tally.skipped), (7, 2, 1));
        assert_eq!(tally.failures, ["unit: a::b"]);
    }

    #[test]
    fn a_test_that_skips_itself_is_skipped_and_not_passed() {
        let tally = tally(&["test ktls ... SKIP: ktls: no CONFIG_TLS", THREE], true);
        assert_eq!((tally.passed, tally.failed, tally.skipped), (2, 0, 2));
    }

    #[test]
    fn a_run_that_crashes_is_a_failure() {
        assert_eq!(tally(&[], false).failed, 1);
        assert_eq!(tally(&[], true).failed, 0);
    }

    #[test]
    fn an_unexpected_skip_fails_only_where_it_is_strict() {
        let tally = tally(&["SKIP: ktls: no CONFIG_TLS", THREE], true);
        let nothing = Expected::default();
        assert!(tally.finish(&nothing, false));
        assert!(!tally.finish(&nothing, true));
        for listed in ["ktls: no CONFIG_TLS", "unit: ktls: no CONFIG_TLS", "ktls: *", "# why\n unit: ktls*"] {
            assert!(tally.finish(&Expected::parse(listed), true), "{listed}");
        }
        assert!(!tally.finish(&Expected::parse("integration: ktls*"), true));
    }

    #[test]
    fn a_run_without_tests_is_not_well() {
        assert!(!tally(&[], true).finish(&Expected::default(), false));
    }
}
