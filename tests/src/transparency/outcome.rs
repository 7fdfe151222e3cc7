//! What a run of a program came to, as facts that can be compared one by one.

use std::collections::BTreeMap;

use crate::process::Output;

/// Facts by the place where they were seen: `exit code`, `output`, the name of a test of a suite.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome(BTreeMap<String, String>);

/// What a place has where the other run has nothing.
const NOTHING: &str = "nothing";

/// A place where two outcomes differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub place: String,
    pub plain: String,
    pub captured: String,
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { place, plain, captured } = self;
        write!(f, "{place}: plain `{plain}`, captured `{captured}`")
    }
}

impl Outcome {
    /// Returns the exit code and the standard output.
    pub fn of(output: &Output) -> Self {
        Self::default().with("exit code", output.status).with("output", &output.stdout)
    }

    /// The same, with `value` at `place`.
    #[must_use]
    pub fn with(mut self, place: &str, value: impl std::fmt::Display) -> Self {
        self.0.insert(place.to_owned(), value.to_string());
        self
    }

    /// The same with all of `other`, whose places are those of `part`.
    #[must_use]
    pub fn with_part(mut self, part: &str, other: Self) -> Self {
        self.0.extend(other.0.into_iter().map(|(place, value)| (format!("{part}: {place}"), value)));
        self
    }

    /// Whether the run had anything at `place`.
    pub fn has(&self, place: &str) -> bool {
        self.0.contains_key(place)
    }

    /// Returns how many places have `value`.
    pub fn count(&self, value: &str) -> usize {
        self.0.values().filter(|v| *v == value).count()
    }

    /// Returns where `captured` differs from this, the plain one.
    pub fn differences(&self, captured: &Self) -> Vec<Found> {
        let places: std::collections::BTreeSet<&String> = self.0.keys().chain(captured.0.keys()).collect();
        let at =
            |outcome: &Self, place: &str| outcome.0.get(place).map_or(NOTHING, String::as_str).to_owned();
        let found = places.into_iter().map(|place| Found {
            place: place.clone(),
            plain: at(self, place),
            captured: at(captured, place),
        });
        found.filter(|found| found.plain != found.captured).collect()
    }

    /// Returns how many places there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(String, String)> for Outcome {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(facts: I) -> Self {
        Self(facts.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_one_run_has_is_a_difference() {
        let plain = Outcome::default().with("a", 1).with("b", 2);
        let captured = Outcome::default().with("a", 1).with("c", 3);
        let found: Vec<String> = plain.differences(&captured).iter().map(Found::to_string).collect();
        assert_eq!(found, ["b: plain `2`, captured `nothing`", "c: plain `nothing`, captured `3`"]);
        assert_eq!(plain.differences(&plain), []);
    }
}
