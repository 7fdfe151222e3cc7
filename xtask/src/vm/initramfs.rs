//! The guest's initramfs: busybox, the modules that it takes to mount the root, and the scripts of vm-tests/.

use std::{collections::HashMap, fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use super::kernel::Kernel;
use crate::{process, workspace};

const INIT: &str = include_str!("../../../vm-tests/init.sh");
const GUEST: &str = include_str!("../../../vm-tests/guest.sh");

/// What mounting the root takes; the kernel has some of it built in.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// Writes the initramfs of `kernel` below target/vm and returns its path.
pub fn build(kernel: &Kernel) -> Result<PathBuf> {
    let busybox = process::find_in_path("busybox")
        .context("busybox was not found: run `cargo xtask setup --for vm`")?;
    let mut archive = Archive::default();
    for folder in ["bin", "modules", "proc", "sys", "dev", "host", "layer", "root"] {
        archive.folder(folder);
    }
    let busybox = fs::read(&busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    archive.file("bin/busybox", &busybox);
    archive.link("bin/sh", "busybox");
    archive.file("init", INIT.as_bytes());
    archive.file("guest.sh", GUEST.as_bytes());
    for (order, (name, bytes)) in modules(kernel)?.into_iter().enumerate() {
        archive.file(&format!("modules/{order:02}-{name}"), &bytes);
    }
    let path = workspace::target().join("vm").join(format!("initramfs-{}.cpio", kernel.version));
    fs::write(&path, archive.end()).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Returns name and content of `MODULES` and of what they depend on, each after its dependencies.
fn modules(kernel: &Kernel) -> Result<Vec<(String, Vec<u8>)>> {
    let listed = fs::read_to_string(kernel.modules.join("modules.dep"))?;
    let dependencies: HashMap<&str, &str> = listed.lines().filter_map(|line| line.split_once(':')).collect();
    let name = |file: &str| {
        let file = file.rsplit('/').next().unwrap_or(file);
        file.split(".ko").next().unwrap_or(file).to_owned()
    };
    let mut files: Vec<&str> = Vec::new();
    for module in MODULES {
        // One that is not listed is built in.
        let Some((file, needs)) = dependencies.iter().find(|(file, _)| name(file) == module) else {
            continue;
        };
        // depmod lists what a module needs before it from right to left.
        for file in needs.split_whitespace().rev().chain([*file]) {
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    files
        .into_iter()
        .map(|file| {
            let path = kernel.modules.join(file);
            let bytes = if file.ends_with(".xz") {
                // Not every kernel unpacks a module by itself.
                Command::new("xz").arg("-dc").arg(&path).output().context("cannot start xz")?.stdout
            } else {
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?
            };
            Ok((format!("{}.ko", name(file)), bytes))
        })
        .collect()
}

/// A cpio archive as the kernel unpacks it (Documentation/driver-api/early-userspace/buffer-format.rst, "newc").
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: usize,
}

impl Archive {
    fn folder(&mut self, name: &str) {
        self.entry(name, 0o040_755, &[]);
    }

    fn file(&mut self, name: &str, content: &[u8]) {
        self.entry(name, 0o100_755, content);
    }

    fn link(&mut self, name: &str, to: &str) {
        self.entry(name, 0o120_777, to.as_bytes());
    }

    fn end(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: usize, content: &[u8]) {
        self.entries += 1;
        let (inode, links, size, name_size) = (self.entries, 1, content.len(), name.len() + 1);
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_what_cpio_reads() {
        let mut archive = Archive::default();
        archive.folder("bin");
        archive.file("bin/odd", b"seven b");
        archive.link("bin/sh", "odd");
        let folder = std::env::temp_dir().join(format!("meshnode-cpio-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("archive");
        fs::write(&path, archive.end()).unwrap();

        let mut list = Command::new("busybox");
        list.args(["cpio", "-i", "-d", "--quiet", "-F"]).arg(&path).current_dir(&folder);
        let unpacked = list.status();
        let content = fs::read(folder.join("bin/sh"));
        fs::remove_dir_all(&folder).unwrap();
        match unpacked {
            Ok(status) => assert!(status.success()),
            Err(_) => return eprintln!("SKIP: the_archive_is_what_cpio_reads: no busybox here"),
        }
        assert_eq!(content.unwrap(), b"seven b");
    }
}
