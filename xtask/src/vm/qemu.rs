//! One boot of a guest, from its first instruction to its verdict.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::kernel::Kernel;

/// The line that guest.sh ends with, before the plan's exit status.
const VERDICT: &str = "meshnode-vm: exit ";

/// What the kernel says when a run's result means nothing any more.
const FATAL: [&str; 4] = ["Kernel panic", "Oops:", "BUG:", "init: no root filesystem"];

/// Besides saying everything on the console and ending at a panic: what costs an emulated machine most is off, and its
/// clock is the TSC (with two CPUs Linux takes the HPET, each reading of which leaves the emulated code; the TSCs of
/// QEMU's CPUs are the host's).
const KERNEL_ARGUMENTS: &str = "console=ttyS0 loglevel=5 panic=-1 oops=panic tsc=reliable mitigations=off no5lvl \
    init_on_alloc=0 apparmor=0 audit=0";

/// How much of the console a failure shows.
const CONSOLE_LINES: usize = 40;

pub struct Guest {
    pub kernel: Kernel,
    pub initramfs: PathBuf,
    /// Where the plan and the console's log are written.
    pub folder: PathBuf,
    pub kvm: bool,
    pub deadline: Duration,
}

impl Guest {
    /// Boots, runs the shell script `plan`, hands each line that it prints to `each_line`, and returns its exit status.
    /// Fails when the guest dies, or does not end before the deadline.
    pub fn run(&self, plan: &str, mut each_line: impl FnMut(&str)) -> Result<i32> {
        let plan_path = self.folder.join("plan.sh");
        let console = self.folder.join("console.log");
        fs::write(&plan_path, plan).with_context(|| format!("cannot write {}", plan_path.display()))?;
        let _ = fs::remove_file(&console);
        let mut qemu = Running(self.command(&plan_path, &console).spawn().context("cannot start QEMU")?);

        let ends = Instant::now() + self.deadline;
        let lines = lines_of(&mut qemu.0);
        let verdict = loop {
            match lines.recv_timeout(ends.saturating_duration_since(Instant::now())) {
                Ok(line) => match line.strip_prefix(VERDICT) {
                    Some(status) => break status.trim().parse().context("the guest's verdict is no number"),
                    None => each_line(&line),
                },
                Err(RecvTimeoutError::Timeout) => {
                    break Err(anyhow::anyhow!("no end in {:?}", self.deadline));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    break Err(anyhow::anyhow!("the guest died without a verdict"));
                }
            }
        };
        drop(qemu);
        let said = fs::read(&console).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let fatal = said.lines().find(|line| FATAL.iter().any(|word| line.contains(word)));
        if verdict.is_err() || fatal.is_some() {
            let lines: Vec<&str> = said.lines().collect();
            println!("--- end of {}", console.display());
            for line in &lines[lines.len().saturating_sub(CONSOLE_LINES)..] {
                println!("{line}");
            }
            println!("---");
        }
        if let Some(line) = fatal {
            bail!("the guest's kernel said: {line}");
        }
        verdict
    }

    fn command(&self, plan: &std::path::Path, console: &std::path::Path) -> Command {
        let (plan, modules) = (plan.display(), self.kernel.modules.display());
        let append = format!("{KERNEL_ARGUMENTS} meshnode.plan={plan} meshnode.modules={modules}");
        // setpriv: the guest does not outlive this process, however this process ends.
        let mut qemu = crate::process::command("setpriv");
        qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        match self.kvm {
            true => qemu.args(["-accel", "kvm", "-cpu", "host"]),
            false => qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max"]),
        };
        qemu.args(["-smp", "2", "-m", "4G", "-nodefaults", "-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(&self.kernel.image)
            .arg("-initrd")
            .arg(&self.initramfs)
            .args(["-append", &append])
            .args(["-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"])
            .args(["-device", "virtio-9p-pci,fsdev=root,mount_tag=root"])
            .args(["-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"])
            .args(["-serial", &format!("file:{}", console.display())])
            .args(["-chardev", "stdio,id=output,signal=off", "-serial", "chardev:output"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        qemu
    }
}

/// Ends the process when it goes out of scope.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It fails only for a process that has been waited for already, and nobody else does that.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn lines_of(child: &mut Child) -> mpsc::Receiver<String> {
    let output = child.stdout.take().expect("stdout is piped");
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(text).is_err() {
                break;
            }
            line.clear();
        }
    });
    receiver
}
