//! The verifiers on their own: what each accepts, and each way to be refused.

use proptest::prelude::*;
use rustls::pki_types::UnixTime;

use super::*;
use crate::tls::test_pki::{Ca, LeafSpec};

const DOMAIN: &str = "td.consul";

fn web() -> LeafSpec {
    LeafSpec::service("web", DOMAIN)
}

fn bundle(ca: &Ca) -> Arc<TrustBundle> {
    Arc::new(TrustBundle::new(ca.roots()).unwrap())
}

fn as_client(ca: &Ca, signer: &Ca, spec: &LeafSpec) -> Result<(), PeerError> {
    let leaf = signer.issue(spec);
    ClientOfMesh { bundle: bundle(ca) }
        .verify_client_cert(&leaf.key.cert[0], &[], UnixTime::now())
        .map(|_| ())
        .map_err(|e| PeerError::from_io(&std::io::Error::other(e)))
}

fn as_server(ca: &Ca, spec: &LeafSpec, expected: &str) -> Result<(), PeerError> {
    let leaf = ca.issue(spec);
    let name = ServerName::from(std::net::IpAddr::from([127, 0, 0, 1]));
    ServerIs { bundle: bundle(ca), expected: expected.parse().unwrap() }
        .verify_server_cert(&leaf.key.cert[0], &[], &name, &[], UnixTime::now())
        .map(|_| ())
        .map_err(|e| PeerError::from_io(&std::io::Error::other(e)))
}

#[test]
fn a_leaf_of_the_mesh_is_believed_as_client_and_as_server() {
    let ca = Ca::new(DOMAIN);
    assert_eq!(as_client(&ca, &ca, &web()), Ok(()));
    assert_eq!(as_server(&ca, &web(), &web().id), Ok(()));
}

#[test]
fn a_leaf_outside_its_validity_is_refused() {
    let ca = Ca::new(DOMAIN);
    assert_eq!(as_client(&ca, &ca, &web().expired()), Err(PeerError::Expired));
    assert_eq!(as_client(&ca, &ca, &web().not_yet_valid()), Err(PeerError::NotYetValid));
    assert_eq!(as_server(&ca, &web().expired(), &web().id), Err(PeerError::Expired));
    assert_eq!(as_server(&ca, &web().not_yet_valid(), &web().id), Err(PeerError::NotYetValid));
}

#[test]
fn a_self_signed_leaf_is_refused_as_such() {
    let ca = Ca::new(DOMAIN);
    let claims = web().id;
    assert_eq!(as_client(&ca, &ca, &web().self_signed()), Err(PeerError::SelfSigned { claims }));
}

#[test]
fn another_ca_is_refused_even_under_the_same_name() {
    let (ca, other) = (Ca::new(DOMAIN), Ca::new(DOMAIN));
    let refused = as_client(&ca, &other, &web());
    assert_eq!(refused, Err(PeerError::UntrustedChain { claims: web().id }));
}

#[test]
fn another_trust_domain_is_refused_whoever_signed_it() {
    let (ca, other) = (Ca::new(DOMAIN), Ca::new("other.consul"));
    let foreign = LeafSpec::service("web", "other.consul");
    let refused =
        Err(PeerError::WrongTrustDomain { expected: DOMAIN.to_owned(), found: "other.consul".to_owned() });
    assert_eq!(as_client(&ca, &ca, &foreign), refused);
    assert_eq!(as_client(&ca, &other, &foreign), refused);
}

#[test]
fn a_server_that_is_another_service_datacenter_or_namespace_is_refused() {
    let ca = Ca::new(DOMAIN);
    for other in [
        "spiffe://td.consul/ns/default/dc/dc1/svc/db",
        "spiffe://td.consul/ns/default/dc/dc2/svc/web",
        "spiffe://td.consul/ns/team/dc/dc1/svc/web",
    ] {
        let (expected, found) = (other.to_owned(), web().id);
        assert_eq!(as_server(&ca, &web(), other), Err(PeerError::WrongService { expected, found }));
    }
}

#[test]
fn a_leaf_must_hold_exactly_one_uri_and_it_must_be_a_service() {
    let ca = Ca::new(DOMAIN);
    let id = web().id;
    for uris in [
        vec![],
        vec![id.as_str(), id.as_str()],
        vec![id.as_str(), "https://example.org/"],
        vec!["https://example.org/"],
        vec!["spiffe://td.consul"],
        vec!["spiffe://td.consul/ns/default/dc/dc1/svc/web/"],
    ] {
        let refused = as_client(&ca, &ca, &web().uris(&uris));
        assert!(matches!(refused, Err(PeerError::BadSan(_))), "{uris:?}: {refused:?}");
    }
}

#[test]
fn a_leaf_for_another_use_is_refused() {
    let ca = Ca::new(DOMAIN);
    let mut server_only = web();
    server_only.usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    assert_eq!(as_server(&ca, &server_only, &web().id), Ok(()));
    let refused = as_client(&ca, &ca, &server_only);
    assert!(matches!(refused, Err(PeerError::BadCertificate(_))), "{refused:?}");
}

