//! What can be wrong with a configuration, each with its place in the file.

use std::{fmt, io, ops::Range, path::PathBuf};

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    #[error("{0}: no such file; create it (see meshnode.example.toml) or leave out --config")]
    Missing(PathBuf),
    #[error("{path}: cannot be read: {source}")]
    Read { path: PathBuf, source: io::Error },
    /// Everything that is wrong with the text, in the order of the file; never empty.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<Issue>),
}

impl ConfigError {
    /// Returns the mistakes in the text; empty where the file could not be read at all.
    pub fn issues(&self) -> &[Issue] {
        match self {
            Self::Invalid(issues) => issues,
            Self::Missing(_) | Self::Read { .. } => &[],
        }
    }
}

/// One mistake: where, in which key, what was found and what is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// The full key, as in `service[0].guard`; empty for a mistake of TOML itself.
    pub key: String,
    pub message: String,
}

impl fmt::Display for Issue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, line, column, key, message } = self;
        write!(f, "{}:{line}:{column}: ", file.display())?;
        if !key.is_empty() {
            write!(f, "{key}: ")?;
        }
        f.write_str(message)
    }
}

/// Where a key or a value is in the text.
#[derive(Clone, Debug)]
pub(super) struct Location {
    pub key: String,
    pub span: Range<usize>,
}

/// A value that remembers where it came from.
#[derive(Clone, Debug)]
pub(super) struct Located<T> {
    pub value: T,
    pub at: Location,
}

/// Returns line and column, both from 1, of the byte at `offset`; any offset is accepted.
pub(super) fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..text.floor_char_boundary(offset.min(text.len()))];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_counts_characters_and_survives_any_offset() {
        let text = "a = 1\nü = \"é\"\n";
        assert_eq!(position(text, 0), (1, 1));
        assert_eq!(position(text, 4), (1, 5));
        assert_eq!(position(text, 6), (2, 1));
        assert_eq!(position(text, 7), (2, 1), "inside a character");
        assert_eq!(position(text, 11), (2, 5));
        assert_eq!(position(text, 1000), (3, 1));
        assert_eq!(position("", 5), (1, 1));
    }
}
