//! A [`Space`]: the namespaces and the cgroup subtree that make a host (or the network between hosts), and their end.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead as _, BufReader, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, setns};

use crate::{
    cgroup::{self, Cgroup},
    janitor,
};

/// What to make a [`Space`] with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Cgroup v2 at `/sys/fs/cgroup/unified` instead of `/sys/fs/cgroup`.
    pub hybrid: bool,
    /// Forward packets between its interfaces.
    pub router: bool,
    /// Outlive this process, until the keeper is told with SIGTERM.
    pub stay: bool,
}

/// Namespaces over a cgroup subtree, held open by a `keeper` process.
///
/// Dropping it kills every process in it and waits until nothing is left.
#[derive(Debug)]
pub struct Space {
    keeper: Child,
    cgroup: Cgroup,
    enter: Enter,
    scratch: PathBuf,
    stay: bool,
}

impl Space {
    /// # Panics
    /// When the keeper can't make the namespaces; its message is in the panic.
    #[track_caller]
    pub fn new(hostname: &str, options: Options) -> Self {
        let name = janitor::fresh_name(hostname, options.stay);
        let scratch = janitor::scratch_root().join(&name);
        fs::create_dir(&scratch).unwrap_or_else(|e| panic!("mkdir {}: {e}", scratch.display()));
        let cgroup = Cgroup::create(cgroup::mount_point().join(&name));
        let words = [("hybrid", options.hybrid), ("router", options.router), ("stay", options.stay)];
        let mut command = Command::new(tool("keeper"));
        command.arg(cgroup.path()).arg(hostname).args(words.iter().filter(|w| w.1).map(|w| w.0));
        if options.stay {
            // What stays must not hold the pipe that the caller's output goes to.
            command.stderr(std::process::Stdio::null());
        }
        let keeper = start_keeper(command);
        let enter = Enter::of(keeper.id());
        Self { keeper, cgroup, enter, scratch, stay: options.stay }
    }

    /// Returns a command that will run in the namespaces and in the cgroup `cgroup` (`""` is the space's root).
    pub fn command(&self, cgroup: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.enter.command(&self.cgroup.child(cgroup), program)
    }

    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    pub fn enter(&self) -> &Enter {
        &self.enter
    }

    /// A directory for logs and the data of programs, the same path inside and outside; removed with the space.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// The pid of the process that holds the namespaces, as `nsenter --target` takes it.
    pub fn pid(&self) -> u32 {
        self.keeper.id()
    }

    /// Returns the path by which this process reaches `inside`, a file of the space's mount namespace. It must not
    /// lead through absolute symbolic links: those would be followed outside.
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.pid()))
    }
}

/// Starts a keeper and waits for its `ready`.
#[track_caller]
pub(crate) fn start_keeper(mut command: Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let program = command.get_program().to_owned();
    let mut keeper =
        command.spawn().unwrap_or_else(|e| panic!("start {}: {e} (built?)", program.to_string_lossy()));
    let mut line = String::new();
    let stdout = keeper.stdout.take().expect("stdout is piped");
    let read = BufReader::new(stdout).read_line(&mut line);
    assert!(
        read.is_ok() && line == "ready\n",
        "the keeper did not make its namespaces (its message is on stderr): {:?}",
        keeper.wait()
    );
    keeper
}

impl Drop for Space {
    fn drop(&mut self) {
        if self.stay {
            return;
        }
        drop(self.keeper.stdin.take());
        let limit = Instant::now() + Duration::from_secs(15);
        while Instant::now() < limit && matches!(self.keeper.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
        let removed = self.cgroup.kill_and_remove(Duration::from_secs(5));
        let cleared = match fs::remove_dir_all(&self.scratch) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        };
        if let Err(e) = removed.and(cleared) {
            let _ = writeln!(std::io::stderr(), "{} could not be cleaned up: {e}", self.scratch.display());
        }
    }
}

/// The way into a process's namespaces.
#[derive(Clone, Debug)]
pub struct Enter {
    namespaces: Arc<Vec<File>>,
}

impl Enter {
    /// # Panics
    /// When the process is gone.
    #[track_caller]
    pub fn of(pid: u32) -> Self {
        // The mount namespace last: the others' files are opened already, but so that errors are about the right one.
        let open = |kind| File::open(format!("/proc/{pid}/ns/{kind}")).expect("the keeper lives");
        Self { namespaces: Arc::new(["net", "uts", "ipc", "cgroup", "mnt"].map(open).into()) }
    }

    /// The same namespaces but for the network, which is `pid`'s.
    #[track_caller]
    pub(crate) fn with_network_of(&self, pid: u32) -> Self {
        let mut files: Vec<File> =
            self.namespaces.iter().map(|f| f.try_clone().expect("a file can be cloned")).collect();
        files[0] = File::open(format!("/proc/{pid}/ns/net")).expect("the keeper lives");
        Self { namespaces: Arc::new(files) }
    }

    /// Returns a command that moves itself into the namespaces and `cgroup` before it becomes `program`.
    #[track_caller]
    pub fn command(&self, cgroup: &Cgroup, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let procs = cgroup.path().join("cgroup.procs");
        let procs = OpenOptions::new()
            .write(true)
            .open(&procs)
            .unwrap_or_else(|e| panic!("open {}: {e}", procs.display()));
        let namespaces = Arc::clone(&self.namespaces);
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").env("HOME", "/root");
        let enter = move || {
            // The network first: a workload's process is nowhere else, not even before it runs its program.
            setns(namespaces[0].as_fd(), CloneFlags::empty())?;
            (&procs).write_all(b"0")?;
            for namespace in &namespaces[1..] {
                setns(namespace.as_fd(), CloneFlags::empty())?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure only writes to, and calls setns with, files that were opened
        // before; neither allocates nor takes a lock.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs `act` on a thread in the network namespace (and nothing else of the host: not its cgroup).
    pub fn in_network<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        let net = &self.namespaces[0];
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(net.as_fd(), CloneFlags::CLONE_NEWNET).expect("root may enter a network namespace");
                act()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The inode number of the network namespace, which names it in `/proc/PID/ns/net`.
    pub fn network_inode(&self) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        let path = format!("/proc/self/fd/{}", self.namespaces[0].as_raw_fd());
        fs::metadata(path).expect("an open file has metadata").ino()
    }
}

/// Returns the path of a binary of this crate (`keeper`, `probe`) beside the running one, or in `$MESH_TESTS_TOOLS`.
///
/// # Panics
/// When it is not there.
#[track_caller]
pub fn tool(name: &str) -> PathBuf {
    let here = std::env::current_exe().expect("/proc is mounted");
    // Test binaries are in target/PROFILE/deps, others in target/PROFILE.
    let dirs = [
        std::env::var_os("MESH_TESTS_TOOLS").map(PathBuf::from),
        here.parent().map(Path::to_owned),
        here.parent().and_then(Path::parent).map(Path::to_owned),
    ];
    let found = dirs.iter().flatten().map(|dir| dir.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("`{name}` is not beside {}: cargo build -p mesh-tests --bins", here.display())
    })
}
