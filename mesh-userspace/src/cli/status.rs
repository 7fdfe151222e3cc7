//! `meshnode status`, and the other things that are only asked of the daemon: `reload`, `cut` and `drain`.

pub mod render;
mod watch;

use std::time::Duration;

use clap::Args;

use super::{
    Failure, Global,
    admin::Admin,
    exit,
    output::{Style, age, print, print_json},
    target,
};
use crate::{
    admin::{AttachmentState, CertificateStatus, CutRequest, StatusReport},
    identity::ServiceName,
};

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Refresh in place every second; q or Ctrl-C ends it
    #[arg(long)]
    pub watch: bool,

    /// JSON, as the admin socket answers it; with --watch one report in each line
    #[arg(long)]
    pub json: bool,

    /// Only what concerns this service
    #[arg(long, value_name = "NAME")]
    pub service: Option<ServiceName>,

    /// Exit with 3 if something is wrong: a program not attached, the control plane away, a certificate expired
    #[arg(long, conflicts_with = "watch")]
    pub check: bool,
}

#[derive(Debug, Args)]
pub struct CutArgs {
    /// Only connections from or to this service
    #[arg(long, value_name = "NAME")]
    pub service: Option<ServiceName>,
}

pub async fn run(global: &Global, args: &StatusArgs) -> Result<u8, Failure> {
    let admin = target::admin(global)?;
    if args.watch {
        watch::run(&admin, args).await?;
        return Ok(exit::OK);
    }
    let report = fetch(&admin, args).await?;
    if args.json {
        print_json(&report)?;
    } else {
        print(&render::report(&report, Style::of_stdout()))?;
    }
    let healthy = !args.check || problems(&report).is_empty();
    Ok(if healthy { exit::OK } else { exit::UNHEALTHY })
}

async fn fetch(admin: &Admin, args: &StatusArgs) -> Result<StatusReport, Failure> {
    let report = admin.status().await?;
    Ok(match &args.service {
        Some(service) => only(report, service.as_str()),
        None => report,
    })
}

/// Returns the report without what concerns other services.
pub fn only(mut report: StatusReport, service: &str) -> StatusReport {
    report.workloads.retain(|workload| workload.service == service);
    report.services.retain(|entry| entry.name == service);
    report.virtual_services.retain(|entry| entry.service == service);
    report.certificates.retain(|certificate| certificate.service == service);
    report.uncaptured.retain(|one| one.source == service || one.destination == service);
    report.flows.retain(|flow| flow.source == service || flow.destination == service);
    report.recent.retain(|flow| flow.source == service || flow.destination == service);
    report
}

/// Returns what is wrong, one line each; empty when all is well.
pub fn problems(report: &StatusReport) -> Vec<String> {
    let mut problems = Vec::new();
    for attachment in &report.attachments {
        let what = match attachment.state {
            AttachmentState::Attached => continue,
            AttachmentState::Missing => "is not attached",
            AttachmentState::Foreign => "is replaced by another program",
            AttachmentState::Unknown => "is in a state that this version does not know",
        };
        let detail =
            if attachment.detail.is_empty() { String::new() } else { format!(": {}", attachment.detail) };
        problems.push(format!(
            "{} {what} at {} ({}){detail}",
            attachment.program, attachment.target, attachment.hook
        ));
    }
    let plane = &report.control_plane;
    if !plane.connected {
        let error = plane.last_error.as_deref().unwrap_or("no answer yet");
        problems.push(format!("the control plane does not answer: {error}"));
    }
    problems.extend(report.certificates.iter().filter_map(overdue));
    if !report.uncaptured.is_empty() {
        problems.push(format!(
            "{} connections from before the mesh knew of them are in clear: `meshnode cut` ends them",
            report.uncaptured.len()
        ));
    }
    problems
}

fn overdue(certificate: &CertificateStatus) -> Option<String> {
    let CertificateStatus { service, seconds_left, late, renewal_error, .. } = certificate;
    let state = match (*seconds_left, late) {
        (..=0, _) => "has expired: new connections are refused".to_owned(),
        (left, true) => {
            format!("expires in {} and is not renewed", age(Duration::from_secs(left.unsigned_abs())))
        }
        (_, false) => return None,
    };
    let because = renewal_error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
    Some(format!("the certificate of {service} {state}{because}"))
}

pub async fn reload(global: &Global) -> Result<u8, Failure> {
    let report = target::admin(global)?.reload().await?;
    let mut text = "the configuration is loaded\n".to_owned();
    for change in &report.changes {
        text.push_str(&format!("  {change}\n"));
    }
    print(&text)?;
    Ok(exit::OK)
}

pub async fn cut(global: &Global, args: &CutArgs) -> Result<u8, Failure> {
    let request = CutRequest { service: args.service.clone() };
    let report = target::admin(global)?.cut(&request).await?;
    let mut text = String::new();
    for one in &report.cut {
        let (source, destination) = render::ends(&one.source, &one.destination);
        text.push_str(&format!("cut {source} → {destination}  {} → {}\n", one.local, one.remote));
    }
    for failure in &report.failed {
        text.push_str(&format!("not cut: {failure}\n"));
    }
    if text.is_empty() {
        text.push_str("no connection is uncaptured\n");
    }
    print(&text)?;
    Ok(if report.failed.is_empty() { exit::OK } else { exit::FAILED })
}

pub async fn drain(global: &Global) -> Result<u8, Failure> {
    target::admin(global)?.drain().await?;
    print("the daemon takes no new flows, and ends when the live ones have ended\n")?;
    Ok(exit::OK)
}
