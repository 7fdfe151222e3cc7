//! Sessions of this side against rustls' own connections, in every version and with every cipher.

use std::{sync::Arc, time::Duration};

use rustls::{
    ClientConfig, ServerConfig, SupportedCipherSuite,
    crypto::CryptoProvider,
    pki_types::ServerName,
    server::NoClientAuth,
    sign::SingleCertAndKey,
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::*;
use crate::{
    catalog::Instance,
    tls::{
        TlsConfigs, handshake, provider,
        record::MOST,
        test_pki::Ca,
        verify::{ServerIs, TrustBundle},
    },
};

fn only(suite: SupportedCipherSuite) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider { cipher_suites: vec![suite], ..CryptoProvider::clone(&provider()) })
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (client, listener.accept().await.unwrap().0)
}

/// A client of this side at a server of rustls' own.
async fn at_server(ca: &Ca, suite: SupportedCipherSuite) -> (Mine, server::TlsStream<TcpStream>) {
    let (configs, leaf, roots) = (TlsConfigs::default(), ca.leaf("web"), ca.roots());
    let instance = Instance { meshnode: false, ..Instance::testing("db", "b", "10.0.0.2:1") };
    let made = configs.client(&leaf, &roots, &instance).unwrap();
    let config = ServerConfig::builder_with_provider(only(suite))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .unwrap()
        .with_client_cert_verifier(Arc::new(NoClientAuth))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(ca.leaf("db").key.clone())));
    let (near, far) = sockets().await;
    let accepting = TlsAcceptor::from(Arc::new(config)).accept(far);
    let connecting = handshake::connect(made.config.clone(), made.name.clone(), &near);
    let (session, peer) = tokio::join!(connecting, accepting);
    (Mine { session: session.unwrap(), socket: near, received: Vec::new() }, peer.unwrap())
}

/// A server of this side for a client of rustls' own.
async fn for_client(ca: &Ca, suite: SupportedCipherSuite) -> (Mine, client::TlsStream<TcpStream>) {
    let accepting = TlsConfigs::default().server(&ca.leaf("db"), &ca.roots()).unwrap();
    let (near, far) = sockets().await;
    let name = ServerName::try_from("db").unwrap();
    let connecting = TlsConnector::from(Arc::new(client_of(ca, suite))).connect(name, far);
    let (accepted, peer) = tokio::join!(handshake::accept(&accepting, &near), connecting);
    let (session, chain) = accepted.unwrap();
    assert_eq!(crate::tls::spiffe_id(&chain[0]).unwrap().service.as_str(), "web");
    (Mine { session, socket: near, received: Vec::new() }, peer.unwrap())
}

fn client_of(ca: &Ca, suite: SupportedCipherSuite) -> ClientConfig {
    let bundle = Arc::new(TrustBundle::new(ca.roots()).unwrap());
    let verifier = ServerIs { bundle, expected: ca.leaf("db").id.clone() };
    ClientConfig::builder_with_provider(only(suite))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(ca.leaf("web").key.clone())))
}

/// This side: the session, and a socket for it.
struct Mine {
    session: Session,
    socket: TcpStream,
    received: Vec<u8>,
}

impl Mine {
    async fn send(&mut self, data: &[u8]) {
        self.session.renew().unwrap();
        let mut wire = std::mem::take(&mut self.session.owed);
        for part in data.chunks(MOST) {
            let from = wire.len();
            wire.resize(from + part.len() + OVERHEAD, 0);
            let length = self.session.seal(part, &[], &mut wire[from..]).unwrap();
            wire.truncate(from + length);
        }
        self.socket.write_all(&wire).await.unwrap();
    }

    /// Receives until `count` bytes are there.
    async fn receive(&mut self, count: usize) -> Vec<u8> {
        let (mut data, mut plain) = (Vec::new(), vec![0; MOST + 2048]);
        while data.len() < count {
            match self.session.open(&self.received, &mut plain).unwrap() {
                Some((held, length)) => {
                    self.received.drain(..length);
                    if let Opened::Data(length) = held {
                        data.extend_from_slice(&plain[..length]);
                    }
                }
                None => {
                    let read = self.socket.read_buf(&mut self.received);
                    assert!(timeout(Duration::from_secs(20), read).await.unwrap().unwrap() > 0);
                }
            }
        }
        data
    }
}

