//! Leafs: whom to sign for with what lifetime, and the leafs whose keys this server makes for local callers, kept
//! in memory and renewed well before they expire.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use time::OffsetDateTime;
use tokio::{sync::Mutex, time::Instant};

use super::{
    ca::{Authority, CaError},
    duration,
    model::AgentLeaf,
    store::{Store, StoreError},
};
use crate::identity::{ServiceName, SpiffeId, TrustDomain};

/// The name of the leafs' lifetime in the CA's configuration.
pub const LEAF_TTL: &str = "LeafCertTTL";
/// What a leaf may last; Consul's own default is the longest.
pub const LEAF_TTLS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(60)..=Duration::from_secs(72 * 3600);
/// A leaf is renewed at a random point of this part of its life, so that a fleet does not renew at once.
const RENEW_AT: (f32, f32) = (0.5, 0.65);

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IssueError {
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

pub struct LeafIssuer {
    store: Arc<Store>,
    authority: Authority,
    trust_domain: TrustDomain,
    datacenter: String,
    /// One renewal at a time: whoever waited finds it done.
    making: Mutex<()>,
    renewals: RwLock<HashMap<Arc<str>, Instant>>,
}

impl LeafIssuer {
    pub fn new(
        store: Arc<Store>,
        authority: Authority,
        trust_domain: TrustDomain,
        datacenter: String,
    ) -> Self {
        let (making, renewals) = Default::default();
        Self { store, authority, trust_domain, datacenter, making, renewals }
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
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
    pub fn sign(&self, service: &ServiceName, csr_pem: &[u8]) -> Result<AgentLeaf, CaError> {
        let id = self.spiffe_id(service);
        self.authority.sign_csr(&id, csr_pem, self.leaf_ttl(), OffsetDateTime::now_utc())
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
        let (ttl, now) = (self.leaf_ttl(), OffsetDateTime::now_utc());
        let leaf = self.authority.issue(&self.spiffe_id(service), ttl, now)?;
        let due = Instant::now() + renew_after(self.authority.lifetime(ttl, now), rand::random());
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
        self.renewals.write().unwrap_or_else(PoisonError::into_inner).insert(name, due);
        Ok((leaf, due))
    }

    fn fresh(&self, service: &ServiceName) -> Option<(Arc<AgentLeaf>, Instant)> {
        let due = *self.renewals.read().unwrap_or_else(PoisonError::into_inner).get(service.as_str())?;
        let leaf = self.store.tables().leaf(service.as_str())?.clone();
        (Instant::now() < due).then_some((leaf, due))
    }

    fn leaf_ttl(&self) -> Duration {
        let tables = self.store.tables();
        let configured = tables.ca_config().config.get(LEAF_TTL).and_then(|text| duration::parse(text));
        configured.unwrap_or(*LEAF_TTLS.end()).clamp(*LEAF_TTLS.start(), *LEAF_TTLS.end())
    }
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
