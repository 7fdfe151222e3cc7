//! Leafs of this host's services: keys made here, certificates signed by the control plane, renewed well before they
//! expire, swapped into [`crate::state::MeshState`] whole.
//!
//! A Consul agent makes the key itself and renews by itself; its leaf is a blocking query. Everywhere else the key
//! never leaves this host: the control plane signs a CSR.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use x509_parser::{extensions::GeneralName, prelude::X509Certificate};

use super::{
    api::LeafAnswer,
    cache::Item,
    client::{ApiError, escape},
    link::Part,
    settings::{Kind, LocalService},
    sync::Shared,
    watch::{Permits, Watch},
};
use crate::identity::{Leaf, ServiceName, SpiffeError, SpiffeId, TrustDomain};

/// Longest sleep before the clock is looked at again: it may be set, and the host may have been suspended.
const LOOK_AGAIN: Duration = Duration::from_secs(30);
/// Renewals after a root's rotation are spread over this, so that a CA is not asked by all hosts at once.
const ROTATION_SPREAD: Duration = Duration::from_secs(3);

/// How often it is looked at whether a service that is refused has lost its leaf.
const LOOK_AT_REFUSAL: Duration = Duration::from_millis(1500);

/// Why a leaf cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeafError {
    #[error("no PEM: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("there is no certificate in it")]
    Empty,
    #[error("no X.509 certificate")]
    Certificate,
    #[error("certificate and key do not fit: {0}")]
    Key(#[from] rustls::Error),
    #[error("it must have exactly one URI name, a SPIFFE ID")]
    Names,
    #[error(transparent)]
    Spiffe(#[from] SpiffeError),
    #[error("it is for `{found}`, not for service `{expected}`")]
    Service { found: SpiffeId, expected: ServiceName },
    #[error("its trust domain is `{found}`, that of the roots is `{expected}`")]
    TrustDomain { found: TrustDomain, expected: TrustDomain },
    #[error("it expired at {0}; compare the clocks of this host and of the control plane")]
    Expired(String),
}

/// Returns the leaf that `cert_pem` (chain, leaf first) and `key_pem` make, if it proves `service` at `now`.
///
/// # Errors
/// When any of it cannot be read, does not fit together, is expired, or proves something else.
pub fn leaf(
    cert_pem: &str,
    key_pem: &str,
    service: &ServiceName,
    trust_domain: Option<&TrustDomain>,
    now: SystemTime,
) -> Result<Leaf, LeafError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(cert_pem.as_bytes()).collect::<Result<_, _>>()?;
    let first = chain.first().ok_or(LeafError::Empty)?;
    let (_, cert) = x509_parser::parse_x509_certificate(first).map_err(|_| LeafError::Certificate)?;
    let id = spiffe_id(&cert)?;
    if id.service != *service {
        return Err(LeafError::Service { found: id, expected: service.clone() });
    }
    if let Some(expected) = trust_domain.filter(|expected| **expected != id.trust_domain) {
        return Err(LeafError::TrustDomain { found: id.trust_domain, expected: expected.clone() });
    }
    let validity = cert.validity();
    let (not_before, not_after) =
        (time(validity.not_before.timestamp())?, time(validity.not_after.timestamp())?);
    if not_after <= now {
        return Err(LeafError::Expired(validity.not_after.to_string()));
    }
    let serial = cert.raw_serial_as_string();
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let key = Arc::new(CertifiedKey::from_der(chain, key, &provider)?);
    Ok(Leaf { id, key, not_before, not_after, serial })
}

fn time(timestamp: i64) -> Result<SystemTime, LeafError> {
    let seconds = u64::try_from(timestamp).map_err(|_| LeafError::Certificate)?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).ok_or(LeafError::Certificate)
}

fn spiffe_id(cert: &X509Certificate<'_>) -> Result<SpiffeId, LeafError> {
    let names =
        cert.subject_alternative_name().map_err(|_| LeafError::Certificate)?.ok_or(LeafError::Names)?;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => Ok(uri.parse()?),
        _ => Err(LeafError::Names),
    }
}

