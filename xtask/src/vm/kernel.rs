//! A test kernel: Debian's package of a release, unpacked below target/vm.
//!
//! It is the generic flavour, not the cloud one, which boots no faster here and has no 9p.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::{apt, process, workspace};

/// The Debian release whose archive holds all the kernels, its security suite included.
const SUITE: &str = "bookworm";

pub struct Kernel {
    /// As `uname -r` says it.
    pub version: String,
    pub image: PathBuf,
    /// The folder that holds modules.dep.
    pub modules: PathBuf,
}

/// Returns the newest kernel of `release` ("6.1"), fetched unless it is here already.
pub fn fetch(release: &str) -> Result<Kernel> {
    let folder = workspace::target().join("vm").join(format!("linux-{release}"));
    if let Some(kernel) = unpacked(&folder) {
        return Ok(kernel);
    }
    if !apt::is_here() {
        bail!("test kernels are Debian's packages, and there is no apt here");
    }
    let machine = apt::Source::machine();
    let (source, package) = match newest(&machine, release)? {
        Some(package) => (machine, package),
        None => {
            let source = apt::Source::suite(SUITE)?;
            let package = newest(&source, release)?.with_context(|| format!("apt has no Linux {release}"))?;
            (source, package)
        }
    };
    println!("vm-test: fetching {package}");
    source.unpack(&package, &folder)?;
    let version = version(&folder).with_context(|| format!("{package} has no /boot/vmlinuz-*"))?;
    // Debian runs it when the package is configured.
    process::output(process::command("depmod").arg("-b").arg(&folder).arg(&version))?;
    unpacked(&folder).with_context(|| format!("{package} is not as expected, see {}", folder.display()))
}

fn unpacked(folder: &Path) -> Option<Kernel> {
    let version = version(folder)?;
    let modules = folder.join("lib/modules").join(&version);
    let kernel = Kernel { image: folder.join(format!("boot/vmlinuz-{version}")), modules, version };
    kernel.modules.join("modules.dep").is_file().then_some(kernel)
}

fn version(folder: &Path) -> Option<String> {
    fs::read_dir(folder.join("boot")).ok()?.find_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        name.strip_prefix("vmlinuz-").map(str::to_owned)
    })
}

/// Returns the package of the newest build of `release`: "linux-image-6.1.0-56-amd64-unsigned" or
/// "linux-image-6.12.117+deb12-amd64-unsigned", but no "-cloud-amd64" or "-rt-amd64".
fn newest(source: &apt::Source, release: &str) -> Result<Option<String>> {
    let prefix = format!("linux-image-{release}.");
    let mut names = source.names(&prefix)?;
    names.retain(|name| {
        let build = name.strip_prefix(&prefix).and_then(|rest| rest.strip_suffix("-amd64-unsigned"));
        build.is_some_and(|build| !build.ends_with("-cloud") && !build.ends_with("-rt"))
    });
    Ok(names.into_iter().max_by_key(|name| numbers(name)))
}

fn numbers(name: &str) -> Vec<u32> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
}
