//! Who may do what through which door.

use std::{fs, sync::Arc};

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::harness::{Answer, EXPOSE_TOKEN, Server, exposed, send};

const SERVICE: &str = r#"{"Name":"db","Port":5432}"#;

#[tokio::test]
async fn the_loopback_port_shows_the_catalog_to_everybody() {
    let server = Server::start().await;
    for path in
        ["/v1/catalog/nodes", "/v1/connect/intentions", "/v1/agent/connect/ca/roots", "/v1/agent/self"]
    {
        assert_eq!(server.send_tcp("GET", path, "", None).await.status, 200, "{path}");
    }
    let body = r#"{"Target":"db","ClientCertURI":"spiffe://x/ns/default/dc/dc1/svc/web"}"#;
    assert_eq!(server.send_tcp("POST", "/v1/agent/connect/authorize", body, None).await.status, 200);
}

#[tokio::test]
async fn the_loopback_port_needs_the_token_for_changes_and_keys() {
    let server = Server::start().await;
    let intention = r#"{"SourceName":"web","DestinationName":"db","Action":"allow"}"#;
    for (method, path, body) in [
        ("PUT", "/v1/agent/service/register", SERVICE),
        ("PUT", "/v1/agent/service/deregister/db", ""),
        ("PUT", "/v1/catalog/register", r#"{"Node":"x","Address":"10.0.0.9"}"#),
        ("POST", "/v1/connect/intentions", intention),
        ("PUT", "/v1/connect/intentions/exact?source=a&destination=b", r#"{"Action":"allow"}"#),
        ("DELETE", "/v1/connect/intentions/exact?source=a&destination=b", ""),
        ("PUT", "/v1/connect/ca/configuration", r#"{"Provider":"consul"}"#),
        ("PUT", "/v1/connect/ca/sign/db", "no csr"),
        ("GET", "/v1/agent/connect/ca/leaf/db", ""),
        ("HEAD", "/v1/agent/connect/ca/leaf/db", ""),
        ("GET", "/v1/agent/connect/ca/%6ceaf/db", ""),
    ] {
        let before = server.get("/v1/catalog/nodes").await.text;
        for token in [None, Some("wrong"), Some("")] {
            let answer = server.send_tcp(method, path, body, token).await;
            let refused = answer.status == 403 || path.contains("%6c") && answer.status == 404;
            assert!(refused, "{method} {path} {token:?}: {}", answer.status);
            if method != "HEAD" && answer.status == 403 {
                assert!(answer.text.contains("api-token"), "{}", answer.text);
            }
        }
        assert_eq!(server.get("/v1/catalog/nodes").await.text, before);
    }
    let token = server.token();
    let answer = server.send_tcp("PUT", "/v1/agent/service/register", SERVICE, Some(&token)).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let answer = server.send_tcp("GET", "/v1/agent/connect/ca/leaf/db", "", Some(&token)).await;
    assert!(answer.text.contains("PRIVATE KEY"));
}

#[tokio::test]
async fn the_loopback_token_stays_the_same_over_a_restart() {
    let mut server = Server::start().await;
    let before = server.token();
    server.restart().await;
    assert_eq!(server.token(), before);
    assert_eq!(
        server.send_tcp("PUT", "/v1/agent/service/register", SERVICE, Some(&before)).await.status,
        200
    );
}

pub async fn send_tls(
    server: &Server,
    roots: &str,
    name: &str,
    token: Option<&str>,
) -> Result<Answer, std::io::Error> {
    let mut store = RootCertStore::empty();
    store.add(CertificateDer::from_pem_slice(roots.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(store)
        .with_no_client_auth();
    let stream = TcpStream::connect(server.embedded().expose_addr().unwrap()).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    Ok(send(stream, "GET", "/v1/catalog/nodes", "", token).await)
}

#[tokio::test]
async fn other_hosts_need_the_token_for_everything() {
    let server = Server::start_with(exposed).await;
    let roots = fs::read_to_string(server.dir.path().join("state/api-ca.pem")).unwrap();
    for name in ["127.0.0.1", "10.77.0.1", "host-a"] {
        let answer = send_tls(&server, &roots, name, Some(EXPOSE_TOKEN)).await.unwrap();
        assert_eq!(answer.status, 200, "{name}");
    }
    // The loopback port's token is another one.
    for token in [None, Some("wrong"), Some(&*server.token())] {
        let answer = send_tls(&server, &roots, "host-a", token).await.unwrap();
        assert_eq!(answer.status, 403);
        assert!(answer.text.contains("X-Consul-Token"), "{}", answer.text);
    }
}

#[tokio::test]
async fn the_exposed_door_speaks_no_cleartext_and_shows_its_own_certificate() {
    let server = Server::start_with(exposed).await;
    let roots = fs::read_to_string(server.dir.path().join("state/api-ca.pem")).unwrap();
    assert!(send_tls(&server, &roots, "other-host", Some(EXPOSE_TOKEN)).await.is_err());
    let mesh = server.get("/v1/connect/ca/roots?pem=true").await.text;
    assert!(send_tls(&server, &mesh, "host-a", Some(EXPOSE_TOKEN)).await.is_err());
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut plain = TcpStream::connect(server.embedded().expose_addr().unwrap()).await.unwrap();
    plain.write_all(b"GET /v1/catalog/nodes HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"));
}
