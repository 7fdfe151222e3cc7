//! The disk cache: what a daemon that starts during a control-plane outage serves.
//!
//! Private keys of leafs are in it, in the clear, mode 0600 in a directory of mode 0700, owner root. The reason: a
//! leaf without its key serves nothing, and a host that restarts while the control plane is away has no other place
//! to get one from. A leaf lives 72 hours at most, and whoever can read the file is root on this host, who could take
//! the key out of the daemon's memory as well.
//!
//! A file is a line with format version and SHA-256 of the rest, then JSON. What is damaged, of another version or of
//! another control plane is ignored, with a warning, never half used.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use super::settings::Settings;

const MAGIC: &str = "meshnode-cache";
const VERSION: &str = "1";
/// Changes in quick succession are one write.
const COALESCE: Duration = Duration::from_millis(100);

/// What can be cached, and under which name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Item {
    Roots,
    Catalog,
    Intentions,
    /// The virtual IPs that services were given. They follow the services' names: whoever told of a service, it keeps them.
    VirtualIps,
    /// Ids of the services that this host registered.
    Registered,
    Leaf(crate::identity::ServiceName),
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is damaged: {reason}")]
    Damaged { path: PathBuf, reason: &'static str },
    #[error("{path} cannot be read: {source}")]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{path} is of another control plane ({found})")]
    Foreign { path: PathBuf, found: String },
    #[error("{path} holds a private key and others may read it (mode {mode:o}); the key is not used again")]
    Exposed { path: PathBuf, mode: u32 },
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    /// Kind, address and datacenter of the control plane that said it.
    control_plane: String,
    saved_at: SystemTime,
    data: T,
}

/// The files of one control plane below the state directory.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: PathBuf,
    control_plane: String,
}

impl Cache {
    pub fn new(settings: &Settings) -> Self {
        Self {
            dir: settings.state_dir.join("control-plane"),
            control_plane: format!("{} {} {}", settings.kind, settings.access.address, settings.datacenter),
        }
    }

    fn path(&self, item: &Item) -> PathBuf {
        match item {
            Item::Roots => self.dir.join("roots.json"),
            Item::Catalog => self.dir.join("catalog.json"),
            Item::Intentions => self.dir.join("intentions.json"),
            Item::VirtualIps => self.dir.join("virtual-ips.json"),
            Item::Registered => self.dir.join("registered.json"),
            // A service's name has no slash and begins with a letter or digit.
            Item::Leaf(name) => self.dir.join("leafs").join(format!("{name}.json")),
        }
    }

    /// Returns the services whose leafs are on disk.
    pub fn leafs(&self) -> Vec<crate::identity::ServiceName> {
        let Ok(entries) = fs::read_dir(self.dir.join("leafs")) else { return Vec::new() };
        let name = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_suffix(".json")?.parse().ok();
        entries.flatten().filter_map(name).collect()
    }

    /// Returns `item` with the time when it was saved; `None` when it is not there or cannot be used, which is logged.
    pub fn load<T: DeserializeOwned>(&self, item: &Item) -> Option<(T, SystemTime)> {
        match self.read(item) {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "ignoring a cache file; the control plane will be asked instead");
                None
            }
        }
    }

    fn read<T: DeserializeOwned>(&self, item: &Item) -> Result<Option<(T, SystemTime)>, CacheError> {
        let path = self.path(item);
        let failed = |source| CacheError::Io { path: path.clone(), source };
        let mode = match fs::symlink_metadata(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
            Ok(meta) => meta.permissions().mode() & 0o777,
        };
        if matches!(item, Item::Leaf(_)) && mode & 0o077 != 0 {
            return Err(CacheError::Exposed { path, mode });
        }
        let bytes = fs::read(&path).map_err(failed)?;
        let body = match body(&bytes) {
            Ok(body) => body,
            Err(reason) => return Err(CacheError::Damaged { path, reason }),
        };
        let envelope: Envelope<T> = match serde_json::from_slice(body) {
            Ok(envelope) => envelope,
            Err(source) => return Err(CacheError::Json { path, source }),
        };
        if envelope.control_plane != self.control_plane && *item != Item::VirtualIps {
            return Err(CacheError::Foreign { path, found: envelope.control_plane });
        }
        Ok(Some((envelope.data, envelope.saved_at)))
    }

    /// Returns the bytes of the file for `data`.
    fn encode<T: Serialize>(&self, data: T) -> Vec<u8> {
        let envelope =
            Envelope { control_plane: self.control_plane.clone(), saved_at: SystemTime::now(), data };
        let json = serde_json::to_vec(&envelope).expect("cached types have string keys only");
        let mut bytes = format!("{MAGIC} {VERSION} {}\n", hex(&Sha256::digest(&json))).into_bytes();
        bytes.extend_from_slice(&json);
        bytes
    }

    /// Replaces the file of `item` at once or not at all, also across a power failure.
    fn write(&self, item: &Item, bytes: &[u8]) -> Result<(), CacheError> {
        let path = self.path(item);
        let dir = path.parent().expect("a cache file is in the cache directory");
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| CacheError::Io { path, source }
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at(dir))?;
        let tmp = path.with_extension("json.tmp");
        // What a crash left must not be written into: it could be somebody else's open file.
        match fs::remove_file(&tmp) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(at(&tmp)(e)),
            _ => {}
        }
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&tmp).map_err(at(&tmp))?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(at(&tmp))?;
        fs::rename(&tmp, &path).map_err(at(&path))?;
        fs::File::open(dir).and_then(|d| d.sync_all()).map_err(at(dir))
    }

    fn remove(&self, item: &Item) -> Result<(), CacheError> {
        let path = self.path(item);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(CacheError::Io { path, source }),
            _ => Ok(()),
        }
    }

    /// Remembers that the control plane answered just now.
    pub fn touch_contact(&self) {
        // Only the time of a status line is lost when it cannot be written; other writes report a broken disk.
        let _ = fs::write(self.dir.join("contact"), b"");
    }

    /// When [`touch_contact`](Self::touch_contact) was last called, by whichever daemon.
    pub fn last_contact(&self) -> Option<SystemTime> {
        fs::metadata(self.dir.join("contact")).and_then(|m| m.modified()).ok()
    }
}

