//! Debian's package tools: what is installed, installing it, and fetching a package without installing it.
//!
//! No mirror is named here: every package comes from where the machine's own apt configuration points.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Once,
};

use anyhow::{Context, Result, bail};

use crate::{process, workspace};

const POLICY_RC_D: &str = "/usr/sbin/policy-rc.d";

/// Whether this machine has apt at all.
pub fn is_here() -> bool {
    process::find_in_path("apt-get").is_some() && process::find_in_path("dpkg-query").is_some()
}

/// Returns those of `packages` that are not installed, in their order.
pub fn missing<'a>(packages: &[&'a str]) -> Result<Vec<&'a str>> {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat", "${db:Status-Status} ${Package}\n"]).args(packages);
    // It fails when it doesn't know one of the names; what it printed of the others counts all the same.
    let output = query.output().context("cannot start dpkg-query")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let installed: BTreeSet<&str> = text.lines().filter_map(|line| line.strip_prefix("installed ")).collect();
    Ok(packages.iter().copied().filter(|package| !installed.contains(package)).collect())
}

/// Installs `packages` without what they only recommend, and starts none of their services.
pub fn install(packages: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command
        .args(["install", "--yes", "--no-install-recommends", "--quiet=2", "-o", "Dpkg::Use-Pty=0"])
        .args(packages)
        .env("DEBIAN_FRONTEND", "noninteractive");
    if !is_root() {
        bail!("packages are missing, and only root can install them; run: sudo {}", process::shown(&command));
    }
    update_once();
    let _guard = NoServices::new()?;
    process::output(&mut command).map(drop)
}

/// Returns whether apt, having read its lists anew, would install `packages` together.
pub fn could_install(packages: &[&str]) -> bool {
    if is_root() {
        update_once();
    }
    let mut simulation = Command::new("apt-get");
    simulation.args(["install", "--simulate", "--no-install-recommends", "--quiet=2"]).args(packages);
    process::output(&mut simulation).is_ok()
}

pub fn is_root() -> bool {
    process::output(Command::new("id").arg("-u")).is_ok_and(|uid| uid == "0")
}

fn update_once() {
    static UPDATED: Once = Once::new();
    UPDATED.call_once(|| {
        // A third party's list that can't be fetched must not stand in the way: what counts is whether the packages
        // are found afterwards.
        if let Err(error) = process::output(Command::new("apt-get").args(["update", "--quiet=2"])) {
            println!("apt        not every package list could be read anew: {error:#}");
        }
    });
}

/// While it lives, packages that are installed may not start their services (Debian policy, "policy-rc.d").
struct NoServices {
    ours: bool,
}

impl NoServices {
    fn new() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        let place = Path::new(POLICY_RC_D);
        if place.exists() {
            return Ok(Self { ours: false });
        }
        fs::write(place, "#!/bin/sh\n# Of meshnode's `cargo xtask setup`, which removes it.\nexit 101\n")
            .and_then(|()| fs::set_permissions(place, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("cannot write {POLICY_RC_D}"))?;
        Ok(Self { ours: true })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours && fs::remove_file(POLICY_RC_D).is_err() {
            eprintln!(
                "xtask: remove {POLICY_RC_D}: while it is there, no service starts when it is installed"
            );
        }
    }
}

/// Where packages are fetched from: the machine's own lists, or those of another suite of the same mirror.
pub struct Source {
    options: Vec<String>,
}

impl Source {
    /// Returns the machine's own lists.
    pub fn machine() -> Self {
        Self { options: Vec::new() }
    }

    /// Returns `suite` of the mirror that the machine's Debian comes from; its lists are kept below target/apt, apart
    /// from the system's.
    pub fn suite(suite: &str) -> Result<Self> {
        Self::of(suite, "deb")
    }

    /// Returns the sources of the release that the machine has, which its own lists need not name.
    pub fn sources() -> Result<Self> {
        let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
        let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
        Self::of(codename.context("/etc/os-release names no VERSION_CODENAME")?, "deb-src")
    }

