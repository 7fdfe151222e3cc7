//! What the kernel counts of BPF programs: how often they ran, and how long.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};
use aya::{
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};

/// How often, and for how long.
#[derive(Clone, Copy, Debug, Default)]
pub struct Runs {
    pub count: u64,
    pub ns: u64,
}

impl Runs {
    /// How long one of them took, in nanoseconds.
    pub fn each(&self) -> f64 {
        self.ns as f64 / self.count.max(1) as f64
    }
}

/// Programs by id, with their names.
pub struct Programs(BTreeMap<u32, (String, Runs)>);

impl Programs {
    /// Has the kernel count, until what it returns is dropped.
    pub fn count() -> Result<OwnedFd> {
        enable_stats(Stats::RunTime).context("BPF_ENABLE_STATS")
    }

    /// Returns those that are loaded now.
    pub fn loaded() -> Result<Self> {
        let mut all = BTreeMap::new();
        for program in loaded_programs() {
            let program = program.context("list the programs")?;
            // One that was unloaded meanwhile.
            let Ok(fd) = program.fd() else { continue };
            let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
            let text = std::fs::read_to_string(path)?;
            let field = |name: &str| {
                text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).context("a count")
            };
            let runs = Runs { count: field("run_cnt:")?, ns: field("run_time_ns:")? };
            all.insert(program.id(), (program.name_as_str().unwrap_or_default().to_owned(), runs));
        }
        Ok(Self(all))
    }

    /// Leaves out those that `others` has too.
    pub fn without(mut self, others: &Self) -> Self {
        self.0.retain(|id, _| !others.0.contains_key(id));
        self
    }

    /// Returns what those of `before` did since, by name; two of one name, of two daemons, together.
    pub fn since(&self, before: &Self) -> BTreeMap<String, Runs> {
        let mut all: BTreeMap<String, Runs> = BTreeMap::new();
        for (id, (name, then)) in &before.0 {
            let Some((_, now)) = self.0.get(id) else { continue };
            let (count, ns) = (now.count.saturating_sub(then.count), now.ns.saturating_sub(then.ns));
            if count > 0 {
                let sum = all.entry(name.clone()).or_default();
                sum.count += count;
                sum.ns += ns;
            }
        }
        all
    }
}
