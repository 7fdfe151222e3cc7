//! The keys, section by section: name, accepted values, default. Rules between keys are in `rules`.

mod address;
mod control_plane;
mod gateway;
mod service;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use tracing_subscriber::EnvFilter;

pub(super) use self::control_plane::LONGEST_LEAF;
use self::{address::address, control_plane::control_plane, gateway::gateways, service::services};
use super::{
    Config, ConfigError, DnsConfig, Exemption, Limits, ListenConfig, LogFormat, ProxyConfig, SameHost,
    Selector, WhenDown,
    document::{Document, Files, Section},
    error::Located,
    rules,
    value::{DURATION, absolute, format_duration, parse_duration},
};
use crate::{dns::Domain, identity::ServiceName};

const PATH: &str = "an absolute path";
const NAME: &str = "1 to 63 letters, digits, `-`, `_`, `.`, the first and last a letter or digit";

/// Returns the configuration in `text` and the keys that were looked for.
pub(super) fn read(text: &str, file: &Path, files: Files) -> (Result<Config, ConfigError>, BTreeSet<String>) {
    let document = Document::new(file, text, files);
    let config = document.parse().and_then(|table| root(Section::root(&document, table.get_ref())));
    let asked = document.asked();
    let issues = document.into_issues();
    let result = match config {
        Some(config) if issues.is_empty() => Ok(config),
        _ => Err(ConfigError::Invalid(issues)),
    };
    (result, asked)
}

/// `None` only after noting why.
fn root(section: Section<'_>) -> Option<Config> {
    let node = section.text("node", NAME, |text| text.parse::<ServiceName>());
    let datacenter = section.text("datacenter", NAME, |text| text.parse::<ServiceName>());
    let state_dir = path(&section, "state_dir");
    let run_dir = path(&section, "run_dir");
    let cgroup_root = path(&section, "cgroup_root");
    let bpf_dir = path(&section, "bpf_dir");
    let drain_deadline = duration(&section, "drain_deadline", Duration::ZERO, Duration::from_secs(3600));
    let log =
        section.text("log", "a filter such as \"info\" or \"info,mesh_userspace::proxy=debug\"", |text| {
            EnvFilter::builder().parse(text).map(|_| text.to_owned())
        });
    let log_format = section.choice("log_format", &[("text", LogFormat::Text), ("json", LogFormat::Json)]);
    let same_host = section.choice("same_host", &[("direct", SameHost::Direct), ("mtls", SameHost::Mtls)]);

    let mut claims = rules::Claims::new(section.document);
    let (listen, address) = (listen(&section, &mut claims), address(&section));
    let (control_plane, catalog_limit) = control_plane(&section, &mut claims);
    let mut names = rules::Names::new(section.document);
    let services = services(&section, &address.mesh_ports, &mut claims, &mut names);
    let gateways = gateways(&section, &address.mesh_ports, &mut claims, &mut names);
    rules::room_for_gateways(section.document, &address.mesh_ports, &services, &gateways);
    let gateways = gateways.into_iter().map(|gateway| gateway.value).collect();
    let (limits, dns, proxy) = (limits(&section), dns(&section), proxy(&section));
    let exempt = section.sections("exempt").into_iter().filter_map(exemption).collect();
    section.finish();
    let or = |path: Option<PathBuf>, default: &str| path.unwrap_or_else(|| default.into());
    Some(Config {
        node: node.map_or_else(host_name, |node| node.value.to_string()),
        datacenter: datacenter.map(|dc| dc.value.to_string()),
        state_dir: or(state_dir, "/var/lib/meshnode"),
        run_dir: or(run_dir, "/run/meshnode"),
        cgroup_root: or(cgroup_root, "/"),
        bpf_dir: or(bpf_dir, "/sys/fs/bpf/meshnode"),
        drain_deadline: drain_deadline.unwrap_or(Duration::from_secs(10)),
        log: log.map_or_else(|| "info".to_owned(), |log| log.value),
        log_format: log_format.map_or(LogFormat::Text, |format| format.value),
        same_host: same_host.map_or(SameHost::Direct, |mode| mode.value),
        address,
        listen,
        dns,
        limits,
        proxy,
        control_plane: control_plane?,
        catalog_limit,
        services,
        gateways,
        exempt,
    })
}