/// Returns when a leaf that serves since `since` until `not_after` is renewed: after half to two thirds of that, by
/// `jitter` (0 to 1).
///
/// `since` is when it was got, not its `NotBefore`: CAs date that back against skewed clocks, by more than half of a
/// short lifetime.
pub fn renew_at(since: SystemTime, not_after: SystemTime, jitter: f64) -> SystemTime {
    let life = not_after.duration_since(since).unwrap_or_default();
    since + life / 2 + (life / 6).mul_f64(jitter.clamp(0.0, 1.0))
}

/// What the cache keeps of a leaf.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Stored {
    cert_pem: String,
    key_pem: String,
    /// When it was got.
    since: SystemTime,
    /// The root that was active then; empty for Consul, whose agent minds that.
    root_id: String,
}

/// Returns the usable leafs of the cache; `state` gets them at once.
pub(super) fn load(
    shared: &Shared,
    local: &[LocalService],
    now: SystemTime,
) -> HashMap<ServiceName, (Leaf, Stored)> {
    let trust_domain = shared.state.load().roots.as_ref().map(|roots| roots.trust_domain.clone());
    let mut found = HashMap::new();
    // Keys of services that left while no daemon ran.
    for name in shared.stored.leafs() {
        if !local.iter().any(|service| service.name == name) {
            shared.cache.remove(Item::Leaf(name));
        }
    }
    for service in local {
        let Some((stored, _)) = shared.stored.load::<Stored>(&Item::Leaf(service.name.clone())) else {
            continue;
        };
        match leaf(&stored.cert_pem, &stored.key_pem, &service.name, trust_domain.as_ref(), now) {
            Ok(leaf) => drop(found.insert(service.name.clone(), (leaf, stored))),
            Err(error) => tracing::warn!(service = %service.name, %error, "ignoring the cached leaf"),
        }
    }
    found
}

