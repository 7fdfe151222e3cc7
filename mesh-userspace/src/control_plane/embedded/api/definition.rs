//! From a body to a registration: defaults as Consul sets them, and every rule that a service or a check must obey.
//! Pure; what it refuses never reaches the store.

use std::{collections::BTreeMap, time::Duration};

use super::{
    ApiError,
    input::{CheckBody, ConnectBody, GoDuration, ServiceBody},
    names,
};
use crate::control_plane::embedded::{
    model::{Check, Connect, Kind, Probe, Proxy, Service, Status, TaggedAddress, Weights},
    registration::{NewCheck, Registration},
};

/// Limits for the times of a check.
const MIN_PERIOD: Duration = Duration::from_secs(1);
const MAX_PERIOD: Duration = Duration::from_secs(30 * 24 * 3600);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const SIDECAR_INTERVAL: Duration = Duration::from_secs(10);
const MAX_CHECKS: usize = 64;

/// The node that an agent call is about.
pub struct Place<'a> {
    pub node: &'a str,
    /// The address by which the server reaches the node; `None` where the server runs on it.
    pub remote: Option<&'a str>,
}

fn bad(text: impl Into<String>) -> ApiError {
    ApiError::BadRequest(text.into())
}

/// Returns what `PUT /v1/agent/service/register` asks for.
pub fn registration(body: ServiceBody, place: &Place<'_>, replace: bool) -> Result<Registration, ApiError> {
    let sidecar = body.connect.as_ref().and_then(|connect| connect.sidecar_service.clone());
    let mut registration = one_service(body, place, "")?;
    registration.replace_checks = replace;
    if let Some(sidecar) = sidecar {
        let mut sidecar = sidecar_of(&registration.service, *sidecar, place)?;
        sidecar.replace_checks = replace;
        registration.sidecar = Some(Box::new(sidecar));
    }
    Ok(registration)
}

fn one_service(body: ServiceBody, place: &Place<'_>, prefix: &str) -> Result<Registration, ApiError> {
    let field = |name: &str| format!("{prefix}{name}");
    if body.name.is_empty() {
        return Err(bad("Missing service name"));
    }
    match body.kind {
        Kind::Typical => drop(names::service(&field("Name"), &body.name)?),
        Kind::ConnectProxy => names::catalog_name(&field("Name"), &body.name)?,
    }
    let id = if body.id.is_empty() { &body.name } else { &body.id };
    names::id(&field("ID"), id)?;
    common(&field, &body.tags, &body.meta, &body.address, &body.tagged_addresses)?;
    names::namespace(&field("Namespace"), &body.namespace)?;
    names::namespace(&field("Partition"), &body.partition)?;
    if !body.socket_path.is_empty() {
        return Err(bad(format!("{}: services on unix sockets are not supported", field("SocketPath"))));
    }
    let connect = body.connect.unwrap_or_default();
    let proxy = proxy(body.kind, body.proxy, body.port, &connect, prefix)?;
    let service = Service {
        node: place.node.into(),
        as_sidecar: false,
        kind: body.kind,
        id: id.as_str().into(),
        name: body.name.as_str().into(),
        tagged_addresses: default_addresses(body.tagged_addresses, &body.address, body.port),
        tags: body.tags,
        address: body.address,
        meta: body.meta,
        port: body.port,
        weights: weights(body.weights),
        enable_tag_override: body.enable_tag_override,
        proxy,
        connect: Connect { native: connect.native },
        create_index: 0,
        modify_index: 0,
    };
    let checks = service_checks(&service, body.check, body.checks, place)?;
    Ok(Registration { service, checks, sidecar: None, replace_checks: false })
}

/// Checks what services of agents and of the catalog have in common.
pub fn common(
    field: &dyn Fn(&str) -> String,
    tags: &[String],
    meta: &BTreeMap<String, String>,
    address: &str,
    tagged: &BTreeMap<String, TaggedAddress>,
) -> Result<(), ApiError> {
    names::tags(&field("Tags"), tags)?;
    names::meta(&field("Meta"), meta)?;
    names::address(&field("Address"), address)?;
    for (tag, tagged) in tagged {
        names::catalog_name(&field("TaggedAddresses"), tag)?;
        names::address(&format!("{}.{tag}", field("TaggedAddresses")), &tagged.address)?;
    }
    Ok(())
}

