//! Whether the control plane answers, takes the token, and agrees on the time.

use std::time::SystemTime;

use rustls_pki_types::{CertificateDer, pem::PemObject};
use time::{OffsetDateTime, format_description::well_known::Rfc2822};

use super::Finding;
use crate::{
    admin::StatusReport,
    cli::{Global, target},
    config::{Config, ControlPlane},
    control_plane::{ApiError, Client, permission},
};

const CHECK: &str = "control plane";
/// Certificates begin a minute before they are made, at the earliest; more skew than half of that is near the edge.
const MOST_SKEW_S: i64 = 30;

pub async fn check(global: &Global, config: &Config, running: bool) -> Vec<Finding> {
    if matches!(config.control_plane, ControlPlane::Embedded(_)) && !running && global.http_addr.is_none() {
        return vec![Finding::ok(CHECK, "embedded: the daemon serves it when it runs")];
    }
    let api = match target::control_plane(global) {
        Ok(api) => api,
        Err(failure) => return vec![Finding::fail(CHECK, failure.to_string(), "correct [control_plane]")],
    };
    // Every control plane has roots for everybody; whether the token is known shows at the agent's services.
    let roots = api.ask("/v1/connect/ca/roots").await;
    let mut findings = vec![match &roots {
        Ok(_) => Finding::ok(CHECK, format!("{} answers, with a CA", api.access().address)),
        Err(error) => unreachable(&api, error),
    }];
    if let Ok(answer) = roots {
        findings.extend(answer.date.as_deref().and_then(skew));
        findings.extend(ca(&answer.body, OffsetDateTime::now_utc()));
        findings.push(token(&api, config).await);
    }
    findings
}

fn unreachable(api: &Client, error: &ApiError) -> Finding {
    let fix = match error {
        ApiError::Status { reason, .. } if reason.contains("Enterprise") => {
            "remove control_plane.namespace and control_plane.partition: this server has none"
        }
        ApiError::Forbidden { .. } | ApiError::NotFound { .. } | ApiError::Status { .. } => {
            "Consul needs connect { enabled = true } on its servers, and the token service:read"
        }
        ApiError::Token(_) => "correct control_plane.token_file",
        ApiError::Tls { .. } => "correct control_plane.ca_file or control_plane.address",
        ApiError::NotTls { .. } => "correct control_plane.address: its port, or http://",
        _ => "start it, or correct control_plane.address; a firewall may be between",
    };
    // An error of reaching it names the address itself.
    let detail = if error.is_outage() {
        error.to_string()
    } else {
        format!("{} does not serve: {error}", api.access().address)
    };
    Finding::fail(CHECK, detail, fix)
}

async fn token(api: &Client, config: &Config) -> Finding {
    const CHECK: &str = "token";
    let given =
        if api.access().token.is_some() { "is accepted" } else { "none given, and none needed to read" };
    match api.ask("/v1/agent/services").await {
        Ok(_) => lacking(api, config).await.unwrap_or_else(|| Finding::ok(CHECK, given)),
        Err(error @ (ApiError::Forbidden { .. } | ApiError::NotFound { .. } | ApiError::Status { .. })) => {
            let fix = "control_plane.token_file with a token for service:write and intentions:read";
            Finding::fail(CHECK, format!("refused: {error}"), fix)
        }
        Err(error) => Finding::fail(CHECK, error.to_string(), "start the control plane again"),
    }
}

/// Asks for what this host's services need; Consul leaves out of its answers what a token may not see, so that a read
/// which succeeds proves little.
async fn lacking(api: &Client, config: &Config) -> Option<Finding> {
    let services = config.services.iter().map(|service| (&service.name, service.protected.is_some()));
    let services = services.chain(config.gateways.iter().map(|gateway| (&gateway.service, true)));
    let lacks = permission::missing(api, services).await.ok()??;
    if lacks.is_empty() {
        return Some(Finding::ok("token", "grants all that the services of this host need"));
    }
    let detail = format!("lacks {}", lacks.join(", "));
    Some(Finding::fail("token", detail, "add these rules to a policy of the token"))
}

/// Returns a finding where the daemon watches a part of the catalog only.
pub fn catalog(report: &StatusReport) -> Option<Finding> {
    let fix = "raise control_plane.catalog_limit if this host's memory and the control plane bear it; else leave it";
    Some(Finding::warn("catalog", report.control_plane.partial()?, fix))
}