/// Keeps a leaf for each service of `local`, for ever.
pub(super) async fn follow(
    shared: Arc<Shared>,
    mut local: watch::Receiver<Arc<Vec<LocalService>>>,
    mut cached: HashMap<ServiceName, Stored>,
) {
    let mut keepers: HashMap<ServiceName, AbortOnDropHandle<()>> = HashMap::new();
    loop {
        let services = Arc::clone(&local.borrow_and_update());
        let left: Vec<_> =
            keepers.keys().filter(|name| !services.iter().any(|s| s.name == **name)).cloned().collect();
        for name in left {
            if let Some(keeper) = keepers.remove(&name) {
                keeper.abort();
                // Its end, since it may be about to install a leaf. Cancelled is what was asked for.
                let _ = keeper.await;
            }
            forget(&shared, &name);
        }
        for service in services.iter() {
            keepers.entry(service.name.clone()).or_insert_with(|| {
                let (shared, name) = (Arc::clone(&shared), service.name.clone());
                let stored = cached.remove(&name);
                AbortOnDropHandle::new(match shared.settings.kind {
                    Kind::Consul => tokio::spawn(follow_agent(shared, name)),
                    Kind::Embedded | Kind::Remote => tokio::spawn(keep_signed(shared, name, stored)),
                })
            });
        }
        if local.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Takes the leaf of a service out of memory and disk; the proxy then cuts the service's flows.
fn forget(shared: &Shared, name: &ServiceName) {
    if shared.state.load().leafs.contains_key(name) {
        shared.state.update(|mesh| drop(mesh.leafs.remove(name)));
    }
    shared.cache.remove(Item::Leaf(name.clone()));
}

/// Takes the leaf away once the control plane has refused another for good: whoever runs here may be this service no
/// more. A service that is let in again gets a new one.
fn forget_refused(shared: &Shared, name: &ServiceName) {
    let refused = shared.link.is_refused_for_good(&Part::Leaf(name.clone()));
    if refused && shared.state.load().leafs.contains_key(name) {
        tracing::error!(
            service = %name,
            "the control plane refuses this service a certificate: the one it had is dropped, its flows are cut"
        );
        forget(shared, name);
    }
}

/// Returns what `done` returns; meanwhile takes the leaf away if the control plane refuses it.
async fn while_refused<T>(shared: &Shared, name: &ServiceName, done: impl Future<Output = T>) -> T {
    tokio::pin!(done);
    loop {
        tokio::select! {
            value = &mut done => return value,
            () = tokio::time::sleep(LOOK_AT_REFUSAL) => forget_refused(shared, name),
        }
    }
}

/// Consul's agent renews by itself, also when the root changes, and answers when it has.
async fn follow_agent(shared: Arc<Shared>, name: ServiceName) {
    let path = format!("/v1/agent/connect/ca/leaf/{}", escape(name.as_str()));
    let mut watch =
        Watch::new(&shared.client, &shared.link, Part::Leaf(name.clone()), path.clone(), Permits::Always);
    loop {
        let answer: LeafAnswer = while_refused(&shared, &name, watch.next()).await;
        let now = SystemTime::now();
        match leaf(&answer.cert_pem, &answer.private_key_pem, &name, None, now) {
            Ok(leaf) => {
                let (cert_pem, key_pem) = (answer.cert_pem, answer.private_key_pem);
                install(&shared, leaf, Stored { cert_pem, key_pem, since: now, root_id: String::new() });
            }
            Err(error) => watch.rejected(&ApiError::malformed(&path, error)).await,
        }
    }
}

/// Has a leaf signed, and again when it is due or the active root changes.
async fn keep_signed(shared: Arc<Shared>, name: ServiceName, stored: Option<Stored>) {
    let mut active = shared.active_root.subscribe();
    let mut held = stored.and_then(|stored| {
        let not_after = shared.state.load().leafs.get(&name)?.not_after;
        Some(Held { due: renew_at(stored.since, not_after, rand::random()), root_id: stored.root_id })
    });
    let mut failures = 0;
    let mut asked = Instant::now();
    loop {
        let Some(root_id) = active.borrow_and_update().clone() else {
            // The sender lives in `shared`.
            let _ = active.changed().await;
            continue;
        };
        if let Some(held) = &held {
            if held.root_id != root_id {
                tokio::time::sleep(ROTATION_SPREAD.mul_f64(rand::random())).await;
            } else if let Ok(wait) = held.due.duration_since(SystemTime::now())
                && !is_doubted(&shared, &name, asked)
            {
                tokio::select! {
                    () = tokio::time::sleep(wait.min(LOOK_AGAIN)) => {}
                    _ = active.changed() => {}
                }
                continue;
            }
        }
        match sign(&shared, &name).await {
            Ok((leaf, stored)) => {
                failures = 0;
                asked = Instant::now();
                shared.link.answered(&Part::Leaf(name.clone()), None, SystemTime::now());
                held = Some(Held {
                    due: renew_at(stored.since, leaf.not_after, rand::random()),
                    root_id: root_id.clone(),
                });
                install(&shared, leaf, Stored { root_id, ..stored });
            }
            Err(error) => {
                failures += 1;
                shared.link.failed(&Part::Leaf(name.clone()), &error, SystemTime::now());
                while_refused(&shared, &name, shared.link.pause(failures, &error)).await;
                if !shared.state.load().leafs.contains_key(&name) {
                    held = None;
                }
            }
        }
    }
}

/// Whether the control plane may have revoked `name`, whose leaf was asked for at `asked`: it refuses this host something.
/// Then a leaf is asked for before it is due.
fn is_doubted(shared: &Shared, name: &ServiceName, asked: Instant) -> bool {
    shared.link.leaf_is_forbidden(name)
        || asked.elapsed() >= LOOK_AGAIN
            && [Part::Registration, Part::Roots].iter().any(|part| shared.link.is_refused_for_good(part))
}

struct Held {
    due: SystemTime,
    root_id: String,
}

async fn sign(shared: &Shared, name: &ServiceName) -> Result<(Leaf, Stored), ApiError> {
    let path = format!("/v1/connect/ca/sign/{}", escape(name.as_str()));
    let trust_domain = shared.state.load().roots.as_ref().map(|roots| roots.trust_domain.clone());
    let trust_domain =
        trust_domain.ok_or_else(|| ApiError::malformed(&path, "the trust domain is not known yet"))?;
    let id = SpiffeId {
        trust_domain,
        namespace: "default".to_owned(),
        datacenter: shared.settings.datacenter.clone(),
        service: name.clone(),
    };
    let (key_pem, csr) = request(&id).map_err(|e| ApiError::malformed(&path, e))?;
    let answer: LeafAnswer = shared.client.put_text(&path, csr).await?;
    let since = SystemTime::now();
    let leaf = leaf(&answer.cert_pem, &key_pem, name, Some(&id.trust_domain), since)
        .map_err(|e| ApiError::malformed(&path, e))?;
    Ok((leaf, Stored { cert_pem: answer.cert_pem, key_pem, since, root_id: String::new() }))
}

/// Returns a new P-256 key and a request to certify it as `id`, both PEM.
fn request(id: &SpiffeId) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, id.service.as_str());
    params.subject_alt_names.push(SanType::URI(id.to_string().try_into()?));
    let csr = params.serialize_request(&key)?.pem()?;
    Ok((key.serialize_pem(), csr))
}

