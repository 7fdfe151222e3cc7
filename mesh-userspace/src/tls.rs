//! TLS between hosts: which peers are believed, and the rustls configurations that believe them.
//!
//! A peer is authenticated here (chain, validity, exactly one SPIFFE ID, and on the client's side exactly the one that
//! the catalog named). Whether an authenticated caller *may* connect is decided in `proxy`, for each connection.

mod configs;
mod external;
pub mod handshake;
mod peer_error;
pub mod record;
mod secrets;
mod session;
#[cfg(test)]
pub(crate) mod test_pki;
mod verify;

use std::sync::{Arc, LazyLock};

use rustls::{
    SupportedCipherSuite,
    crypto::{CryptoProvider, aws_lc_rs},
};

pub use configs::{Accepting, Client, ConfigError, MESHNODE, TlsConfigs};
pub use external::{Asked, ExternalError, ExternalFiles, ExternalSession, ExternalTls, FileError};
pub use peer_error::{PeerError, refusal};
pub use session::{Broken, Opened, Session};
#[cfg(test)]
pub(crate) use verify::testing_verify;
pub use verify::{Chain, Peer, spiffe_id};

/// Returns the one crypto provider of the process: aws-lc-rs, with the cipher suites in the order that this host prefers.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let mut provider = aws_lc_rs::default_provider();
        order(&mut provider.cipher_suites, has_aes());
        Arc::new(provider)
    });
    PROVIDER.clone()
}

/// Puts first what costs a byte least. With AES in the processor that is AES-128: the strength of a connection is that of its
/// P-256 leafs (128 bits), which AES-256 does not raise; Go's TLS, and so Consul's proxy, prefers the same. Without it,
/// ChaCha20 takes a fraction of what AES takes.
fn order(suites: &mut [SupportedCipherSuite], has_aes: bool) {
    let first = if has_aes { "AES_128_GCM" } else { "CHACHA20" };
    suites.sort_by_key(|suite| !format!("{:?}", suite.suite()).contains(first));
    // The sort is stable: TLS 1.3's suites must stay before those of 1.2.
    suites.sort_by_key(|suite| suite.tls13().is_none());
}

/// Whether this host's processor has instructions for AES-GCM.
fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes")
        && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cipher_suite_is_what_the_processor_is_good_at_and_tls_1_3_stays_first() {
        for (has_aes, first) in
            [(true, "TLS13_AES_128_GCM_SHA256"), (false, "TLS13_CHACHA20_POLY1305_SHA256")]
        {
            let mut suites = aws_lc_rs::default_provider().cipher_suites;
            let count = suites.len();
            order(&mut suites, has_aes);
            assert_eq!(format!("{:?}", suites[0].suite()), first);
            assert_eq!(suites.len(), count);
            assert!(suites.is_sorted_by_key(|suite| suite.tls13().is_none()));
            let of_1_2 = suites.iter().find(|suite| suite.tls13().is_none()).unwrap();
            assert!(format!("{:?}", of_1_2.suite()).contains(if has_aes { "AES_128" } else { "CHACHA20" }));
        }
    }
}
