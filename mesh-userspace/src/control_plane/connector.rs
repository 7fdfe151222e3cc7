//! Opens connections to the API: TCP, TLS over TCP, or a unix socket. Knows nothing of HTTP.

use std::{
    fs, io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::TlsConnector;

use super::{
    address::{ApiAddress, HostPort},
    settings::ApiAccess,
};

/// Time for TCP and TLS to be established together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A peer that does not acknowledge for this long is gone; a watch would wait for its answer much longer.
const DEAD_PEER: Duration = Duration::from_secs(20);

/// Why no connection could be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("no answer within {} s", CONNECT_TIMEOUT.as_secs())]
    Timeout,
    #[error("TLS: {0}")]
    Tls(io::Error),
    #[error("it does not speak TLS")]
    NotTls,
}

/// Why the TLS files of an `https://` address cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsSetupError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: rustls::pki_types::pem::Error },
    #[error("{0} holds no certificate; it must be PEM with at least one CERTIFICATE")]
    Empty(PathBuf),
    #[error("no CA to verify the server with: set control_plane.ca_file (no system bundle was found)")]
    NoCa,
    #[error("`{0}` is neither a DNS name nor an address")]
    Name(String),
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
}

/// A `tower` service that opens one connection, whatever URI it is asked for: there is only one address.
#[derive(Clone)]
pub struct Connector {
    target: Arc<Target>,
}

enum Target {
    Tcp(HostPort),
    Tls { at: HostPort, name: ServerName<'static>, tls: TlsConnector },
    Unix(PathBuf),
}

impl Connector {
    /// # Errors
    /// When the address is `https://` and its TLS files cannot be used.
    pub fn new(access: &ApiAccess) -> Result<Self, TlsSetupError> {
        let target = match &access.address {
            ApiAddress::Unix(path) => return Ok(Self::unix(path)),
            ApiAddress::Http(at) => Target::Tcp(at.clone()),
            ApiAddress::Https(at) => Target::Tls {
                name: ServerName::try_from(at.host.clone())
                    .map_err(|_| TlsSetupError::Name(at.host.clone()))?,
                tls: TlsConnector::from(Arc::new(tls_config(access)?)),
                at: at.clone(),
            },
        };
        Ok(Self { target: Arc::new(target) })
    }

    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self { target: Arc::new(Target::Unix(path.into())) }
    }
}

fn tls_config(access: &ApiAccess) -> Result<ClientConfig, TlsSetupError> {
    let mut roots = RootCertStore::empty();
    let system =
        ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
    let found = || system.iter().map(Path::new).find(|p| fs::exists(p).unwrap_or(false));
    let file = access.ca_file.as_deref().or_else(found).ok_or(TlsSetupError::NoCa)?;
    for cert in certs(file)? {
        roots.add(cert)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    Ok(match &access.client_cert {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let key = PrivateKeyDer::from_pem_file(&own.key_file)
                .map_err(|source| TlsSetupError::Read { path: own.key_file.clone(), source })?;
            builder.with_client_auth_cert(certs(&own.cert_file)?, key)?
        }
    })
}

fn certs(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsSetupError> {
    let failed = |source| TlsSetupError::Read { path: path.to_owned(), source };
    let certs: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)?;
    if certs.is_empty() { Err(TlsSetupError::Empty(path.to_owned())) } else { Ok(certs) }
}

impl Target {
    async fn connect(&self) -> Result<ApiStream, ConnectError> {
        match self {
            Self::Unix(path) => Ok(ApiStream(Box::new(UnixStream::connect(path).await?))),
            Self::Tcp(at) => Ok(ApiStream(Box::new(tcp(at).await?))),
            Self::Tls { at, name, tls } => {
                let tcp = tcp(at).await?;
                let tls = tls.connect(name.clone(), tcp).await.map_err(tls_failure)?;
                Ok(ApiStream(Box::new(tls)))
            }
        }
    }
}

/// What answers with no record of TLS speaks something else: HTTP, most likely.
fn tls_failure(error: io::Error) -> ConnectError {
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(rustls::Error::InvalidMessage(
            rustls::InvalidMessage::InvalidContentType | rustls::InvalidMessage::UnknownProtocolVersion,
        )) => ConnectError::NotTls,
        _ => ConnectError::Tls(error),
    }
}

/// Connects to the first address of the host that takes it.
async fn tcp(at: &HostPort) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((at.host.as_str(), at.port)).await?;
    stream.set_nodelay(true)?;
    let keepalive =
        socket2::TcpKeepalive::new().with_time(DEAD_PEER / 2).with_interval(DEAD_PEER / 8).with_retries(4);
    let socket = socket2::SockRef::from(&stream);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(DEAD_PEER))?;
    Ok(stream)
}

impl tower::Service<http::Uri> for Connector {
    type Response = TokioIo<ApiStream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let target = Arc::clone(&self.target);
        Box::pin(async move {
            let opened = tokio::time::timeout(CONNECT_TIMEOUT, target.connect()).await;
            opened.map_err(|_| ConnectError::Timeout)?.map(TokioIo::new)
        })
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection to the API, whatever it runs over.
pub struct ApiStream(Box<dyn Io>);

impl Connection for ApiStream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for ApiStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for ApiStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