/// Returns the host's name; `localhost` where it has none that a catalog could hold.
fn host_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.filter(|name| name.parse::<ServiceName>().is_ok()).unwrap_or_else(|| "localhost".to_owned())
}

fn path(section: &Section<'_>, key: &'static str) -> Option<PathBuf> {
    section.text(key, PATH, absolute).map(|path| path.value)
}

fn duration(section: &Section<'_>, key: &'static str, least: Duration, most: Duration) -> Option<Duration> {
    let accepted = format!("{DURATION}, from {} to {}", format_duration(least), format_duration(most));
    let parse = |text: &str| match parse_duration(text) {
        Ok(duration) if (least..=most).contains(&duration) => Ok(duration),
        Ok(_) => Err("out of range"),
        Err(error) => Err(error),
    };
    section.text(key, &accepted, parse).map(|duration| duration.value)
}

fn limits(root: &Section<'_>) -> Limits {
    let section = root.section("limits");
    let number = |key, default| section.number(key, 1..=16_777_216).map_or(default, |number| number.value);
    let default = Limits::default();
    let limits = Limits {
        flows: number("flows", default.flows),
        direct_flows: number("direct_flows", default.direct_flows),
        destinations: number("destinations", default.destinations),
        policies: number("policies", default.policies),
        workloads: number("workloads", default.workloads),
    };
    section.finish();
    limits
}

fn proxy(root: &Section<'_>) -> ProxyConfig {
    let section = root.section("proxy");
    let pool = section.boolean("pool").is_none_or(|pool| pool.value);
    section.finish();
    ProxyConfig { pool }
}

fn dns(root: &Section<'_>) -> DnsConfig {
    let section = root.section("dns");
    let domains = |key, default: &str| {
        let given = section.texts(key, "a domain such as \"mesh\"", str::parse::<Domain>);
        if given.is_empty() {
            return vec![default.parse().expect("invariant: the default is a domain")];
        }
        given.into_iter().map(|domain| domain.value).collect()
    };
    let config = DnsConfig {
        enabled: section.boolean("enabled").is_none_or(|enabled| enabled.value),
        domains: domains("domains", "mesh"),
        consul_domains: domains("consul_domains", "consul"),
        when_down: section
            .choice("when_down", &[("pass", WhenDown::Pass), ("refuse", WhenDown::Refuse)])
            .map_or(WhenDown::Pass, |choice| choice.value),
    };
    section.finish();
    config
}

fn listen(root: &Section<'_>, claims: &mut rules::Claims<'_>) -> ListenConfig {
    let section = root.section("listen");
    let mut port = |key| section.port(key, 0..=u16::MAX).map_or(0, |port| claims.claim(port));
    let config = ListenConfig { outbound_port: port("outbound_port"), guard_port: port("guard_port") };
    section.finish();
    config
}

/// Returns how often it is checked; `None` when that is off.
fn check(section: &Section<'_>) -> Option<Duration> {
    let check = section.section("check");
    let enabled = check.boolean("enabled").is_none_or(|enabled| enabled.value);
    let interval = duration(&check, "interval", Duration::from_secs(1), Duration::from_secs(3600));
    check.finish();
    enabled.then(|| interval.unwrap_or(Duration::from_secs(10)))
}

fn selector(section: &Section<'_>) -> Selector {
    fn values<T>(found: Vec<Located<T>>) -> Vec<T> {
        found.into_iter().map(|located| located.value).collect()
    }
    Selector {
        cgroups: values(section.texts("cgroup", "a cgroup path below cgroup_root, as a glob", str::parse)),
        units: values(section.texts("unit", "a systemd unit with its suffix", str::parse)),
        containers: values(section.texts("container", "a container's name or id", str::parse)),
    }
}

fn exemption(section: Section<'_>) -> Option<Exemption> {
    const REASON: &str = "why these cgroups are outside the mesh, in words";
    let selector = selector(&section);
    let reason = section.text("reason", REASON, |text| {
        let fits = !text.trim().is_empty() && text.chars().count() <= 200 && !text.contains(char::is_control);
        fits.then(|| text.to_owned()).ok_or("1 to 200 characters in one line")
    });
    if !section.has("reason") {
        section.missing("reason", REASON);
    }
    if !["cgroup", "unit", "container"].into_iter().any(|key| section.has(key)) {
        section.missing("cgroup", "at least one of cgroup, unit, container");
    }
    section.finish();
    Some(Exemption { selector, reason: reason?.value })
}
