//! From one root to the next: who verifies what at each step, what is kept, and when the old one goes. Chains are
//! verified with the code that verifies peers.

use std::{sync::Arc, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::harness::{SOON, Server, settings};
use crate::{
    control_plane::embedded::{CaFiles, Settings},
    identity::Roots,
    tls::testing_verify,
};

const ROOTS: &str = "/v1/connect/ca/roots";
const CONFIGURATION: &str = "/v1/connect/ca/configuration";

fn pem(text: &Value) -> String {
    text.as_str().unwrap().to_owned()
}

/// The listed roots, in order.
async fn roots(server: &Server) -> Vec<String> {
    let answer = server.get(ROOTS).await.json();
    assert_eq!(answer["ActiveRootID"], answer["Roots"][0]["ID"], "the active one is first: {answer}");
    answer["Roots"].as_array().unwrap().iter().map(|root| pem(&root["RootCert"])).collect()
}

async fn signed(server: &Server, service: &str) -> String {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    pem(&server.put(&format!("/v1/connect/ca/sign/{service}"), &csr).await.json()["CertPEM"])
}

/// Whether a peer that knows `root` only believes `chain`.
async fn believes(server: &Server, root: &str, chain: &str) -> bool {
    let domain = server.get(ROOTS).await.json()["TrustDomain"].as_str().unwrap().to_owned();
    let certs = CertificateDer::pem_slice_iter(root.as_bytes()).map(Result::unwrap).collect();
    let roots = Arc::new(Roots { trust_domain: domain.parse().unwrap(), certs });
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain.as_bytes()).map(Result::unwrap).collect();
    testing_verify(roots, &chain).is_ok()
}

async fn rotate(server: &Server) {
    server.put("/v1/connect/ca/rotate", "").await;
}

#[tokio::test]
async fn whoever_knows_any_listed_root_believes_old_and_new_leafs_over_several_rotations() {
    let server = Server::start().await;
    let mut leafs = vec![signed(&server, "web").await];
    for n in 1..=3 {
        rotate(&server).await;
        leafs.push(signed(&server, "web").await);
        assert_eq!(roots(&server).await.len(), n + 1);
    }
    let all = roots(&server).await;
    let newest = leafs.last().unwrap();
    for known in &all {
        assert!(believes(&server, known, newest).await, "a peer that has not seen the rotations is refused");
    }
    // The first leaf is believed by whoever lists the first root, and by nobody else.
    assert!(believes(&server, all.last().unwrap(), &leafs[0]).await);
    assert!(!believes(&server, &all[0], &leafs[0]).await);
    let stranger = Server::start().await;
    assert!(!believes(&server, &roots(&stranger).await[0], newest).await);
}

#[tokio::test]
async fn a_rotation_survives_a_restart_and_the_old_key_is_gone() {
    let mut server = Server::start().await;
    let old = roots(&server).await;
    rotate(&server).await;
    let before = roots(&server).await;
    server.restart().await;
    assert_eq!(roots(&server).await, before);
    assert!(believes(&server, &old[0], &signed(&server, "web").await).await);
    let keys = std::fs::read_dir(server.dir.path().join("state")).unwrap();
    let keys = keys.filter(|file| file.as_ref().unwrap().file_name().to_str().unwrap().starts_with("ca-key"));
    assert_eq!(keys.count(), 1);
}

#[tokio::test]
async fn the_old_root_goes_when_its_last_leaf_has_expired_and_not_before() {
    let mut server =
        Server::start_with(|dir| Settings { leaf_ttl: Duration::from_secs(3600), ..settings(dir) }).await;
    // A leaf of an hour may be there; the shorter lifetime comes after it.
    let shorter = r#"{"Provider":"consul","Config":{"LeafCertTTL":"1m"}}"#;
    server.put(CONFIGURATION, shorter).await;
    rotate(&server).await;
    let chain = signed(&server, "web").await;
    assert_eq!(chain.matches("BEGIN").count(), 2, "the leaf, and what the old root says of the new");
    let issuer = server.embedded().issuer_for_test();
    let now = OffsetDateTime::now_utc();
    issuer.retire(now + Duration::from_secs(3590)).await;
    assert_eq!(roots(&server).await.len(), 2, "a leaf of an hour may still be in use");
    // A clock that was set forward proves nothing.
    issuer.put_retirement_off(Duration::from_secs(600)).await;
    issuer.retire(now + Duration::from_secs(3700)).await;
    assert_eq!(roots(&server).await.len(), 2);
    drop(issuer);
    let same = Settings { leaf_ttl: Duration::from_secs(3600), ..settings(server.dir.path()) };
    server.try_restart(same).await.unwrap();
    assert_eq!(roots(&server).await.len(), 2, "it is kept on disk");
    server.embedded().issuer_for_test().retire(now + Duration::from_secs(4300)).await;
    assert_eq!(roots(&server).await.len(), 1);
    let chain = signed(&server, "web").await;
    assert_eq!(chain.matches("BEGIN").count(), 1, "nobody is left who needs the old root's word");
    assert!(believes(&server, &roots(&server).await[0], &chain).await);
}

