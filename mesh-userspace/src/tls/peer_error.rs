//! Why a peer was not believed: one reason for each way in which a handshake can fail.

use std::{io, sync::Arc};

use rustls::{AlertDescription, CertificateError, Error, OtherError, PeerIncompatible};

/// Why a handshake did not give an authenticated peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    #[error("the peer's certificate does not chain to the trust bundle (it claims to be {claims})")]
    UntrustedChain { claims: String },
    #[error("the peer's certificate is self-signed (it claims to be {claims})")]
    SelfSigned { claims: String },
    #[error("the peer's certificate has expired")]
    Expired,
    #[error("the peer's certificate is not valid yet; compare the hosts' clocks")]
    NotYetValid,
    #[error("the peer belongs to trust domain {found}, this mesh is {expected}")]
    WrongTrustDomain { expected: String, found: String },
    #[error("the peer is {found}, the catalog named {expected}")]
    WrongService { expected: String, found: String },
    #[error("the peer's certificate does not hold exactly one SPIFFE ID: {0}")]
    BadSan(String),
    #[error("the peer's certificate cannot be used: {0}")]
    BadCertificate(String),
    #[error("the peer presented no client certificate")]
    NoClientCertificate,
    #[error("the peer speaks neither TLS 1.3 nor TLS 1.2")]
    ProtocolVersion,
    #[error("the peer does not speak TLS")]
    PlainText,
    #[error("the peer refused this side in the handshake: {0}")]
    Refused(String),
    #[error("the TLS handshake failed: {0}")]
    Handshake(String),
    #[error("the peer closed the connection during the handshake")]
    Closed,
    #[error("the connection failed during the handshake: {0}")]
    Connection(io::ErrorKind),
    #[error("the peer did not finish the handshake in time")]
    Timeout,
}

impl PeerError {
    /// Sorts what a handshake over a socket ended with.
    pub fn from_io(error: &io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(error) => Self::from_tls(error),
            None if error.kind() == io::ErrorKind::UnexpectedEof => Self::Closed,
            None => Self::Connection(error.kind()),
        }
    }

    fn from_tls(error: &Error) -> Self {
        match error {
            Error::InvalidCertificate(certificate) => Self::from_certificate(certificate),
            Error::NoCertificatesPresented => Self::NoClientCertificate,
            // A first record that is none means that the peer did not mean to speak TLS. Once keys are agreed,
            // garbage is a decryption error instead.
            Error::InvalidMessage(_) | Error::PeerSentOversizedRecord => Self::PlainText,
            Error::PeerIncompatible(
                PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled
                | PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                // What each client since TLS 1.2 sends, and no earlier one: rustls looks for it before the version.
                | PeerIncompatible::SignatureAlgorithmsExtensionRequired,
            )
            | Error::AlertReceived(AlertDescription::ProtocolVersion) => Self::ProtocolVersion,
            Error::AlertReceived(alert) => Self::Refused(refusal(*alert)),
            other => Self::Handshake(other.to_string()),
        }
    }

    fn from_certificate(error: &CertificateError) -> Self {
        match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Self::NotYetValid,
            CertificateError::Other(OtherError(inner)) => match inner.downcast_ref::<Self>() {
                Some(reason) => reason.clone(),
                None => Self::BadCertificate(inner.to_string()),
            },
            other => Self::BadCertificate(other.to_string()),
        }
    }
}

/// Returns in words what an alert with which a peer ended the connection says.
pub fn refusal(alert: AlertDescription) -> String {
    match alert {
        // It authorizes as a part of verification, so that TLS 1.3 clients are told after their handshake.
        AlertDescription::BadCertificate => {
            "alert BadCertificate, which Consul's built-in proxy also sends when its intentions deny"
                .to_owned()
        }
        alert => format!("alert {alert:?}"),
    }
}

impl From<PeerError> for Error {
    /// Carries the reason through rustls. The peer gets the alert `certificate_unknown` for those that have no alert
    /// of their own.
    fn from(error: PeerError) -> Self {
        Self::InvalidCertificate(match error {
            PeerError::Expired => CertificateError::Expired,
            PeerError::NotYetValid => CertificateError::NotValidYet,
            other => CertificateError::Other(OtherError(Arc::new(other))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_survives_the_way_through_rustls() {
        for reason in [
            PeerError::Expired,
            PeerError::NotYetValid,
            PeerError::WrongService { expected: "a".into(), found: "b".into() },
            PeerError::SelfSigned { claims: "nobody".into() },
        ] {
            let error = io::Error::new(io::ErrorKind::InvalidData, Error::from(reason.clone()));
            assert_eq!(PeerError::from_io(&error), reason);
        }
    }

    #[test]
    fn a_closed_socket_is_no_certificate_problem() {
        assert_eq!(PeerError::from_io(&io::ErrorKind::UnexpectedEof.into()), PeerError::Closed);
        let reset = io::Error::from(io::ErrorKind::ConnectionReset);
        assert_eq!(PeerError::from_io(&reset), PeerError::Connection(io::ErrorKind::ConnectionReset));
    }
}
