//! The first steps with an open store: bring it in line with the settings, and make what is missing.

use std::path::{Path, PathBuf};

use time::OffsetDateTime;

use super::{
    EmbeddedError, Settings, acl, ca::Authority, duration, files, issuer::LEAF_TTL, model::Root,
    registration, store::Store,
};
use crate::identity::TrustDomain;

/// Names of settings in the store.
const TRUST_DOMAIN: &str = "trust_domain";
const OWN_NODE: &str = "node";
/// The lifetime that the configuration file named when it was last read: a later change through the API stands until
/// the file changes.
const CONFIGURED_TTL: &str = "configured_leaf_ttl";

/// Brings the store in line with the settings: own node, trust domain, root, the leafs' lifetime.
pub async fn bootstrap(
    store: &Store,
    settings: &Settings,
) -> Result<(TrustDomain, Authority), EmbeddedError> {
    let trust_domain = trust_domain(store, settings)?;
    let (root, authority) = root(store, &trust_domain, &settings.state_dir)?;
    let (of_store, settings) = (trust_domain.clone(), settings.clone());
    store
        .write(move |txn| {
            let old = txn.tables.setting(OWN_NODE).filter(|old| *old != settings.node).map(str::to_owned);
            if let Some(old) = old {
                // The host was renamed: what ran under the old name is registered anew under the new one.
                txn.delete_node(&old.into());
            }
            let address = settings.node_address.to_string();
            registration::ensure_node(txn, &settings.node, Some(&address), &settings.datacenter)?;
            txn.put_setting(OWN_NODE, &settings.node);
            txn.put_setting(TRUST_DOMAIN, of_store.as_str());
            if let Some(root) = root {
                txn.put_root(root);
            }
            let ttl = duration::text(settings.leaf_ttl);
            if txn.tables.setting(CONFIGURED_TTL) != Some(&ttl) {
                let mut config = txn.tables.ca_config().config.clone();
                config.insert(LEAF_TTL.to_owned(), ttl.clone());
                txn.put_ca_config(config);
                txn.put_setting(CONFIGURED_TTL, &ttl);
            }
            if settings.acl {
                acl::ensure_builtin(txn);
            }
            Ok::<_, registration::Refusal>(())
        })
        .await
        .map_err(|refusal| EmbeddedError::Ca(refusal.to_string()))?;
    Ok((trust_domain, authority))
}

fn trust_domain(store: &Store, settings: &Settings) -> Result<TrustDomain, EmbeddedError> {
    let tables = store.tables();
    let stored: Option<TrustDomain> = match tables.setting(TRUST_DOMAIN) {
        Some(text) => {
            Some(text.parse().map_err(|source| EmbeddedError::Name { field: "trust_domain", source })?)
        }
        None => None,
    };
    match (stored, settings.trust_domain.clone()) {
        (Some(stored), Some(configured)) if stored != configured => {
            Err(EmbeddedError::TrustDomain { stored, configured, state_dir: settings.state_dir.clone() })
        }
        (Some(known), _) | (None, Some(known)) => Ok(known),
        (None, None) => {
            let made = format!("{}.consul", uuid::Uuid::new_v4());
            made.parse().map_err(|source| EmbeddedError::Name { field: "trust_domain", source })
        }
    }
}

/// Returns the CA, with the root's row where it was made just now. Its key is in a file of its own, written before
/// the store names the root.
fn root(
    store: &Store,
    trust_domain: &TrustDomain,
    state_dir: &Path,
) -> Result<(Option<Root>, Authority), EmbeddedError> {
    let tables = store.tables();
    if let Some(root) = tables.active_root() {
        let path = key_file(state_dir, root);
        let key = files::read_private(&path)?.ok_or(EmbeddedError::NoKey(path))?;
        return Ok((None, Authority::load(root, &key)?));
    }
    let (root, key) = Authority::generate(trust_domain, OffsetDateTime::now_utc())?;
    files::write_private(&key_file(state_dir, &root), &key)?;
    let authority = Authority::load(&root, &key)?;
    Ok((Some(root), authority))
}

fn key_file(state_dir: &Path, root: &Root) -> PathBuf {
    state_dir.join(format!("ca-key-{}.pem", root.id.replace(':', "")))
}
