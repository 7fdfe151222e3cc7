//! TLS between hosts: which peers are believed, and the rustls configurations that believe them.
//!
//! A peer is authenticated here (chain, validity, exactly one SPIFFE ID, and on the client's side exactly the one that
//! the catalog named). Whether an authenticated caller *may* connect is decided in `proxy`, for each connection.

mod configs;
mod external;
pub mod handshake;
mod peer_error;
pub mod record;
mod session;
#[cfg(test)]
pub(crate) mod test_pki;
mod verify;

use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};

pub use configs::{Accepting, Client, ConfigError, MESHNODE, TlsConfigs};
pub use external::{Asked, ExternalError, ExternalFiles, ExternalSession, ExternalTls, FileError};
pub use peer_error::{PeerError, refusal};
pub use session::{Broken, Opened, Session};
#[cfg(test)]
pub(crate) use verify::testing_verify;
pub use verify::{peer_id, spiffe_id};

/// Returns the one crypto provider of the process: aws-lc-rs, with AES-128-GCM offered before AES-256-GCM.
///
/// The strength of a connection is that of its P-256 leafs (128 bits), which the longer key does not raise but which
/// makes each byte dearer. Go's TLS, and so Consul's proxy, prefers the same.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites.sort_by_key(|suite| !format!("{:?}", suite.suite()).contains("AES_128_GCM"));
        // The sort is stable: TLS 1.3's suites must stay before those of 1.2.
        provider.cipher_suites.sort_by_key(|suite| suite.tls13().is_none());
        Arc::new(provider)
    });
    PROVIDER.clone()
}
