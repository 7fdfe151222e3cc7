//! Running programs: to their end with a time limit, or in the background with a log.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::wait;

/// What a program that ran to its end said.
#[derive(Clone, Debug)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Returns the standard output of a program that succeeded.
    ///
    /// # Panics
    /// With all that it said, when it failed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.status.success(), "{self}");
        self.stdout
    }

    /// Returns both outputs of a program that failed.
    ///
    /// # Panics
    /// When it succeeded.
    #[track_caller]
    pub fn fails(self) -> String {
        assert!(!self.status.success(), "this should have failed: {self}");
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { command, status, stdout, stderr } = self;
        write!(f, "`{command}`: {status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}")
    }
}

/// Runs `command` to its end.
///
/// # Panics
/// When it can't be started, or runs longer than `limit` (it is killed then).
#[track_caller]
pub fn run(mut command: Command, input: Option<&str>, limit: Duration) -> Output {
    let line = line_of(&command);
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("start `{line}`: {e}"));
    if let Some(text) = input {
        // A program that exits without reading everything breaks the pipe, which is its right.
        let _ = child.stdin.take().expect("stdin is piped").write_all(text.as_bytes());
    }
    let pid = pid_of(&child);
    let (tell, told) = mpsc::channel();
    let waiter = std::thread::spawn(move || {
        let output = child.wait_with_output();
        let _ = tell.send(());
        output
    });
    let in_time = told.recv_timeout(limit).is_ok();
    if !in_time {
        // The waiter has not reaped it (it would have told), so the pid is still the child's.
        let _ = kill(pid, Signal::SIGKILL);
    }
    let output = waiter.join().expect("the waiter does not panic").expect("a child can be waited for");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let output = Output {
        command: line,
        status: output.status,
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    };
    assert!(in_time, "it ran for more than {limit:?}: {output}");
    output
}

/// A program in the background; killed and reaped when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    command: String,
    log: PathBuf,
}

impl Process {
    /// Starts `command` with both outputs in the file `log` and a standard input that never ends.
    ///
    /// # Panics
    /// When it can't be started.
    #[track_caller]
    pub fn spawn(command: Command, log: &Path) -> Self {
        Self::spawn_with(command, log, None)
    }

    /// The same, with standard output as a pipe for [`stdout`](Self::stdout).
    #[track_caller]
    pub fn spawn_piped(command: Command, log: &Path) -> Self {
        Self::spawn_with(command, log, Some(Stdio::piped()))
    }

    #[track_caller]
    fn spawn_with(mut command: Command, log: &Path, stdout: Option<Stdio>) -> Self {
        let line = line_of(&command);
        let file = open_log(log);
        let both = file.try_clone().expect("a file can be cloned");
        command.stdin(Stdio::piped()).stdout(stdout.unwrap_or_else(|| file.into())).stderr(both);
        let child = command.spawn().unwrap_or_else(|e| panic!("start `{line}`: {e}"));
        Self { child, command: line, log: log.to_owned() }
    }

    pub fn pid(&self) -> i32 {
        pid_of(&self.child).as_raw()
    }

    pub fn stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    pub fn stdin(&mut self) -> Option<std::process::ChildStdin> {
        self.child.stdin.take()
    }

    /// Returns what it has written so far.
    pub fn log(&self) -> String {
        let mut bytes = Vec::new();
        let read = File::open(&self.log).and_then(|mut f| f.read_to_end(&mut bytes));
        read.map_or_else(
            |e| format!("({}: {e})", self.log.display()),
            |_| String::from_utf8_lossy(&bytes).into(),
        )
    }

    /// Returns its status if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    #[track_caller]
    pub fn signal(&mut self, signal: Signal) {
        assert!(self.ended().is_none(), "`{}` has already ended:\n{}", self.command, self.log());
        kill(pid_of(&self.child), signal).expect("an own child can be signalled");
    }

    /// Waits until it has ended by itself.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        wait::until(&format!("the end of `{}`", self.command.clone()), || {
            self.ended().ok_or_else(|| format!("it still runs:\n{}", self.log()))
        })
    }

    /// Waits until its log contains `words`.
    #[track_caller]
    pub fn wait_for_log(&mut self, words: &str) {
        wait::until(&format!("`{words}` from `{}`", self.command.clone()), || {
            // In this order: one that says it and ends has said it.
            match (self.ended(), self.log()) {
                (_, log) if log.contains(words) => Ok(()),
                (Some(status), log) => panic!("`{}` ended with {status}:\n{log}", self.command),
                (None, log) => Err(log),
            }
        });
    }

    /// Waits until `ready` says so, or the program ends.
    #[track_caller]
    pub fn wait_ready(&mut self, mut ready: impl FnMut() -> Result<(), String>) {
        wait::until(&format!("`{}` to be ready", self.command.clone()), || {
            if let Some(status) = self.ended() {
                panic!("`{}` ended with {status}:\n{}", self.command, self.log());
            }
            ready().map_err(|why| format!("{why}\n{}", self.log()))
        });
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn open_log(log: &Path) -> File {
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log)
        .unwrap_or_else(|e| panic!("open {}: {e}", log.display()))
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("pids are positive i32"))
}

fn line_of(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