    /// `kind` is the first word of a line of a source list.
    fn of(suite: &str, kind: &str) -> Result<Self> {
        if mirror().is_none() && is_root() {
            update_once();
        }
        let mirror = mirror().context("apt's configuration names no Debian mirror")?;
        let folder = workspace::target().join("apt").join(if kind == "deb" { suite } else { kind });
        let (list, parts) = (folder.join("sources.list"), folder.join("parts"));
        fs::create_dir_all(folder.join("lists/partial"))?;
        fs::create_dir_all(&parts)?;
        fs::write(&list, format!("{kind} {mirror} {suite} main\n"))?;
        let options = [
            format!("Dir::Etc::sourcelist={}", list.display()),
            format!("Dir::Etc::sourceparts={}", parts.display()),
            format!("Dir::State::lists={}", folder.join("lists").display()),
            format!("Dir::Cache::pkgcache={}", folder.join("pkgcache.bin").display()),
            format!("Dir::Cache::srcpkgcache={}", folder.join("srcpkgcache.bin").display()),
        ];
        let source = Self { options: options.into() };
        process::output(source.tool("apt-get").args(["update", "--quiet=2"]))?;
        Ok(source)
    }

    /// Returns the names of the packages that begin with `prefix`.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = process::output(self.tool("apt-cache").args(["pkgnames", prefix]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// Unpacks `package` into `folder`, which it replaces; nothing is installed, no script of the package runs.
    pub fn unpack(&self, package: &str, folder: &Path) -> Result<()> {
        let half = folder.with_extension("half");
        let _ = fs::remove_dir_all(&half);
        let download = half.join("download");
        fs::create_dir_all(&download)?;
        // "_apt", the user that apt downloads as, can't write here; root can.
        let mut apt = self.tool("apt-get");
        apt.args(["download", "--quiet=2", "-o", "APT::Sandbox::User=root", package]).current_dir(&download);
        process::output(&mut apt)?;
        let deb = only_file(&download)?;
        process::output(Command::new("dpkg-deb").arg("--extract").arg(&deb).arg(&half))?;
        fs::remove_dir_all(&download)?;
        let _ = fs::remove_dir_all(folder);
        fs::rename(&half, folder).with_context(|| format!("cannot make {}", folder.display()))
    }

    /// Unpacks the source of `package`, as its authors released it, into `folder`, which it replaces.
    pub fn unpack_source(&self, package: &str, folder: &Path) -> Result<()> {
        let half = folder.with_extension("half");
        let _ = fs::remove_dir_all(&half);
        fs::create_dir_all(half.join("tree"))?;
        let mut apt = self.tool("apt-get");
        apt.args(["source", "--download-only", "--quiet=2", "-o", "APT::Sandbox::User=root", package]);
        process::output(apt.current_dir(&half))?;
        let archives: Vec<_> = fs::read_dir(&half)?.flatten().map(|entry| entry.path()).collect();
        let original = archives.iter().find(|path| path.to_string_lossy().contains(".orig.tar."));
        let original = original.with_context(|| format!("the source of {package} has no .orig.tar"))?;
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--strip-components=1", "--file"]).arg(original);
        process::output(tar.arg("--directory").arg(half.join("tree")))?;
        let _ = fs::remove_dir_all(folder);
        fs::rename(half.join("tree"), folder).with_context(|| format!("cannot make {}", folder.display()))?;
        fs::remove_dir_all(&half).with_context(|| format!("cannot remove {}", half.display()))
    }

    fn tool(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }
}

fn only_file(folder: &Path) -> Result<PathBuf> {
    let entry = fs::read_dir(folder)?.next().with_context(|| format!("{} is empty", folder.display()))?;
    Ok(entry?.path())
}

/// Returns the address of the mirror that the system's own `main` comes from.
fn mirror() -> Option<String> {
    // `apt-get indextargets` reads every form of source list for us.
    let mut targets = Command::new("apt-get");
    targets.args([
        "indextargets",
        "--format",
        "$(LABEL) $(REPO_URI)",
        "Created-By: Packages",
        "Component: main",
    ]);
    let targets = process::output(&mut targets).ok()?;
    targets.lines().find_map(|line| line.strip_prefix("Debian ").map(str::to_owned))
}
