//! Roots, leafs and signing, verified with the code that verifies peers.

use std::time::Duration;

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, SanType};
use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject};
use serde_json::Value;
use tokio::time::timeout;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::harness::{SOON, Server, settings};
use crate::control_plane::embedded::Settings;

fn der(pem: &Value) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_str().unwrap().as_bytes()).unwrap()
}

async fn root(server: &Server) -> (CertificateDer<'static>, String) {
    let roots = server.get("/v1/agent/connect/ca/roots").await.json();
    assert_eq!(roots["ActiveRootID"], roots["Roots"][0]["ID"]);
    (der(&roots["Roots"][0]["RootCert"]), roots["TrustDomain"].as_str().unwrap().to_owned())
}

fn verify(
    leaf: &CertificateDer<'_>,
    root: &CertificateDer<'_>,
    usage: KeyUsage,
) -> Result<(), webpki::Error> {
    let anchor = anchor_from_trusted_cert(root).unwrap();
    let leaf = EndEntityCert::try_from(leaf).unwrap();
    let algorithms = webpki::ALL_VERIFICATION_ALGS;
    leaf.verify_for_usage(algorithms, &[anchor], &[], UnixTime::now(), usage, None, None).map(drop)
}

fn uris(cert: &CertificateDer<'_>) -> Vec<String> {
    let (_, cert) = X509Certificate::from_der(cert).unwrap();
    let names = cert.subject_alternative_name().unwrap().unwrap().value.general_names.iter();
    names
        .map(|name| if let GeneralName::URI(uri) = name { (*uri).to_owned() } else { panic!("{name}") })
        .collect()
}

#[tokio::test]
async fn a_leaf_verifies_for_client_and_server_and_names_its_service() {
    let server = Server::start().await;
    let (root, trust_domain) = root(&server).await;
    assert_eq!(uris(&root), [format!("spiffe://{trust_domain}")]);
    let leaf = server.get("/v1/agent/connect/ca/leaf/web").await.json();
    let cert = der(&leaf["CertPEM"]);
    verify(&cert, &root, KeyUsage::client_auth()).unwrap();
    verify(&cert, &root, KeyUsage::server_auth()).unwrap();
    let uri = format!("spiffe://{trust_domain}/ns/default/dc/dc1/svc/web");
    assert_eq!(uris(&cert), [&*uri]);
    assert_eq!(leaf["ServiceURI"], uri);
    let key = KeyPair::from_pem(leaf["PrivateKeyPEM"].as_str().unwrap()).unwrap();
    let (_, cert) = X509Certificate::from_der(&cert).unwrap();
    assert_eq!(cert.public_key().raw, rcgen::PublicKeyData::subject_public_key_info(&key));
    assert_eq!(cert.raw_serial_as_string(), leaf["SerialNumber"]);
    assert!(!cert.is_ca());
    let of_other = Server::start().await;
    let (other, _) = self::root(&of_other).await;
    let cert = der(&leaf["CertPEM"]);
    assert!(verify(&cert, &other, KeyUsage::client_auth()).is_err());
}

fn csr(params: CertificateParams, key: &KeyPair) -> String {
    params.serialize_request(key).unwrap().pem().unwrap()
}

#[tokio::test]
async fn a_requests_key_is_signed_for_the_service_and_for_nothing_else_it_asks_for() {
    let server = Server::start().await;
    let (root, trust_domain) = root(&server).await;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
    let evil = "spiffe://evil/ns/default/dc/dc1/svc/admin".to_owned();
    params.subject_alt_names.push(SanType::URI(evil.try_into().unwrap()));
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let answer = server.put("/v1/connect/ca/sign/db", &csr(params, &key)).await.json();
    let cert = der(&answer["CertPEM"]);
    verify(&cert, &root, KeyUsage::server_auth()).unwrap();
    assert_eq!(uris(&cert), [format!("spiffe://{trust_domain}/ns/default/dc/dc1/svc/db")]);
    let (_, cert) = X509Certificate::from_der(&cert).unwrap();
    assert_eq!(cert.public_key().raw, rcgen::PublicKeyData::subject_public_key_info(&key));
    assert!(!cert.key_usage().unwrap().unwrap().value.key_cert_sign());
    assert!(answer.get("PrivateKeyPEM").is_none());
    assert!(answer["ValidBefore"].as_str() > answer["ValidAfter"].as_str());
}

#[tokio::test]
async fn a_request_without_proof_or_with_another_kind_of_key_is_refused() {
    let server = Server::start().await;
    let path = "/v1/connect/ca/sign/db";
    let refuse = |body: String, word: &'static str| {
        let server = &server;
        async move {
            let answer = server.send("PUT", path, &body).await;
            assert!(answer.status == 400 && answer.text.contains(word), "{}: {}", answer.status, answer.text);
        }
    };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let good = CertificateParams::default().serialize_request(&key).unwrap();
    let mut forged = good.der().to_vec();
    // The last byte belongs to the signature.
    *forged.last_mut().unwrap() ^= 1;
    let forged = pem("CERTIFICATE REQUEST", &forged);
    refuse(forged, "signature").await;
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    refuse(csr(CertificateParams::default(), &p384), "P-256").await;
    refuse(String::new(), "certificate signing request").await;
    refuse("garbage".to_owned(), "certificate signing request").await;
    refuse(pem("CERTIFICATE REQUEST", &[0x30, 0x03, 0x02, 0x01]), "certificate signing request").await;
    let name = server.send("PUT", "/v1/connect/ca/sign/a%20b", &good.pem().unwrap()).await;
    assert!(name.status == 400 && name.text.contains("service"), "{}", name.text);
}

