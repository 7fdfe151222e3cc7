//! Beside the command: waits until it can be who it should be, says so, passes signals on, and says what was refused.

use std::{
    io::{self, Write},
    os::unix::process::ExitStatusExt,
    process::ExitStatus,
    time::{Duration, Instant},
};

use nix::{sys::signal::Signal, unistd::Pid};
use tokio::{
    process::Child,
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use super::{Account, ExecArgs, ask, command, failed, not_started, refusals, temporary::Temporary};
use crate::{
    admin::{MOST_ALLOWED, StatusReport},
    cli::{
        Failure, Global,
        admin::Admin,
        block_on,
        output::{age, printable},
        target,
    },
    config::format_duration,
};

const POLL: Duration = Duration::from_millis(100);
/// What takes no longer is not worth a line.
const SOON: Duration = Duration::from_millis(500);
/// What was refused is known to the daemon this long after the command has ended.
const SETTLE: Duration = Duration::from_millis(100);
/// Services that are named, of those that the command may connect to.
const NAMED: usize = 8;

/// Runs the command to its end and returns its exit code, 128 and the signal's number where one killed it.
pub fn run(global: &Global, args: &ExecArgs, user: Option<Account>) -> Result<u8, Failure> {
    // Dropped last: it ends the daemon.
    let own = args.temporary.then(|| Temporary::start(global, args)).transpose()?;
    let admin = match &own {
        Some(own) => own.admin(),
        None => target::admin(global).map_err(|failure| failed(failure.to_string()))?,
    };
    block_on(attend(&admin, args, user))
}

/// Writes a line for people; nobody is left to tell where standard error is closed.
pub fn tell(args: &ExecArgs, line: &str) {
    if args.tells() {
        let _ = writeln!(io::stderr(), "meshnode: {line}");
    }
}

async fn attend(admin: &Admin, args: &ExecArgs, user: Option<Account>) -> Result<u8, Failure> {
    let ticket = ask(admin, args).await?;
    let before = until_ready(admin, args).await?;
    tell(args, &introduction(&before, args));
    let mut command = tokio::process::Command::from(command(args, &ticket, user)?);
    let outcome = async {
        // Before the command is there, so that no signal ends this process and leaves it alone.
        let signals = Signals::new()?;
        let child = command.spawn().map_err(|error| not_started(args, &error))?;
        signals.until_ended(child).await.map_err(|error| failed(error.to_string()))
    };
    let status = outcome.await?;
    if args.tells() {
        sleep(SETTLE).await;
        if let Ok(after) = admin.status().await {
            refusals::lines(&before, &after, args.service.as_str()).iter().for_each(|line| tell(args, line));
        }
    }
    Ok(code(status))
}

fn code(status: ExitStatus) -> u8 {
    let number = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    number.and_then(|number| u8::try_from(number).ok()).unwrap_or(u8::MAX)
}

async fn until_ready(admin: &Admin, args: &ExecArgs) -> Result<StatusReport, Failure> {
    let (started, mut said) = (Instant::now(), None);
    loop {
        let report = admin.status().await.map_err(|failure| failed(failure.to_string()))?;
        let Some(missing) = missing(&report, args.service.as_str()) else { return Ok(report) };
        if started.elapsed() >= args.wait {
            return Err(failed(format!(
                "{missing}, for {}\n`meshnode doctor` looks for the cause; --wait DURATION waits longer.",
                format_duration(args.wait)
            )));
        }
        if started.elapsed() >= SOON && said.as_ref() != Some(&missing) {
            tell(args, &format!("waiting: {missing}"));
            said = Some(missing);
        }
        sleep(POLL).await;
    }
}

/// Returns what the command would fail for want of.
fn missing(report: &StatusReport, service: &str) -> Option<String> {
    let plane = &report.control_plane;
    let because = plane.last_error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
    if !plane.connected && !plane.from_cache {
        return Some(format!("the control plane at {} does not answer{because}", plane.address));
    }
    match report.certificates.iter().find(|certificate| certificate.service == service) {
        Some(certificate) if certificate.seconds_left > 0 => None,
        Some(certificate) => {
            let because = certificate.renewal_error.as_deref().map(|e| format!(": {e}")).unwrap_or_default();
            Some(format!("the certificate of {service} has expired and is not renewed{because}"))
        }
        None => Some(format!("there is no certificate for {service} yet{because}")),
    }
}

fn introduction(report: &StatusReport, args: &ExecArgs) -> String {
    let service = args.service.as_str();
    let certificate = report.certificates.iter().find(|certificate| certificate.service == service);
    let who = certificate.map_or_else(String::new, |certificate| {
        let left = Duration::from_secs(certificate.seconds_left.max(0).unsigned_abs());
        format!("running as {}, certified for {} more", certificate.spiffe_id, age(left))
    });
    let empty = Vec::new();
    let workload = report.workloads.iter().find(|workload| workload.service == service);
    let allowed = workload.map_or(&empty, |workload| &workload.allowed);
    let what = match allowed.len() {
        0 => format!(
            "intentions let {service} connect to nothing that has an instance; `meshnode intention create {service} DESTINATION` does"
        ),
        n if n <= NAMED => format!("it may connect to {}", allowed.join(", ")),
        n => {
            let more = if n == MOST_ALLOWED { "more" } else { "others" };
            format!("it may connect to {} and {more}", allowed[..NAMED].join(", "))
        }
    };
    let stale = if report.control_plane.connected {
        String::new()
    } else {
        format!(
            "\nmeshnode: the control plane at {} does not answer: what it said last holds",
            report.control_plane.address
        )
    };
    format!("{}; {what}{stale}", printable(&who))
}

/// The signals that end programs. A terminal sends its own to the command too; the others are passed on.
struct Signals {
    ignored: [tokio::signal::unix::Signal; 2],
    passed: [(tokio::signal::unix::Signal, Signal); 2],
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let catch = |kind| signal(kind).map_err(|error| failed(format!("cannot handle signals: {error}")));
        Ok(Self {
            ignored: [catch(SignalKind::interrupt())?, catch(SignalKind::quit())?],
            passed: [
                (catch(SignalKind::terminate())?, Signal::SIGTERM),
                (catch(SignalKind::hangup())?, Signal::SIGHUP),
            ],
        })
    }

    async fn until_ended(mut self, mut child: Child) -> io::Result<ExitStatus> {
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
        loop {
            let [interrupt, quit] = &mut self.ignored;
            let [(terminate, term), (hangup, hup)] = &mut self.passed;
            let pass = tokio::select! {
                status = child.wait() => return status,
                _ = interrupt.recv() => None,
                _ = quit.recv() => None,
                _ = terminate.recv() => Some(*term),
                _ = hangup.recv() => Some(*hup),
            };
            if let (Some(pid), Some(signal)) = (pid, pass) {
                // It may have ended at this moment, which the next turn sees.
                let _ = nix::sys::signal::kill(pid, signal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{CertificateStatus, ControlPlaneStatus, Timestamp};

    fn report(seconds_left: Option<i64>, connected: bool) -> StatusReport {
        let certificates = seconds_left.map(|seconds_left| CertificateStatus {
            service: "web".into(),
            spiffe_id: "spiffe://td/ns/default/dc/dc1/svc/web".into(),
            serial: "01".into(),
            not_after: Timestamp(std::time::SystemTime::UNIX_EPOCH),
            seconds_left,
            late: false,
            renewal_error: Some("forbidden".into()),
        });
        StatusReport {
            certificates: certificates.into_iter().collect(),
            control_plane: ControlPlaneStatus {
                connected,
                address: "https://c:8501".into(),
                last_error: Some("refused".into()),
                ..ControlPlaneStatus::default()
            },
            ..StatusReport::default()
        }
    }

    #[test]
    fn what_is_missing_is_named_with_its_cause() {
        assert_eq!(missing(&report(Some(60), true), "web"), None);
        let said = missing(&report(Some(60), false), "web").unwrap();
        assert_eq!(said, "the control plane at https://c:8501 does not answer: refused");
        let said = missing(&report(None, true), "web").unwrap();
        assert_eq!(said, "there is no certificate for web yet: refused");
        let said = missing(&report(Some(-1), true), "web").unwrap();
        assert!(said.ends_with("not renewed: forbidden"), "{said}");
    }

    #[test]
    fn a_killed_command_has_the_exit_code_that_shells_give_it() {
        assert_eq!(code(ExitStatus::from_raw(9)), 137);
        assert_eq!(code(ExitStatus::from_raw(7 << 8)), 7);
    }
}