#[test]
fn a_leaf_of_a_new_root_is_believed_with_the_old_roots_word_and_not_without() {
    let (old, new, stranger) = (Ca::new(DOMAIN), Ca::new(DOMAIN), Ca::new(DOMAIN));
    let leaf = new.issue(&web()).key.cert[0].clone();
    let believed = |knows: &Ca, word: &[CertificateDer<'static>]| {
        let chain: Vec<_> = std::iter::once(leaf.clone()).chain(word.iter().cloned()).collect();
        testing_verify(knows.roots(), &chain).map(|id| id.to_string())
    };
    let word = old.vouch_for(&new, None);
    assert_eq!(believed(&old, std::slice::from_ref(&word)), Ok(web().id));
    assert_eq!(
        believed(&new, std::slice::from_ref(&word)),
        Ok(web().id),
        "a word that is not needed does no harm"
    );
    for (knows, word) in
        [(&old, vec![]), (&stranger, vec![word]), (&old, vec![stranger.vouch_for(&new, None)])]
    {
        assert_eq!(believed(knows, &word), Err(PeerError::UntrustedChain { claims: web().id }));
    }
}

#[test]
fn a_chain_longer_than_its_path_length_is_refused() {
    let (root, middle, last) = (Ca::new(DOMAIN), Ca::new("middle"), Ca::new("last"));
    let leaf = last.issue(&web()).key.cert[0].clone();
    let chain = |path| vec![leaf.clone(), middle.vouch_for(&last, None), root.vouch_for(&middle, path)];
    assert_eq!(testing_verify(root.roots(), &chain(Some(1))).map(|id| id.to_string()), Ok(web().id));
    let refused = testing_verify(root.roots(), &chain(Some(0)));
    assert!(matches!(refused, Err(PeerError::BadCertificate(_))), "{refused:?}");
}

#[test]
fn an_intermediate_that_signs_for_another_trust_domain_is_not_believed() {
    let (root, intermediate) = (Ca::new(DOMAIN), Ca::new("intermediate"));
    let foreign = LeafSpec::service("web", "other.consul");
    let chain = [intermediate.issue(&foreign).key.cert[0].clone(), root.vouch_for(&intermediate, None)];
    assert!(matches!(testing_verify(root.roots(), &chain), Err(PeerError::WrongTrustDomain { .. })));
}

#[test]
fn a_leaf_is_no_intermediate() {
    let ca = Ca::new(DOMAIN);
    let (signer, leaf) = (ca.leaf("web"), Ca::new("x").issue(&web()).key.cert[0].clone());
    assert!(testing_verify(ca.roots(), &[leaf, signer.key.cert[0].clone()]).is_err());
}

/// One DER element, its length in the shortest form.
fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(content.len()).unwrap().to_be_bytes();
    let header = match (high, low) {
        (0, 0..128) => vec![tag, low],
        (0, _) => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    [&header, content].concat()
}

/// The smallest certificate around the given bytes as its subject alternative names.
fn certificate_with_san(san: &[u8]) -> Vec<u8> {
    let oid = [0x06, 0x03, 0x55, 0x1d, 0x11];
    let extension = tlv(0x30, &[&oid[..], &tlv(0x04, san)].concat());
    let algorithm = [0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
    let tbs = [
        &[0xa0, 0x03, 0x02, 0x01, 0x02][..],
        &[0x02, 0x01, 0x01],
        &algorithm,
        &[0x30, 0x00, 0x30, 0x00, 0x30, 0x00, 0x30, 0x00],
        &tlv(0xa3, &tlv(0x30, &extension)),
    ]
    .concat();
    tlv(0x30, &[&tlv(0x30, &tbs)[..], &algorithm, &[0x03, 0x01, 0x00]].concat())
}

proptest! {
    #[test]
    fn random_bytes_as_a_certificate_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        prop_assert!(spiffe_id(&CertificateDer::from(bytes)).is_err());
    }

    #[test]
    fn a_damaged_certificate_never_panics(at in 0usize..4096, byte in any::<u8>(), cut in 0usize..4096) {
        let mut bytes = certificate_with_san(b"\x30\x04\x86\x02ab");
        let length = bytes.len();
        bytes[at % length] = byte;
        bytes.truncate(cut);
        let _ = spiffe_id(&CertificateDer::from(bytes));
    }

    #[test]
    fn random_alternative_names_never_panic(
        inner in proptest::collection::vec(any::<u8>(), 0..300),
        wrapped in any::<bool>(),
        tag in prop_oneof![Just(0x86u8), any::<u8>()],
    ) {
        let san = if wrapped { tlv(0x30, &tlv(tag, &inner)) } else { inner };
        // What is accepted has one spelling: the one in the certificate.
        if let Ok(id) = spiffe_id(&CertificateDer::from(certificate_with_san(&san))) {
            let text = id.to_string();
            prop_assert!(san.windows(text.len()).any(|window| window == text.as_bytes()));
        }
    }

    #[test]
    fn a_spiffe_id_comes_back_as_it_was_written(name in "[a-z][a-z0-9-]{0,30}[a-z0-9]", tail in "|/|x|\\?") {
        let uri = format!("spiffe://td.consul/ns/default/dc/dc1/svc/{name}{tail}");
        let san = tlv(0x30, &tlv(0x86, uri.as_bytes()));
        let parsed = spiffe_id(&CertificateDer::from(certificate_with_san(&san)));
        match tail.as_str() {
            "" | "x" => prop_assert_eq!(parsed.map(|id| id.to_string()), Ok(uri)),
            _ => prop_assert!(matches!(parsed, Err(PeerError::BadSan(_))), "{:?}", parsed),
        }
    }
}