/// Returns a finding from the `Date` that the control plane sent.
fn skew(date: &str) -> Option<Finding> {
    const CHECK: &str = "clock difference";
    let theirs = OffsetDateTime::parse(date, &Rfc2822).ok()?;
    let seconds = (OffsetDateTime::from(SystemTime::now()) - theirs).whole_seconds();
    Some(if seconds.abs() <= MOST_SKEW_S {
        Finding::ok(CHECK, format!("{seconds} s from the control plane's"))
    } else {
        let detail = format!("{seconds} s from the control plane's: fresh certificates may be refused");
        Finding::fail(CHECK, detail, "run an NTP client on both hosts")
    })
}

/// Returns a finding about the certificates that the CA signs with: no leaf lives longer than they do.
fn ca(roots: &[u8], now: OffsetDateTime) -> Option<Finding> {
    const CHECK: &str = "CA";
    let answer: serde_json::Value = serde_json::from_slice(roots).ok()?;
    let active = answer["Roots"].as_array()?.iter().find(|root| root["Active"] == true)?;
    let chain = active["IntermediateCerts"].as_array().into_iter().flatten();
    let mut seen = Vec::new();
    let mut ends = Vec::new();
    for pem in std::iter::once(&active["RootCert"]).chain(chain) {
        let der = CertificateDer::from_pem_slice(pem.as_str()?.as_bytes()).ok()?;
        let (_, cert) = x509_parser::parse_x509_certificate(&der).ok()?;
        // A second certificate for a name is an older root's word for it, which ends early by design.
        if !seen.contains(&cert.subject().as_raw().to_vec()) {
            seen.push(cert.subject().as_raw().to_vec());
            let validity = cert.validity();
            ends.push((validity.not_before.to_datetime(), validity.not_after.to_datetime()));
        }
    }
    let (from, until) = ends.into_iter().min_by_key(|(_, until)| *until)?;
    let (life, left) = (until - from, until - now);
    let soon: time::Duration = (life / 10_i32).min(time::Duration::days(30));
    Some(if left > soon {
        Finding::ok(CHECK, format!("its certificates are valid until {}", until.date()))
    } else {
        let fix = "`meshnode ca rotate`; a given intermediate: new files, then `meshnode reload`";
        Finding::warn(
            CHECK,
            format!("a certificate of it expires on {}, and no leaf lives longer", until.date()),
            fix,
        )
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cli::doctor::Verdict;

    #[test]
    fn a_ca_that_is_about_to_expire_warns_and_one_that_is_not_does_not() {
        let now = OffsetDateTime::now_utc();
        let mut params = rcgen::CertificateParams::default();
        (params.not_before, params.not_after) = (now, now + time::Duration::days(100));
        let pem = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().pem();
        let roots =
            serde_json::json!({"Roots": [{"Active": true, "Name": "x", "RootCert": pem}]}).to_string();
        let verdict = |days| ca(roots.as_bytes(), now + time::Duration::days(days)).unwrap().verdict;
        assert_eq!((verdict(1), verdict(91)), (Verdict::Ok, Verdict::Warn));
        assert!(ca(b"{}", now).is_none());
    }

    #[test]
    fn a_catalog_watched_in_part_warns_and_a_whole_one_says_nothing() {
        let mut report = StatusReport::default();
        assert!(catalog(&report).is_none());
        report.control_plane.unwatched_services = Some(0);
        assert!(catalog(&report).is_none());
        report.control_plane.unwatched_services = Some(7);
        let finding = catalog(&report).unwrap();
        assert_eq!(finding.verdict, Verdict::Warn);
        assert!(finding.detail.starts_with("7 services"), "{}", finding.detail);
    }

    #[test]
    fn an_http_date_far_from_now_fails_and_a_near_one_does_not() {
        let ago = |seconds| {
            let then = OffsetDateTime::from(SystemTime::now() - Duration::from_secs(seconds));
            then.format(&Rfc2822).unwrap().replace("+0000", "GMT")
        };
        assert_eq!(skew(&ago(0)).unwrap().verdict, Verdict::Ok);
        assert_eq!(skew(&ago(300)).unwrap().verdict, Verdict::Fail);
        assert!(skew("Sun, 06 Nov 1994 08:49:37 GMT").is_some());
        assert!(skew("never").is_none());
    }
}