/// Sends both ways: little, a record's most, and much.
async fn talk<S>(mine: &mut Mine, peer: &mut S)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    for size in [1, MOST, 100_000] {
        let data: Vec<u8> = (0..size).map(|i| u8::try_from(i % 251).unwrap()).collect();
        mine.send(&data).await;
        let mut got = vec![0; size];
        timeout(Duration::from_secs(20), peer.read_exact(&mut got)).await.unwrap().unwrap();
        assert!(got == data, "{size} bytes to the peer");
        peer.write_all(&data).await.unwrap();
        peer.flush().await.unwrap();
        assert!(mine.receive(size).await == data, "{size} bytes from the peer");
    }
}

#[tokio::test]
async fn each_cipher_of_each_version_is_understood_both_ways() {
    let ca = Ca::new("td.consul");
    for suite in provider().cipher_suites.clone() {
        // The leafs are of P-256.
        if suite.tls13().is_none() && format!("{:?}", suite.suite()).contains("RSA") {
            continue;
        }
        let (mut mine, mut peer) = at_server(&ca, suite).await;
        assert_eq!(peer.get_ref().1.negotiated_cipher_suite(), Some(suite));
        talk(&mut mine, &mut peer).await;
        let (mut mine, mut peer) = for_client(&ca, suite).await;
        assert_eq!(peer.get_ref().1.negotiated_cipher_suite(), Some(suite));
        talk(&mut mine, &mut peer).await;
    }
}

#[tokio::test]
async fn keys_are_renewed_on_this_side_when_they_are_worn_and_on_the_peers_word() {
    let ca = Ca::new("td.consul");
    for suite in provider().cipher_suites.iter().filter(|suite| suite.tls13().is_some()) {
        let (mut mine, mut peer) = at_server(&ca, *suite).await;
        for _ in 0..3 {
            mine.session.wear();
            talk(&mut mine, &mut peer).await;
            peer.get_mut().1.refresh_traffic_keys().unwrap();
            talk(&mut mine, &mut peer).await;
        }
        let (mut mine, mut peer) = for_client(&ca, *suite).await;
        mine.session.wear();
        peer.get_mut().1.refresh_traffic_keys().unwrap();
        talk(&mut mine, &mut peer).await;
    }
}

#[tokio::test]
async fn a_peer_that_renews_its_keys_with_the_last_of_its_handshake_is_refused() {
    let ca = Ca::new("td.consul");
    let accepting = TlsConfigs::default().server(&ca.leaf("db"), &ca.roots()).unwrap();
    let config = Arc::new(client_of(&ca, provider().cipher_suites[0]));
    let mut peer = rustls::ClientConnection::new(config, ServerName::try_from("db").unwrap()).unwrap();
    let (near, mut far) = sockets().await;
    let accepted = tokio::spawn(async move { handshake::accept(&accepting, &near).await.err() });
    let mut wire = Vec::new();
    while peer.is_handshaking() {
        peer.write_tls(&mut wire).unwrap();
        far.write_all(&std::mem::take(&mut wire)).await.unwrap();
        assert!(far.read_buf(&mut wire).await.unwrap() > 0);
        let mut read = &std::mem::take(&mut wire)[..];
        while !read.is_empty() {
            peer.read_tls(&mut read).unwrap();
            peer.process_new_packets().unwrap();
        }
    }
    peer.refresh_traffic_keys().unwrap();
    while peer.wants_write() {
        peer.write_tls(&mut wire).unwrap();
    }
    far.write_all(&wire).await.unwrap();
    let refused = accepted.await.unwrap().expect("it is refused");
    assert!(refused.to_string().contains("renewed"), "{refused}");
}

#[tokio::test]
async fn without_the_secrets_there_is_no_session() {
    let ca = Ca::new("td.consul");
    let mut accepting = TlsConfigs::default().server(&ca.leaf("db"), &ca.roots()).unwrap();
    let config = &mut Arc::get_mut(&mut accepting).unwrap().config;
    Arc::make_mut(config).key_log = Arc::new(rustls::NoKeyLog {});
    let (near, far) = sockets().await;
    let config = Arc::new(client_of(&ca, provider().cipher_suites[0]));
    let connecting = TlsConnector::from(config).connect(ServerName::try_from("db").unwrap(), far);
    let (accepted, _) = tokio::join!(handshake::accept(&accepting, &near), connecting);
    assert!(accepted.is_err_and(|error| error.to_string().contains("secrets")));
}

