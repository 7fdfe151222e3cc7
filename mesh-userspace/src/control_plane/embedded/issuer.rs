//! Leafs: whom to sign for with what lifetime, and the leafs whose keys this server makes for local callers, kept
//! in memory and renewed well before they expire.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex as Lock, PoisonError, RwLock},
    time::Duration,
};

use arc_swap::ArcSwap;
use time::OffsetDateTime;
use tokio::{
    sync::{Mutex, RwLock as AsyncRwLock, watch},
    time::Instant,
};

use super::{
    ca::{Authority, CaError},
    model::{AgentLeaf, Opaque},
    rotation::{self, Next, RotateError, leaf_ttl},
    store::{Store, StoreError},
};
use crate::{
    control_plane::pace::Bucket,
    identity::{ServiceName, SpiffeId, TrustDomain},
};

/// The name of the leafs' lifetime in the CA's configuration.
pub const LEAF_TTL: &str = "LeafCertTTL";
/// What a leaf may last; Consul's own default is the longest.
pub const LEAF_TTLS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(60)..=Duration::from_secs(72 * 3600);
/// A leaf is renewed at a random point of this part of its life, so that a fleet does not renew at once.
const RENEW_AT: (f32, f32) = (0.5, 0.65);

/// After a rotation leafs are made anew within this, not all at once.
const ROTATION_SPREAD: Duration = Duration::from_secs(3);
/// The most requests to sign in a second; absent or 0: no limit.
pub const CSR_RATE: &str = "CSRMaxPerSecond";
/// So long a request waits for its turn; Consul's own.
const CSR_WAIT: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IssueError {
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("rate limit reached, try again later")]
    Busy,
}

pub struct LeafIssuer {
    store: Arc<Store>,
    authority: ArcSwap<Authority>,
    /// Read while a leaf is signed, so that none is signed by the old CA once a rotation was answered.
    signing: AsyncRwLock<()>,
    state_dir: PathBuf,
    trust_domain: TrustDomain,
    datacenter: String,
    /// One renewal at a time: whoever waited finds it done.
    making: Mutex<()>,
    renewals: RwLock<HashMap<Arc<str>, Instant>>,
    /// Counts rotations, once the leafs' renewals are planned anew.
    rotations: watch::Sender<u64>,
    /// What paces requests to sign, and the rate that it was made for.
    pace: Lock<Option<(u32, Bucket)>>,
}