#[tokio::test]
async fn waiting_readers_get_new_roots_at_once_and_new_leafs_within_seconds() {
    let server = Server::start().await;
    let leaf = "/v1/agent/connect/ca/leaf/web";
    let (old_roots, old_leaf) = (server.get(ROOTS).await, server.get(leaf).await);
    let wait = |path: &str, index: u64| format!("{path}?index={index}&wait=60s");
    let (for_roots, for_leaf) = (wait(ROOTS, old_roots.index()), wait(leaf, old_leaf.index()));
    let watched = tokio::time::timeout(SOON, async {
        tokio::join!(server.get(&for_roots), server.get(&for_leaf), rotate(&server))
    });
    let (new_roots, new_leaf, ()) = watched.await.unwrap();
    assert_ne!(new_roots.json()["ActiveRootID"], old_roots.json()["ActiveRootID"]);
    let (now, old) = (roots(&server).await, pem(&old_leaf.json()["CertPEM"]));
    let new = pem(&new_leaf.json()["CertPEM"]);
    assert!(believes(&server, &now[0], &new).await && !believes(&server, &now[0], &old).await);
}

/// A CA certificate with its key.
fn authority(
    domain: Option<&str>,
    signer: Option<&CertifiedIssuer<'static, KeyPair>>,
    path: BasicConstraints,
) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(path);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, format!("CA {}", rand::random::<u32>()));
    params
        .distinguished_name
        .push(DnType::OrganizationName, rcgen::DnValue::PrintableString("Example".try_into().unwrap()));
    params.use_authority_key_identifier_extension = signer.is_some();
    if let Some(domain) = domain {
        params.subject_alt_names = vec![SanType::URI(format!("spiffe://{domain}").try_into().unwrap())];
    }
    (params.not_before, params.not_after) = (
        OffsetDateTime::now_utc() - Duration::from_secs(3600),
        OffsetDateTime::now_utc() + Duration::from_secs(90 * 24 * 3600),
    );
    let key = KeyPair::generate().unwrap();
    match signer {
        None => CertifiedIssuer::self_signed(params, key).unwrap(),
        Some(signer) => CertifiedIssuer::signed_by(params, key, signer).unwrap(),
    }
}

fn root_ca() -> CertifiedIssuer<'static, KeyPair> {
    authority(None, None, BasicConstraints::Unconstrained)
}

#[tokio::test]
async fn a_given_key_and_certificate_rotate_to_that_root_once() {
    let server = Server::start().await;
    let old = roots(&server).await;
    let own = root_ca();
    let body = json!({"Provider": "consul", "Config": {
        "PrivateKey": own.key().serialize_pem(), "RootCert": own.pem(), "LeafCertTTL": "5m"}})
    .to_string();
    server.put(CONFIGURATION, &body).await;
    let now = roots(&server).await;
    assert_eq!(now.len(), 2);
    assert_eq!(CertificateDer::from_pem_slice(now[0].as_bytes()).unwrap(), *own.der());
    let leaf = signed(&server, "web").await;
    assert!(believes(&server, &now[0], &leaf).await && believes(&server, &old[0], &leaf).await);
    // The same again, and what is shown, change nothing; the key is not shown.
    server.put(CONFIGURATION, &body).await;
    let shown = server.get(CONFIGURATION).await;
    assert!(!shown.text.contains("PRIVATE KEY") && shown.json()["Config"]["RootCert"] == own.pem());
    server.put(CONFIGURATION, &shown.text).await;
    assert_eq!(roots(&server).await, now);
    let key = KeyPair::generate().unwrap().serialize_pem();
    let only_key = json!({"Provider": "consul", "Config": {"PrivateKey": key, "RootCert": ""}}).to_string();
    server.put(CONFIGURATION, &only_key).await;
    server.put(CONFIGURATION, &only_key).await;
    assert_eq!(roots(&server).await.len(), 3);
}

