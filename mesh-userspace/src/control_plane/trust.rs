//! The CA roots: watched, checked, and put into [`crate::state::MeshState`].

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::{
    api::RootsAnswer,
    cache::Item,
    client::ApiError,
    link::Part,
    sync::{Piece, Shared},
    watch::{Permits, Watch},
};
use crate::identity::{NameError, Roots};

const PATH: &str = "/v1/agent/connect/ca/roots";

/// Why an answer names no usable roots.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RootsError {
    #[error(transparent)]
    TrustDomain(#[from] NameError),
    #[error("root `{id}` is no PEM certificate: {source}")]
    Pem { id: String, source: rustls::pki_types::pem::Error },
    #[error("root `{0}` is no X.509 certificate")]
    Certificate(String),
    #[error("there is no root; is Connect enabled?")]
    Empty,
}

/// Returns the trust bundle of `answer`.
///
/// # Errors
/// When it has no root, or any of it cannot be read: half a bundle would refuse good peers.
pub fn roots(answer: &RootsAnswer) -> Result<Roots, RootsError> {
    let mut certs = Vec::with_capacity(answer.roots.len());
    for root in &answer.roots {
        let cert = CertificateDer::from_pem_slice(root.root_cert.as_bytes())
            .map_err(|source| RootsError::Pem { id: root.id.clone(), source })?;
        x509_parser::parse_x509_certificate(&cert).map_err(|_| RootsError::Certificate(root.id.clone()))?;
        certs.push(cert);
    }
    if certs.is_empty() {
        return Err(RootsError::Empty);
    }
    // The order says nothing; sorted, an equal bundle compares equal.
    certs.sort_by(|a: &CertificateDer<'_>, b| a.as_ref().cmp(b.as_ref()));
    Ok(Roots { trust_domain: answer.trust_domain.parse()?, certs })
}

/// Keeps the roots of `shared.state` current, for ever.
pub(super) async fn follow(shared: Arc<Shared>) {
    let mut watch = Watch::new(&shared.client, &shared.link, Part::Roots, PATH, Permits::Always);
    loop {
        let answer: RootsAnswer = watch.next().await;
        match roots(&answer) {
            Ok(roots) => publish(&shared, answer, roots),
            Err(error) => watch.rejected(&ApiError::malformed(PATH, error)).await,
        }
    }
}

fn publish(shared: &Shared, answer: RootsAnswer, roots: Roots) {
    let differs = shared.state.load().roots.as_deref() != Some(&roots);
    if differs {
        tracing::info!(trust_domain = %roots.trust_domain, roots = roots.certs.len(), "trust bundle changed");
        let roots = Arc::new(roots);
        shared.state.update(|mesh| mesh.roots = Some(Arc::clone(&roots)));
    }
    // After the bundle: whoever renews a leaf because of it finds the roots in place.
    let id = answer.active_root_id.clone();
    let rotated = shared.active_root.send_if_modified(|active| {
        let rotated = active.as_ref() != Some(&id);
        *active = Some(id.clone());
        rotated
    });
    if differs || rotated {
        shared.cache.save(Item::Roots, answer);
    }
    shared.confirmed(Piece::Roots);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control_plane::api::RootEntry;

    fn answer() -> RootsAnswer {
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        RootsAnswer {
            active_root_id: "a".to_owned(),
            trust_domain: "11111111-2222.consul".to_owned(),
            roots: vec![RootEntry { id: "a".to_owned(), root_cert: cert.pem(), ..RootEntry::default() }],
        }
    }

    #[test]
    fn roots_are_read_from_a_good_answer() {
        let roots = roots(&answer()).unwrap();
        assert_eq!((roots.trust_domain.as_str(), roots.certs.len()), ("11111111-2222.consul", 1));
    }

    #[test]
    fn roots_are_refused_when_empty_or_damaged_or_without_trust_domain() {
        let damage: [fn(&mut RootsAnswer); 4] = [
            |a| a.roots.clear(),
            |a| a.trust_domain.clear(),
            |a| {
                a.roots[0].root_cert =
                    "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned()
            },
            |a| a.roots.push(RootEntry::default()),
        ];
        for (n, damage) in damage.iter().enumerate() {
            let mut answer = answer();
            damage(&mut answer);
            assert!(roots(&answer).is_err(), "{n}");
        }
    }
}
