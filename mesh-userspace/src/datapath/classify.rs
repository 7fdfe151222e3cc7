//! Which cgroup belongs to which workload: a scan of the governed subtree, kept current by inotify.
//!
//! The kernel denies mesh destinations to a process whose cgroup is younger than the last scan
//! (`Settings::classified_up_to`), so that a program that starts and connects before the scan does not slip through.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use mesh_common::policy::{WORKLOAD_EXEMPT, WORKLOAD_MESH_ONLY};

use super::cgroup::{self, Governed};
use crate::identity::ServiceName;

/// A rule that gives the cgroups it matches an identity, or an exemption.
#[derive(Clone)]
pub struct WorkloadRule {
    /// `None`: exempt.
    pub service: Option<ServiceName>,
    pub mesh_only: bool,
    /// Whether a cgroup, by its path below the governed root, is meant.
    pub matches: Arc<dyn Fn(&str) -> bool + Send + Sync>,
}

/// A cgroup that a rule matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classified {
    pub path: PathBuf,
    pub service: Option<ServiceName>,
    /// `WORKLOAD_*` of mesh-common.
    pub flags: u32,
}

/// The current classification.
pub struct Classifier {
    governed: Governed,
    rules: Vec<WorkloadRule>,
    inotify: Inotify,
    watches: HashMap<WatchDescriptor, PathBuf>,
    /// Every cgroup seen, by path.
    known: HashMap<PathBuf, u64>,
    matched: HashMap<u64, Classified>,
    newest: u64,
    /// Cgroups may have been missed: until a whole scan succeeds, younger ones count as not classified.
    missed: Option<String>,
}

const WATCHED: WatchMask = WatchMask::CREATE.union(WatchMask::DELETE).union(WatchMask::ONLYDIR);

impl Classifier {
    pub fn new(governed: Governed, rules: Vec<WorkloadRule>) -> io::Result<Self> {
        let mut new = Self {
            governed,
            rules,
            inotify: Inotify::init()?,
            watches: HashMap::new(),
            known: HashMap::new(),
            matched: HashMap::new(),
            newest: 0,
            missed: None,
        };
        let root = new.governed.path().to_owned();
        new.newest = new.add_tree(&root)?;
        Ok(new)
    }

    /// The descriptor that becomes readable when there is something for [`update`](Self::update).
    pub fn inotify(&self) -> &Inotify {
        &self.inotify
    }

    /// Cgroup id → what it is, for those that a rule matched.
    pub fn matched(&self) -> &HashMap<u64, Classified> {
        &self.matched
    }

    /// Every cgroup's path by its id.
    pub fn by_id(&self) -> HashMap<u64, &PathBuf> {
        self.known.iter().map(|(path, id)| (*id, path)).collect()
    }

    /// What a process in the cgroup at `path` is: as the deepest of the cgroups above it that a rule matched.
    pub fn workload_of(&self, path: &Path) -> Option<&Classified> {
        path.ancestors().find_map(|above| self.matched.get(self.known.get(above)?))
    }

    /// Every cgroup with an id up to this one has been matched with the rules.
    pub fn classified_up_to(&self) -> u64 {
        self.newest
    }

    /// Why cgroups may have been missed, if so: the mesh is denied to younger ones until a scan succeeds.
    pub fn missed(&self) -> Option<&str> {
        self.missed.as_deref()
    }

    /// Takes in what has happened since. An error means that cgroups may have been missed; the next call starts over.
    pub fn update(&mut self) -> io::Result<()> {
        let outcome = if self.missed.is_some() { self.rescan() } else { self.take_events() };
        self.missed = outcome.as_ref().err().map(ToString::to_string);
        outcome
    }

    fn take_events(&mut self) -> io::Result<()> {
        let mut newest = self.newest;
        let mut buffer = [0; 16 * 1024];
        loop {
            let events: Vec<_> = match self.inotify.read_events(&mut buffer) {
                Ok(events) => events.map(|e| (e.wd.clone(), e.mask, e.name.map(ToOwned::to_owned))).collect(),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.newest = newest;
                    return Ok(());
                }
                Err(e) => return Err(e),
            };
            for (wd, mask, name) in events {
                if mask.contains(EventMask::Q_OVERFLOW) {
                    return self.rescan();
                }
                let (Some(parent), Some(name)) = (self.watches.get(&wd).cloned(), name) else {
                    if mask.contains(EventMask::IGNORED) {
                        self.watches.remove(&wd);
                    }
                    continue;
                };
                let path = parent.join(name);
                if mask.contains(EventMask::CREATE) && mask.contains(EventMask::ISDIR) {
                    newest = newest.max(self.add_tree(&path)?);
                } else if mask.contains(EventMask::DELETE) {
                    self.forget(&path);
                }
            }
        }
    }

    /// Applies other rules to what is known.
    pub fn set_rules(&mut self, rules: Vec<WorkloadRule>) {
        self.rules = rules;
        self.matched.clear();
        for (path, id) in self.known.clone() {
            self.classify(&path, id);
        }
    }

    /// Starts over after lost events. Those still queued say nothing that the scan does not see.
    fn rescan(&mut self) -> io::Result<()> {
        let gone: Vec<_> = self.known.keys().filter(|path| !path.exists()).cloned().collect();
        for path in gone {
            self.forget(&path);
        }
        let root = self.governed.path().to_owned();
        self.newest = self.newest.max(self.add_tree(&root)?);
        Ok(())
    }

    /// Takes in `path` and what is below it; returns the youngest id. The watch comes before the listing, so that a
    /// child made in between is seen by one of them.
    fn add_tree(&mut self, path: &Path) -> io::Result<u64> {
        match self.inotify.watches().add(path, WATCHED) {
            Ok(wd) => drop(self.watches.insert(wd, path.to_owned())),
            Err(e) if is_gone(&e) => return Ok(0),
            Err(e) => {
                let hint =
                    format!("cannot watch {}: {e} (raise fs.inotify.max_user_watches)", path.display());
                return Err(io::Error::new(e.kind(), hint));
            }
        }
        let id = match cgroup::id_of(path) {
            Ok(id) => id,
            Err(e) if is_gone(&e) => return Ok(0),
            Err(e) => return Err(e),
        };
        let mut newest = id;
        if let Some(old) = self.known.insert(path.to_owned(), id).filter(|old| *old != id) {
            self.matched.remove(&old);
        }
        self.classify(path, id);
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(e) if is_gone(&e) => return Ok(0),
            Err(e) => return Err(e),
        };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                newest = newest.max(self.add_tree(&entry.path())?);
            }
        }
        Ok(newest)
    }

    fn classify(&mut self, path: &Path, id: u64) {
        let relative = self.governed.relative(path);
        let Some(rule) = self.rules.iter().find(|rule| (rule.matches)(&relative)) else { return };
        let mut flags = if rule.service.is_none() { WORKLOAD_EXEMPT } else { 0 };
        if rule.mesh_only {
            flags |= WORKLOAD_MESH_ONLY;
        }
        self.matched.insert(id, Classified { path: path.to_owned(), service: rule.service.clone(), flags });
    }

    fn forget(&mut self, path: &Path) {
        if let Some(id) = self.known.remove(path) {
            self.matched.remove(&id);
        }
    }
}

fn is_gone(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) || e.kind() == io::ErrorKind::NotADirectory
}
