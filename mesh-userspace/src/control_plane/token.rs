//! Where the API token comes from: a literal, or a file that may change. It is never shown.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use http::HeaderValue;

/// Where the API token comes from. Its `Debug` never shows it. Clones share what was read of a file.
#[derive(Clone)]
pub struct TokenSource(Source);

#[derive(Clone)]
enum Source {
    Value(HeaderValue),
    File { path: PathBuf, read: Arc<Mutex<Option<ReadToken>>> },
}

/// What a token file held when it looked like `stamp`.
struct ReadToken {
    stamp: (SystemTime, u64, u64),
    value: HeaderValue,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    #[error("cannot read the token file {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the token{} is empty, or not printable ASCII without spaces", .0.as_ref().map(|p| format!(" in {}", p.display())).unwrap_or_default())]
    Form(Option<PathBuf>),
}

impl TokenSource {
    /// # Errors
    /// [`TokenError::Form`] when `token` is not printable ASCII without spaces, or empty.
    pub fn value(token: &str) -> Result<Self, TokenError> {
        header(token).map(|value| Self(Source::Value(value))).ok_or(TokenError::Form(None))
    }

    /// The file is read when the first request is made, and again whenever it has changed. White space around the token
    /// does not count.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self(Source::File { path: path.into(), read: Arc::default() })
    }

    /// Returns the file that the token is in, if it is in one.
    pub fn path(&self) -> Option<&Path> {
        match &self.0 {
            Source::Value(_) => None,
            Source::File { path, .. } => Some(path),
        }
    }

    /// Returns the token of now.
    ///
    /// # Errors
    /// When the file cannot be read or holds no token; a token read before is not used then, as it may be revoked.
    pub fn current(&self) -> Result<HeaderValue, TokenError> {
        match &self.0 {
            Source::Value(value) => Ok(value.clone()),
            Source::File { path, read } => {
                let mut read = read.lock().unwrap_or_else(PoisonError::into_inner);
                let fresh = read_token(path, read.take())?;
                Ok(read.insert(fresh).value.clone())
            }
        }
    }
}

fn read_token(path: &Path, before: Option<ReadToken>) -> Result<ReadToken, TokenError> {
    use std::os::unix::fs::MetadataExt;
    let failed = |source| TokenError::Read { path: path.to_owned(), source };
    let meta = std::fs::metadata(path).map_err(failed)?;
    let stamp = (meta.modified().map_err(failed)?, meta.ino(), meta.len());
    if let Some(before) = before.filter(|b| b.stamp == stamp) {
        return Ok(before);
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let value = header(text.trim()).ok_or_else(|| TokenError::Form(Some(path.to_owned())))?;
    Ok(ReadToken { stamp, value })
}

fn header(token: &str) -> Option<HeaderValue> {
    let fits = !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic());
    let mut value = HeaderValue::from_str(token).ok().filter(|_| fits)?;
    value.set_sensitive(true);
    Some(value)
}

/// The same source, whatever a file holds now.
impl PartialEq for TokenSource {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Source::Value(a), Source::Value(b)) => a == b,
            (Source::File { path: a, .. }, Source::File { path: b, .. }) => a == b,
            (Source::Value(_), Source::File { .. }) | (Source::File { .. }, Source::Value(_)) => false,
        }
    }
}

impl Eq for TokenSource {}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Value(_) => f.write_str("TokenSource(value)"),
            Source::File { path, .. } => write!(f, "TokenSource({})", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_file_is_read_again_when_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "first\n").unwrap();
        let source = TokenSource::file(&path);
        assert_eq!(source.current().unwrap(), "first");
        std::fs::write(&path, "the-second\n").unwrap();
        assert_eq!(source.current().unwrap(), "the-second");
        std::fs::remove_file(&path).unwrap();
        assert!(source.current().is_err());
    }

    #[test]
    fn token_is_refused_when_it_is_none_and_never_shown() {
        for none in ["", " \n", "a b", "a\nb", "ä"] {
            assert!(TokenSource::value(none).is_err(), "{none:?}");
        }
        let source = TokenSource::value("s3cret").unwrap();
        assert!(!format!("{source:?} {:?}", source.current().unwrap()).contains("s3cret"));
    }

    #[test]
    fn sources_are_equal_by_their_value_or_their_path() {
        let value = |text| TokenSource::value(text).unwrap();
        assert_eq!(value("a"), value("a"));
        assert_ne!(value("a"), value("b"));
        assert_eq!(TokenSource::file("/a"), TokenSource::file("/a"));
        assert_ne!(TokenSource::file("/a"), TokenSource::file("/b"));
        assert_ne!(TokenSource::file("/a"), value("/a"));
    }
}
