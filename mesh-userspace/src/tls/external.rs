//! TLS towards a service outside the mesh, of which this host is the gateway: whom it believes, and what it proves itself with.
//!
//! The mesh's own trust bundle and leafs have no part in it. The server's certificate is verified against the CAs of one file,
//! for one name; a client certificate is presented where one is configured and the server asks for one.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, Error, OtherError, PeerIncompatible, RootCertStore,
    SignatureScheme,
    client::{ResolvesClientCert, Resumption},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use tokio::net::TcpStream;

use super::{
    handshake, provider,
    secrets::Ear,
    session::{Broken, Session},
};

/// A file with more than this is refused: all CAs of the web are 250 kB.
const LARGEST_FILE: u64 = 4 << 20;

/// What it takes: whose server certificates are believed, for which name, and this side's own certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalFiles {
    /// In PEM, one or more.
    pub ca_file: PathBuf,
    /// What the certificate must be for; sent as SNI unless it is an address.
    pub name: ServerName<'static>,
    /// The chain, this side's own certificate first, and its key.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// Why one of the files cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", .path.display())]
pub struct FileError {
    /// Which of the configuration's keys names it.
    pub key: &'static str,
    pub path: PathBuf,
    pub why: String,
}

/// The files, read and checked.
pub struct ExternalTls {
    files: ExternalFiles,
    config: ClientConfig,
    own: Option<Arc<CertifiedKey>>,
    /// What was read, to tell whether it has changed.
    material: Material,
}

type Material = (Vec<u8>, Option<(Vec<u8>, Vec<u8>)>);

impl PartialEq for ExternalTls {
    fn eq(&self, other: &Self) -> bool {
        self.files == other.files && self.material == other.material
    }
}

/// Without keys.
impl fmt::Debug for ExternalTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.files.fmt(f)
    }
}

impl ExternalTls {
    /// Reads and checks the files.
    pub fn load(files: &ExternalFiles) -> Result<Self, FileError> {
        let ca = read("ca_file", &files.ca_file)?;
        let roots = roots(&files.ca_file, &ca)?;
        let (own, own_material) = match &files.own {
            None => (None, None),
            Some((cert_file, key_file)) => {
                let (cert, key) = (read("cert_file", cert_file)?, read("key_file", key_file)?);
                let certified = certified((cert_file, &cert), (key_file, &key))?;
                (Some(Arc::new(certified)), Some((cert, key)))
            }
        };
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13, &TLS12])
            .expect("invariant: the provider has suites of both versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        // As in the mesh: each connection verifies the certificate that there is now.
        config.resumption = Resumption::disabled();
        // The records are not rustls' business: see `record`.
        config.enable_secret_extraction = true;
        config.key_log = Arc::new(Ear);
        Ok(Self { files: files.clone(), config, own, material: (ca, own_material) })
    }

    /// What the server's certificate must be for.
    pub fn name(&self) -> String {
        self.files.name.to_str().into_owned()
    }

    /// Whether this side has a certificate to present.
    pub fn has_certificate(&self) -> bool {
        self.own.is_some()
    }

    /// Makes TLS of a connection; nothing but the handshake is sent before the server is verified.
    pub async fn connect(&self, stream: &TcpStream) -> Result<ExternalSession, ExternalError> {
        let own = Arc::new(Own { certificate: self.own.clone(), asked: AtomicBool::new(false) });
        let mut config = self.config.clone();
        config.client_auth_cert_resolver = own.clone();
        let made = handshake::connect(Arc::new(config), self.files.name.clone(), stream).await;
        let asked = match (own.asked.load(Relaxed), self.has_certificate()) {
            (false, _) => Asked::No,
            (true, true) => Asked::Presented,
            (true, false) => Asked::HadNone,
        };
        let session = made.map_err(|error| ExternalError::from_io(&error, asked))?;
        Ok(ExternalSession { session, asked })
    }
}

/// An established connection to an external service, without its socket.
pub struct ExternalSession {
    pub session: Session,
    pub asked: Asked,
}

/// Whether the server wanted a certificate of this side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    No,
    Presented,
    HadNone,
}

/// Presents a certificate, and remembers that it was asked for: TLS 1.3 says only after the handshake that it misses one.
#[derive(Debug)]
struct Own {
    certificate: Option<Arc<CertifiedKey>>,
    asked: AtomicBool,
}

impl ResolvesClientCert for Own {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asked.store(true, Relaxed);
        self.certificate.clone()
    }

    fn has_certs(&self) -> bool {
        // Else rustls does not ask, and nobody would know that the server did.
        true
    }
}

