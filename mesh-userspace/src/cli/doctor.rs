//! `meshnode doctor`: what this host has, what it lacks, what that costs, and the fix.

mod host;
mod kernel;
mod names;
mod plane;

use std::path::Path;

use clap::Args;
use serde::Serialize;

use super::{
    Failure, Global, exit,
    output::{Colour, Style, print, print_json, printable},
    target,
};
use crate::{admin::StatusReport, config::Config};

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// JSON: an array of {check, verdict, detail, fix}
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// It works, at a cost that the detail names.
    Warn,
    Fail,
}

/// What one check found.
#[derive(Debug, Serialize)]
struct Finding {
    check: &'static str,
    verdict: Verdict,
    detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, detail: detail.into(), fix: None }
    }

    fn warn(check: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Warn, detail: detail.into(), fix: Some(fix.into()) }
    }

    fn fail(check: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Fail, detail: detail.into(), fix: Some(fix.into()) }
    }
}

pub async fn run(global: &Global, args: &DoctorArgs) -> Result<u8, Failure> {
    let mut findings = Vec::new();
    let config = match Config::load_with_files(global.config.as_deref()) {
        Ok(config) => {
            let path = target::config_path(global);
            let what = if path.exists() {
                format!("{} is valid", path.display())
            } else {
                "all defaults".to_owned()
            };
            findings.push(Finding::ok("configuration", what));
            config
        }
        Err(error) => {
            findings.push(Finding::fail(
                "configuration",
                error.to_string(),
                "correct the file; then `meshnode config check`",
            ));
            Config::default()
        }
    };
    let daemon = daemon(global, &config, &mut findings).await;
    findings.extend(kernel::check());
    findings.extend(host::check(&config, daemon.as_ref()));
    findings.extend(names::check(&config, daemon.as_ref()));
    findings.extend(plane::check(global, &config, daemon.is_some()).await);
    findings.extend(daemon.as_ref().and_then(plane::catalog));

    if args.json {
        print_json(&findings)?;
    } else {
        print(&render(&findings, Style::of_stdout()))?;
    }
    let failed = findings.iter().any(|finding| finding.verdict == Verdict::Fail);
    Ok(if failed { exit::FAILED } else { exit::OK })
}

/// Returns the running daemon's report.
async fn daemon(global: &Global, config: &Config, findings: &mut Vec<Finding>) -> Option<StatusReport> {
    const CHECK: &str = "daemon";
    let admin = target::admin(global).ok()?;
    match admin.status().await {
        Ok(report) => {
            let problems = super::status::problems(&report);
            findings.push(if problems.is_empty() {
                Finding::ok(CHECK, format!("running, pid {}", report.pid))
            } else {
                Finding::fail(CHECK, problems.join("; "), "`meshnode status`, and the daemon's log")
            });
            Some(report)
        }
        Err(Failure::NoDaemon { .. }) => {
            findings.push(not_running(&config.bpf_dir));
            None
        }
        Err(other) => {
            findings.push(Finding::warn(
                CHECK,
                other.to_string(),
                "run doctor as root: `sudo meshnode doctor`",
            ));
            None
        }
    }
}

/// What a daemon left pinned goes on denying: right after a crash, and a puzzle after a removal.
fn not_running(bpf_dir: &Path) -> Finding {
    let pinned = std::fs::read_dir(bpf_dir).is_ok_and(|mut entries| entries.next().is_some());
    if !pinned {
        return Finding::ok("daemon", "not running");
    }
    let detail =
        format!("not running, but its programs are pinned in {}: they deny the mesh", bpf_dir.display());
    Finding::fail("daemon", detail, "start it; or, to leave the mesh for good, `sudo meshnode detach`")
}

fn render(findings: &[Finding], style: Style) -> String {
    let mut text = String::new();
    let widest = findings.iter().map(|finding| finding.check.len()).max().unwrap_or(0);
    for finding in findings {
        let (word, colour) = match finding.verdict {
            Verdict::Ok => ("ok  ", Colour::Good),
            Verdict::Warn => ("warn", Colour::Warning),
            Verdict::Fail => ("FAIL", Colour::Bad),
        };
        let mut lines = finding.detail.lines();
        let first = printable(lines.next().unwrap_or_default());
        text.push_str(&format!("{}  {:widest$}  {first}\n", style.paint(colour, word), finding.check));
        let indent = " ".repeat(widest + 8);
        for line in lines {
            text.push_str(&format!("{indent}{}\n", printable(line)));
        }
        if let Some(fix) = &finding.fix {
            text.push_str(&format!("{indent}{} {}\n", style.paint(Colour::Bold, "fix:"), printable(fix)));
        }
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    text.push_str(&match (count(Verdict::Fail), count(Verdict::Warn)) {
        (0, 0) => "\nThis host is ready.\n".to_owned(),
        (0, warnings) => format!("\nThis host is ready; {warnings} of {} checks warn.\n", findings.len()),
        (failures, _) => format!(
            "\nmeshnode cannot run here as configured: {failures} of {} checks fail.\n",
            findings.len()
        ),
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_read_with_their_fix_and_a_conclusion() {
        let findings = [
            Finding::ok("kernel", "6.1.0"),
            Finding::warn("clock", "not synchronized", "install an NTP client"),
            Finding::fail("cgroup v2", "not mounted", "mount it"),
        ];
        let expected = "\
ok    kernel     6.1.0
warn  clock      not synchronized
                 fix: install an NTP client
FAIL  cgroup v2  not mounted
                 fix: mount it

meshnode cannot run here as configured: 1 of 3 checks fail.
";
        assert_eq!(render(&findings, Style::default()), expected);
        assert!(render(&findings[..2], Style::default()).ends_with("ready; 1 of 2 checks warn.\n"));
        assert!(render(&findings[..1], Style::default()).ends_with("This host is ready.\n"));
    }

    #[test]
    fn pins_without_a_daemon_fail_and_no_pins_do_not() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(not_running(dir.path()).verdict, Verdict::Ok);
        assert_eq!(not_running(&dir.path().join("none")).verdict, Verdict::Ok);
        std::fs::write(dir.path().join("connect4"), "").unwrap();
        assert_eq!(not_running(dir.path()).verdict, Verdict::Fail);
    }

    #[test]
    fn a_finding_is_json_with_lower_case_verdicts() {
        let json = serde_json::to_string(&Finding::ok("kernel", "6.1")).unwrap();
        assert_eq!(json, r#"{"check":"kernel","verdict":"ok","detail":"6.1"}"#);
    }
}
