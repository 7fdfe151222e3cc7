//! What differed in the cases of a test, against what is declared to differ. A declared difference that does not occur
//! is a failure as well: the documentation would say something that is not so.

use super::{Outcome, outcome::Found};
use crate::conformance::declared::matches;

/// A difference between a plain and a captured run that is known. In all but the reason a `*` stands for any text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    pub case: &'static str,
    /// As [`Found::place`].
    pub place: &'static str,
    pub plain: &'static str,
    pub captured: &'static str,
    pub reason: &'static str,
}

impl Difference {
    fn covers(&self, case: &str, found: &Found) -> bool {
        matches(self.case, case)
            && matches(self.place, &found.place)
            && matches(self.plain, &found.plain)
            && matches(self.captured, &found.captured)
    }

    /// Returns the difference as a row of the table in the documentation.
    pub fn row(&self) -> String {
        let Self { case, place, plain, captured, reason } = self;
        format!("| `{case}` | `{place}` | `{plain}` | `{captured}` | {reason} |")
    }
}

/// The cases of one test.
#[derive(Debug)]
pub struct Report {
    declared: Vec<(Difference, bool)>,
    undeclared: Vec<String>,
    cases: usize,
}

impl Report {
    /// Returns one that accepts what `declared` says of its cases.
    pub fn new(declared: &[Difference]) -> Self {
        Self { declared: declared.iter().map(|d| (*d, false)).collect(), undeclared: Vec::new(), cases: 0 }
    }

    /// Compares two outcomes of `case`.
    pub fn compare(&mut self, case: &str, plain: &Outcome, captured: &Outcome) {
        assert!(!plain.is_empty(), "{case}: nothing to compare");
        self.cases += 1;
        for found in plain.differences(captured) {
            let mut covered = false;
            for (difference, seen) in &mut self.declared {
                if difference.covers(case, &found) {
                    (covered, *seen) = (true, true);
                }
            }
            if !covered {
                self.undeclared.push(format!("{case}: {found}"));
            }
        }
    }

    /// # Panics
    /// With each difference that is not declared, and each declared one that did not occur.
    #[track_caller]
    pub fn finish(self) {
        assert!(self.cases > 0, "no case ran");
        let unseen = self.declared.iter().filter(|(_, seen)| !seen).map(|(d, _)| d.row());
        let unseen: Vec<_> = unseen.collect();
        assert!(
            self.undeclared.is_empty() && unseen.is_empty(),
            "not declared:\n{}\ndeclared, but it does not occur:\n{}",
            self.undeclared.join("\n"),
            unseen.join("\n")
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DECLARED: Difference =
        Difference { case: "ftp", place: "e*", plain: "0", captured: "*", reason: "of the test" };

    fn pair(captured: u8) -> (Outcome, Outcome) {
        (Outcome::default().with("exit", 0), Outcome::default().with("exit", captured))
    }

    #[test]
    fn a_declared_difference_that_occurs_is_accepted() {
        let mut report = Report::new(&[DECLARED]);
        let (plain, captured) = pair(1);
        report.compare("ftp", &plain, &captured);
        report.finish();
    }

    #[test]
    #[should_panic(expected = "exit: plain `0`, captured `1`")]
    fn an_undeclared_difference_fails() {
        let mut report = Report::new(&[]);
        let (plain, captured) = pair(1);
        report.compare("ftp", &plain, &captured);
        report.finish();
    }

    #[test]
    #[should_panic(expected = "it does not occur:\n| `ftp`")]
    fn a_declared_difference_that_does_not_occur_fails() {
        let mut report = Report::new(&[DECLARED]);
        let (plain, captured) = pair(0);
        report.compare("ftp", &plain, &captured);
        report.finish();
    }
}