#[tokio::test]
async fn a_root_that_is_wrong_is_refused_with_the_reason_and_changes_nothing() {
    let server = Server::start().await;
    let before = (roots(&server).await, server.get(CONFIGURATION).await.text);
    let (good, other) = (root_ca(), root_ca());
    let foreign = authority(Some("other.consul"), None, BasicConstraints::Unconstrained);
    let mut leaf = CertificateParams::default();
    leaf.distinguished_name.push(DnType::CommonName, "leaf");
    let leaf = CertifiedIssuer::self_signed(leaf, KeyPair::generate().unwrap()).unwrap();
    let mut old = CertificateParams::default();
    old.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    old.not_after = OffsetDateTime::now_utc() - Duration::from_secs(60);
    let old = CertifiedIssuer::self_signed(old, KeyPair::generate().unwrap()).unwrap();
    let weak = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned();
    for (cert, key, word) in [
        (good.pem(), other.key(), "belongs"),
        (foreign.pem(), foreign.key(), "other.consul"),
        (leaf.pem(), leaf.key(), "CA:TRUE"),
        (old.pem(), old.key(), "not now"),
        (weak, good.key(), "cannot be read"),
        (authority(None, Some(&good), BasicConstraints::Unconstrained).pem(), good.key(), "incomplete"),
    ] {
        let body = json!({"Provider": "consul",
            "Config": {"PrivateKey": key.serialize_pem(), "RootCert": cert, "LeafCertTTL": "2m"}});
        let answer = server.send("PUT", CONFIGURATION, &body.to_string()).await;
        assert!(
            answer.status == 400 && answer.text.contains(word),
            "{word}: {}: {}",
            answer.status,
            answer.text
        );
    }
    assert_eq!((roots(&server).await, server.get(CONFIGURATION).await.text), before);
}