/// Go's clients send zeros where nothing was set.
pub fn weights(given: Option<Weights>) -> Weights {
    given.filter(|weights| weights.passing > 0).unwrap_or_default()
}

/// Checks the proxy's part against the kind of service.
pub fn proxy(
    kind: Kind,
    proxy: Option<Proxy>,
    port: u16,
    connect: &ConnectBody,
    prefix: &str,
) -> Result<Proxy, ApiError> {
    let mut proxy = proxy.unwrap_or_default();
    for upstream in &mut proxy.upstreams {
        if upstream.destination_type.is_empty() {
            "service".clone_into(&mut upstream.destination_type);
        }
    }
    if kind == Kind::Typical {
        // Consul's clients send an empty one with everything.
        return if proxy.destination_service_name.is_empty() {
            Ok(Proxy::default())
        } else {
            Err(bad(format!("{prefix}Proxy: valid for Kind \"connect-proxy\" only")))
        };
    }
    let field = |name: &str| format!("{prefix}Proxy.{name}");
    if proxy.destination_service_name.is_empty() {
        let name = field("DestinationServiceName");
        return Err(bad(format!("{name} must be non-empty for Connect proxy services")));
    }
    names::service(&field("DestinationServiceName"), &proxy.destination_service_name)?;
    if !proxy.destination_service_id.is_empty() {
        names::id(&field("DestinationServiceID"), &proxy.destination_service_id)?;
    }
    names::address(&field("LocalServiceAddress"), &proxy.local_service_address)?;
    if port == 0 && prefix.is_empty() {
        return Err(bad("Port must be set for a Connect proxy"));
    }
    if connect.native {
        return Err(bad("A Proxy cannot also be Connect Native, only typical services"));
    }
    for (n, upstream) in proxy.upstreams.iter().enumerate() {
        let field = format!("{prefix}Proxy.Upstreams[{n}].DestinationName");
        names::service(&field, &upstream.destination_name)?;
        names::namespace(&field.replace("Name", "Namespace"), &upstream.destination_namespace)?;
    }
    Ok(proxy)
}

/// Consul gives each service with an IP address a pair of tagged ones of the same.
fn default_addresses(
    mut given: BTreeMap<String, TaggedAddress>,
    address: &str,
    port: u16,
) -> BTreeMap<String, TaggedAddress> {
    let Ok(ip) = address.parse::<std::net::IpAddr>() else { return given };
    let family = if ip.is_ipv6() { "ipv6" } else { "ipv4" };
    for side in ["lan", "wan"] {
        let own = TaggedAddress { address: address.to_owned(), port };
        given.entry(format!("{side}_{family}")).or_insert(own);
    }
    given
}

/// Returns the sidecar that `Connect.SidecarService` asks for, with Consul's defaults.
fn sidecar_of(parent: &Service, mut body: ServiceBody, place: &Place<'_>) -> Result<Registration, ApiError> {
    let prefix = "Connect.SidecarService.";
    if parent.kind == Kind::ConnectProxy {
        return Err(bad(format!("{prefix}: a proxy has no sidecar")));
    }
    if body.connect.as_ref().is_some_and(|connect| connect.sidecar_service.is_some()) {
        return Err(bad("SidecarService can't have a nested SidecarService"));
    }
    if !body.id.is_empty() {
        return Err(bad("ID must not be specified for a sidecar: it is the service's with `-sidecar-proxy`"));
    }
    body.id = format!("{}-sidecar-proxy", parent.id);
    if body.name.is_empty() {
        body.name = format!("{}-sidecar-proxy", parent.name);
    }
    body.kind = Kind::ConnectProxy;
    if body.address.is_empty() {
        body.address.clone_from(&parent.address);
    }
    if body.tags.is_empty() {
        body.tags.clone_from(&parent.tags);
    }
    if body.meta.is_empty() {
        body.meta.clone_from(&parent.meta);
    }
    let proxy = body.proxy.get_or_insert_default();
    proxy.destination_service_name = parent.name.to_string();
    proxy.destination_service_id = parent.id.to_string();
    if proxy.local_service_address.is_empty() {
        "127.0.0.1".clone_into(&mut proxy.local_service_address);
    }
    if proxy.local_service_port == 0 {
        proxy.local_service_port = parent.port;
    }
    let no_checks = body.check.as_ref().is_none_or(|check| *check == CheckBody::default());
    if no_checks && body.checks.is_empty() {
        body.checks = sidecar_checks(parent, &body, place);
    }
    let mut registration = one_service(body, place, prefix)?;
    registration.service.as_sidecar = true;
    Ok(registration)
}

