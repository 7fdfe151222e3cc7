//! From one CA to the next: what is kept of the old one so that nobody is refused meanwhile, and when it goes.
//!
//! The order: the new CA is cross-signed, its key written, the roots (both, the new one active) committed, and only
//! then does it sign. The old root stays in the list until the last leaf that was signed under it has expired; its key
//! goes at once, since nothing is signed with it any more.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    ca::{Authority, CaError},
    duration,
    files::{self, FileError},
    issuer::{LEAF_TTL, LEAF_TTLS},
    model::{Opaque, Root},
    store::{Store, StoreError},
    tables::Tables,
    txn::Txn,
};
use crate::identity::TrustDomain;

/// Where it is kept until when leafs live that were signed with a longer lifetime than is configured now.
const LEAFS_UNTIL: &str = "leafs_until";
/// The root whose key is in files of the configuration.
const GIVEN_ROOT: &str = "given_root";
/// Signatures that were under way when the CA was changed.
const MARGIN: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RotateError {
    #[error(transparent)]
    Ca(#[from] CaError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A CA that is to sign from now on.
pub struct Next {
    pub root: Root,
    pub authority: Authority,
    /// What is kept in the state directory; `None`: the key stays where the configuration says.
    pub key_pem: Option<String>,
}

impl Next {
    /// A new root with a new key.
    pub fn generated(trust_domain: &TrustDomain, now: OffsetDateTime) -> Result<Self, CaError> {
        let (root, key) = Authority::generate(trust_domain, now)?;
        let authority = Authority::load(&root, &key)?;
        Ok(Self { root, authority, key_pem: Some(key) })
    }

    /// The root that a key and, if given, its certificates make.
    pub fn of_key(
        trust_domain: &TrustDomain,
        key_pem: &str,
        certs_pem: Option<&str>,
        now: OffsetDateTime,
    ) -> Result<Self, CaError> {
        let (root, authority) = match certs_pem {
            Some(certs) => Authority::given(trust_domain, certs, key_pem, now)?,
            None => {
                let root = Authority::generate_with(trust_domain, key_pem, now)?;
                let authority = Authority::load(&root, key_pem)?;
                (root, authority)
            }
        };
        Ok(Self { root, authority, key_pem: Some(key_pem.to_owned()) })
    }
}

/// Makes `next` the CA that signs, with `config` as the CA's configuration if it is given. Returns it as it signs from
/// now on.
///
/// # Errors
/// Nothing is changed then. [`CaError::CrossSign`] unless `force`d.
pub async fn install(
    store: &Store,
    state_dir: &Path,
    trust_domain: &TrustDomain,
    old: Option<&Authority>,
    next: Next,
    config: Option<Opaque>,
    force: bool,
) -> Result<Arc<Authority>, RotateError> {
    let Next { mut root, authority, key_pem } = next;
    let now = OffsetDateTime::now_utc();
    let same_root = old.filter(|old| old.root_id() == root.id);
    let authority = match (same_root, old) {
        (Some(old), _) if old.signs_as(&authority) => authority.vouched_for(old.vouchers().iter().cloned()),
        (None, Some(old)) if !force => old.vouch_for(authority, trust_domain, now)?,
        // Another intermediate of the same root: whoever knows the root knows it.
        _ => authority,
    };
    root.intermediate_certs = (!authority.chain().is_empty()).then(|| authority.chain().to_vec());
    if let Some(key) = &key_pem {
        files::write_private(&key_file(state_dir, &root.id), key)?;
    }
    let given = key_pem.is_none();
    let (id, state_dir) = (root.id.clone(), state_dir.to_owned());
    let outcome = store.write(move |txn| {
        if given {
            txn.put_setting(GIVEN_ROOT, &root.id);
        }
        let retired = make_active(txn, root);
        if let Some(config) = config {
            remember_lifetime(txn);
            txn.put_ca_config(config);
        }
        Ok::<_, StoreError>(retired)
    });
    match outcome.await {
        Ok(rotated) => {
            for old in &rotated {
                tracing::info!(
                    new = id,
                    old,
                    "the CA was rotated; the old root goes when its last leaf has expired"
                );
                forget_key(&state_dir, old);
            }
            Ok(Arc::new(authority))
        }
        Err(error) => {
            if same_root.is_none() && key_pem.is_some() {
                forget_key(&state_dir, &id);
            }
            Err(error.into())
        }
    }
}

/// Returns the ids of the roots that were active before.
fn make_active(txn: &mut Txn, root: Root) -> Vec<String> {
    let until = leafs_until(&txn.tables, txn.now);
    let before: Vec<Root> = txn
        .tables
        .roots()
        .into_iter()
        .filter(|old| old.active && old.id != root.id)
        .map(|old| Root::clone(old))
        .collect();
    let ids = before.iter().map(|old| old.id.clone()).collect();
    for old in before {
        txn.put_root(Root { active: false, retires_at: Some(text(until + MARGIN)), ..old });
    }
    txn.put_root(Root { active: true, retires_at: None, ..root });
    ids
}

/// Notes, before the lifetime of leafs is changed, how long those of now may live.
pub fn remember_lifetime(txn: &mut Txn) {
    if txn.tables.active_root().is_none() {
        return;
    }
    let until = leafs_until(&txn.tables, txn.now);
    txn.put_setting(LEAFS_UNTIL, &text(until));
}

/// Returns when the last leaf that was signed until `now` has expired.
fn leafs_until(tables: &Tables, now: OffsetDateTime) -> OffsetDateTime {
    let noted = tables.setting(LEAFS_UNTIL).and_then(time);
    let until = now + leaf_ttl(tables);
    noted.map_or(until, |noted| noted.max(until))
}

/// Returns how long leafs last that are signed now.
pub fn leaf_ttl(tables: &Tables) -> Duration {
    let configured = tables.ca_config().config.get(LEAF_TTL).and_then(|value| value.as_str());
    let configured = configured.and_then(duration::parse);
    configured.unwrap_or(*LEAF_TTLS.end()).clamp(*LEAF_TTLS.start(), *LEAF_TTLS.end())
}

/// Returns the inactive roots with the time at which each goes.
pub fn retiring(tables: &Tables) -> Vec<(String, OffsetDateTime)> {
    let of = |root: &Arc<Root>| Some((root.id.clone(), time(root.retires_at.as_deref()?)?));
    tables.roots().into_iter().filter(|root| !root.active).filter_map(of).collect()
}

/// Takes out the roots whose time has come, and what was only for those who knew them.
pub fn retire(txn: &mut Txn, authority: &Authority, now: OffsetDateTime) -> Vec<String> {
    let due: Vec<_> =
        retiring(&txn.tables).into_iter().filter(|(_, at)| *at <= now).map(|(id, _)| id).collect();
    for id in &due {
        txn.delete_root(id);
    }
    if due.is_empty() {
        return due;
    }
    let left: Vec<_> = txn.tables.roots().into_iter().map(|root| root.root_cert.clone()).collect();
    let chain = [authority.own_chain(), &authority.still_vouching(&left)].concat();
    let active = txn.tables.active_root().map(|root| Root::clone(root));
    if let Some(active) = active.filter(|active| active.id == authority.root_id()) {
        txn.put_root(Root { intermediate_certs: (!chain.is_empty()).then_some(chain), ..active });
    }
    due
}

/// Puts the retirement of all roots off by `by`.
pub fn put_off(txn: &mut Txn, by: Duration) {
    let all: Vec<Root> = txn.tables.roots().into_iter().map(|root| Root::clone(root)).collect();
    for root in all {
        if let Some(at) = root.retires_at.as_deref().and_then(time) {
            txn.put_root(Root { retires_at: Some(text(at + by)), ..root });
        }
    }
}

/// Whether the active root's key is in files that the configuration names.
pub fn is_given(tables: &Tables) -> bool {
    tables.active_root().is_some_and(|root| tables.setting(GIVEN_ROOT) == Some(&root.id))
}

pub fn key_file(state_dir: &Path, root_id: &str) -> PathBuf {
    state_dir.join(format!("ca-key-{}.pem", root_id.replace(':', "")))
}

fn forget_key(state_dir: &Path, root_id: &str) {
    let path = key_file(state_dir, root_id);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "the key of a CA that signs no more cannot be removed");
        }
        _ => {}
    }
}

pub fn text(time: OffsetDateTime) -> String {
    let time = time.replace_nanosecond(0).expect("invariant: 0 is a nanosecond");
    time.format(&Rfc3339).expect("invariant: a time of this era has an RFC 3339 form")
}

fn time(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok()
}
