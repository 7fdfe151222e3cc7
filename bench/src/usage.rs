//! What a process costs: CPU, memory, BPF maps; read from `/proc`.

use std::{collections::HashMap, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};

/// Returns the CPU time that the process has used.
pub fn cpu(pid: i32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything; utime and stime are the 14th and 15th field (proc(5)).
    let fields: Vec<&str> = stat.rsplit_once(") ").context("no name")?.1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(Duration::from_secs_f64(ticks as f64 / TICKS))
}

/// USER_HZ, which is 100 on every architecture that meshnode runs on.
const TICKS: f64 = 100.0;

/// Returns the CPU time that the processes of the cgroup have used, those that are gone included.
pub fn cpu_of_cgroup(cgroup: &Path) -> Result<Duration> {
    let file = cgroup.join("cpu.stat");
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let used = text.lines().find_map(|line| line.strip_prefix("usage_usec ")).context("no usage_usec")?;
    Ok(Duration::from_micros(used.parse()?))
}

/// Returns the memory that the process has to itself, and its part of what it shares, in bytes.
pub fn pss(pid: i32) -> Result<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// Returns the process's resident memory in bytes.
pub fn rss(pid: i32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// Returns how much kernel memory the BPF maps that the process has open take, and how many there are.
pub fn maps(pid: i32) -> Result<(u64, usize)> {
    let mut maps = HashMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // A descriptor that was closed meanwhile.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        let field =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        if let (Some(id), Some(bytes)) = (field("map_id:"), field("memlock:")) {
            maps.insert(id, bytes);
        }
    }
    Ok((maps.values().sum(), maps.len()))
}

/// Lets this process open as many files as the system allows, and returns how many: each simulated watcher is one.
pub fn raise_file_limit() -> Result<u64> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let wanted = hard.max(1 << 20);
    setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted)
        .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard))?;
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?.0)
}