/// The port may be chosen later: `registration::register` fills it in.
fn sidecar_checks(parent: &Service, sidecar: &ServiceBody, place: &Place<'_>) -> Vec<CheckBody> {
    let host = match (sidecar.address.as_str(), place.remote) {
        ("", Some(remote)) => remote,
        ("", None) => "127.0.0.1",
        (address, _) => address,
    };
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    vec![
        CheckBody {
            name: "Connect Sidecar Listening".to_owned(),
            tcp: format!("{host}:{}", sidecar.port),
            interval: GoDuration(SIDECAR_INTERVAL),
            ..CheckBody::default()
        },
        CheckBody {
            name: format!("Connect Sidecar Aliasing {}", parent.id),
            alias_service: parent.id.to_string(),
            ..CheckBody::default()
        },
    ]
}

fn service_checks(
    service: &Service,
    check: Option<CheckBody>,
    checks: Vec<CheckBody>,
    place: &Place<'_>,
) -> Result<Vec<NewCheck>, ApiError> {
    let single = check.filter(|check| *check != CheckBody::default());
    let bodies: Vec<_> = single.into_iter().chain(checks).collect();
    if bodies.len() > MAX_CHECKS {
        return Err(bad(format!("Checks: {} of them; {MAX_CHECKS} are accepted", bodies.len())));
    }
    let many = bodies.len() > 1;
    let mut new: Vec<NewCheck> = Vec::with_capacity(bodies.len());
    for (n, mut body) in bodies.into_iter().enumerate() {
        if body.check_id.is_empty() {
            body.check_id = std::mem::take(&mut body.id);
        }
        if body.check_id.is_empty() {
            let number = if many { format!(":{}", n + 1) } else { String::new() };
            body.check_id = format!("service:{}{number}", service.id);
        }
        if body.name.is_empty() {
            body.name = format!("Service '{}' check", service.name);
        }
        body.service_id = service.id.to_string();
        let check = self::check(body, place)?;
        if new.iter().any(|other| other.check.id == check.check.id) {
            return Err(bad(format!("Checks[{n}].CheckID: `{}` is there twice", check.check.id)));
        }
        new.push(check);
    }
    Ok(new)
}

/// Returns the check that the body asks for; its service's name and tags are filled in when it is written.
pub fn check(body: CheckBody, place: &Place<'_>) -> Result<NewCheck, ApiError> {
    if body.name.is_empty() {
        return Err(bad("Missing check name"));
    }
    names::text("Name", &body.name)?;
    names::text("Notes", &body.notes)?;
    names::namespace("Namespace", &body.namespace)?;
    names::namespace("Partition", &body.partition)?;
    let id = [&body.check_id, &body.id, &body.name].into_iter().find(|id| !id.is_empty());
    let id = id.expect("invariant: the name was seen to be there");
    names::check_id("CheckID", id)?;
    if !body.service_id.is_empty() {
        names::id("ServiceID", &body.service_id)?;
    }
    let status = match body.status.as_str() {
        "" => None,
        text => Some(Status::parse(text).ok_or_else(|| {
            bad(format!("Bad check status: `{text}` (accepted are passing, warning, critical)"))
        })?),
    };
    let probe = probe(&body, place)?;
    let after = body.deregister_critical_service_after.0;
    let check = Check {
        node: place.node.into(),
        id: id.as_str().into(),
        name: body.name.clone(),
        status: status.unwrap_or(Status::Critical),
        notes: body.notes.clone(),
        output: String::new(),
        service_id: body.service_id.as_str().into(),
        service_name: "".into(),
        service_tags: Vec::new(),
        probe,
        deregister_after_ms: (!after.is_zero()).then(|| period_ms(after)),
        create_index: 0,
        modify_index: 0,
    };
    Ok(NewCheck { check, status })
}

