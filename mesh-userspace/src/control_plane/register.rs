//! Announces this host's services: registers them with their mTLS ends, reports their health, notices when the agent
//! forgot them, and takes them back.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::select_all;
use tokio::{sync::watch, time::Instant};

use super::{
    api::{CONNECT_PROXY, CheckUpdate, Proxy, Registration, SPEAKS, TaggedAddress, TtlCheck},
    cache::Item,
    client::{ApiError, ErrorKind, escape},
    link::Part,
    settings::{Health, Listens, LocalService},
    sync::Shared,
};

/// A service whose daemon does not report for this long is critical.
const TTL: Duration = Duration::from_secs(30);
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Everything is registered anew this often, whatever the agent says: somebody else may have changed it.
const REFRESH: Duration = Duration::from_secs(60);
/// When what was said is out of date already.
const SOON: Duration = Duration::from_millis(50);
/// How long a dead host's services stay registered, so that nobody dials them in clear the moment it dies.
const REAP_AFTER: &str = "72h";
/// Time for all deregistrations of a shutdown together.
const FAREWELL: Duration = Duration::from_secs(3);

/// Returns what to register for `service`: itself and its mTLS end, which `speaks` the protocol between meshnodes or not.
fn registrations(service: &LocalService, listens: &Listens, speaks: bool) -> [Registration; 2] {
    let health = listens.check.borrow();
    let (status, _) = words(&health);
    let check = |id: &str| TtlCheck {
        check_id: format!("service:{id}"),
        name: format!("meshnode's check of {id}"),
        ttl: format!("{}s", TTL.as_secs()),
        status,
        deregister_critical_service_after: REAP_AFTER.to_owned(),
    };
    let proxy_id = proxy_id(&service.id);
    [
        Registration {
            kind: None,
            checks: vec![check(&service.id)],
            id: service.id.clone(),
            name: service.name.to_string(),
            address: listens.address.ip().to_string(),
            port: listens.address.port(),
            tagged_addresses: tagged_addresses(listens),
            meta: BTreeMap::new(),
            proxy: None,
        },
        Registration {
            kind: Some(CONNECT_PROXY),
            checks: vec![check(&proxy_id)],
            id: proxy_id,
            name: format!("{}-sidecar-proxy", service.name),
            address: listens.mesh.ip().to_string(),
            port: listens.mesh.port(),
            tagged_addresses: BTreeMap::new(),
            meta: speaks.then_some(SPEAKS).into_iter().collect(),
            proxy: Some(Proxy {
                destination_service_name: service.name.to_string(),
                destination_service_id: service.id.clone(),
                local_service_address: "127.0.0.1".to_owned(),
                local_service_port: listens.port,
            }),
        },
    ]
}

/// Returns the further addresses of the service; none where the main one is all there is.
fn tagged_addresses(listens: &Listens) -> BTreeMap<&'static str, TaggedAddress> {
    let mut tagged = BTreeMap::new();
    for address in &listens.also {
        let tag = if address.is_ipv4() { "lan_ipv4" } else { "lan_ipv6" };
        let entry = TaggedAddress { address: address.ip().to_string(), port: address.port() };
        tagged.entry(tag).or_insert(entry);
    }
    tagged
}

fn proxy_id(id: &str) -> String {
    format!("{id}-sidecar-proxy")
}

fn words(health: &Health) -> (&'static str, String) {
    match health {
        Health::Passing => ("passing", "meshnode: the service accepts connections".to_owned()),
        Health::Critical(reason) => ("critical", reason.clone()),
    }
}

/// The services this daemon has announced, by id.
struct Announced {
    /// When it was last registered, and what was said.
    at: Instant,
    said: [Registration; 2],
}

