//! Programs that no package of this distribution release holds: Consul as a test peer, Redis' test suite, cargo-deny for `lint`.

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
