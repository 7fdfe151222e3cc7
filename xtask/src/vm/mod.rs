//! `vm-test`: the datapath tests on other kernels, each in a QEMU guest that lives on this machine's own files.

mod initramfs;
pub mod kernel;
mod qemu;

use std::{
    fmt::Write as _,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{artifacts, tally::Tally, workspace};

/// The kernel releases that are tested, as Debian's package names begin: the floor, and a later long-term one.
pub const RELEASES: [&str; 2] = ["6.1", "6.12"];

const DEADLINE_S: u64 = 1800;

/// What begins a line of [`TARGETS`] that is left out without `--full`.
const FULL: &str = "full ";

const TARGETS: &str = "vm-tests/targets.txt";

#[derive(clap::Args)]
pub struct Args {
    /// The kernel release (all of them by default)
    #[arg(value_parser = RELEASES)]
    pub kernel: Option<String>,
    /// Run this shell command in the guest instead of the tests
    #[arg(long, value_name = "COMMAND")]
    pub exec: Option<String>,
    /// End the guest after so many seconds
    #[arg(long, default_value_t = DEADLINE_S, value_name = "SECONDS")]
    pub timeout: u64,
    /// Use KVM instead of emulation
    #[arg(long)]
    pub kvm: bool,
    /// Run what takes long in emulation, too (an hour for each kernel: see --timeout)
    #[arg(long)]
    pub full: bool,
}

impl Default for Args {
    fn default() -> Self {
        Self { kernel: None, exec: None, timeout: DEADLINE_S, kvm: false, full: false }
    }
}

/// Boots each kernel asked for and runs the tests there, their results going into `tally`.
pub fn run(args: &Args, tally: &mut Tally) -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("the guests run this machine's own binaries, and only kernels for x86-64 are set up so far");
    }
    let plan = match &args.exec {
        Some(command) => format!("cd {}\n{command}\n", quoted(&workspace::root().display().to_string())),
        None => plan(args.full)?,
    };
    let releases: Vec<&str> = match &args.kernel {
        Some(kernel) => vec![kernel],
        None => RELEASES.into(),
    };
    for release in releases {
        let kernel = kernel::fetch(release)?;
        println!("vm-test: Linux {} ({release})", kernel.version);
        let guest = qemu::Guest {
            folder: folder(release)?,
            initramfs: initramfs::build(&kernel)?,
            kernel,
            kvm: args.kvm,
            deadline: Duration::from_secs(args.timeout),
        };
        tally.begin(&format!("Linux {release}"));
        let begin = Instant::now();
        let ended = guest.run(&plan, |line| tally.line(line));
        match &ended {
            Ok(status) => {
                println!("vm-test: Linux {release}: exit {status} after {} s", begin.elapsed().as_secs())
            }
            Err(error) => println!("vm-test: Linux {release}: {error:#}"),
        }
        tally.end(ended.is_ok_and(|status| status == 0));
    }
    Ok(())
}

/// Returns the folder of one kernel's last run: its console, its plan.
fn folder(release: &str) -> Result<PathBuf> {
    let folder = workspace::target().join("vm").join(format!("run-{release}"));
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Builds what vm-tests/targets.txt lists, and returns the shell script that runs it in the guest.
fn plan(full: bool) -> Result<String> {
    let listed = fs::read_to_string(workspace::root().join(TARGETS))
        .with_context(|| format!("cannot read {TARGETS}"))?;
    let lines = listed.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut plan = String::from("worst=0\nexport RUST_BACKTRACE=1 MESHNODE_VM=1\n");
    for line in lines {
        let line = match line.strip_prefix(FULL) {
            Some(_) if !full => continue,
            Some(rest) => rest,
            None => line,
        };
        let mut words = line.split_whitespace();
        let (Some(package), Some(target)) = (words.next(), words.next()) else {
            bail!("{TARGETS}: {line:?} is not a package and a target");
        };
        let test = artifacts::test_binary(package, target)?;
        let arguments: Vec<String> = words.map(quoted).collect();
        writeln!(plan, "cd {}", quoted(&test.folder.display().to_string()))?;
        writeln!(plan, "echo '     Running {package} {target}'")?;
        writeln!(
            plan,
            "{} {} || worst=$?",
            quoted(&test.executable.display().to_string()),
            arguments.join(" ")
        )?;
    }
    plan.push_str("exit $worst\n");
    Ok(plan)
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
