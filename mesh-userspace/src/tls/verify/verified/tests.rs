//! What is remembered of a chain, and all that makes it forgotten.

use std::time::Duration;

use super::*;
use crate::{
    identity::Leaf,
    tls::{
        Chain, PeerError,
        test_pki::{Ca, LeafSpec},
        verify::TrustBundle,
    },
};

const DOMAIN: &str = "td.consul";
const CLIENT: KeyUsage = KeyUsage::client_auth();

fn web() -> LeafSpec {
    LeafSpec::service("web", DOMAIN)
}

fn chain(leaf: &Leaf, intermediates: &[CertificateDer<'static>]) -> Chain {
    leaf.key.cert.iter().chain(intermediates).cloned().collect()
}

fn bundle(ca: &Ca) -> TrustBundle {
    TrustBundle::new(ca.roots()).unwrap()
}

fn in_seconds(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs() + seconds))
}

fn remembers(bundle: &TrustBundle, chain: &[CertificateDer<'_>], usage: KeyUsage, now: UnixTime) -> bool {
    bundle.verified.find(&Fingerprint::of(&chain[0], &chain[1..]), usage, now).is_some()
}

fn verify(bundle: &TrustBundle, chain: &[CertificateDer<'_>], now: UnixTime) -> Result<String, PeerError> {
    bundle.client(&chain[0], &chain[1..], now).map(|peer| peer.id.to_string())
}

/// Returns a bundle that has verified the chain, at the time that is returned with it.
fn having_verified(ca: &Ca, chain: &[CertificateDer<'_>]) -> (TrustBundle, UnixTime) {
    let (bundle, now) = (bundle(ca), UnixTime::now());
    assert_eq!(verify(&bundle, chain, now), Ok(web().id));
    assert!(remembers(&bundle, chain, CLIENT, now));
    (bundle, now)
}

#[test]
fn a_chain_is_remembered_for_a_minute_and_with_it_whose_it_is() {
    let ca = Ca::new(DOMAIN);
    let chain = chain(&ca.leaf("web"), &[]);
    let (bundle, now) = having_verified(&ca, &chain);
    let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs() + seconds));
    assert_eq!(verify(&bundle, &chain, at(LASTS)), Ok(web().id));
    assert!(remembers(&bundle, &chain, CLIENT, at(LASTS)));
    assert!(!remembers(&bundle, &chain, CLIENT, at(LASTS + 1)), "it was not verified once more meanwhile");
    let before = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs() - 1));
    assert!(!remembers(&bundle, &chain, CLIENT, before), "nobody knows what a clock that was set back says");
}

#[test]
fn a_remembered_leaf_that_expires_is_refused_from_then_on() {
    let ca = Ca::new(DOMAIN);
    let short = LeafSpec { valid_until: time::Duration::seconds(20), ..web() };
    let chain = chain(&ca.issue(&short), &[]);
    let (bundle, _) = having_verified(&ca, &chain);
    assert_eq!(verify(&bundle, &chain, in_seconds(10)), Ok(web().id));
    assert_eq!(verify(&bundle, &chain, in_seconds(30)), Err(PeerError::Expired));
    assert!(!remembers(&bundle, &chain, CLIENT, in_seconds(30)));
}

#[test]
fn a_remembered_chain_of_which_an_intermediate_expires_is_refused_from_then_on() {
    let (root, middle) = (Ca::new(DOMAIN), Ca::new("middle"));
    let word = root.vouch_until(&middle, time::Duration::seconds(20));
    let chain = chain(&middle.issue(&web()), &[word]);
    let (bundle, _) = having_verified(&root, &chain);
    assert_eq!(verify(&bundle, &chain, in_seconds(10)), Ok(web().id));
    assert!(verify(&bundle, &chain, in_seconds(30)).is_err());
    assert!(!remembers(&bundle, &chain, CLIENT, in_seconds(30)));
}

#[test]
fn other_roots_remember_nothing() {
    let (ca, other) = (Ca::new(DOMAIN), Ca::new(DOMAIN));
    let chain = chain(&ca.leaf("web"), &[]);
    let (_, now) = having_verified(&ca, &chain);
    for next in [bundle(&ca), bundle(&other)] {
        assert!(!remembers(&next, &chain, CLIENT, now));
    }
    assert!(verify(&bundle(&other), &chain, now).is_err());
}

