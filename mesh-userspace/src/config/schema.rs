//! The keys, section by section: name, accepted values, default. Rules between keys are in `rules`.

mod gateway;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use tracing_subscriber::EnvFilter;

use super::{
    AddressConfig, CaFiles, CertificateFiles, Config, ConfigError, ControlPlane, DnsConfig, Egress,
    EgressRule, EgressTarget, Embedded, Exemption, Expose, GuardMode, Limits, ListenConfig, LogFormat,
    PortRange, ProtectedPort, SameHost, Selector, ServiceConfig, WhenDown,
    document::{Document, Files, Section},
    egress,
    error::{Located, Location},
    rules,
    value::{self, DURATION, absolute, format_duration, parse_duration},
};
use crate::{
    catalog::{IpRange, VirtualRanges},
    control_plane::{ApiAccess, ApiAddress, ClientCert, HostPort, Kind, Tenancy, TokenSource},
    dns::Domain,
    identity::{ServiceName, TrustDomain},
    intention::Action,
};

const PATH: &str = "an absolute path";
const NAME: &str = "1 to 63 letters, digits, `-`, `_`, `.`, the first and last a letter or digit";
/// Nothing on the internet has an address of it, Linux routes it as any other, and Consul's own virtual IPs begin at the
/// other end of 240.0.0.0/4.
const VIRTUAL_IPV4: &str = "240.240.0.0/16";
/// A unique local prefix ("mesh" in ASCII), for which programs prefer a name's IPv4 address (RFC 6724).
const VIRTUAL_IPV6: &str = "fd6d:6573:6800::/64";
const VIRTUAL_IPV4_RULE: &str =
    "\"off\", or a prefix of 8 to 24 bits in 240.0.0.0/4, 198.18.0.0/15, 100.64.0.0/10, or a private range";
const VIRTUAL_IPV6_RULE: &str = "\"off\", or a prefix of 32 to 112 bits in fc00::/7";
/// Services up to which the whole catalog is watched.
const CATALOG_LIMIT: u32 = 500;
pub(super) const SHORTEST_LEAF: Duration = Duration::from_secs(60);
pub(super) const LONGEST_LEAF: Duration = Duration::from_secs(72 * 3600);

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
    let gateways = gateway::all(&section, &address.mesh_ports, &mut claims, &mut names);
    rules::room_for_gateways(section.document, &address.mesh_ports, &services, &gateways);
    let gateways = gateways.into_iter().map(|gateway| gateway.value).collect();
    let (limits, dns) = (limits(&section), dns(&section));
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

fn address(root: &Section<'_>) -> AddressConfig {
    let section = root.section("address");
    let advertise =
        section.texts("advertise", "an IP address that other hosts reach, neither 0.0.0.0 nor ::", |text| {
            match text.parse::<IpAddr>() {
                Ok(ip) if ip.is_unspecified() || ip.is_multicast() => Err("not an address of one host"),
                Ok(ip) => Ok(ip),
                Err(_) => Err(""),
            }
        });
    let mesh_ports =
        section.text("mesh_ports", "a range of ports such as \"21000-21255\"", str::parse::<PortRange>);
    let virtual_ranges = VirtualRanges {
        v4: virtual_range(&section, "virtual_ipv4", VIRTUAL_IPV4, &advertise),
        v6: virtual_range(&section, "virtual_ipv6", VIRTUAL_IPV6, &advertise),
    };
    section.finish();
    AddressConfig {
        virtual_ranges,
        advertise: advertise.into_iter().map(|ip| ip.value).collect(),
        mesh_ports: mesh_ports.map_or(PortRange { first: 21000, last: 21255 }, |range| range.value),
    }
}