fn install(shared: &Shared, leaf: Leaf, stored: Stored) {
    tracing::info!(id = %leaf.id, serial = leaf.serial, "leaf certificate installed");
    let name = leaf.id.service.clone();
    shared.cache.save(Item::Leaf(name.clone()), stored);
    let leaf = Arc::new(leaf);
    shared.state.update(|mesh| drop(mesh.leafs.insert(name.clone(), Arc::clone(&leaf))));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "spiffe://t.consul/ns/default/dc/dc1/svc/web";

    /// A self-signed certificate with `uris`, valid for an hour from the Unix epoch on.
    fn certificate(uris: &[&str]) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.not_before = time::OffsetDateTime::UNIX_EPOCH;
        params.not_after = time::OffsetDateTime::UNIX_EPOCH + Duration::from_secs(3600);
        params.subject_alt_names = uris.iter().map(|u| SanType::URI((*u).try_into().unwrap())).collect();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn read(cert: &str, key: &str, now: u64) -> Result<Leaf, LeafError> {
        leaf(cert, key, &"web".parse().unwrap(), Some(&"t.consul".parse().unwrap()), at(now))
    }

    #[test]
    fn good_leaf_is_read_with_its_validity() {
        let (cert, key) = certificate(&[ID]);
        let leaf = read(&cert, &key, 10).unwrap();
        assert_eq!((leaf.id.to_string().as_str(), leaf.not_before, leaf.not_after), (ID, at(0), at(3600)));
    }

    #[test]
    fn leaf_is_refused_when_expired_or_of_another_key_or_identity() {
        let (cert, key) = certificate(&[ID]);
        let (_, other_key) = certificate(&[ID]);
        assert!(matches!(read(&cert, &key, 3600), Err(LeafError::Expired(_))));
        assert!(matches!(read(&cert, &other_key, 10), Err(LeafError::Key(_))));
        assert!(matches!(read("", &key, 10), Err(LeafError::Empty)));
        for (uris, what) in [
            (vec![ID.replace("web", "db")], "service"),
            (vec![ID.replace("t.consul", "u.consul")], "trust domain"),
            (vec![ID.to_owned(), ID.to_owned()], "two names"),
            (vec![], "no name"),
        ] {
            let uris: Vec<_> = uris.iter().map(String::as_str).collect();
            let (cert, key) = certificate(&uris);
            assert!(read(&cert, &key, 10).is_err(), "{what}");
        }
    }

    #[test]
    fn request_asks_for_the_identity() {
        let (_, csr) = request(&ID.parse().unwrap()).unwrap();
        let der = rustls::pki_types::CertificateSigningRequestDer::from_pem_slice(csr.as_bytes()).unwrap();
        assert!(der.as_ref().windows(ID.len()).any(|w| w == ID.as_bytes()));
    }

    proptest! {
        #[test]
        fn renewal_is_at_half_to_two_thirds_of_the_lifetime(life in 0u64..10_000_000, jitter in 0.0f64..=1.0) {
            let due = renew_at(at(1000), at(1000 + life), jitter).duration_since(at(1000)).unwrap();
            let life = Duration::from_secs(life);
            prop_assert!(due >= life / 2 && due <= life * 2 / 3 + Duration::from_nanos(10));
        }

        #[test]
        fn renewal_of_an_expired_leaf_is_now(jitter in 0.0f64..=1.0) {
            prop_assert_eq!(renew_at(at(1000), at(10), jitter), at(1000));
        }

        #[test]
        fn no_text_makes_the_parser_panic(cert in "\\PC{0,100}", key in "\\PC{0,100}") {
            prop_assert!(read(&cert, &key, 10).is_err());
        }
    }
}