/// Keeps the services of `local` registered, for ever.
pub(super) async fn follow(shared: Arc<Shared>, mut local: watch::Receiver<Arc<Vec<LocalService>>>) {
    // What an earlier daemon registered and this one does not have is taken back.
    let mut leftover: BTreeSet<String> =
        shared.stored.load(&Item::Registered).map(|(ids, _)| ids).unwrap_or_default();
    let mut announced: BTreeMap<String, Announced> = BTreeMap::new();
    let mut outages = shared.link.outages();
    let mut failures = 0;
    loop {
        let services = Arc::clone(&local.borrow_and_update());
        if outages.has_changed().unwrap_or(false) {
            outages.borrow_and_update();
            announced.values_mut().for_each(|a| a.at = Instant::now().checked_sub(REFRESH).unwrap_or(a.at));
        }
        let failure = match round(&shared, &services, &mut announced, &mut leftover).await {
            Ok(()) => {
                failures = 0;
                if !announced.is_empty() {
                    shared.link.answered(&Part::Registration, None, SystemTime::now());
                }
                None
            }
            Err(error) => {
                failures += 1;
                shared.link.failed(&Part::Registration, &error, SystemTime::now());
                Some(error)
            }
        };
        let mut checks: Vec<_> =
            services.iter().filter_map(|s| s.listens.as_ref()).map(|l| l.check.clone()).collect();
        checks.iter_mut().for_each(watch::Receiver::mark_unchanged);
        // A change between the round's look and now is found by comparing with what was said.
        let changed = failures == 0 && services.iter().any(|s| differs(&shared, s, &announced));
        let again = async {
            match &failure {
                Some(error) => shared.link.pause(failures, error).await,
                None => tokio::time::sleep(if changed { SOON } else { HEARTBEAT }).await,
            }
        };
        tokio::select! {
            () = again => {}
            Ok(()) = local.changed() => {}
            () = any_change(checks), if failures == 0 => {}
            _ = outages.changed(), if failures == 0 => {}
        }
    }
}

fn differs(shared: &Shared, service: &LocalService, announced: &BTreeMap<String, Announced>) -> bool {
    let speaks = shared.settings.speaks_meshnode;
    service.listens.as_ref().is_some_and(|listens| {
        announced.get(&service.id).is_none_or(|a| a.said != registrations(service, listens, speaks))
    })
}

