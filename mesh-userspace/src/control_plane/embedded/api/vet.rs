//! What changes of services and checks need, as Consul's agents and servers vet them.

use crate::control_plane::embedded::{
    acl::{Caller, Denied, Right},
    model::{Check, Key, Kind, Service},
    registration::Registration,
    tables::Tables,
};

/// A registration with its sidecar.
pub fn registration(caller: &Caller, tables: &Tables, new: &Registration) -> Result<(), Denied> {
    service(caller, tables, &new.service)?;
    // A check's id may be another service's so far.
    new.checks.iter().try_for_each(|check| known_check(caller, tables, &check.check.key()))?;
    match &new.sidecar {
        Some(sidecar) => registration(caller, tables, sidecar),
        None => Ok(()),
    }
}

/// A service that is written: under its name, under the name that its id had before, and, for a proxy, under the name
/// of the service that it takes connections for.
pub fn service(caller: &Caller, tables: &Tables, new: &Service) -> Result<(), Denied> {
    caller.demand(Right::service_write(&new.name))?;
    known_service(caller, tables, &new.key())?;
    match new.kind {
        Kind::ConnectProxy => caller.demand(Right::service_write(&new.proxy.destination_service_name)),
        Kind::Typical => Ok(()),
    }
}

/// The service that is there under this id; none needs nothing.
pub fn known_service(caller: &Caller, tables: &Tables, key: &Key) -> Result<(), Denied> {
    match tables.service(key) {
        Some(known) => caller.demand(Right::service_write(&known.name)),
        None => Ok(()),
    }
}

/// A check that is written.
pub fn check(caller: &Caller, tables: &Tables, new: &Check) -> Result<(), Denied> {
    owner(caller, tables, new)?;
    known_check(caller, tables, &new.key())
}

/// The check that is there under this id.
pub fn known_check(caller: &Caller, tables: &Tables, key: &Key) -> Result<(), Denied> {
    match tables.check(key) {
        Some(known) => owner(caller, tables, known),
        None => Ok(()),
    }
}

fn owner(caller: &Caller, tables: &Tables, check: &Check) -> Result<(), Denied> {
    if check.service_id.is_empty() {
        return caller.demand(Right::node_write(&check.node));
    }
    known_service(caller, tables, &Key { node: check.node.clone(), id: check.service_id.clone() })
}

/// A node that is made known, or moved to another address.
pub fn node(caller: &Caller, tables: &Tables, name: &str, address: Option<&str>) -> Result<(), Denied> {
    match (tables.node(name), address) {
        (Some(known), Some(address)) if known.address == address => Ok(()),
        (Some(_), None) => Ok(()),
        _ => caller.demand(Right::node_write(name)),
    }
}
