//! What an agent does with services and checks, as writes on a [`Txn`]: register with checks and sidecar, deregister,
//! report, expire, reap, maintenance.

use std::ops::RangeInclusive;

use super::{
    model::{Check, IntentionRow, Key, Node, Probe, Service, Status},
    store::StoreError,
    txn::Txn,
};

/// Where Consul puts sidecars that name no port.
pub const SIDECAR_PORTS: RangeInclusive<u16> = 21000..=21255;

/// Why a write was not made. The store is unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    #[error("unknown service ID: {0}")]
    NoService(String),
    #[error("Unknown check ID \"{0}\"")]
    NoCheck(String),
    #[error("CheckID \"{0}\" does not have associated TTL")]
    NotTtl(String),
    #[error("unknown node \"{0}\": register a service of it first, or give its address in `mesh-address`")]
    NoNode(String),
    #[error("no port is free in {}-{} for the sidecar: give it one in Connect.SidecarService.Port", SIDECAR_PORTS.start(), SIDECAR_PORTS.end())]
    NoPort,
    #[error("duplicate intention found: {0}")]
    Duplicate(String),
    #[error("Cannot {0} non-existent intention: '{1}'")]
    NoIntention(&'static str, String),
    #[error("Intention not found")]
    NoExact,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A validated registration.
#[derive(Clone, Debug)]
pub struct Registration {
    pub service: Service,
    pub checks: Vec<NewCheck>,
    pub sidecar: Option<Box<Registration>>,
    /// Checks that are not in the registration go.
    pub replace_checks: bool,
}

/// A check with what the registration said of its status: nothing keeps the status of a check that is there already.
#[derive(Clone, Debug)]
pub struct NewCheck {
    pub check: Check,
    pub status: Option<Status>,
}

/// Makes the node known, with the address where one is given.
pub fn ensure_node(
    txn: &mut Txn,
    name: &str,
    address: Option<&str>,
    datacenter: &str,
) -> Result<(), Refusal> {
    let old = txn.tables.node(name);
    let Some(address) = address.or(old.map(|node| &*node.address)) else {
        return Err(Refusal::NoNode(name.to_owned()));
    };
    if old.is_some_and(|node| node.address == address) {
        return Ok(());
    }
    let family = if address.contains(':') { "ipv6" } else { "ipv4" };
    // What every agent of Consul says of its node.
    let network = ("consul-network-segment".to_owned(), String::new());
    let tagged = ["lan".to_owned(), "wan".to_owned(), format!("lan_{family}"), format!("wan_{family}")];
    let node = Node {
        id: old.map_or_else(|| uuid::Uuid::new_v4().to_string(), |node| node.id.clone()),
        name: name.into(),
        address: address.to_owned(),
        datacenter: datacenter.to_owned(),
        tagged_addresses: Some(tagged.into_iter().map(|tag| (tag, address.to_owned())).collect()),
        meta: old.map_or_else(|| [network].into(), |node| node.meta.clone()),
        create_index: 0,
        modify_index: 0,
    };
    txn.put_node(node);
    Ok(())
}

/// Writes the service, its checks, and its sidecar with its checks.
pub fn register(txn: &mut Txn, registration: Registration) -> Result<(), Refusal> {
    let Registration { service, checks, sidecar, replace_checks } = registration;
    let key = service.key();
    txn.put_service(service);
    if replace_checks {
        let missing: Vec<_> = txn
            .tables
            .checks_of_service(&key.node, &key.id)
            .map(|check| check.key())
            .filter(|old| checks.iter().all(|new| new.check.id != old.id))
            .collect();
        for old in missing {
            txn.delete_check(&old);
        }
    }
    for check in checks {
        put_check(txn, check)?;
    }
    if let Some(mut sidecar) = sidecar {
        if sidecar.service.port == 0 {
            sidecar.service.port = free_port(txn, &sidecar.service)?;
        }
        fill_port(&mut sidecar);
        register(txn, *sidecar)?;
    }
    Ok(())
}

/// A default check was made before the port was known.
fn fill_port(sidecar: &mut Registration) {
    let port = sidecar.service.port;
    for new in &mut sidecar.checks {
        if let Probe::Tcp { address, .. } = &mut new.check.probe
            && let Some(host) = address.strip_suffix(":0")
        {
            *address = format!("{host}:{port}");
        }
    }
    for tagged in sidecar.service.tagged_addresses.values_mut() {
        if tagged.port == 0 {
            tagged.port = port;
        }
    }
}

fn free_port(txn: &Txn, sidecar: &Service) -> Result<u16, Refusal> {
    if let Some(old) = txn.tables.service(&sidecar.key()).filter(|old| SIDECAR_PORTS.contains(&old.port)) {
        return Ok(old.port);
    }
    let taken: Vec<u16> = txn.tables.services_of_node(&sidecar.node).map(|service| service.port).collect();
    SIDECAR_PORTS.into_iter().find(|port| !taken.contains(port)).ok_or(Refusal::NoPort)
}

/// Writes a check, with its service's name and tags.
pub fn put_check(txn: &mut Txn, new: NewCheck) -> Result<(), Refusal> {
    let NewCheck { mut check, status } = new;
    if !check.service_id.is_empty() {
        let of = Key { node: check.node.clone(), id: check.service_id.clone() };
        let Some(service) = txn.tables.service(&of) else {
            return Err(Refusal::NoService(of.id.to_string()));
        };
        check.service_name = service.name.clone();
        check.service_tags = service.tags.clone();
    }
    match (status, txn.tables.check(&check.key())) {
        (Some(status), _) => check.status = status,
        (None, Some(old)) => {
            check.status = old.status;
            check.output = old.output.clone();
        }
        (None, None) => {}
    }
    if matches!(check.probe, Probe::Alias { .. }) {
        txn.put_alias(check)
    } else {
        txn.put_check(check)
    }
    Ok(())
}

/// Removes the service, its checks, and the sidecar that was registered with it.
pub fn deregister(txn: &mut Txn, key: &Key) -> bool {
    let sidecars: Vec<_> = txn
        .tables
        .services_of_node(&key.node)
        .filter(|service| service.as_sidecar && *service.proxy.destination_service_id == *key.id)
        .map(|service| service.key())
        .collect();
    for sidecar in sidecars {
        txn.delete_service(&sidecar);
    }
    txn.delete_service(key)
}

/// Takes a report on a TTL check.
pub fn report(txn: &mut Txn, key: &Key, status: Status, output: &str) -> Result<(), Refusal> {
    match txn.tables.check(key).map(|check| &check.probe) {
        None => Err(Refusal::NoCheck(key.id.to_string())),
        Some(Probe::Ttl { .. }) => set_status(txn, key, status, output),
        Some(_) => Err(Refusal::NotTtl(key.id.to_string())),
    }
}

pub fn set_status(txn: &mut Txn, key: &Key, status: Status, output: &str) -> Result<(), Refusal> {
    let Some(check) = txn.tables.check(key) else { return Err(Refusal::NoCheck(key.id.to_string())) };
    let check = Check { status, output: output.to_owned(), ..Check::clone(check) };
    txn.put_check(check);
    Ok(())
}

/// Nobody reported in time.
pub fn expire(txn: &mut Txn, key: &Key) -> Result<(), Refusal> {
    let Some(check) = txn.tables.check(key) else { return Ok(()) };
    if check.status == Status::Critical {
        return Ok(());
    }
    let output = match check.output.as_str() {
        "" => "TTL expired".to_owned(),
        last => format!("TTL expired (last output before timeout follows): {last}"),
    };
    set_status(txn, key, Status::Critical, &output)
}

/// The check was critical for too long: its service goes.
pub fn reap(txn: &mut Txn, key: &Key) -> Result<(), Refusal> {
    let Some(check) = txn.tables.check(key).cloned() else { return Ok(()) };
    if check.status == Status::Critical && check.deregister_after_ms.is_some() && !check.service_id.is_empty()
    {
        tracing::info!(node = %key.node, service = %check.service_id, check = %key.id,
            "deregistered: its check was critical for too long");
        deregister(txn, &Key { node: key.node.clone(), id: check.service_id.clone() });
    }
    Ok(())
}

/// Switches a service off (`Some(reason)`) or on again.
pub fn maintenance(txn: &mut Txn, key: &Key, reason: Option<&str>) -> Result<(), Refusal> {
    let Some(service) = txn.tables.service(key).cloned() else {
        return Err(Refusal::NoService(key.id.to_string()));
    };
    let id = format!("_service_maintenance:{}", key.id);
    let Some(reason) = reason else {
        txn.delete_check(&Key { node: key.node.clone(), id: id.into() });
        return Ok(());
    };
    let check = Key { node: key.node.clone(), id: id.into() };
    if txn.tables.check(&check).is_some() {
        // The first reason stands.
        return Ok(());
    }
    txn.put_check(Check {
        node: check.node,
        id: check.id,
        name: "Service Maintenance Mode".to_owned(),
        status: Status::Critical,
        notes: reason.to_owned(),
        output: String::new(),
        service_id: key.id.clone(),
        service_name: service.name.clone(),
        service_tags: service.tags.clone(),
        probe: Probe::Maintenance,
        deregister_after_ms: None,
        create_index: 0,
        modify_index: 0,
    });
    Ok(())
}

/// Writes a new intention, or one with an id that is there; refuses a pair that another one has.
pub fn put_intention(txn: &mut Txn, row: IntentionRow) -> Result<(), Refusal> {
    match txn.tables.intention_of(&row.source, &row.destination).filter(|other| other.id != row.id) {
        Some(other) => Err(Refusal::Duplicate(describe(other))),
        None => {
            txn.put_intention(row);
            Ok(())
        }
    }
}

/// Names an intention as Consul does in its messages.
pub fn describe(row: &IntentionRow) -> String {
    let rule = row.rule();
    let action = match rule.action {
        crate::intention::Action::Allow => "ALLOW",
        crate::intention::Action::Deny => "DENY",
    };
    let (source, destination) = (&rule.source, &rule.destination);
    format!(
        "{action} default/{source} => default/{destination} (ID: {}, Precedence: {})",
        row.id,
        rule.precedence()
    )
}
