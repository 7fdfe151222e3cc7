//! Which files are taken, and which servers are believed.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ServerConfig, server::WebPkiClientVerifier};
use tokio::{io::AsyncReadExt, net::TcpListener};
use tokio_rustls::TlsAcceptor;

use super::*;

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn ca() -> Issuer {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Returns certificate and key, in PEM.
fn issue(ca: &Issuer, names: &[&str]) -> (String, String) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(names).unwrap().signed_by(&key, ca).unwrap();
    (cert.pem(), key.serialize_pem())
}

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn files(&self, ca: &str, name: &str, own: Option<(&str, &str)>) -> ExternalFiles {
        ExternalFiles {
            ca_file: self.file("ca.pem", ca),
            name: ServerName::try_from(name.to_owned()).unwrap(),
            own: own.map(|(cert, key)| (self.file("cert.pem", cert), self.file("key.pem", key))),
        }
    }
}

#[test]
fn a_file_that_cannot_be_used_is_named_with_the_reason() {
    let (dir, ca, other) = (Dir::new(), ca(), ca());
    let (cert, key) = issue(&ca, &["gateway"]);
    let (_, other_key) = issue(&other, &["gateway"]);
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let good = ca.pem();
    for (ca, own, key, why) in [
        ("", None, "ca_file", "no certificate in PEM"),
        (broken, None, "ca_file", "certificate 1 cannot be used"),
        (&*good, Some((&*cert, "")), "key_file", "no unencrypted private key"),
        (&*good, Some((&*cert, &*cert)), "key_file", "no unencrypted private key"),
        (&*good, Some(("", &*key)), "cert_file", "no certificate in PEM"),
        (&*good, Some((broken, &*key)), "cert_file", ""),
        (&*good, Some((&*cert, &*other_key)), "key_file", "is not the key of cert_file's certificate"),
    ] {
        let error = ExternalTls::load(&dir.files(ca, "db", own)).unwrap_err();
        assert_eq!(error.key, key, "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
    let mut files = dir.files(&ca.pem(), "db", Some((&cert, &key)));
    let first = ExternalTls::load(&files).unwrap();
    assert_eq!(first, ExternalTls::load(&files).unwrap());
    dir.file("ca.pem", &other.pem());
    assert_ne!(first, ExternalTls::load(&files).unwrap(), "another CA in the same file");
    files.ca_file = dir.0.path().join("none.pem");
    assert!(ExternalTls::load(&files).unwrap_err().to_string().contains("cannot be read"));
    files.ca_file = dir.0.path().to_owned();
    assert!(ExternalTls::load(&files).unwrap_err().to_string().contains("is not a file"));
}

/// Makes TLS between `files` and a server of `names`, which asks for a certificate of `clients` if there is one.
async fn meet(
    files: &ExternalFiles,
    ca: &Issuer,
    names: &[&str],
    clients: Option<&Issuer>,
    version: &'static rustls::SupportedProtocolVersion,
) -> Result<Asked, ExternalError> {
    let (cert, key) = issue(ca, names);
    let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[version]).unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let mut roots = RootCertStore::empty();
            roots.add(clients.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider());
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let config = builder.with_single_cert(chain, key).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        if let Ok(mut tls) = TlsAcceptor::from(Arc::new(config)).accept(stream).await {
            let _ = tls.read(&mut [0]).await;
        }
    });
    let stream = TcpStream::connect(at).await.unwrap();
    let made = ExternalTls::load(files).unwrap().connect(&stream).await;
    drop(stream);
    server.await.unwrap();
    made.map(|external| external.asked)
}

#[tokio::test]
async fn a_server_is_believed_by_the_ca_of_the_file_and_the_name_and_nobody_else_is() {
    let (dir, ca, other) = (Dir::new(), ca(), ca());
    let ours = dir.files(&ca.pem(), "db.example.com", None);
    for version in [&TLS13, &TLS12] {
        assert_eq!(meet(&ours, &ca, &["db.example.com"], None, version).await, Ok(Asked::No));
        assert_eq!(
            meet(&ours, &other, &["db.example.com"], None, version).await,
            Err(ExternalError::UnknownCa)
        );
        let wrong = meet(&ours, &ca, &["other.example.com"], None, version).await.unwrap_err();
        assert!(matches!(wrong, ExternalError::WrongName { .. }), "{wrong}");
        assert!(wrong.to_string().contains("other.example.com"), "{wrong}");
    }
    let literal = dir.files(&ca.pem(), "10.9.9.9", None);
    assert_eq!(meet(&literal, &ca, &["10.9.9.9"], None, &TLS13).await, Ok(Asked::No));
    assert!(meet(&literal, &ca, &["10.9.9.8"], None, &TLS13).await.is_err());
}

#[tokio::test]
async fn a_server_that_demands_a_certificate_is_told_apart() {
    let (dir, ca) = (Dir::new(), ca());
    let (cert, key) = issue(&ca, &["gateway"]);
    let with = dir.files(&ca.pem(), "db", Some((&cert, &key)));
    for version in [&TLS13, &TLS12] {
        assert_eq!(meet(&with, &ca, &["db"], Some(&ca), version).await, Ok(Asked::Presented));
    }
    let without = dir.files(&ca.pem(), "db", None);
    assert_eq!(meet(&without, &ca, &["db"], Some(&ca), &TLS12).await, Err(ExternalError::WantsCertificate));
    // TLS 1.3 tells only later.
    assert_eq!(meet(&without, &ca, &["db"], Some(&ca), &TLS13).await, Ok(Asked::HadNone));
}
