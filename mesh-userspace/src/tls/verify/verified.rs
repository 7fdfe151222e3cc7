//! Chains that were verified a moment ago against one trust bundle, so that the same bytes need not be verified again.
//!
//! What a chain's signatures say cannot change, nor what its certificates allow; that they are still valid is looked at
//! each time. That the peer has the leaf's key is nothing that could be remembered: each handshake proves it.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use aws_lc_rs::digest::{Context, SHA256, SHA256_OUTPUT_LEN};
use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::KeyUsage;

use super::Peer;

/// A chain has one place, by its hash, and takes it from whoever was there: nothing is searched, nobody waits, and what a
/// peer with many leafs can do to others is that they are verified as if there were no memory.
const PLACES: usize = 256;
/// A longer chain is not remembered: nobody's is, and who sends one is not to choose how much is kept.
const MOST: usize = 16 * 1024;
/// How long a chain is remembered, in seconds.
const LASTS: u64 = 60;

/// The memory of one trust bundle.
#[derive(Debug)]
pub(super) struct Verified {
    places: [ArcSwapOption<Proof>; PLACES],
}

#[derive(Debug)]
struct Proof {
    fingerprint: Fingerprint,
    usage: KeyUsage,
    peer: Arc<Peer>,
    /// When it was verified. A clock that was set back to before that may have left its validity.
    from: UnixTime,
    /// No later than the end of each certificate's validity.
    until: UnixTime,
}

/// SHA-256 of a whole chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Fingerprint([u8; SHA256_OUTPUT_LEN]);

impl Fingerprint {
    pub(super) fn of(leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Self {
        let mut hash = Context::new(&SHA256);
        for certificate in std::iter::once(leaf).chain(intermediates) {
            // Where one ends is part of it.
            hash.update(&certificate.len().to_be_bytes());
            hash.update(certificate);
        }
        Self(hash.finish().as_ref().try_into().expect("invariant: SHA-256 has this length"))
    }
}

impl Default for Verified {
    fn default() -> Self {
        Self { places: [const { ArcSwapOption::const_empty() }; PLACES] }
    }
}

impl Verified {
    /// Returns who has the chain, if it was verified for `usage` within the last minute and all of it is valid at `now`.
    pub(super) fn find(
        &self,
        fingerprint: &Fingerprint,
        usage: KeyUsage,
        now: UnixTime,
    ) -> Option<Arc<Peer>> {
        let found = self.place(fingerprint).load();
        let proof = found.as_ref()?;
        let holds = proof.fingerprint == *fingerprint
            && proof.usage == usage
            && (proof.from..=proof.until).contains(&now);
        holds.then(|| proof.peer.clone())
    }

    /// Remembers that the chain of `peer` was verified at `now`. One of which the end of validity cannot be read is not.
    pub(super) fn keep(&self, fingerprint: Fingerprint, usage: KeyUsage, peer: &Arc<Peer>, now: UnixTime) {
        if peer.chain.iter().map(|one| one.len()).sum::<usize>() > MOST {
            return;
        }
        let mut until = now.as_secs().saturating_add(LASTS);
        for certificate in &peer.chain {
            let Some(end) = not_after(certificate) else { return };
            until = until.min(end);
        }
        let until = UnixTime::since_unix_epoch(std::time::Duration::from_secs(until));
        let proof = Proof { fingerprint, usage, peer: peer.clone(), from: now, until };
        self.place(&fingerprint).store(Some(Arc::new(proof)));
    }

    fn place(&self, fingerprint: &Fingerprint) -> &ArcSwapOption<Proof> {
        &self.places[usize::from(fingerprint.0[0]) % PLACES]
    }
}

/// Returns the last second of a certificate's validity.
fn not_after(certificate: &[u8]) -> Option<u64> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    u64::try_from(parsed.validity().not_after.timestamp()).ok()
}

#[cfg(test)]
mod tests;
