//! TLS 1.3's traffic secrets, which a connection's next keys come of (RFC 8446, 7.2).
//!
//! rustls would make them of what it keeps of a connection: a kilobyte and a half, the peer's chain in it. Here the two secrets
//! are heard where rustls tells them to a log of keys, they go no further than the connection's own session, and nothing else is kept.

use std::cell::Cell;

use rustls::{
    ConnectionTrafficSecrets, ExtractedSecrets, KeyLog, SupportedCipherSuite, Tls13CipherSuite,
    crypto::tls13::OkmBlock,
};
use zeroize::Zeroizing;

use super::record::{Keys, parts};

const CLIENT: &str = "CLIENT_TRAFFIC_SECRET_0";
const SERVER: &str = "SERVER_TRAFFIC_SECRET_0";

/// What rustls told while it processed what had come.
#[derive(Default)]
pub(super) struct Heard {
    client: Option<OkmBlock>,
    server: Option<OkmBlock>,
}

thread_local! {
    static HEARD: Cell<Heard> = const { Cell::new(Heard { client: None, server: None }) };
}

impl Heard {
    /// Lets a connection, whose configuration has [`Ear`], process what has come.
    pub fn during<R>(&mut self, process: impl FnOnce() -> R) -> R {
        // Of another connection, whose processing ended in a panic.
        drop(HEARD.take());
        let done = process();
        let told = HEARD.take();
        if told.client.is_some() {
            *self = told;
        }
        done
    }
}

/// The "log" that rustls tells the secrets to: it holds them for whoever called rustls.
#[derive(Debug)]
pub(super) struct Ear;

impl KeyLog for Ear {
    fn will_log(&self, label: &str) -> bool {
        matches!(label, CLIENT | SERVER)
    }

    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        let mut heard = HEARD.take();
        let at = if label == CLIENT { &mut heard.client } else { &mut heard.server };
        *at = Some(OkmBlock::new(secret));
        HEARD.set(heard);
    }
}

/// What the next keys of both directions come of.
pub(super) struct Secrets {
    suite: &'static Tls13CipherSuite,
    sealing: OkmBlock,
    opening: OkmBlock,
}

impl Secrets {
    /// `None`: what was heard is not what the connection's keys came of. No peer has a reason to renew its keys together with the
    /// end of the handshake; rustls, which would have to answer it, does not say what.
    pub fn new(
        suite: SupportedCipherSuite,
        is_client: bool,
        heard: Heard,
        keys: &ExtractedSecrets,
    ) -> Option<Self> {
        let SupportedCipherSuite::Tls13(suite) = suite else { return None };
        let Heard { client: Some(client), server: Some(server) } = heard else { return None };
        let (sealing, opening) = if is_client { (client, server) } else { (server, client) };
        let both = [(&sealing, &keys.tx.1), (&opening, &keys.rx.1)];
        both.iter().all(|(secret, keys)| came_of(keys, suite, secret)).then_some(())?;
        Some(Self { suite, sealing, opening })
    }

    /// Returns the keys after `keys`, which seal.
    pub fn next_sealing(&mut self, keys: &Keys) -> Option<Keys> {
        self.sealing = next(self.suite, &self.sealing);
        keys.next(|label, out| expand(self.suite, &self.sealing, label, out))
    }

    /// Returns the keys after `keys`, which open.
    pub fn next_opening(&mut self, keys: &Keys) -> Option<Keys> {
        self.opening = next(self.suite, &self.opening);
        keys.next(|label, out| expand(self.suite, &self.opening, label, out))
    }
}

/// Whether `keys` came of `secret`.
fn came_of(keys: &ConnectionTrafficSecrets, suite: &'static Tls13CipherSuite, secret: &OkmBlock) -> bool {
    let mut iv = [0; 12];
    expand(suite, secret, b"iv", &mut iv);
    parts(keys).is_some_and(|(_, _, known)| iv == known.as_ref())
}

fn next(suite: &'static Tls13CipherSuite, secret: &OkmBlock) -> OkmBlock {
    let mut next = Zeroizing::new([0; OkmBlock::MAX_LEN]);
    let next = &mut next[..secret.as_ref().len()];
    expand(suite, secret, b"traffic upd", next);
    OkmBlock::new(next)
}

/// HKDF-Expand-Label with an empty context (RFC 8446, 7.1).
fn expand(suite: &'static Tls13CipherSuite, secret: &OkmBlock, label: &[u8], out: &mut [u8]) {
    const PREFIX: &[u8] = b"tls13 ";
    let length = u16::try_from(out.len()).expect("invariant: a key is short").to_be_bytes();
    let label_length = u8::try_from(PREFIX.len() + label.len()).expect("invariant: a label is short");
    suite
        .hkdf_provider
        .expander_for_okm(secret)
        .expand_slice(&[&length, &[label_length], PREFIX, label, &[0]], out)
        .expect("invariant: a key is short");
}