fn body(bytes: &[u8]) -> Result<&[u8], &'static str> {
    let end = bytes.iter().position(|b| *b == b'\n').ok_or("it has no first line")?;
    let (first, body) = (&bytes[..end], &bytes[end + 1..]);
    let mut words = std::str::from_utf8(first).map_err(|_| "its first line is no text")?.split(' ');
    if words.next() != Some(MAGIC) {
        return Err("it is no cache file");
    }
    if words.next() != Some(VERSION) {
        return Err("its format is of another version");
    }
    if words.next() != Some(&hex(&Sha256::digest(body))) { Err("its checksum is wrong") } else { Ok(body) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

type Encode = Box<dyn FnOnce(&Cache) -> Vec<u8> + Send>;

/// Writes to the cache in the background; of several changes of one item the last is written.
#[derive(Clone)]
pub struct CacheWriter {
    cache: Cache,
    /// `None`: remove the file.
    pending: Arc<Mutex<BTreeMap<Item, Option<Encode>>>>,
    wake: Arc<Notify>,
    /// Held while files are written: a shutdown waits for what was begun.
    writing: Arc<Mutex<()>>,
}

impl CacheWriter {
    pub fn new(cache: Cache) -> Self {
        Self { cache, pending: Arc::default(), wake: Arc::default(), writing: Arc::default() }
    }

    pub fn save<T: Serialize + Send + 'static>(&self, item: Item, data: T) {
        self.queue(item, Some(Box::new(move |cache| cache.encode(data))));
    }

    pub fn remove(&self, item: Item) {
        self.queue(item, None);
    }

    fn queue(&self, item: Item, job: Option<Encode>) {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).insert(item, job);
        self.wake.notify_one();
    }

    /// Writes what is queued, for ever. Runs as a task of its own.
    pub async fn run(self) {
        loop {
            self.wake.notified().await;
            tokio::time::sleep(COALESCE).await;
            self.flush().await;
        }
    }

    /// Writes what is queued now. A failure is logged: the daemon goes on, but a restart would not find the item.
    pub async fn flush(&self) {
        let jobs = std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        let (cache, turn) = (self.cache.clone(), Arc::clone(&self.writing));
        let writing = tokio::task::spawn_blocking(move || {
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            for (item, job) in jobs {
                let done = match job {
                    Some(encode) => cache.write(&item, &encode(&cache)),
                    None => cache.remove(&item),
                };
                if let Err(error) = done {
                    tracing::error!(%error, "cannot write the cache; a restart without control plane would not find it");
                }
            }
        });
        if let Err(error) = writing.await {
            tracing::error!(%error, "writing the cache failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cache() -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = super::super::testing::settings("http://127.0.0.1:1");
        settings.state_dir = dir.path().to_owned();
        (dir, Cache::new(&settings))
    }

    fn leaf() -> Item {
        Item::Leaf("web".parse().unwrap())
    }

    #[test]
    fn what_was_written_is_read_and_is_private() {
        let (_dir, cache) = cache();
        for item in [Item::Roots, leaf()] {
            cache.write(&item, &cache.encode("one")).unwrap();
            cache.write(&item, &cache.encode("two")).unwrap();
            assert_eq!(cache.read::<String>(&item).unwrap().unwrap().0, "two");
            let path = cache.path(&item);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
            cache.remove(&item).unwrap();
            assert!(cache.read::<String>(&item).unwrap().is_none());
        }
    }

    #[test]
    fn key_that_others_may_read_is_not_used() {
        let (_dir, cache) = cache();
        cache.write(&leaf(), &cache.encode("key")).unwrap();
        fs::set_permissions(cache.path(&leaf()), fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(cache.read::<String>(&leaf()), Err(CacheError::Exposed { mode: 0o640, .. })));
    }

    #[test]
    fn cache_of_another_control_plane_is_not_used() {
        let (_dir, cache) = cache();
        cache.write(&Item::Catalog, &cache.encode("x")).unwrap();
        let other = Cache { control_plane: "consul http://elsewhere:8500 dc1".to_owned(), ..cache };
        assert!(matches!(other.read::<String>(&Item::Catalog), Err(CacheError::Foreign { .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn truncated_or_changed_file_is_ignored(cut in 0usize..200, flip in any::<proptest::sample::Index>(), bit in 0u8..8) {
            let (_dir, cache) = cache();
            let whole = cache.encode(vec!["some", "data"]);
            let truncated = &whole[..cut.min(whole.len() - 1)];
            let mut changed = whole.clone();
            changed[flip.index(whole.len())] ^= 1 << bit;
            for bytes in [truncated, &changed] {
                cache.write(&Item::Catalog, bytes).unwrap();
                prop_assert!(cache.read::<Vec<String>>(&Item::Catalog).is_err());
                prop_assert!(cache.load::<Vec<String>>(&Item::Catalog).is_none());
            }
        }
    }
}
