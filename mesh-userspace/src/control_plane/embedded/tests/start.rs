//! Starting: what is made, and what is refused with which words.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    time::Duration,
};

use super::harness::{Server, exposed, settings};
use crate::control_plane::embedded::{Embedded, EmbeddedError, Settings};

async fn refused(settings: Settings) -> EmbeddedError {
    match Embedded::start(settings).await {
        Ok(_) => panic!("it started"),
        Err(error) => error,
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

#[tokio::test]
async fn nobody_else_can_open_what_start_makes() {
    let server = Server::start_with(exposed).await;
    let state = server.dir.path().join("state");
    assert_eq!(mode(&state), 0o700);
    assert_eq!(mode(&server.dir.path().join("api.sock")), 0o600);
    for entry in fs::read_dir(&state).unwrap() {
        let path = entry.unwrap().path();
        let public = path.file_name().unwrap() == "api-ca.pem";
        assert_eq!(mode(&path), if public { 0o644 } else { 0o600 }, "{}", path.display());
    }
}

#[tokio::test]
async fn an_address_beyond_loopback_is_refused_without_tls_and_token() {
    let dir = tempfile::tempdir().unwrap();
    let listen_tcp = Some("0.0.0.0:0".parse().unwrap());
    let error = refused(Settings { listen_tcp, ..settings(dir.path()) }).await.to_string();
    assert!(error.contains("0.0.0.0:0") && error.contains("expose"), "{error}");
}

#[tokio::test]
async fn a_weak_token_and_half_a_key_pair_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut weak = exposed(dir.path());
    weak.expose.as_mut().unwrap().token.clear();
    assert!(matches!(refused(weak).await, EmbeddedError::WeakToken(0)));
    let mut half = exposed(dir.path());
    half.expose.as_mut().unwrap().cert_file = Some(dir.path().join("cert.pem"));
    assert!(matches!(refused(half).await, EmbeddedError::HalfPair));
}

#[tokio::test]
async fn a_leaf_lifetime_out_of_bounds_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for seconds in [59, 72 * 3600 + 1] {
        let leaf_ttl = Duration::from_secs(seconds);
        let error = refused(Settings { leaf_ttl, ..settings(dir.path()) }).await;
        assert!(matches!(error, EmbeddedError::LeafTtl(_)), "{error}");
    }
    let leaf_ttl = Duration::from_secs(60);
    Embedded::start(Settings { leaf_ttl, ..settings(dir.path()) }).await.unwrap().shutdown().await;
}

#[tokio::test]
async fn a_second_server_on_the_same_store_is_refused_and_told_who_has_it() {
    let server = Server::start().await;
    let other = Settings { unix_socket: None, listen_tcp: None, ..settings(server.dir.path()) };
    let error = refused(other).await.to_string();
    assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
}

#[tokio::test]
async fn a_damaged_store_is_refused_with_the_next_step() {
    let mut server = Server::start().await;
    server.stop().await;
    let path = server.dir.path().join("state/embedded.db");
    fs::write(&path, "this is no database, and longer than its header of a hundred bytes ".repeat(20))
        .unwrap();
    let error = refused(settings(server.dir.path())).await.to_string();
    assert!(error.contains("embedded.db") && error.contains("restore it from a backup"), "{error}");
}

#[tokio::test]
async fn a_root_key_that_others_can_read_or_that_is_gone_is_refused() {
    let mut server = Server::start().await;
    server.stop().await;
    let state = server.dir.path().join("state");
    let key = fs::read_dir(&state)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.file_name().unwrap().to_str().unwrap().starts_with("ca-key-"))
        .unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let error = refused(settings(server.dir.path())).await.to_string();
    assert!(error.contains("chmod 0600") && error.contains("mode 0640"), "{error}");
    fs::remove_file(&key).unwrap();
    assert!(matches!(refused(settings(server.dir.path())).await, EmbeddedError::NoKey(path) if path == key));
}

#[tokio::test]
async fn another_trust_domain_than_the_store_has_is_refused() {
    let mut server = Server::start().await;
    let trust_domain = Some("other.example".parse().unwrap());
    let error =
        server.try_restart(Settings { trust_domain, ..settings(server.dir.path()) }).await.unwrap_err();
    assert!(matches!(error, EmbeddedError::TrustDomain { .. }), "{error}");
}

#[tokio::test]
async fn a_socket_that_somebody_serves_is_refused_and_a_dead_one_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("api.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let error = refused(settings(dir.path())).await.to_string();
    assert!(error.contains("another process answers"), "{error}");
    drop(listener);
    Embedded::start(settings(dir.path())).await.unwrap().shutdown().await;
}
