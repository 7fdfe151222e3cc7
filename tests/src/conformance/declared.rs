//! Differences that are known, each with its reason.

use super::compare::Found;

/// A difference between Consul and the embedded server that is meant. In all but the reason a `*` stands for any text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// `METHOD /v1/path?query`, or a command line.
    pub endpoint: &'static str,
    /// As [`super::compare::Found::place`].
    pub place: &'static str,
    /// What Consul has there.
    pub consul: &'static str,
    pub embedded: &'static str,
    pub reason: &'static str,
}

impl Difference {
    pub fn covers(&self, endpoint: &str, found: &Found) -> bool {
        matches(self.endpoint, endpoint)
            && matches(self.place, &found.place)
            && matches(self.consul, &found.consul)
            && matches(self.embedded, &found.embedded)
    }

    /// Returns the difference as a row of the table in the documentation.
    pub fn row(&self) -> String {
        let Self { endpoint, place, consul, embedded, reason } = self;
        format!("| `{endpoint}` | `{place}` | `{consul}` | `{embedded}` | {reason} |")
    }
}

/// Returns whether `text` fits `pattern`, in which each `*` stands for any text.
pub fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let parts: Vec<_> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, text) in [("*", ""), ("a*", "abc"), ("*c", "abc"), ("a*c*e", "abcde"), ("abc", "abc")] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("a", "ab"), ("a*d", "abc"), ("*a*b*", "ba"), ("ab*ba", "aba")] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }
}