fn probe(body: &CheckBody, place: &Place<'_>) -> Result<Probe, ApiError> {
    let unsupported = [
        ("Args", !body.args.is_empty()),
        ("HTTP", !body.http.is_empty()),
        ("GRPC", !body.grpc.is_empty()),
        ("H2PING", !body.h2ping.is_empty()),
        ("UDP", !body.udp.is_empty()),
        ("DockerContainerID", !body.docker_container_id.is_empty()),
        ("OSService", !body.os_service.is_empty()),
        ("SuccessBeforePassing", body.success_before_passing > 1),
        ("FailuresBeforeCritical", body.failures_before_critical > 1),
        ("FailuresBeforeWarning", body.failures_before_warning > 1),
    ];
    if let Some((field, _)) = unsupported.iter().find(|(_, given)| *given) {
        return Err(bad(format!(
            "Invalid check: {field}: not supported by the embedded control plane (TTL, TCP and AliasService are)"
        )));
    }
    let (ttl, interval) = (body.ttl.0, body.interval.0);
    let kinds = usize::from(!ttl.is_zero())
        + usize::from(!body.tcp.is_empty())
        + usize::from(!body.alias_service.is_empty());
    if !ttl.is_zero() && !interval.is_zero() {
        return Err(bad("Invalid check: Interval and TTL cannot both be specified"));
    }
    if kinds > 1 {
        return Err(bad("Invalid check: one of TTL, TCP and AliasService is accepted"));
    }
    if !body.tcp.is_empty() {
        return tcp(body, place);
    }
    if !body.alias_service.is_empty() {
        names::id("AliasService", &body.alias_service)?;
        if !body.alias_node.is_empty() && body.alias_node != place.node {
            return Err(bad("AliasNode: an alias is for a service of its own node"));
        }
        return Ok(Probe::Alias { service_id: body.alias_service.clone() });
    }
    if ttl.is_zero() {
        return Err(bad("Invalid check: TTL must be > 0 for TTL checks"));
    }
    Ok(Probe::Ttl { period_ms: period_ms(ttl) })
}

fn tcp(body: &CheckBody, place: &Place<'_>) -> Result<Probe, ApiError> {
    if body.interval.0.is_zero() {
        return Err(bad("Invalid check: Interval must be > 0 for Script, HTTP, or TCP checks"));
    }
    names::socket_address("TCP", &body.tcp)?;
    let host = body.tcp.rsplit_once(':').map_or("", |(host, _)| host).trim_matches(['[', ']']);
    let loopback = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if place.remote.is_some() && loopback {
        return Err(bad(
            "TCP: the server would dial itself, not that node: use the node's address, or a TTL check",
        ));
    }
    let interval_ms = period_ms(body.interval.0.max(MIN_PERIOD));
    let timeout = if body.timeout.0.is_zero() { DEFAULT_TIMEOUT } else { body.timeout.0 };
    // The next dial never begins before the last one ended.
    let timeout_ms = period_ms(timeout).min(interval_ms);
    Ok(Probe::Tcp { address: body.tcp.clone(), interval_ms, timeout_ms })
}

fn period_ms(period: Duration) -> u64 {
    u64::try_from(period.min(MAX_PERIOD).as_millis()).expect("invariant: 30 days are few milliseconds").max(1)
}