#[tokio::test]
async fn a_record_that_was_changed_or_repeated_or_is_none_ends_the_connection_with_an_alert() {
    let ca = Ca::new("td.consul");
    let suite = provider().cipher_suites[0];
    type Spoil = fn(&mut Vec<u8>);
    let cases: [(Spoil, BadRecord); 5] = [
        (|wire| *wire.last_mut().unwrap() ^= 1, BadRecord::Forged),
        (|wire| wire[6] ^= 1, BadRecord::Forged),
        (|wire| wire[0] = 99, BadRecord::Malformed),
        (|wire| wire[1] = 2, BadRecord::Malformed),
        (|wire| wire[3] = 0xff, BadRecord::Oversized),
    ];
    for (spoil, expected) in cases {
        let (mut mine, mut peer) = at_server(&ca, suite).await;
        peer.write_all(b"spoil me").await.unwrap();
        peer.flush().await.unwrap();
        let mut wire = Vec::new();
        let plain = &mut vec![0; MOST + 2048];
        // Session tickets come before the data.
        let record = loop {
            match record::whole(&wire).unwrap() {
                Some(record) if record.len() < 60 => break record.to_vec(),
                Some(record) => {
                    let length = record.len();
                    assert_eq!(mine.session.open(&wire, plain).unwrap(), Some((Opened::Nothing, length)));
                    wire.drain(..length);
                }
                None => assert!(mine.socket.read_buf(&mut wire).await.unwrap() > 0),
            }
        };
        let mut spoiled = record.clone();
        spoil(&mut spoiled);
        let error = mine.session.open(&spoiled, plain).unwrap_err();
        assert_eq!(error, Broken::Record(expected));
        mine.session.abort(&error);
        mine.socket.write_all(&mine.session.owed).await.unwrap();
        let told = peer.read(&mut [0]).await.unwrap_err();
        assert!(told.to_string().contains("alert"), "{told}");
    }
    // Sequence numbers: the same record is good once.
    let (mut mine, mut peer) = for_client(&ca, suite).await;
    peer.write_all(b"once").await.unwrap();
    peer.flush().await.unwrap();
    let (mut wire, plain) = (Vec::new(), &mut vec![0; MOST + 2048]);
    while record::whole(&wire).unwrap().is_none() {
        assert!(mine.socket.read_buf(&mut wire).await.unwrap() > 0);
    }
    assert!(matches!(mine.session.open(&wire, plain), Ok(Some((Opened::Data(4), _)))));
    assert_eq!(mine.session.open(&wire, plain), Err(Broken::Record(BadRecord::Forged)));
}

/// How often keys seal is bounded; how often they open is the peer's affair, which may never renew its own.
#[tokio::test]
async fn a_peer_that_never_renews_its_keys_is_understood() {
    let ca = Ca::new("td.consul");
    let (mut mine, mut peer) = at_server(&ca, provider().cipher_suites[0]).await;
    mine.session.opening.wear();
    for _ in 0..1100 {
        peer.write_all(b"x").await.unwrap();
        peer.flush().await.unwrap();
        assert_eq!(mine.receive(1).await, b"x");
    }
}

#[tokio::test]
async fn a_flood_of_key_updates_ends_the_connection_and_is_answered_once() {
    let ca = Ca::new("td.consul");
    let (mut mine, _peer) = for_client(&ca, provider().cipher_suites[0]).await;
    let request = [KEY_UPDATE, 0, 0, 1, 1];
    for _ in 0..MOST_WITHOUT_DATA {
        assert_eq!(mine.session.take_messages(&request), Ok(Opened::Nothing));
    }
    assert!(mine.session.owed.len() < 2 * (request.len() + OVERHEAD), "{}", mine.session.owed.len());
    assert_eq!(mine.session.take_messages(&request), Err(Broken::Unexpected));
    assert_eq!(mine.session.take_messages(&[]), Err(Broken::Unexpected));
}

#[tokio::test]
async fn the_end_is_close_notify_and_an_alert_is_named() {
    let ca = Ca::new("td.consul");
    let (mut mine, mut peer) = at_server(&ca, provider().cipher_suites[0]).await;
    mine.session.close().unwrap();
    mine.send(&[]).await;
    assert_eq!(peer.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(alert(&[1, 0]), Ok(Opened::CloseNotify));
    assert_eq!(alert(&[2, 49]), Err(Broken::Alert(AlertDescription::AccessDenied)));
    assert_eq!(alert(&[2]), Err(Broken::Unexpected));
}
