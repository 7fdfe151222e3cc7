//! Whether workloads' queries for names reach the daemon, and are answered.

use super::Finding;
use crate::{admin::StatusReport, config::Config};

const CHECK: &str = "names";

/// `None`: no daemon runs, whose absence is a finding of its own.
pub fn check(config: &Config, daemon: Option<&StatusReport>) -> Option<Finding> {
    let report = daemon?;
    if !config.dns.enabled {
        return Some(Finding::ok(CHECK, "left alone (dns.enabled = false)"));
    }
    let count = |name: &str| report.counters.get(name).copied().unwrap_or_default();
    let listening = report.listeners.iter().any(|listener| listener.role == "dns");
    let (diverted, passed) = (count("dns_diverted"), count("dns_passed"));
    let (forwarded, failed) = (count("dns_forwarded"), count("dns_failed"));
    Some(if !listening {
        Finding::fail(
            CHECK,
            "the daemon does not listen for queries: names of the mesh do not resolve",
            "restart it; it reads [dns] when it starts",
        )
    } else if forwarded > 0 && failed * 2 > forwarded {
        Finding::warn(
            CHECK,
            format!("{failed} of {forwarded} queries for other names were not answered by their servers"),
            "what /etc/resolv.conf names (or the container's) cannot be reached, or is silent",
        )
    } else if passed > diverted {
        Finding::warn(
            CHECK,
            format!("{passed} queries went past the daemon, {diverted} did not"),
            "sockets bound to an interface, link-local servers, or a daemon that was down: docs/names.md",
        )
    } else {
        let answered = count("dns_answered");
        Finding::ok(CHECK, format!("{answered} answered from the catalog, {forwarded} by the servers asked"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{admin::ListenerStatus, cli::doctor::Verdict};

    fn verdict(listens: bool, counters: &[(&str, u64)]) -> Verdict {
        let listener = ListenerStatus { role: "dns".into(), address: "127.0.0.1:1".into() };
        let report = StatusReport {
            listeners: if listens { vec![listener] } else { vec![] },
            counters: counters.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
            ..StatusReport::default()
        };
        check(&Config::default(), Some(&report)).unwrap().verdict
    }

    #[test]
    fn what_does_not_resolve_is_found() {
        assert_eq!(
            verdict(true, &[("dns_answered", 3), ("dns_forwarded", 9), ("dns_failed", 1)]),
            Verdict::Ok
        );
        assert_eq!(verdict(false, &[]), Verdict::Fail);
        assert_eq!(verdict(true, &[("dns_forwarded", 9), ("dns_failed", 8)]), Verdict::Warn);
        assert_eq!(verdict(true, &[("dns_passed", 9), ("dns_diverted", 8)]), Verdict::Warn);
        assert!(check(&Config::default(), None).is_none());
    }
}