/// Returns the range that virtual IPs of the default's family come from.
fn virtual_range(
    section: &Section<'_>,
    key: &'static str,
    default: &str,
    advertise: &[Located<IpAddr>],
) -> Option<IpRange> {
    let default: IpRange = default.parse().expect("invariant: the default is a range");
    let accepted = if default.first().is_ipv4() { VIRTUAL_IPV4_RULE } else { VIRTUAL_IPV6_RULE };
    let given = section.text(key, accepted, |text| value::virtual_range(text, default.first().is_ipv4()));
    let range = given.as_ref().map_or(Some(default), |given| given.value);
    for own in advertise.iter().filter(|own| range.is_some_and(|range| range.contains(own.value))) {
        rules::not_virtual(section.document, own, key);
    }
    range
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

/// Returns the control plane and the limit of the catalog.
fn control_plane(root: &Section<'_>, claims: &mut rules::Claims<'_>) -> (Option<ControlPlane>, usize) {
    let section = root.section("control_plane");
    let kinds = [("embedded", Kind::Embedded), ("remote", Kind::Remote), ("consul", Kind::Consul)];
    let kind = section.choice("kind", &kinds).map_or(Kind::Embedded, |kind| kind.value);
    let limit = section.number("catalog_limit", 0..=1_000_000).map_or(CATALOG_LIMIT, |number| number.value);
    let access = AccessKeys::read(&section);
    let embedded = section.section("embedded");
    let config = if kind == Kind::Embedded {
        for at in access.places() {
            let hint = "only with kind = \"remote\" or \"consul\"; the embedded server's own token is \
                        control_plane.embedded.expose.token_file";
            section.document.note(at, hint);
        }
        Some(ControlPlane::Embedded(embedded_server(embedded, access.address, claims)))
    } else {
        if embedded.is_present() {
            section.document.note(embedded.at(), "only with kind = \"embedded\"");
        }
        remote_api(&section, kind, access)
    };
    section.finish();
    (config, limit as usize)
}

/// The keys of where the API is and what it takes to be let in.
struct AccessKeys {
    address: Option<Located<ApiAddress>>,
    ca_file: Option<Located<PathBuf>>,
    cert_file: Option<Located<PathBuf>>,
    key_file: Option<Located<PathBuf>>,
    token: Option<Located<TokenSource>>,
    token_file: Option<Located<PathBuf>>,
    namespace: Option<Located<String>>,
    partition: Option<Located<String>>,
}

impl AccessKeys {
    fn read(section: &Section<'_>) -> Self {
        let name = |key| section.text(key, NAME, |text| text.parse::<ServiceName>().map(|_| text.to_owned()));
        Self {
            address: section.text("address", ApiAddress::FORMS, str::parse::<ApiAddress>),
            ca_file: section.text("ca_file", PATH, absolute),
            cert_file: section.text("cert_file", PATH, absolute),
            key_file: section.text("key_file", PATH, absolute),
            token: section.secret("token", |text| TokenSource::value(text).ok()),
            token_file: section.text("token_file", PATH, absolute),
            namespace: name("namespace"),
            partition: name("partition"),
        }
    }

    /// Where what only another server needs is.
    fn places(&self) -> impl Iterator<Item = &Location> {
        let files = [&self.ca_file, &self.cert_file, &self.key_file, &self.token_file].into_iter().flatten();
        let names = [&self.namespace, &self.partition].into_iter().flatten();
        files
            .map(|file| &file.at)
            .chain(self.token.iter().map(|token| &token.at))
            .chain(names.map(|name| &name.at))
    }
}

fn remote_api(section: &Section<'_>, kind: Kind, access: AccessKeys) -> Option<ControlPlane> {
    let AccessKeys { address, ca_file, cert_file, key_file, token, token_file, namespace, partition } =
        access;
    let token = rules::one_token(section.document, token, token_file);
    let address = match address {
        Some(address) => address,
        None if kind == Kind::Remote => {
            section.missing(
                "address",
                &format!("with kind = \"remote\", where the other host's server is: {}", ApiAddress::FORMS),
            );
            return None;
        }
        None => Located {
            value: ApiAddress::Http(HostPort { host: "127.0.0.1".to_owned(), port: 8500 }),
            at: section.at().clone(),
        },
    };
    rules::confidential(section.document, &address, ca_file.as_ref());
    rules::https_only(section.document, &address.value, [&cert_file, &key_file]);
    if kind == Kind::Remote {
        for name in [&namespace, &partition].into_iter().flatten() {
            section.document.note(&name.at, "only with kind = \"consul\"");
        }
    }
    let access = ApiAccess {
        ca_file: ca_file.map(|file| file.value),
        client_cert: certificate(section, cert_file, key_file)
            .map(|CertificateFiles { cert_file, key_file }| ClientCert { cert_file, key_file }),
        token,
        tenancy: Tenancy { namespace: namespace.map(|n| n.value), partition: partition.map(|p| p.value) },
        ..ApiAccess::anonymous(address.value)
    };
    Some(if kind == Kind::Remote { ControlPlane::Remote(access) } else { ControlPlane::Consul(access) })
}

/// Returns certificate and key, which come together.
fn certificate(
    section: &Section<'_>,
    cert_file: Option<Located<PathBuf>>,
    key_file: Option<Located<PathBuf>>,
) -> Option<CertificateFiles> {
    match (cert_file, key_file) {
        (Some(cert), Some(key)) => Some(CertificateFiles { cert_file: cert.value, key_file: key.value }),
        (Some(_), None) => {
            section.missing("key_file", "with cert_file, the path of its private key");
            None
        }
        (None, Some(_)) => {
            section.missing("cert_file", "with key_file, the path of its certificate chain");
            None
        }
        (None, None) => None,
    }
}

fn embedded_server(
    section: Section<'_>,
    address: Option<Located<ApiAddress>>,
    claims: &mut rules::Claims<'_>,
) -> Embedded {
    let default = Embedded::default();
    let listen = address.and_then(|address| rules::loopback_listen(section.document, address));
    let listen = match listen {
        Some(listen) => {
            claims.claim(Located { value: listen.value.port(), at: listen.at });
            listen.value
        }
        None => {
            claims.claim_default(default.listen.port(), "control_plane.address");
            default.listen
        }
    };
    let default_policy =
        section.choice("default_policy", &[("deny", Action::Deny), ("allow", Action::Allow)]);
    let leaf_ttl = duration(&section, "leaf_ttl", SHORTEST_LEAF, LONGEST_LEAF);
    let trust_domain =
        section.text("trust_domain", "lower-case letters, digits, `-`, `_`, `.`, at most 255", |text| {
            text.parse::<TrustDomain>().map_err(|_| "")
        });
    let acl = section.boolean("acl").is_some_and(|acl| acl.value);
    let expose = expose(section.section("expose"), acl, claims);
    let ca = ca_files(section.section("ca"));
    section.finish();
    Embedded {
        listen,
        default_policy: default_policy.map_or(default.default_policy, |policy| policy.value),
        leaf_ttl: leaf_ttl.unwrap_or(default.leaf_ttl),
        acl,
        trust_domain: trust_domain.map(|domain| domain.value),
        expose,
        ca,
    }
}

fn ca_files(section: Section<'_>) -> Option<CaFiles> {
    let cert_file = section.text("cert_file", PATH, absolute);
    let chain_file = section.text("chain_file", PATH, absolute);
    let key_file = section.text("key_file", PATH, absolute);
    let force = section.boolean("force_without_cross_signing").is_some_and(|force| force.value);
    if section.is_present() {
        if cert_file.is_none() && !section.has("cert_file") {
            section.missing("cert_file", "the path of the CA certificate that signs, in PEM");
        }
        if key_file.is_none() && !section.has("key_file") {
            section.missing("key_file", "the path of its private key, in PEM");
        }
    }
    section.finish();
    let chain_file = chain_file.map(|file| file.value);
    Some(CaFiles { cert_file: cert_file?.value, chain_file, key_file: key_file?.value, force })
}

fn expose(section: Section<'_>, acl: bool, claims: &mut rules::Claims<'_>) -> Option<Expose> {
    const ACCEPTED: &str = "ADDRESS:PORT such as \"10.0.0.1:8501\" or \"[::]:8501\"";
    let listen = section.text("listen", ACCEPTED, |text| match text.parse::<SocketAddr>() {
        Ok(listen) if listen.port() == 0 => Err("other hosts need a fixed port"),
        Ok(listen) => Ok(listen),
        Err(_) => Err("an IP address and a port"),
    });
    let cert_file = section.text("cert_file", PATH, absolute);
    let key_file = section.text("key_file", PATH, absolute);
    let token_file = section.text("token_file", PATH, absolute);
    if section.is_present() && listen.is_none() {
        section.missing("listen", ACCEPTED);
    }
    let certificate = certificate(&section, cert_file, key_file);
    if let Some(file) = token_file.as_ref().filter(|_| acl) {
        let hint = "only with acl = false: with ACLs on, other hosts present ACL tokens (`meshnode acl token create`)";
        section.document.note(&file.at, hint);
    }
    let beyond_loopback = listen.as_ref().is_some_and(|listen| !listen.value.ip().is_loopback());
    if beyond_loopback && token_file.is_none() && !acl {
        section.missing(
            "token_file",
            "with listen beyond loopback, the path of the token that other hosts must present",
        );
    }
    section.finish();
    let listen = listen?;
    claims.claim(Located { value: listen.value.port(), at: listen.at });
    Some(Expose { listen: listen.value, certificate, token_file: token_file.map(|file| file.value) })
}

fn services(
    root: &Section<'_>,
    mesh_ports: &PortRange,
    claims: &mut rules::Claims<'_>,
    names: &mut rules::Names<'_>,
) -> Vec<ServiceConfig> {
    let document = root.document;
    let mut services = Vec::new();
    for section in root.sections("service") {
        let at = section.at().clone();
        if let Some(service) = service(section, mesh_ports, claims, names) {
            services.push(service);
        }
        rules::room_for(document, &at, mesh_ports, &services);
    }
    services
}

fn service(
    section: Section<'_>,
    mesh_ports: &PortRange,
    claims: &mut rules::Claims<'_>,
    names: &mut rules::Names<'_>,
) -> Option<ServiceConfig> {
    let name = section.text("name", NAME, |text| text.parse::<ServiceName>());
    if !section.has("name") {
        section.missing("name", NAME);
    }
    let selector = selector(&section);
    let protected = protected_port(&section, mesh_ports, claims);
    let egress = section.choice(
        "egress",
        &[(Egress::Passthrough.as_str(), Egress::Passthrough), (Egress::MeshOnly.as_str(), Egress::MeshOnly)],
    );
    let egress = egress.map_or(Egress::Passthrough, |egress| egress.value);
    let egress_allow = egress_allow(&section, egress);
    section.finish();
    let name = names.claim(name?);
    Some(ServiceConfig { name, selector, protected, egress, egress_allow })
}

fn egress_allow(section: &Section<'_>, mode: Egress) -> Vec<EgressRule> {
    let mut rules = Vec::new();
    for section in section.sections("egress_allow") {
        let (document, at) = (section.document, section.at().clone());
        if mode != Egress::MeshOnly {
            document
                .note(&at, "only with egress = \"mesh-only\"; with \"passthrough\" everything is allowed");
        }
        let Some(rule) = egress_rule(section) else { continue };
        let fitted = egress::fits(&rules);
        rules.push(rule);
        if fitted && !egress::fits(&rules) {
            let most = mesh_common::egress::EGRESS_RANGES;
            document.note(
                &at,
                format_args!("accepted: at most {most} different port ranges in one service's list"),
            );
        }
    }
    rules
}

fn egress_rule(section: Section<'_>) -> Option<EgressRule> {
    const CIDR: &str = "a network such as \"10.0.0.0/8\" or \"2001:db8::/32\", or one address";
    const HOST: &str = "a host name, or \"*.\" and the end of one";
    let cidr = section.text("cidr", CIDR, egress::network);
    let host = section.text("name", HOST, str::parse);
    let found =
        section.texts("ports", "a port such as \"443\" or a range such as \"8000-8100\"", egress::ports);
    let ports = if section.has("ports") {
        found.into_iter().map(|range| range.value).collect()
    } else {
        vec![egress::ALL_PORTS]
    };
    let (tcp, udp) = (mesh_common::egress::EGRESS_TCP, mesh_common::egress::EGRESS_UDP);
    let protocols = section.choice("protocol", &[("tcp", tcp), ("udp", udp), ("both", tcp | udp)]);
    let to = match (cidr, host) {
        (Some(network), None) => Some(EgressTarget::Network(network.value)),
        (None, Some(host)) => Some(EgressTarget::Name(host.value)),
        (Some(_), Some(host)) => {
            section.document.note(&host.at, "found besides cidr; accepted: one of cidr, name");
            None
        }
        (None, None) => {
            if !section.has("cidr") && !section.has("name") {
                section.missing("cidr", &format!("{CIDR}; or `name`, {HOST}"));
            }
            None
        }
    };
    section.finish();
    Some(EgressRule { to: to?, ports, protocols: protocols.map_or(tcp | udp, |both| both.value) })
}

fn protected_port(
    section: &Section<'_>,
    mesh_ports: &PortRange,
    claims: &mut rules::Claims<'_>,
) -> Option<ProtectedPort> {
    let port = section.port("port", 1..=u16::MAX);
    let announce_port = section.port("announce_port", 1..=u16::MAX);
    let address = section.text("address", "the IP address that the program listens on", |text| {
        text.parse::<IpAddr>().ok().filter(|ip| !ip.is_unspecified() && !ip.is_multicast()).ok_or("")
    });
    let modes = [GuardMode::Strict, GuardMode::Permissive].map(|mode| (mode.as_str(), mode));
    let guard = section.choice("guard", &modes);
    let mesh_port = section.port("mesh_port", 1..=u16::MAX);
    let check_interval = check(section);

    let Some(port) = port else {
        if !section.has("port") {
            let orphans = ["announce_port", "address", "guard", "mesh_port", "check"]
                .into_iter()
                .filter(|key| section.has(key));
            for key in orphans {
                section.missing("port", &format!("with `{key}`, the port that the program listens on"));
            }
        }
        return None;
    };
    let value = port.value;
    // In a namespace of its own the service's port clashes with nothing of the host's.
    let (of_host, announce_port) = match announce_port {
        Some(announced) => {
            let number = announced.value;
            (announced, Some(number))
        }
        None => (port, None),
    };
    rules::outside_mesh_range(section.document, &of_host, mesh_ports);
    let mesh_port = mesh_port.map(|port| {
        rules::inside_mesh_range(section.document, &port, mesh_ports);
        claims.claim(port)
    });
    Some(ProtectedPort {
        port: {
            claims.claim(of_host);
            value
        },
        announce_port,
        address: address.map_or(Ipv4Addr::LOCALHOST.into(), |address| address.value),
        guard: guard.map_or(GuardMode::Strict, |guard| guard.value),
        mesh_port,
        check_interval,
    })
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
