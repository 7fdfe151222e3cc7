//! The first steps with an open store: bring it in line with the settings, and make what is missing.

use std::{path::PathBuf, sync::Arc};

use time::OffsetDateTime;

use super::{
    CaFiles, EmbeddedError, Settings, acl,
    ca::{Authority, CaError},
    duration, files,
    issuer::LEAF_TTL,
    registration,
    rotation::{self, Next, key_file},
    store::Store,
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
) -> Result<(TrustDomain, Arc<Authority>), EmbeddedError> {
    let trust_domain = trust_domain(store, settings)?;
    // Before anything is written: what cannot be used, stops the start.
    let given = settings.ca.as_ref().map(|files| read(&trust_domain, files)).transpose()?;
    let old = stored(store, settings)?;
    let force = settings.ca.as_ref().is_some_and(|files| files.force);
    let state_dir = settings.state_dir.clone();
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
            let ttl = duration::text(settings.leaf_ttl);
            if txn.tables.setting(CONFIGURED_TTL) != Some(&ttl) {
                rotation::remember_lifetime(txn);
                let mut config = txn.tables.ca_config().config.clone();
                config.insert(LEAF_TTL.to_owned(), ttl.clone().into());
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
    let next = match (&old, given) {
        (_, Some(next)) => next,
        (None, None) => Next::generated(&trust_domain, OffsetDateTime::now_utc())?,
        (Some(_), None) => return Ok((trust_domain, Arc::new(old.expect("invariant: matched")))),
    };
    let authority =
        rotation::install(store, &state_dir, &trust_domain, old.as_ref(), next, None, force).await?;
    Ok((trust_domain, authority))
}

/// Reads and checks the CA that the configuration gives.
pub fn read(trust_domain: &TrustDomain, files: &CaFiles) -> Result<Next, EmbeddedError> {
    let text = |path: &PathBuf| {
        std::fs::read_to_string(path).map_err(|source| EmbeddedError::CaFile { path: path.clone(), source })
    };
    let mut certs = text(&files.cert_file)?;
    if let Some(chain) = &files.chain_file {
        certs.push('\n');
        certs.push_str(&text(chain)?);
    }
    let key = files::read_private(&files.key_file)?.ok_or_else(|| EmbeddedError::CaFile {
        path: files.key_file.clone(),
        source: std::io::ErrorKind::NotFound.into(),
    })?;
    let checked = Authority::given(trust_domain, &certs, &key, OffsetDateTime::now_utc());
    let (root, authority) = checked.map_err(|error| {
        EmbeddedError::Ca(format!("{} with {}: {error}", files.cert_file.display(), files.key_file.display()))
    })?;
    Ok(Next { root, authority, key_pem: None })
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

/// Returns the CA of the store; `None` where there is none yet, or its key was given by files and they are not any more.
fn stored(store: &Store, settings: &Settings) -> Result<Option<Authority>, EmbeddedError> {
    let tables = store.tables();
    let Some(root) = tables.active_root() else { return Ok(None) };
    let path = key_file(&settings.state_dir, &root.id);
    match files::read_private(&path)? {
        Some(key) => Ok(Some(Authority::load(root, &key)?)),
        None if !rotation::is_given(&tables) => Err(EmbeddedError::NoKey(path)),
        None => {
            let key =
                settings.ca.as_ref().and_then(|files| files::read_private(&files.key_file).ok().flatten());
            match key.map(|key| Authority::load(root, &key)) {
                Some(Ok(authority)) => return Ok(Some(authority)),
                // Other files than the last time, or a new intermediate's key.
                Some(Err(CaError::Mismatch)) => {}
                Some(Err(error)) => return Err(error.into()),
                None => {}
            }
            if settings.ca.is_none() {
                tracing::warn!(
                    "[control_plane.embedded.ca] is gone: this server makes a root of its own, not cross-signed by the \
                     one before, whose key it does not have"
                );
            }
            Ok(None)
        }
    }
}
