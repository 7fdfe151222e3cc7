//! The three doors: a unix socket, a loopback port, and TLS for other hosts. Accepts, and serves HTTP/1.1 on each
//! connection; who may do what is in `auth`.

use std::{
    io,
    net::SocketAddr,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use axum::Router;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use nix::sys::resource::{Resource, getrlimit};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Connections that one door serves at once, as far as the process may have so many files; each waiting watcher is one.
const MAX_CONNECTIONS: usize = 65_536;
/// A client that takes longer for a TLS handshake is cut.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A connection without a whole request for so long is closed. Longer than clients keep idle ones (Go: 90 s), so that
/// it is the client who closes.
const IDLE: Duration = Duration::from_secs(120);
/// How long to wait when the process is out of file descriptors.
const OUT_OF_FDS: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    #[error("cannot listen on {address}: {source}")]
    Tcp { address: SocketAddr, source: io::Error },
    #[error("cannot listen on {}: {source}", path.display())]
    Unix { path: PathBuf, source: io::Error },
    #[error("another process answers on {}: stop it, or give this one another run_dir", .0.display())]
    InUse(PathBuf),
    #[error("{} is there and is no socket: remove it, or give another run_dir", .0.display())]
    NoSocket(PathBuf),
}

pub async fn bind_tcp(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| ListenError::Tcp { address, source })
}

/// Binds a socket file that nobody but its owner can open, not even for a moment. Replaces one that a dead process
/// left.
pub async fn bind_unix(path: &Path) -> Result<UnixListener, ListenError> {
    let failed = |source| ListenError::Unix { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => return Err(ListenError::NoSocket(path.to_owned())),
        Ok(_) if UnixStream::connect(path).await.is_ok() => return Err(ListenError::InUse(path.to_owned())),
        Ok(_) => std::fs::remove_file(path).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    bind_private(path).map_err(failed)
}

fn bind_private(path: &Path) -> io::Result<UnixListener> {
    use socket2::{Domain, SockAddr, Socket, Type};
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    // bind() takes the mode of the new file from the socket's own inode (unix_bind_bsd in net/unix/af_unix.c).
    nix::sys::stat::fchmod(&socket, nix::sys::stat::Mode::from_bits_truncate(0o600))?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(1024)?;
    UnixListener::from_std(socket.into())
}

/// What all doors share.
#[derive(Clone)]
pub struct Doorkeeper {
    pub tracker: TaskTracker,
    pub closing: CancellationToken,
}

impl Doorkeeper {
    pub async fn serve_unix(self, listener: UnixListener, router: Router) {
        let accept = || async { listener.accept().await.map(|(stream, _)| stream) };
        self.serve(accept, |stream: UnixStream| async { Some(stream) }, router).await;
    }

    pub async fn serve_tcp(self, listener: TcpListener, router: Router) {
        self.serve(|| accept_tcp(&listener), |stream: TcpStream| async { Some(stream) }, router).await;
    }

    pub async fn serve_tls(self, listener: TcpListener, tls: Arc<rustls::ServerConfig>, router: Router) {
        let acceptor = TlsAcceptor::from(tls);
        let open = move |stream: TcpStream| {
            let acceptor = acceptor.clone();
            async move {
                match timeout(HANDSHAKE, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => Some(stream),
                    Ok(Err(error)) => {
                        tracing::debug!(%error, "TLS handshake of an API client failed");
                        None
                    }
                    Err(_) => None,
                }
            }
        };
        self.serve(|| accept_tcp(&listener), open, router).await;
    }

    /// Accepts until closing; `open` makes of an accepted stream one that speaks HTTP.
    async fn serve<S, T, A, O>(self, accept: impl Fn() -> A, open: impl Fn(S) -> O, router: Router)
    where
        A: Future<Output = io::Result<S>>,
        O: Future<Output = Option<T>> + Send + 'static,
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let places = Arc::new(Semaphore::new(max_connections()));
        loop {
            let next = async {
                let place =
                    places.clone().acquire_owned().await.expect("invariant: the semaphore is never closed");
                accept().await.map(|stream| (place, stream))
            };
            let Some(accepted) = self.closing.run_until_cancelled(next).await else { return };
            match accepted {
                Ok((place, stream)) => {
                    let (opened, router, closing) = (open(stream), router.clone(), self.closing.clone());
                    self.tracker.spawn(async move {
                        if let Some(Some(stream)) = closing.run_until_cancelled(opened).await {
                            speak_http(stream, router, closing).await;
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept on the API");
                    sleep(OUT_OF_FDS).await;
                }
            }
        }
    }
}

/// Leaves a quarter of the files to everything else that the process does.
fn max_connections() -> usize {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
    usize::try_from(limit / 4 * 3).map_or(MAX_CONNECTIONS, |most| most.clamp(64, MAX_CONNECTIONS))
}

async fn accept_tcp(listener: &TcpListener) -> io::Result<TcpStream> {
    let (stream, _) = listener.accept().await?;
    // A watcher's answer is one small write, and somebody waits for it.
    // Fails only where the peer has gone again, which serving it will notice.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

async fn speak_http(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    closing: CancellationToken,
) {
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .half_close(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = closing.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    // Waiting reads see `closing`, too, and answer at once; the rest is a matter of moments.
    let _ = timeout(Duration::from_secs(2), connection).await;
}
