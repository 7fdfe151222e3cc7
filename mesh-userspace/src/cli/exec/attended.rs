//! Beside the command: waits until it can be who it should be, says so, passes signals on, and says what was refused.

use std::{
    collections::HashSet,
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
    block_on(async {
        // First of all, so that no signal ends this process and leaves a daemon, or the command, alone.
        let mut signals = Signals::new()?;
        if !args.temporary {
            let admin = target::admin(global).map_err(|failure| failed(failure.to_string()))?;
            return attend(&admin, args, user, signals).await;
        }
        // Dropped last: it ends the daemon.
        let own = tokio::select! {
            own = Temporary::start(global, args) => own?,
            signal = signals.next() => return Err(interrupted(signal)),
        };
        attend(&own.admin(), args, user, signals).await
    })
}

/// The command was not started.
fn interrupted(signal: Signal) -> Failure {
    let code = u8::try_from(128 + signal as i32).unwrap_or(u8::MAX);
    Failure::Exec { code, message: format!("{signal} before the command was started: it was not") }
}

/// Writes a line for people; nobody is left to tell where standard error is closed.
pub fn tell(args: &ExecArgs, line: &str) {
    if args.tells() {
        let _ = writeln!(io::stderr(), "meshnode: {line}");
    }
}

async fn attend(
    admin: &Admin,
    args: &ExecArgs,
    user: Option<Account>,
    mut signals: Signals,
) -> Result<u8, Failure> {
    let ticket = ask(admin, args).await?;
    let before = tokio::select! {
        ready = until_ready(admin, args) => ready?,
        signal = signals.next() => return Err(interrupted(signal)),
    };
    tell(args, &introduction(&before, args));
    let mut command = tokio::process::Command::from(command(args, &ticket, user)?);
    let child = command.spawn().map_err(|error| not_started(args, &error))?;
    let status = signals.until_ended(child).await.map_err(|error| failed(error.to_string()))?;
    if args.tells() {
        sleep(SETTLE).await;
        if let Ok(after) = admin.status().await {
            let mut lines = refusals::lines(&before, &after, args.service.as_str());
            if args.temporary && lines.iter().any(|line| line.contains("meshnode intention")) {
                lines.push("  From here, give them --http-addr, --ca-file and --token, too.".to_owned());
            }
            lines.iter().for_each(|line| tell(args, line));
        }
    }
    Ok(code(status))
}

fn code(status: ExitStatus) -> u8 {
    let number = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    number.and_then(|number| u8::try_from(number).ok()).unwrap_or(u8::MAX)
}

async fn until_ready(admin: &Admin, args: &ExecArgs) -> Result<StatusReport, Failure> {
    // Each once: what is asked again and again fails in turns.
    let (started, mut said) = (Instant::now(), HashSet::new());
    loop {
        let report = admin.status().await.map_err(|failure| failed(failure.to_string()))?;
        let Some(missing) = missing(&report, args.service.as_str()) else { return Ok(report) };
        if started.elapsed() >= args.wait {
            // That one is for the host's own daemon.
            let doctor = if args.temporary { "" } else { "`meshnode doctor` looks for the cause; " };
            return Err(failed(format!(
                "after {}: {missing}\n{doctor}--wait DURATION waits longer.",
                format_duration(args.wait)
            )));
        }
        if started.elapsed() >= SOON && said.insert(missing.clone()) {
            tell(args, &format!("waiting: {missing}"));
        }
        sleep(POLL).await;
    }
}

/// Returns what the command would fail for want of.
fn missing(report: &StatusReport, service: &str) -> Option<String> {
    let plane = &report.control_plane;
    let because = plane.last_error.as_deref().map(|error| format!(": {error}")).unwrap_or_default();
    if !plane.connected && !plane.from_cache {
        let how = if because.contains(" is forbidden: ") { "refuses" } else { "does not answer" };
        return Some(format!("the control plane at {} {how}{because}", plane.address));
    }
    if plane.unsynced {
        return Some(format!("catalog and intentions were not read yet{because}"));
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

    /// Waits for any of them.
    async fn next(&mut self) -> Signal {
        let [interrupt, quit] = &mut self.ignored;
        let [(terminate, term), (hangup, hup)] = &mut self.passed;
        tokio::select! {
            _ = interrupt.recv() => Signal::SIGINT,
            _ = quit.recv() => Signal::SIGQUIT,
            _ = terminate.recv() => *term,
            _ = hangup.recv() => *hup,
        }
    }

    async fn until_ended(mut self, mut child: Child) -> io::Result<ExitStatus> {
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
        loop {
            let signal = tokio::select! {
                status = child.wait() => return status,
                signal = self.next() => signal,
            };
            let is_passed = self.passed.iter().any(|(_, passed)| *passed == signal);
            if let Some(pid) = pid.filter(|_| is_passed) {
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
