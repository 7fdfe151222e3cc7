//! What no other tool checks: each file says what it owns, none names a package registry's host, none grows too long.

use std::{collections::BTreeSet, fs, process::Command};

use anyhow::{Result, bail};

use crate::{process, workspace};

const LONG_FILE: usize = 600;

/// Written apart, so that this file does not hold what it looks for.
const HOSTS: [(&str, &str); 9] = [
    ("deb", "debian.org"),
    ("security", "debian.org"),
    ("archive", "ubuntu.com"),
    ("static", "crates.io"),
    ("index", "crates.io"),
    ("static", "rust-lang.org"),
    ("pypi", "org"),
    ("files", "pythonhosted.org"),
    ("registry", "npmjs.org"),
];

/// Checks every tracked file.
pub fn run() -> Result<()> {
    let hosts = hosts();
    let mut found = 0;
    let listed = process::output(process::command("git").args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    for name in listed.lines() {
        // A file that was removed but not yet committed, or one that is not text.
        let Ok(text) = fs::read_to_string(workspace::root().join(name)) else { continue };
        for complaint in complaints(name, &text, &hosts) {
            println!("{name}: {complaint}");
            found += 1;
        }
        let length = text.lines().count();
        if name.ends_with(".rs") && length > LONG_FILE {
            println!("{name}: warning: {length} lines: does it have two reasons to change?");
        }
    }
    if found > 0 {
        bail!("{found} complaints");
    }
    Ok(())
}

fn complaints(name: &str, text: &str, hosts: &BTreeSet<String>) -> Vec<String> {
    let mut complaints = Vec::new();
    if name.ends_with(".rs") && !text.starts_with("//!") {
        complaints.push("does not begin with `//!` and what the file owns".to_owned());
    }
    for (number, line) in text.lines().enumerate() {
        for host in hosts.iter().filter(|host| line.contains(host.as_str())) {
            complaints.push(format!("line {}: names the registry host {host}", number + 1));
        }
        if line.ends_with([' ', '\t']) && !name.ends_with(".md") {
            complaints.push(format!("line {}: ends with white space", number + 1));
        }
    }
    complaints
}

/// Returns the hosts of `HOSTS`, and those that this machine's packages come from.
fn hosts() -> BTreeSet<String> {
    let mut hosts: BTreeSet<String> = HOSTS.iter().map(|(name, domain)| format!("{name}.{domain}")).collect();
    if let Ok(sites) = process::output(Command::new("apt-get").args(["indextargets", "--format", "$(SITE)"]))
    {
        let hosts_of_sites = sites.lines().filter_map(|site| site.split("//").nth(1)?.split('/').next());
        hosts.extend(hosts_of_sites.filter(|host| host.contains('.')).map(str::to_owned));
    }
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_file_must_say_what_it_owns() {
        let none = BTreeSet::new();
        assert!(complaints("a.rs", "//! Owns a.\n", &none).is_empty());
        assert_eq!(complaints("a.rs", "fn main() {}\n", &none).len(), 1);
        assert!(complaints("a.md", "# A\n", &none).is_empty());
    }

    #[test]
    fn a_registry_host_is_found_with_its_line() {
        let hosts = BTreeSet::from(["registry.example".to_owned()]);
        let found = complaints("a.md", "one\nfrom registry.example\n", &hosts);
        assert_eq!(found, ["line 2: names the registry host registry.example"]);
        assert!(complaints("a.md", "one\nfrom a registry\n", &hosts).is_empty());
    }
}