/// Returns when one of `checks` changes; never when there is none, or their senders are gone.
async fn any_change(checks: Vec<watch::Receiver<Health>>) {
    if checks.is_empty() {
        return std::future::pending().await;
    }
    let changes = checks.into_iter().map(|mut check| {
        Box::pin(async move {
            if check.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    });
    select_all(changes).await;
}

/// Makes the agent's view equal to `services`, one request after the other.
async fn round(
    shared: &Shared,
    services: &[LocalService],
    announced: &mut BTreeMap<String, Announced>,
    leftover: &mut BTreeSet<String>,
) -> Result<(), ApiError> {
    let mine = |id: &String| services.iter().any(|s| s.id == *id && s.listens.is_some());
    leftover.extend(announced.keys().filter(|id| !mine(id)).cloned());
    announced.retain(|id, _| mine(id));
    leftover.retain(|id| !mine(id));
    remember(shared, services, leftover);
    // What is refused to one service stops no other.
    let mut refusal = None;
    for service in services {
        let Some(listens) = &service.listens else { continue };
        unless_refused(announce(shared, service, listens, announced).await, &mut refusal)?;
    }
    for id in leftover.clone() {
        if unless_refused(deregister(shared, &id).await, &mut refusal)? {
            leftover.remove(&id);
            remember(shared, services, leftover);
        }
    }
    refusal.map_or(Ok(()), Err)
}

/// Returns whether `outcome` is well; keeps the first refusal, and passes on every other error.
fn unless_refused(outcome: Result<(), ApiError>, refusal: &mut Option<ApiError>) -> Result<bool, ApiError> {
    match outcome {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::Forbidden => {
            refusal.get_or_insert(error);
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Makes the agent know `service` as it is now.
async fn announce(
    shared: &Shared,
    service: &LocalService,
    listens: &Listens,
    announced: &mut BTreeMap<String, Announced>,
) -> Result<(), ApiError> {
    let say = registrations(service, listens, shared.settings.speaks_meshnode);
    let fresh = announced.get(&service.id).filter(|a| a.said == say && a.at.elapsed() < REFRESH);
    if fresh.is_some() && heartbeat(shared, service, listens).await? {
        return Ok(());
    }
    let news = !announced.contains_key(&service.id);
    announced.remove(&service.id);
    for registration in &say {
        shared.client.put::<()>("/v1/agent/service/register", registration).await?;
    }
    heartbeat(shared, service, listens).await?;
    if news {
        tracing::info!(service = %service.name, id = service.id, address = %listens.address, mesh = %listens.mesh, "service registered");
    }
    announced.insert(service.id.clone(), Announced { at: Instant::now(), said: say });
    Ok(())
}

/// Notes what is, or is about to be, registered, for the next daemon.
fn remember(shared: &Shared, services: &[LocalService], leftover: &BTreeSet<String>) {
    let mut ids = leftover.clone();
    ids.extend(services.iter().filter(|s| s.listens.is_some()).map(|s| s.id.clone()));
    shared.registered.send_if_modified(|known| {
        let differs = *known != ids;
        if differs {
            shared.cache.save(Item::Registered, ids.clone());
            *known = ids;
        }
        differs
    });
}

/// Reports the health of `service`; `false` when the agent does not know the checks.
async fn heartbeat(shared: &Shared, service: &LocalService, listens: &Listens) -> Result<bool, ApiError> {
    let (status, output) = words(&listens.check.borrow());
    for id in [service.id.clone(), proxy_id(&service.id)] {
        let path = format!("/v1/agent/check/update/{}", escape(&format!("service:{id}")));
        let update = CheckUpdate { status, output: output.clone() };
        match shared.client.put::<()>(&path, &update).await {
            Ok(()) => {}
            Err(error) if is_unknown(&error) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// The agent does not know the check or service. Consul 1.8 says 500 with words, later ones 404.
fn is_unknown(error: &ApiError) -> bool {
    match error {
        ApiError::NotFound { .. } => true,
        ApiError::Status { reason, .. } => {
            ["Unknown check", "Unknown service", "does not have associated TTL"]
                .iter()
                .any(|words| reason.contains(words))
        }
        _ => false,
    }
}

/// Deregisters the service `id` and its mTLS end; that the agent does not know them is as good.
async fn deregister(shared: &Shared, id: &str) -> Result<(), ApiError> {
    // The service first: without it the mTLS end is no instance, so that callers never see one without the other.
    for id in [id.to_owned(), proxy_id(id)] {
        let path = format!("/v1/agent/service/deregister/{}", escape(&id));
        match shared.client.put::<()>(&path, &()).await {
            Ok(()) => {}
            Err(error) if is_unknown(&error) => {}
            Err(error) => return Err(error),
        }
    }
    tracing::info!(id, "service deregistered");
    Ok(())
}

/// Deregisters everything that this daemon registered, as far as that succeeds in a few seconds.
pub(super) async fn deregister_all(shared: &Shared) {
    let ids = shared.registered.borrow().clone();
    let farewell = async {
        for id in &ids {
            if let Err(error) = deregister(shared, id).await {
                tracing::warn!(id, %error, "cannot deregister; the service turns critical in {} s", TTL.as_secs());
                return;
            }
        }
        shared.cache.remove(Item::Registered);
    };
    if tokio::time::timeout(FAREWELL, farewell).await.is_err() {
        tracing::warn!("no time to deregister all services; they turn critical in {} s", TTL.as_secs());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registrations_announce_the_service_and_its_mesh_end() {
        let (_health, check) = watch::channel(Health::Critical("refused".to_owned()));
        let listens = Listens {
            port: 5432,
            address: "10.77.0.1:5432".parse().unwrap(),
            also: vec!["[fd77::1]:5432".parse().unwrap()],
            mesh: "10.77.0.1:21000".parse().unwrap(),
            check,
        };
        let service = LocalService {
            name: "db".parse().unwrap(),
            id: "db-1".to_owned(),
            listens: Some(listens.clone()),
        };
        let json = serde_json::to_value(registrations(&service, &listens, true)).unwrap();
        assert_eq!(json[0]["ID"], "db-1");
        assert_eq!(json[0]["Address"], "10.77.0.1");
        assert_eq!(json[0]["TaggedAddresses"]["lan_ipv6"]["Address"], "fd77::1");
        assert!(json[0].get("Kind").is_none() && json[0].get("Proxy").is_none());
        assert_eq!(json[1]["ID"], "db-1-sidecar-proxy");
        assert_eq!(json[1]["Kind"], "connect-proxy");
        assert_eq!(json[1]["Port"], 21000);
        assert_eq!(json[1]["Proxy"]["DestinationServiceID"], "db-1");
        assert_eq!(json[1]["Checks"][0]["Status"], "critical");
        assert_eq!(json[1]["Checks"][0]["TTL"], "30s");
        assert_eq!(json[1]["Meta"]["meshnode"], "1");
        let foreign = serde_json::to_value(registrations(&service, &listens, false)).unwrap();
        assert!(foreign[1]["Meta"].get("meshnode").is_none(), "{foreign}");
    }
}
