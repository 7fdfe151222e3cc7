//! Holds a test host's namespaces open, and takes the host down.
//!
//! `keeper CGROUP HOSTNAME [hybrid] [router] [stay]` becomes the host's first process, prints `ready`, and waits until
//! its standard input ends (its owner dropped the host, panicked, or was killed) or, with `stay`, until SIGTERM. Then it
//! kills every process of the host, removes the host's cgroups, and exits, upon which the namespaces vanish.
//!
//! `keeper container` does the same for a network namespace inside a host, and removes nothing.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use mesh_tests::{
    cgroup::{self, Cgroup},
    janitor,
    namespaces::{CgroupLayout, become_host},
};
use nix::{
    sched::{CloneFlags, unshare},
    sys::signal::{SigSet, Signal, kill},
    unistd::{getpid, setsid},
};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let kept = match args.first().map(String::as_str) {
        Some("container") => keep_container(),
        Some(cgroup) if args.len() > 1 => keep_host(Path::new(cgroup), &args[1], &args[2..]),
        _ => Err("usage: keeper CGROUP HOSTNAME [hybrid] [router] [stay] | keeper container".to_owned()),
    };
    match kept {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("keeper: {why}");
            ExitCode::FAILURE
        }
    }
}

fn keep_container() -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|e| format!("unshare: {e}"))?;
    let told = block_sigterm()?;
    say_ready()?;
    wait_for_the_end(told, false)
}

fn keep_host(cgroup: &Path, hostname: &str, options: &[String]) -> Result<(), String> {
    let has = |option: &str| options.iter().any(|o| o == option);
    // Opened before the namespaces change: the way out of the host's cgroup, and the directory it is in.
    let outside: PathBuf = cgroup::mount_point().join("cgroup.procs");
    let mut outside =
        OpenOptions::new().write(true).open(&outside).map_err(|e| format!("{}: {e}", outside.display()))?;
    let (parent, name) = (cgroup.parent(), cgroup.file_name());
    let (Some(parent), Some(name)) = (parent, name) else {
        return Err("the cgroup has no parent".to_owned());
    };
    let parent = File::open(parent).map_err(|e| format!("{}: {e}", parent.display()))?;

    // A terminal's Ctrl-C is for the tests; this process then still has to clean up.
    setsid().map_err(|e| format!("setsid: {e}"))?;
    let told = block_sigterm()?;
    let layout = if has("hybrid") { CgroupLayout::Hybrid } else { CgroupLayout::Unified };
    become_host(cgroup, hostname, layout, has("router"))?;
    say_ready()?;
    wait_for_the_end(told, has("stay"))?;

    outside.write_all(b"0").map_err(|e| format!("leave the cgroup: {e}"))?;
    Cgroup::at(Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(name))
        .kill_and_remove(Duration::from_secs(10))
        .map_err(|e| format!("remove {}: {e}", cgroup.display()))?;
    // The owner does the same, if it lives: who comes second finds nothing.
    let _ = std::fs::remove_dir_all(janitor::scratch_root().join(name));
    Ok(())
}

fn say_ready() -> Result<(), String> {
    let mut out = std::io::stdout();
    out.write_all(b"ready\n").and_then(|()| out.flush()).map_err(|e| format!("stdout: {e}"))
}

fn block_sigterm() -> Result<SigSet, String> {
    let mut told = SigSet::empty();
    told.add(Signal::SIGTERM);
    told.thread_block().map_err(|e| format!("block SIGTERM: {e}"))?;
    Ok(told)
}

fn wait_for_the_end(told: SigSet, stay: bool) -> Result<(), String> {
    if !stay {
        std::thread::spawn(|| {
            // Nothing is ever written; an error ends the wait as well as the end of the input does.
            let _ = std::io::stdin().read(&mut [0; 1]);
            kill(getpid(), Signal::SIGTERM).expect("a process may signal itself");
        });
    }
    told.wait().map(drop).map_err(|e| format!("wait: {e}"))
}