/// Why there is no TLS with an external service, or no more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExternalError {
    #[error("no CA of ca_file signed its certificate")]
    UnknownCa,
    #[error("its certificate is not for {expected}, but for {found} (sni says which name to expect)")]
    WrongName { expected: String, found: String },
    #[error("its certificate has expired")]
    Expired,
    #[error("its certificate is not valid yet; compare the clocks")]
    NotYetValid,
    #[error("its certificate cannot be used: {0}")]
    BadCertificate(String),
    #[error("it demands a client certificate, and the gateway has none (cert_file and key_file)")]
    WantsCertificate,
    #[error("it refused the gateway's certificate (cert_file): {0}")]
    RefusedCertificate(String),
    #[error("it refused the handshake: {0}")]
    Refused(String),
    #[error("it speaks neither TLS 1.3 nor TLS 1.2")]
    ProtocolVersion,
    #[error("it does not speak TLS from the first byte (STARTTLS and its like are not supported)")]
    PlainText,
    #[error("it closed the connection during the handshake")]
    Closed,
    #[error("the connection failed during the handshake: {0}")]
    Connection(io::ErrorKind),
    #[error("it did not finish the handshake in time")]
    Timeout,
    #[error("the handshake failed: {0}")]
    Handshake(String),
    #[error("it broke the TLS protocol: {0}")]
    Broken(String),
    #[error("it ended without close_notify: what was received may be cut short")]
    Truncated,
}

impl ExternalError {
    /// Sorts what a handshake over a socket ended with.
    fn from_io(error: &io::Error, asked: Asked) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(error) => Self::from_tls(error, asked),
            None if error.kind() == io::ErrorKind::UnexpectedEof => Self::Closed,
            None => Self::Connection(error.kind()),
        }
    }

    fn from_tls(error: &Error, asked: Asked) -> Self {
        match error {
            Error::InvalidCertificate(certificate) => Self::from_certificate(certificate),
            Error::InvalidMessage(_) | Error::PeerSentOversizedRecord => Self::PlainText,
            Error::PeerIncompatible(
                PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
            )
            | Error::AlertReceived(AlertDescription::ProtocolVersion) => Self::ProtocolVersion,
            Error::AlertReceived(alert) => Self::from_alert(*alert, asked),
            other => Self::Handshake(other.to_string()),
        }
    }

    /// Says what an alert means, in or after the handshake.
    pub fn from_alert(alert: AlertDescription, asked: Asked) -> Self {
        let text = format!("alert {alert:?}");
        match asked {
            Asked::HadNone => Self::WantsCertificate,
            Asked::Presented => Self::RefusedCertificate(text),
            Asked::No => Self::Refused(text),
        }
    }

    /// Sorts what a connection ended with.
    pub fn from_broken(error: &Broken, asked: Asked) -> Self {
        match error {
            Broken::Alert(alert) => Self::from_alert(*alert, asked),
            other => Self::Broken(other.to_string()),
        }
    }

    fn from_certificate(error: &CertificateError) -> Self {
        match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Self::NotYetValid,
            // The second: by one of the same name with another key.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownCa,
            CertificateError::NotValidForNameContext { expected, presented } => {
                let found = match &presented[..] {
                    [] => "no name at all (subjectAltName)".to_owned(),
                    names => names.join(", "),
                };
                Self::WrongName { expected: expected.to_str().into_owned(), found }
            }
            CertificateError::Other(OtherError(inner))
                if matches!(inner.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity)) =>
            {
                Self::BadCertificate(
                    "it is a CA's own; a server's is signed by a CA and says CA:FALSE".to_owned(),
                )
            }
            other => Self::BadCertificate(other.to_string()),
        }
    }
}

fn failed(key: &'static str, path: &Path, why: impl fmt::Display) -> FileError {
    FileError { key, path: path.to_owned(), why: why.to_string() }
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, FileError> {
    let cannot = |error: io::Error| failed(key, path, format_args!("cannot be read: {error}"));
    let about = fs::metadata(path).map_err(cannot)?;
    if !about.is_file() {
        return Err(failed(key, path, "is not a file"));
    }
    if about.len() > LARGEST_FILE {
        return Err(failed(key, path, format_args!("has more than {LARGEST_FILE} bytes")));
    }
    fs::read(path).map_err(cannot)
}

fn certificates(
    key: &'static str,
    path: &Path,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| failed(key, path, format_args!("is not PEM: {error}")))?;
    if found.is_empty() {
        return Err(failed(key, path, "has no certificate in PEM"));
    }
    Ok(found)
}

fn roots(path: &Path, pem: &[u8]) -> Result<RootCertStore, FileError> {
    let mut roots = RootCertStore::empty();
    for (nth, certificate) in certificates("ca_file", path, pem)?.into_iter().enumerate() {
        roots.add(certificate).map_err(|error| {
            failed("ca_file", path, format_args!("certificate {} cannot be used: {error}", nth + 1))
        })?;
    }
    Ok(roots)
}

fn certified(cert: (&Path, &[u8]), key: (&Path, &[u8])) -> Result<CertifiedKey, FileError> {
    let chain = certificates("cert_file", cert.0, cert.1)?;
    let private = PrivateKeyDer::from_pem_slice(key.1)
        .map_err(|_| failed("key_file", key.0, "has no unencrypted private key in PEM"))?;
    CertifiedKey::from_der(chain, private, &provider()).map_err(|error| match error {
        Error::InconsistentKeys(_) => failed("key_file", key.0, "is not the key of cert_file's certificate"),
        Error::InvalidCertificate(_) => failed("cert_file", cert.0, error),
        other => failed("key_file", key.0, other),
    })
}

#[cfg(test)]
mod tests;