#[tokio::test]
async fn requests_to_sign_beyond_the_rate_are_told_to_come_later() {
    let server = Server::start().await;
    let limit = r#"{"Provider":"consul","Config":{"CSRMaxPerSecond":2}}"#;
    server.put(CONFIGURATION, limit).await;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let sign = || server.send("PUT", "/v1/connect/ca/sign/web", &csr);
    let answers = futures_util::future::join_all((0..12).map(|_| sign())).await;
    let codes: Vec<_> = answers.iter().map(|answer| answer.status).collect();
    assert!(codes.contains(&200) && codes.contains(&429), "{codes:?}");
    server.put(CONFIGURATION, r#"{"Provider":"consul","Config":{"CSRMaxPerSecond":0}}"#).await;
    let answers = futures_util::future::join_all((0..12).map(|_| sign())).await;
    assert!(answers.iter().all(|answer| answer.status == 200));
}

/// Files of a CA.
struct Given {
    dir: tempfile::TempDir,
}

impl Given {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn files(&self) -> CaFiles {
        let path = |name: &str| self.dir.path().join(name);
        CaFiles {
            cert_file: path("ca.pem"),
            chain_file: Some(path("chain.pem")),
            key_file: path("ca.key"),
            force: false,
        }
    }

    fn write(&self, cert: &str, chain: &str, key: &KeyPair) -> CaFiles {
        let files = self.files();
        std::fs::write(&files.cert_file, cert).unwrap();
        std::fs::write(files.chain_file.as_ref().unwrap(), chain).unwrap();
        crate::control_plane::embedded::files::write_private(&files.key_file, &key.serialize_pem()).unwrap();
        files
    }
}

#[tokio::test]
async fn a_given_intermediate_signs_and_its_root_is_what_peers_trust() {
    let given = Given::new();
    let root = root_ca();
    let first = authority(None, Some(&root), BasicConstraints::Constrained(0));
    let files = given.write(&first.pem(), &root.pem(), first.key());
    let with = |dir: &std::path::Path| Settings { ca: Some(files.clone()), ..settings(dir) };
    let mut server = Server::start_with(with).await;
    let listed = roots(&server).await;
    assert_eq!(CertificateDer::from_pem_slice(listed[0].as_bytes()).unwrap(), *root.der());
    let leaf = signed(&server, "web").await;
    assert_eq!(leaf.matches("BEGIN").count(), 2);
    assert!(believes(&server, &root.pem(), &leaf).await);
    let refused = server.send("PUT", "/v1/connect/ca/rotate", "").await;
    assert!(refused.status == 400 && refused.text.contains("embedded.ca"), "{}", refused.text);
    // Another intermediate of the same root is no rotation.
    let second = authority(None, Some(&root), BasicConstraints::Constrained(0));
    given.write(&second.pem(), &root.pem(), second.key());
    let embedded = server.embedded();
    embedded.use_ca(embedded.check_ca(&files).unwrap()).await.unwrap();
    assert_eq!(roots(&server).await, listed);
    let renewed = signed(&server, "web").await;
    assert!(believes(&server, &root.pem(), &renewed).await && renewed != leaf);
    let again = with(server.dir.path());
    server.try_restart(again).await.unwrap();
    assert_eq!(roots(&server).await, listed);
    // Another root is one, and the path length of the intermediate forbids to cross-sign it.
    let other = root_ca();
    given.write(&other.pem(), "", other.key());
    let error = server.embedded().check_ca(&files).err().unwrap().to_string();
    assert!(error.contains("cross-sign"), "{error}");
    assert_eq!(roots(&server).await, listed);
    let forced = server.embedded().check_ca(&CaFiles { force: true, ..files.clone() }).unwrap();
    server.embedded().use_ca(forced).await.unwrap();
    assert_eq!(roots(&server).await.len(), 2);
    assert!(!believes(&server, &root.pem(), &signed(&server, "web").await).await);
    // Without the files there is no key: a root of its own, and both before it still listed.
    let own = settings(server.dir.path());
    server.try_restart(own).await.unwrap();
    assert_eq!(roots(&server).await.len(), 3);
}

#[tokio::test]
async fn a_given_ca_takes_over_from_the_servers_own_with_its_word() {
    let mut server = Server::start().await;
    let own = roots(&server).await;
    let given = Given::new();
    let root = root_ca();
    let intermediate = authority(None, Some(&root), BasicConstraints::Unconstrained);
    let files = given.write(&(intermediate.pem() + &root.pem()), "", intermediate.key());
    let with = Settings { ca: Some(files), ..settings(server.dir.path()) };
    server.try_restart(with).await.unwrap();
    assert_eq!(roots(&server).await.len(), 2);
    let leaf = signed(&server, "web").await;
    assert!(believes(&server, &root.pem(), &leaf).await && believes(&server, &own[0], &leaf).await);
}

#[tokio::test]
async fn a_given_ca_that_is_wrong_stops_the_start_or_the_reload_with_the_reason() {
    let given = Given::new();
    let (root, other) = (root_ca(), root_ca());
    let good = authority(None, Some(&root), BasicConstraints::Constrained(0));
    let none = authority(None, Some(&root), BasicConstraints::Constrained(0));
    let below = authority(None, Some(&good), BasicConstraints::Constrained(0));
    let server = Server::start().await;
    let before = roots(&server).await;
    let mut lying = CertificateParams::default();
    // The issuer's name, and not its signature.
    lying.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    lying.distinguished_name.push(DnType::CommonName, "x");
    let twin = {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "twin");
        let twin = |p: &CertificateParams| {
            CertifiedIssuer::self_signed(p.clone(), KeyPair::generate().unwrap()).unwrap()
        };
        (twin(&params), twin(&params))
    };
    let under_twin = CertifiedIssuer::signed_by(lying, KeyPair::generate().unwrap(), &twin.0).unwrap();
    for (cert, chain, key, word) in [
        (good.pem(), String::new(), good.key(), "incomplete"),
        (good.pem(), other.pem(), good.key(), "incomplete"),
        (good.pem(), root.pem(), none.key(), "belongs"),
        (good.pem(), root.pem(), root.key(), "belongs"),
        (below.pem(), good.pem() + &root.pem(), below.key(), "does not verify"),
        (under_twin.pem(), twin.1.pem(), under_twin.key(), "does not verify"),
        (good.pem(), root.pem() + &other.pem(), good.key(), "no use"),
    ] {
        let files = given.write(&cert, &chain, key);
        let error = server.embedded().check_ca(&files).err().expect(word).to_string();
        assert!(error.contains(word) && error.contains("ca.pem"), "{word}: {error}");
    }
    let files = given.write(&good.pem(), &root.pem(), good.key());
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&files.key_file, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(server.embedded().check_ca(&files).err().unwrap().to_string().contains("chmod"));
    std::fs::remove_file(&files.cert_file).unwrap();
    assert!(server.embedded().check_ca(&files).err().unwrap().to_string().contains("ca.pem"));
    assert_eq!(roots(&server).await, before);
}

#[tokio::test]
async fn a_certificate_that_is_about_to_expire_is_warned_of_and_one_that_is_not_is_not() {
    let server = Server::start().await;
    let issuer = server.embedded().issuer_for_test();
    let now = OffsetDateTime::now_utc();
    assert_eq!(issuer.warning(now), None);
    let nine_years = now + Duration::from_secs((3650 - 29) * 24 * 3600);
    assert!(issuer.warning(nine_years).unwrap().contains("meshnode ca rotate"));
    assert_eq!(issuer.warning(now + Duration::from_secs(3500 * 24 * 3600)), None);
}