fn pem(tag: &str, der: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    format!("-----BEGIN {tag}-----\n{}\n-----END {tag}-----\n", STANDARD.encode(der))
}

#[tokio::test]
async fn a_leaf_is_kept_until_it_is_due_and_lasts_as_configured() {
    let server = Server::start().await;
    let path = "/v1/agent/connect/ca/leaf/web";
    let first = server.get(path).await;
    let again = server.get(path).await;
    assert_eq!((first.text.clone(), first.index), (again.text, again.index));
    let waiting = format!("{path}?index={}&wait=200ms", first.index());
    let mut watch = Box::pin(server.get(&waiting));
    assert!(timeout(Duration::from_millis(100), &mut watch).await.is_err());
    assert_eq!(timeout(SOON, watch).await.unwrap().text, first.text);
    let cert = der(&first.json()["CertPEM"]);
    let (_, cert) = X509Certificate::from_der(&cert).unwrap();
    let validity = cert.validity();
    let seconds = validity.not_after.timestamp() - validity.not_before.timestamp();
    assert_eq!(seconds, 72 * 3600 + 60);
    server
        .put("/v1/connect/ca/configuration", r#"{"Provider":"consul","Config":{"LeafCertTTL":"5m"}}"#)
        .await;
    let short = server.get("/v1/agent/connect/ca/leaf/other").await.json();
    let cert = der(&short["CertPEM"]);
    let (_, cert) = X509Certificate::from_der(&cert).unwrap();
    assert_eq!(cert.validity().not_after.timestamp() - cert.validity().not_before.timestamp(), 300 + 60);
}

#[tokio::test]
async fn parameters_of_the_ca_are_checked_and_what_was_read_can_be_sent_back() {
    let server = Server::start().await;
    let path = "/v1/connect/ca/configuration";
    for (body, word) in [
        (r#"{"Provider":"vault","Config":{}}"#, "Provider"),
        (r#"{"Provider":"consul","Config":{"LeafCertTTL":"30s"}}"#, "LeafCertTTL"),
        (r#"{"Provider":"consul","Config":{"LeafCertTTL":"73h"}}"#, "LeafCertTTL"),
        (r#"{"Provider":"consul","Config":{"LeafCertTTL":5}}"#, "LeafCertTTL"),
        (r#"{"Provider":"consul","Config":{"RootCert":"x"}}"#, "PrivateKey"),
        (r#"{"Provider":"consul","Config":{"PrivateKey":"x"}}"#, "private key"),
        (r#"{"Provider":"consul","Config":{"PrivateKey":1}}"#, "PrivateKey"),
        (r#"{"Provider":"consul","Config":{"CSRMaxPerSecond":-1}}"#, "CSRMaxPerSecond"),
        (r#"{"Provider":"consul","Config":{"PrivateKeyType":"rsa"}}"#, "PrivateKeyType"),
        (r#"{"Provider":"consul","Config":{"Address":"http://vault"}}"#, "Address"),
    ] {
        let answer = server.send("PUT", path, body).await;
        assert!(answer.status == 400 && answer.text.contains(word), "{body}: {}", answer.text);
    }
    assert_eq!(server.get(path).await.json()["Config"]["LeafCertTTL"], "72h");
    // What was read can be sent back.
    let read = server.get(path).await.text;
    server.put(path, &read).await;
}

#[tokio::test]
async fn a_trust_domain_can_be_given_and_is_kept() {
    let mut server = Server::start_with(|dir| Settings {
        trust_domain: Some("mesh.example".parse().unwrap()),
        ..settings(dir)
    })
    .await;
    assert_eq!(root(&server).await.1, "mesh.example");
    server.restart().await;
    assert_eq!(root(&server).await.1, "mesh.example");
}

#[test]
fn a_leaf_never_outlives_its_root() {
    use crate::control_plane::embedded::ca::Authority;
    let start = time::OffsetDateTime::now_utc();
    let domain = "mesh.example".parse().unwrap();
    let (root, key) = Authority::generate(&domain, start).unwrap();
    let authority = Authority::load(&root, &key).unwrap();
    let id = "spiffe://mesh.example/ns/default/dc/dc1/svc/web".parse().unwrap();
    let day = Duration::from_secs(24 * 3600);
    let late = start + day * (3650 - 1);
    let leaf = authority.issue(&id, 3 * day, late).unwrap();
    assert_eq!(leaf.valid_before, root.not_after);
    assert!(authority.issue(&id, day, start + day * 3651).is_err());
    let (other, _) = Authority::generate(&domain, start).unwrap();
    assert!(Authority::load(&other, &key).is_err());
}
