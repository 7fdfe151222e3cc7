//! How long a change takes to become the kernel's verdict: a captured process connects until it sees it.

use std::{
    io::{BufRead as _, BufReader, Lines, Write as _},
    net::SocketAddrV4,
    process::ChildStdout,
    time::Duration,
};

use anyhow::{Context as _, Result};
use mesh_tests::{host::Host, process::Process, space::tool};
use nix::time::{ClockId, clock_gettime};

/// Returns the time since some moment that is the same for every process.
pub fn monotonic() -> Duration {
    // It cannot fail for a clock that every Linux has.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

/// A running `connector`.
pub struct Connector {
    process: Process,
    input: std::process::ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Connector {
    /// Starts one in the host's cgroup `cgroup`.
    pub fn start(host: &Host, cgroup: &str, to: SocketAddrV4) -> Result<Self> {
        let mut command = host.space().command(cgroup, tool("connector"));
        command.arg(to.to_string());
        let mut process = Process::spawn_piped(command, &host.log_file("connector"));
        let input = process.stdin().context("its input is piped")?;
        let lines = BufReader::new(process.stdout().context("its output is piped")?).lines();
        Ok(Self { process, input, lines })
    }

    /// Tells it what to wait for.
    pub fn expect(&mut self, allowed: bool) -> Result<()> {
        writeln!(self.input, "{}", if allowed { "allow" } else { "deny" })?;
        Ok(self.input.flush()?)
    }

    /// Returns when it saw that, on the clock of [`monotonic`].
    pub fn seen(&mut self) -> Result<Duration> {
        let line = self.lines.next().with_context(|| format!("it ended: {}", self.process.log()))??;
        let nanos = line.split(' ').next().and_then(|nanos| nanos.parse().ok());
        Ok(Duration::from_nanos(nanos.with_context(|| format!("`{line}` is no time"))?))
    }
}
