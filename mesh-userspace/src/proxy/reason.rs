//! Why a flow ended, or never came to be.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use super::flow::Direction;
use crate::{
    identity::ServiceName,
    intention::{Pattern, http_denied},
    tls::{ConfigError, ExternalError, PeerError},
};

/// What ended a flow. [`name`](Self::name) is for counters, `Display` is for people.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    #[error("both sides closed it")]
    Finished,
    #[error("the program reset it ({0})")]
    ProgramReset(io::ErrorKind),
    #[error("the peer reset it ({0})")]
    PeerReset(io::ErrorKind),
    #[error("the peer's side ended without close_notify: what was received may be cut short")]
    Truncated,
    #[error("the peer broke the TLS protocol: {0}")]
    BrokenTls(String),
    #[error("the peer refused this side: {0}")]
    RefusedByPeer(String),

    #[error("the intention that allowed it is gone")]
    Revoked,
    #[error("{0} no longer belongs to this host, or the trust bundle is gone")]
    IdentityGone(ServiceName),
    #[error("the daemon is stopping")]
    Drain,
    #[error("an internal error ended it; see the log")]
    Internal,

    #[error("the kernel did not redirect it here")]
    NotCaptured,
    #[error("the kernel's record of it cannot be read: {0}")]
    Lookup(io::ErrorKind),
    #[error("catalog and intentions were not read yet")]
    NotSynced,
    #[error("no intention allows {from} to connect to {to}")]
    NotAllowed { from: ServiceName, to: ServiceName },
    #[error("{}", http_denied(.from, .to))]
    HttpPermissions { from: Pattern, to: Pattern },
    #[error("the peer is of namespace {0}, which intentions here do not name")]
    OtherNamespace(String),
    #[error("no instance of {0} has the address that was dialled, or is left to try")]
    NoInstance(ServiceName),
    #[error("the address that was dialled belongs to {found}, not to {expected}")]
    OtherService { expected: ServiceName, found: ServiceName },
    #[error("there is no certificate for {0} yet")]
    NoLeaf(ServiceName),
    #[error("the certificate of {0} on this host has expired")]
    LeafExpired(ServiceName),
    #[error("there is no trust bundle yet")]
    NoRoots,
    #[error("TLS cannot be configured: {0}")]
    Config(ConfigError),
    #[error("the instance's mesh port cannot be reached: {0}")]
    Unreachable(io::ErrorKind),
    #[error("the instance's mesh port did not answer in time")]
    ConnectTimeout,
    #[error("the peer's daemon did not reach its program, or did not let this side in")]
    NotReady,
    #[error("the program that serves it cannot be reached: {0}")]
    ProgramUnreachable(io::ErrorKind),
    #[error("the program that serves it did not accept in time")]
    ProgramTimeout,
    #[error("the external service's name does not resolve: {0}")]
    ExternalUnresolved(std::sync::Arc<str>),
    #[error("no TLS with the external service: {0}")]
    ExternalTls(ExternalError),
    #[error("a protected port was dialled around the mesh")]
    Guarded,
    #[error("{0}")]
    Peer(PeerError),
}

/// One list for the names, so that counters, metrics and `status` cannot disagree.
macro_rules! names {
    ($($name:literal: $pattern:pat,)*) => {
        /// The names of all reasons, in the order of their counters.
        pub const NAMES: &[&str] = &[$($name),*];

        impl Reason {
            /// Returns the reason without its details, in kebab case.
            pub fn name(&self) -> &'static str {
                match self {
                    $($pattern => $name,)*
                }
            }
        }
    };
}

