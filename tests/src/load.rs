//! Programs that use the mesh all the time while a test breaks something, and tell afterwards whether they noticed.

use std::{
    io::{BufRead as _, BufReader, Lines},
    process::ChildStdout,
};

use serde_json::Value;

use crate::{host::Host, process::Process};

/// A `probe` that goes on until it is asked what it saw.
#[derive(Debug)]
pub struct Load {
    process: Process,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Load {
    /// New connections from `cgroup` to the echo server at `to`, one after the other; returns when there was one.
    #[track_caller]
    pub fn connections(host: &Host, cgroup: &str, to: &str) -> Self {
        Self::start(host, cgroup, "steady", to)
    }

    /// One connection that is used all the time.
    #[track_caller]
    pub fn flow(host: &Host, cgroup: &str, to: &str) -> Self {
        Self::start(host, cgroup, "ping", to)
    }

    #[track_caller]
    fn start(host: &Host, cgroup: &str, what: &str, to: &str) -> Self {
        let mut process = host.spawn_probe(cgroup, &[what, to]);
        let mut lines = BufReader::new(process.stdout().expect("it is a pipe")).lines();
        let first = lines.next().expect("it says that it began").expect("text");
        assert!(first == "steady" || first == "pinging", "{first}");
        Self { process, lines }
    }

    /// Whether it still goes on.
    pub fn goes_on(&mut self) -> bool {
        self.process.ended().is_none()
    }

    /// Ends it, if it has not ended by itself, and returns what it saw.
    #[track_caller]
    pub fn stop(mut self) -> Value {
        drop(self.process.stdin());
        let said = self.lines.next().expect("a summary").expect("text");
        serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}"))
    }

    /// Ends it.
    ///
    /// # Panics
    /// When a connection or a message failed.
    #[track_caller]
    pub fn noticed_nothing(self) {
        let said = self.stop();
        assert_eq!(said["ok"], true, "{said}");
    }
}