#[test]
fn a_chain_is_remembered_for_the_usage_it_was_verified_for() {
    let ca = Ca::new(DOMAIN);
    let mut spec = web();
    spec.usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let chain = chain(&ca.issue(&spec), &[]);
    let (bundle, now) = having_verified(&ca, &chain);
    assert!(!remembers(&bundle, &chain, KeyUsage::server_auth(), now));
    let as_server = bundle.authenticate(&chain[0], &chain[1..], now, KeyUsage::server_auth());
    assert!(matches!(as_server, Err(PeerError::BadCertificate(_))), "{as_server:?}");
}

#[test]
fn a_remembered_leaf_with_other_intermediates_is_another_chain() {
    let (root, middle, stranger) = (Ca::new(DOMAIN), Ca::new("middle"), Ca::new("stranger"));
    let leaf = middle.issue(&web());
    let (bundle, now) = having_verified(&root, &chain(&leaf, &[root.vouch_for(&middle, None)]));
    for others in [vec![], vec![stranger.vouch_for(&middle, None)]] {
        let chain = chain(&leaf, &others);
        assert!(!remembers(&bundle, &chain, CLIENT, now));
        assert!(verify(&bundle, &chain, now).is_err());
    }
}

#[test]
fn a_remembered_chain_with_any_one_byte_changed_is_refused() {
    let ca = Ca::new(DOMAIN);
    let good = chain(&ca.leaf("web"), &[]);
    let (bundle, now) = having_verified(&ca, &good);
    for at in 0..good[0].len() {
        let mut bytes = good[0].to_vec();
        bytes[at] ^= 1;
        let changed = [CertificateDer::from(bytes)];
        assert!(!remembers(&bundle, &changed, CLIENT, now), "byte {at}");
        assert!(verify(&bundle, &changed, now).is_err(), "byte {at}");
    }
}

#[test]
fn where_one_certificate_ends_is_part_of_a_chain() {
    let cut = |at: usize| {
        let (leaf, rest) = b"abcdef".split_at(at);
        Fingerprint::of(&CertificateDer::from(leaf), &[CertificateDer::from(rest)])
    };
    assert_ne!(cut(2), cut(3));
}

#[test]
fn a_refused_chain_is_not_remembered() {
    let ca = Ca::new(DOMAIN);
    let (bundle, now) = (bundle(&ca), UnixTime::now());
    let foreign = LeafSpec::service("web", "other.consul");
    for spec in [web().expired(), web().not_yet_valid(), web().self_signed(), web().uris(&[]), foreign] {
        let chain = chain(&ca.issue(&spec), &[]);
        for _ in 0..2 {
            assert!(verify(&bundle, &chain, now).is_err());
            assert!(!remembers(&bundle, &chain, CLIENT, now));
        }
    }
}

#[test]
fn however_many_chains_there_are_no_more_are_remembered_than_there_are_places() {
    let ca = Ca::new(DOMAIN);
    let (memory, now, real) = (Verified::default(), UnixTime::now(), ca.leaf("web"));
    let peer = Arc::new(Peer { id: real.id.clone(), chain: chain(&real, &[]) });
    let print = |n: u32| Fingerprint::of(&CertificateDer::from(n.to_be_bytes().to_vec()), &[]);
    let many = 0..10 * u32::try_from(PLACES).unwrap();
    for n in many.clone() {
        memory.keep(print(n), CLIENT, &peer, now);
        assert!(memory.find(&print(n), CLIENT, now).is_some(), "the last one is always remembered");
    }
    let known = many.filter(|n| memory.find(&print(*n), CLIENT, now).is_some()).count();
    assert!(known <= PLACES, "{known}");
    assert_eq!(Arc::strong_count(&peer), known + 1, "what lost its place is gone");
}

#[test]
fn all_connections_of_a_peer_share_what_it_presented() {
    let ca = Ca::new(DOMAIN);
    let chain = chain(&ca.leaf("web"), &[]);
    let (bundle, now) = having_verified(&ca, &chain);
    let again = || bundle.client(&chain[0], &chain[1..], now).unwrap();
    assert!(Arc::ptr_eq(&again(), &again()));
    assert_eq!(again().chain, chain);
}

#[test]
fn a_chain_longer_than_anybodys_is_not_remembered() {
    let ca = Ca::new(DOMAIN);
    let (memory, now, real) = (Verified::default(), UnixTime::now(), ca.leaf("web"));
    let leaf = chain(&real, &[]);
    let fits = MOST / leaf[0].len();
    let remembered = |length: usize| {
        let peer = Arc::new(Peer { id: real.id.clone(), chain: vec![leaf[0].clone(); length] });
        let print = Fingerprint::of(&leaf[0], &peer.chain[1..]);
        memory.keep(print, CLIENT, &peer, now);
        memory.find(&print, CLIENT, now).is_some()
    };
    assert!(remembered(fits));
    assert!(!remembered(fits + 1));
}