names! {
    "finished": Self::Finished,
    "program-reset": Self::ProgramReset(_),
    "peer-reset": Self::PeerReset(_),
    "truncated": Self::Truncated,
    "broken-tls": Self::BrokenTls(_),
    "refused-by-peer": Self::RefusedByPeer(_) | Self::Peer(PeerError::Refused(_)),
    "revoked": Self::Revoked,
    "identity-gone": Self::IdentityGone(_),
    "drain": Self::Drain,
    "internal": Self::Internal,
    "not-captured": Self::NotCaptured,
    "lookup-failed": Self::Lookup(_),
    "not-synced": Self::NotSynced,
    "not-allowed": Self::NotAllowed { .. },
    "http-permissions": Self::HttpPermissions { .. },
    "other-namespace": Self::OtherNamespace(_),
    "no-instance": Self::NoInstance(_),
    "other-service": Self::OtherService { .. },
    "no-leaf": Self::NoLeaf(_),
    "leaf-expired": Self::LeafExpired(_),
    "no-roots": Self::NoRoots,
    "tls-config": Self::Config(_),
    "unreachable": Self::Unreachable(_),
    "connect-timeout": Self::ConnectTimeout,
    "not-ready": Self::NotReady,
    "program-unreachable": Self::ProgramUnreachable(_),
    "program-timeout": Self::ProgramTimeout,
    "external-unresolved": Self::ExternalUnresolved(_),
    "external-untrusted": Self::ExternalTls(
        ExternalError::UnknownCa
            | ExternalError::WrongName { .. }
            | ExternalError::Expired
            | ExternalError::NotYetValid
            | ExternalError::BadCertificate(_)
    ),
    "external-refused": Self::ExternalTls(
        ExternalError::WantsCertificate | ExternalError::RefusedCertificate(_) | ExternalError::Refused(_)
    ),
    "external-truncated": Self::ExternalTls(ExternalError::Truncated),
    "external-tls": Self::ExternalTls(_),
    "guarded": Self::Guarded,
    "untrusted-chain": Self::Peer(PeerError::UntrustedChain { .. }),
    "self-signed": Self::Peer(PeerError::SelfSigned { .. }),
    "expired": Self::Peer(PeerError::Expired),
    "not-yet-valid": Self::Peer(PeerError::NotYetValid),
    "wrong-trust-domain": Self::Peer(PeerError::WrongTrustDomain { .. }),
    "wrong-service": Self::Peer(PeerError::WrongService { .. }),
    "bad-san": Self::Peer(PeerError::BadSan(_)),
    "bad-certificate": Self::Peer(PeerError::BadCertificate(_)),
    "no-client-certificate": Self::Peer(PeerError::NoClientCertificate),
    "protocol-version": Self::Peer(PeerError::ProtocolVersion),
    "plain-text": Self::Peer(PeerError::PlainText),
    "handshake-failed": Self::Peer(PeerError::Handshake(_)),
    "handshake-closed": Self::Peer(PeerError::Closed),
    "handshake-connection": Self::Peer(PeerError::Connection(_)),
    "handshake-timeout": Self::Peer(PeerError::Timeout),
}

impl Reason {
    /// Whether the flow never carried a byte because this side, or the peer's handshake, refused it.
    pub fn is_refusal(&self) -> bool {
        !matches!(
            self,
            Self::Finished
                | Self::ProgramReset(_)
                | Self::PeerReset(_)
                | Self::Truncated
                | Self::BrokenTls(_)
                | Self::ExternalTls(ExternalError::Broken(_) | ExternalError::Truncated)
                | Self::Revoked
                | Self::IdentityGone(_)
                | Self::Drain
                | Self::Internal
        )
    }
}

/// How flows ended, counted by direction and reason.
pub struct Refusals {
    counts: [[AtomicU64; NAMES.len()]; 2],
}

/// One counter of [`Refusals`].
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ReasonCount {
    pub direction: Direction,
    /// One of [`NAMES`].
    pub reason: String,
    pub count: u64,
}

impl Default for Refusals {
    fn default() -> Self {
        Self { counts: std::array::from_fn(|_| std::array::from_fn(|_| AtomicU64::new(0))) }
    }
}

impl Refusals {
    pub fn count(&self, direction: Direction, reason: &Reason) {
        let name = reason.name();
        let index = NAMES.iter().position(|known| *known == name).expect("NAMES lists each reason");
        self.counts[direction as usize][index].fetch_add(1, Relaxed);
    }

    /// Returns how often flows of `direction` ended for the reason of that name.
    pub fn of(&self, direction: Direction, name: &str) -> u64 {
        let index = NAMES.iter().position(|known| *known == name);
        index.map_or(0, |index| self.counts[direction as usize][index].load(Relaxed))
    }

    /// Returns all counters, the zeros included, so that a metric exists before it is first needed.
    pub fn snapshot(&self) -> Vec<ReasonCount> {
        let of = |direction: Direction| {
            NAMES.iter().map(move |reason| ReasonCount {
                direction,
                reason: (*reason).to_owned(),
                count: self.of(direction, reason),
            })
        };
        of(Direction::Outbound).chain(of(Direction::Inbound)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_apart_by_direction() {
        let refusals = Refusals::default();
        refusals.count(Direction::Inbound, &Reason::Peer(PeerError::Expired));
        refusals.count(Direction::Inbound, &Reason::Peer(PeerError::Expired));
        assert_eq!(refusals.of(Direction::Inbound, "expired"), 2);
        assert_eq!(refusals.of(Direction::Outbound, "expired"), 0);
        let counted: Vec<_> = refusals.snapshot().into_iter().filter(|c| c.count > 0).collect();
        let expected = ReasonCount { direction: Direction::Inbound, reason: "expired".to_owned(), count: 2 };
        assert_eq!(counted, [expected]);
    }

    #[test]
    fn no_two_reasons_share_a_name() {
        let mut names = NAMES.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), NAMES.len());
    }
}
