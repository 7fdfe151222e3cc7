//! What `mesh-only` workloads were told for listed names, kept on disk: a program that does not resolve again (many keep an
//! address for as long as it is valid, some for ever) must not be cut off by a restart of the daemon.
//!
//! Each is kept with the time until which it is valid, which a restart does not prolong, and the list decides what it
//! is worth. A file that cannot be read is as good as none: programs resolve again.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::kernel::Kernel;
use crate::datapath::egress::Kept;

/// How long what was learnt waits to be written.
const PAUSE: Duration = Duration::from_secs(1);
/// How long until the disk is tried again after it did not take it.
const RETRY: Duration = Duration::from_secs(30);

/// The file, written by one at a time: the last one, at the daemon's end, may come while another is under way.
#[derive(Clone)]
pub struct Store(Arc<Mutex<PathBuf>>);

impl Store {
    pub fn new(state_dir: &Path) -> Self {
        Self(Arc::new(Mutex::new(state_dir.join("egress-learnt.json"))))
    }

    /// Returns what an earlier daemon wrote.
    pub fn load(&self) -> Vec<Kept> {
        let path = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let read = || -> io::Result<Vec<Kept>> { Ok(serde_json::from_slice(&fs::read(&*path)?)?) };
        match read() {
            Ok(kept) => kept,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "addresses of listed names are not known from before: programs have to resolve again");
                Vec::new()
            }
        }
    }

    /// Writes what has changed since, if anything has; false: it could not, and the next call tries it again.
    pub fn save(&self, kernel: &Kernel) -> bool {
        let path = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The kernel's lock is not held while the disk is waited for.
        let Some(kept) = kernel.lock().learnt_changes() else { return true };
        if let Err(error) = replace(&path, &kept) {
            kernel.lock().learnt_not_kept();
            tracing::warn!(path = %path.display(), %error, "addresses of listed names are not kept for the next daemon");
            return false;
        }
        true
    }

    /// Saves again and again, until the task is dropped.
    pub async fn keep(self, kernel: Kernel) {
        let mut pause = PAUSE;
        loop {
            tokio::time::sleep(pause).await;
            let (store, kernel) = (self.clone(), kernel.clone());
            let saved = tokio::task::spawn_blocking(move || store.save(&kernel)).await;
            pause = if saved.unwrap_or(false) { PAUSE } else { RETRY };
        }
    }
}

fn replace(path: &Path, kept: &[Kept]) -> io::Result<()> {
    let tmp = path.with_extension("json.tmp");
    let _ = fs::remove_file(&tmp);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&tmp)?;
    file.write_all(&serde_json::to_vec(kept)?)?;
    fs::rename(&tmp, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_file_is_as_good_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        assert!(store.load().is_empty());
        for text in ["", "{", "[{\"service\": 1}]"] {
            fs::write(dir.path().join("egress-learnt.json"), text).unwrap();
            assert!(store.load().is_empty(), "{text}");
        }
    }
}
