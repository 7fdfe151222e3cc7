//! News of cgroups that get their first process.

use std::{collections::HashMap, io, path::PathBuf};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use tokio::io::{Interest, unix::AsyncFd};

use crate::daemon::visitor::Cgroups;

/// Tells when a workload's cgroup gets its first process, as a container's does when it starts.
pub struct Starts {
    inotify: AsyncFd<Inotify>,
    watched: HashMap<PathBuf, WatchDescriptor>,
}

impl Starts {
    pub fn new() -> io::Result<Self> {
        let inotify = Inotify::init()?;
        // SAFETY: the registration owns the descriptor.
        let inotify = unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE) }?;
        Ok(Self { inotify, watched: HashMap::new() })
    }

    /// Watches exactly `cgroups`.
    pub fn watch(&mut self, cgroups: &Cgroups) {
        let mut watches = self.inotify.get_ref().watches();
        self.watched.retain(|path, wd| {
            let stays = cgroups.contains_key(path);
            if !stays {
                // The kernel took it away with the cgroup.
                let _ = watches.remove(wd.clone());
            }
            stays
        });
        for path in cgroups.keys().filter(|path| !self.watched.contains_key(*path)).collect::<Vec<_>>() {
            // A cgroup that is gone; the next look does without. Too many watches: the look every few seconds remains.
            if let Ok(wd) = watches.add(path.join("cgroup.events"), WatchMask::MODIFY) {
                self.watched.insert(path.clone(), wd);
            }
        }
    }

    pub async fn readable(&mut self) -> io::Result<()> {
        let mut ready = self.inotify.readable_mut().await?;
        let mut buffer = [0; 4096];
        while let Ok(events) = ready.get_inner_mut().read_events(&mut buffer) {
            for event in events.filter(|event| event.mask.contains(EventMask::IGNORED)) {
                // The cgroup is gone; another one of the same path is watched anew.
                self.watched.retain(|_, wd| *wd != event.wd);
            }
        }
        ready.clear_ready();
        Ok(())
    }
}
