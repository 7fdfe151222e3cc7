//! Programs that no package of this distribution release holds, or whose package must not be installed: Consul as a test peer,
//! Redis' test suite, systemd-resolved, cargo-deny for `lint`.

use anyhow::Result;

use super::said;
use crate::{apt, process, workspace};

/// The last Debian release that packages Consul. Its 1.8.7 is the oldest that meshnode speaks with.
const CONSUL_SUITE: &str = "bullseye";

const CARGO_DENY: &str = "0.20.2";

/// Unpacks Consul below target/tools, its documentation of the HTTP API included, and links target/tools/bin/consul.
pub fn consul() -> Result<()> {
    let link = workspace::tools().join("bin/consul");
    if !process::is_executable(&link) {
        if !apt::is_here() {
            said(
                "consul",
                "no apt here: put Consul 1.8 or later at target/tools/bin/consul for the tests with it",
            );
            return Ok(());
        }
        let folder = workspace::tools().join("consul");
        apt::Source::suite(CONSUL_SUITE)?.unpack("consul", &folder)?;
        std::fs::create_dir_all(workspace::tools().join("bin"))?;
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink("../consul/usr/bin/consul", &link)?;
    }
    let version = process::output(process::command(&link).arg("version"))?;
    said("consul", &format!("{} ({})", version.lines().next().unwrap_or_default(), link.display()));
    Ok(())
}

/// Unpacks Redis' sources into target/tools/redis: no package holds its test suite.
pub fn redis_suite() -> Result<()> {
    let folder = workspace::tools().join("redis");
    if !folder.join("tests/test_helper.tcl").is_file() {
        if !apt::is_here() {
            said("redis", "no apt here: unpack Redis' sources into target/tools/redis for its test suite");
            return Ok(());
        }
        apt::Source::sources()?.unpack_source("redis", &folder)?;
    }
    said("redis", &format!("its test suite is in {}", folder.join("tests").display()));
    Ok(())
}

/// Unpacks systemd-resolved below target/tools/resolved, with the library that it shares with systemd in the same version;
/// installed, its package would take over the machine's own resolv.conf.
pub fn resolved() -> Result<()> {
    let folder = workspace::tools().join("resolved");
    if !process::is_executable(&folder.join("daemon/lib/systemd/systemd-resolved")) {
        let source = apt::Source::machine();
        if !apt::is_here() || source.names("systemd-resolved")?.is_empty() {
            said("resolved", "no package systemd-resolved here: the test with it is skipped");
            return Ok(());
        }
        std::fs::create_dir_all(&folder)?;
        source.unpack("libsystemd-shared", &folder.join("library"))?;
        source.unpack("systemd-resolved", &folder.join("daemon"))?;
    }
    said("resolved", &format!("systemd-resolved is in {}", folder.display()));
    Ok(())
}

/// Finds cargo-deny, or builds it.
pub fn cargo_deny() -> Result<()> {
    let mut version = process::command(workspace::cargo());
    version.args(["deny", "--version"]);
    if let Ok(found) = process::output(&mut version) {
        said("cargo-deny", &found);
        return Ok(());
    }
    said("cargo-deny", &format!("building {CARGO_DENY}"));
    let mut cargo = process::command(workspace::cargo());
    // Unoptimised it is built in half the time, and checks this workspace in a second all the same.
    cargo.args([
        "install",
        "cargo-deny",
        "--version",
        CARGO_DENY,
        "--locked",
        "--quiet",
        "--debug",
        "--no-default-features",
    ]);
    process::run(&mut cargo)?;
    said("cargo-deny", "installed");
    Ok(())
}