impl LeafIssuer {
    pub fn new(
        store: Arc<Store>,
        authority: Arc<Authority>,
        trust_domain: TrustDomain,
        datacenter: String,
        state_dir: PathBuf,
    ) -> Self {
        let (signing, making, renewals, rotations, pace) = Default::default();
        let authority = ArcSwap::new(authority);
        Self {
            store,
            authority,
            signing,
            state_dir,
            trust_domain,
            datacenter,
            making,
            renewals,
            rotations,
            pace,
        }
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Whether the CA's key is in files that the configuration names.
    pub fn is_given(&self) -> bool {
        rotation::is_given(&self.store.tables())
    }

    /// Returns the identity that leafs of `service` prove.
    pub fn spiffe_id(&self, service: &ServiceName) -> SpiffeId {
        SpiffeId {
            trust_domain: self.trust_domain.clone(),
            namespace: "default".to_owned(),
            datacenter: self.datacenter.clone(),
            service: service.clone(),
        }
    }

    /// Signs a request's key for `service`.
    pub async fn sign(&self, service: &ServiceName, csr_pem: &[u8]) -> Result<AgentLeaf, IssueError> {
        let wait = self.turn();
        if wait > CSR_WAIT {
            return Err(IssueError::Busy);
        }
        tokio::time::sleep(wait).await;
        let id = self.spiffe_id(service);
        let _signing = self.signing.read().await;
        let authority = self.authority.load_full();
        Ok(authority.sign_csr(&id, csr_pem, leaf_ttl(&self.store.tables()), OffsetDateTime::now_utc())?)
    }

    /// Returns how long the next request to sign has to wait.
    fn turn(&self) -> Duration {
        let rate = self.store.tables().ca_config().config.get(CSR_RATE).and_then(serde_json::Value::as_f64);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked when it was set"
        )]
        let rate = rate.unwrap_or_default().ceil() as u32;
        let mut pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        if rate == 0 {
            *pace = None;
            return Duration::ZERO;
        }
        let now = std::time::Instant::now();
        if pace.as_ref().is_none_or(|(of, _)| *of != rate) {
            *pace = Some((rate, Bucket::new(rate, Duration::from_secs(1) / rate, now)));
        }
        pace.as_mut().map_or(Duration::ZERO, |(_, bucket)| {
            let mut tried = bucket.clone();
            let wait = tried.take(now);
            if wait <= CSR_WAIT {
                *bucket = tried;
            }
            wait
        })
    }

    /// Returns the leaf of `service`, made now if there is none or it is due, and when it will be due.
    pub async fn leaf(&self, service: &ServiceName) -> Result<(Arc<AgentLeaf>, Instant), IssueError> {
        if let Some(fresh) = self.fresh(service) {
            return Ok(fresh);
        }
        let _alone = self.making.lock().await;
        if let Some(fresh) = self.fresh(service) {
            return Ok(fresh);
        }
        let _signing = self.signing.read().await;
        let authority = self.authority.load_full();
        let (ttl, now) = (leaf_ttl(&self.store.tables()), OffsetDateTime::now_utc());
        let leaf = authority.issue(&self.spiffe_id(service), ttl, now)?;
        let due = Instant::now() + renew_after(authority.lifetime(ttl, now), rand::random());
        let name: Arc<str> = service.as_str().into();
        let key = name.clone();
        let leaf = self
            .store
            .write(move |txn| {
                txn.put_leaf(leaf);
                Ok::<_, StoreError>(txn.tables.leaf(&key).cloned())
            })
            .await?
            .expect("invariant: the leaf was put a line above");
        // Still under the lock: a rotation after this one sees the entry.
        self.renewals.write().unwrap_or_else(PoisonError::into_inner).insert(name, due);
        Ok((leaf, due))
    }

    fn fresh(&self, service: &ServiceName) -> Option<(Arc<AgentLeaf>, Instant)> {
        let due = *self.renewals.read().unwrap_or_else(PoisonError::into_inner).get(service.as_str())?;
        let leaf = self.store.tables().leaf(service.as_str())?.clone();
        (Instant::now() < due).then_some((leaf, due))
    }

    /// Whether `next` would be cross-signed.
    pub fn can_rotate(&self, next: &Next) -> Result<(), CaError> {
        let (old, new) = (self.authority.load(), next.authority.with_vouchers(Vec::new()));
        if old.root_id() == new.root_id() {
            return Ok(());
        }
        old.vouch_for(new, &self.trust_domain, OffsetDateTime::now_utc()).map(drop)
    }

    /// Lets `next` sign from now on, with `config` as the CA's configuration if it is given; see
    /// [`rotation::install`].
    pub async fn rotate(
        &self,
        next: Next,
        config: Option<Opaque>,
        force: bool,
    ) -> Result<Arc<Authority>, RotateError> {
        let _alone = self.signing.write().await;
        let (store, dir, old) = (&self.store, &self.state_dir, self.authority.load_full());
        let new = rotation::install(store, dir, &self.trust_domain, Some(&old), next, config, force).await?;
        self.authority.store(new.clone());
        let soonest = Instant::now();
        for due in self.renewals.write().unwrap_or_else(PoisonError::into_inner).values_mut() {
            *due = (*due).min(soonest + ROTATION_SPREAD.mul_f32(rand::random()));
        }
        self.rotations.send_modify(|count| *count += 1);
        Ok(new)
    }

    /// Wakes those who wait for a leaf: after a rotation it is due sooner.
    pub fn rotations(&self) -> watch::Receiver<u64> {
        self.rotations.subscribe()
    }

    /// Takes out the roots whose last leaf has expired at `now`.
    pub async fn retire(&self, now: OffsetDateTime) {
        if rotation::retiring(&self.store.tables()).iter().all(|(_, at)| *at > now) {
            return;
        }
        let _alone = self.signing.write().await;
        let authority = self.authority.load_full();
        let signing = authority.clone();
        let retired = self.store.write(move |txn| {
            let retired = rotation::retire(txn, &signing, now);
            let left: Vec<_> = txn.tables.roots().iter().map(|root| root.root_cert.clone()).collect();
            Ok::<_, StoreError>((retired, signing.still_vouching(&left)))
        });
        match retired.await {
            Ok((retired, vouchers)) => {
                self.authority.store(Arc::new(authority.with_vouchers(vouchers)));
                for root in retired {
                    tracing::info!(root, "an old root was retired: its last leaf has expired");
                }
            }
            Err(error) => tracing::error!(%error, "an old root cannot be retired; trying again"),
        }
    }

    /// Lets old roots stay longer by `by`.
    pub async fn put_retirement_off(&self, by: Duration) {
        let put = self.store.write(move |txn| {
            rotation::put_off(txn, by);
            Ok::<_, StoreError>(())
        });
        if let Err(error) = put.await {
            tracing::error!(%error, "the retirement of old roots cannot be put off");
        }
    }

    /// Returns what to tell the operator of the CA: that the certificate that signs is about to expire.
    pub fn warning(&self, now: OffsetDateTime) -> Option<String> {
        expiry_warning(&self.authority.load(), leaf_ttl(&self.store.tables()), now)
    }
}

/// A certificate that has lived nine tenths of its life, is warned of; for a long one when a month is left.
fn expiry_warning(authority: &Authority, leaf_ttl: Duration, now: OffsetDateTime) -> Option<String> {
    const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);
    let (from, until) = authority.validity();
    let life: Duration = (until - from).try_into().unwrap_or_default();
    let left: Duration = (until - now).try_into().unwrap_or_default();
    if left > (life / 10).min(MONTH).max(leaf_ttl * 3).min(life / 2) {
        return None;
    }
    let (what, fix) = if authority.is_root() {
        ("root", "`meshnode ca rotate` makes a new one")
    } else {
        (
            "intermediate",
            "put a new one into the files of [control_plane.embedded.ca], then `meshnode reload`",
        )
    };
    Some(format!(
        "the CA's {what} certificate expires at {}, and no leaf lives longer: {fix}",
        rotation::text(until)
    ))
}

/// Returns after what part of its life a leaf is renewed; `draw` is from 0 to 1.
fn renew_after(lifetime: Duration, draw: f32) -> Duration {
    lifetime.mul_f32(RENEW_AT.0 + (RENEW_AT.1 - RENEW_AT.0) * draw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_is_renewed_with_a_third_of_its_life_left_at_least_and_not_always_at_once() {
        for lifetime in [*LEAF_TTLS.start(), *LEAF_TTLS.end()] {
            let (first, last) = (renew_after(lifetime, 0.0), renew_after(lifetime, 1.0));
            assert!(first < last);
            assert!(lifetime - last > lifetime / 3);
        }
    }
}
