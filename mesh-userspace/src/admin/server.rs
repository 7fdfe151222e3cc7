//! HTTP/1 with JSON on a unix socket that only root and the daemon's own user may use.

use std::{
    fs, io,
    os::unix::{fs::PermissionsExt, net::UnixStream as StdUnixStream},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Request, State, rejection::JsonRejection},
    http::{StatusCode, header::CONTENT_TYPE},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};

use super::{
    AdminBackend, AdminError, CutReport, CutRequest, ErrorBody, ExecRequest, ExecTicket, ReloadReport,
    StatusReport,
};
use crate::telemetry::AUDIT;

/// A request's body is a service name and a pid.
const LARGEST_BODY: usize = 16 * 1024;
/// More than that many clients at once wait.
const MOST_CONNECTIONS: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no admin socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    #[error("another daemon answers at {0}; `meshnode status` shows it")]
    AnotherDaemon(PathBuf),
    #[error("cannot listen at {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// A bound admin socket. The socket's file is removed when this is dropped.
pub struct AdminServer {
    listener: UnixListener,
    path: PathBuf,
    owner: u32,
}

impl AdminServer {
    /// Binds the socket with mode 0600. A file left by a daemon that is gone is replaced; a living daemon's is not.
    /// The directory must exist, and only its owner may be able to write there.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let io = |source| BindError::Io { path: path.to_owned(), source };
        match StdUnixStream::connect(path) {
            Ok(_) => return Err(BindError::AnotherDaemon(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(io)?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io(error)),
        }
        let listener = UnixListener::bind(path).map_err(io)?;
        // Between bind and here the peer's uid check stands alone; it is what counts.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(io)?;
        Ok(Self { listener, path: path.to_owned(), owner: nix::unistd::geteuid().as_raw() })
    }

    /// Serves until the future is dropped.
    pub async fn serve(self, backend: Arc<dyn AdminBackend>) {
        let limit = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        loop {
            let Ok(permit) = limit.clone().acquire_owned().await else { return };
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the admin socket does not accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let router = router(backend.clone(), Peer::of(&stream, self.owner));
            tokio::spawn(async move {
                let connection = hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "an admin connection ended early");
                }
                drop(permit);
            });
        }
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        // A later daemon replaces a file that stays.
        let _ = fs::remove_file(&self.path);
    }
}

/// Who is at the other end, as the kernel says (SO_PEERCRED).
#[derive(Clone, Copy, Debug)]
struct Peer {
    pid: i32,
    uid: u32,
    permitted: bool,
}

impl Peer {
    /// A peer that the kernel says nothing about is nobody.
    fn of(stream: &UnixStream, owner: u32) -> Self {
        match stream.peer_cred() {
            Ok(cred) => Self {
                pid: cred.pid().unwrap_or_default(),
                uid: cred.uid(),
                permitted: is_permitted(cred.uid(), owner),
            },
            Err(_) => Self { pid: 0, uid: u32::MAX, permitted: false },
        }
    }
}

fn is_permitted(uid: u32, owner: u32) -> bool {
    uid == 0 || uid == owner
}

#[derive(Clone)]
struct Context {
    backend: Arc<dyn AdminBackend>,
    peer: Peer,
}

fn router(backend: Arc<dyn AdminBackend>, peer: Peer) -> Router {
    Router::new()
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .route("/exec", post(exec))
        .route("/reload", post(reload))
        .route("/cut", post(cut))
        .route("/drain", post(drain))
        .fallback(async || refusal(StatusCode::NOT_FOUND, "not-found", "no such path"))
        .method_not_allowed_fallback(async || {
            refusal(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "this path takes another method")
        })
        .layer(middleware::from_fn(move |request, next| authorize(peer, request, next)))
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .with_state(Context { backend, peer })
}

async fn authorize(peer: Peer, request: Request, next: Next) -> Response {
    if peer.permitted {
        return next.run(request).await;
    }
    tracing::warn!(target: AUDIT, pid = peer.pid, uid = peer.uid, path = request.uri().path(), "admin access refused");
    refusal(
        StatusCode::FORBIDDEN,
        "forbidden",
        "only root and the daemon's own user may use the admin socket",
    )
}

async fn status(State(context): State<Context>) -> Result<Json<StatusReport>, AdminError> {
    asked(context.backend, |backend| backend.status()).await.map(Json)
}

/// Lets `ask` take its time: it asks the kernel for much.
async fn asked<T: Send + 'static>(
    backend: Arc<dyn AdminBackend>,
    ask: impl FnOnce(&dyn AdminBackend) -> T + Send + 'static,
) -> Result<T, AdminError> {
    let answer = tokio::task::spawn_blocking(move || ask(&*backend)).await;
    answer.map_err(|error| AdminError::System(error.to_string()))
}

async fn metrics(State(context): State<Context>) -> Result<Response, AdminError> {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let text = asked(context.backend, |backend| backend.metrics()).await?;
    Ok(([(CONTENT_TYPE, OPEN_METRICS)], text).into_response())
}

async fn exec(
    State(context): State<Context>,
    body: Result<Json<ExecRequest>, JsonRejection>,
) -> Result<Json<ExecTicket>, Response> {
    let Json(request) = body.map_err(|error| refusal(error.status(), "bad-request", &error.body_text()))?;
    let Peer { pid: peer_pid, uid, .. } = context.peer;
    let ExecRequest { service, pid } = request;
    let result = context.backend.prepare_exec(service.clone()).await;
    match &result {
        Ok(_) => tracing::info!(target: AUDIT, %service, pid, peer_pid, uid, "exec allowed"),
        Err(error) => tracing::info!(target: AUDIT, %service, pid, peer_pid, uid, %error, "exec refused"),
    }
    result.map(Json).map_err(AdminError::into_response)
}

async fn reload(State(context): State<Context>) -> Result<Json<ReloadReport>, AdminError> {
    tracing::info!(target: AUDIT, pid = context.peer.pid, uid = context.peer.uid, "reload asked for");
    context.backend.reload().await.map(Json)
}

async fn cut(
    State(context): State<Context>,
    body: Result<Json<CutRequest>, JsonRejection>,
) -> Result<Json<CutReport>, Response> {
    let Json(request) = body.map_err(|error| refusal(error.status(), "bad-request", &error.body_text()))?;
    let report = context.backend.cut(request).await.map_err(AdminError::into_response)?;
    let Peer { pid, uid, .. } = context.peer;
    tracing::info!(target: AUDIT, pid, uid, cut = report.cut.len(), failed = report.failed.len(), "uncaptured connections cut");
    Ok(Json(report))
}

async fn drain(State(context): State<Context>) -> Result<StatusCode, AdminError> {
    tracing::info!(target: AUDIT, pid = context.peer.pid, uid = context.peer.uid, "drain asked for");
    context.backend.drain().await.map(|()| StatusCode::ACCEPTED)
}

impl IntoResponse for AdminError {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::UnknownService { .. } => StatusCode::NOT_FOUND,
            Self::ConfigRefused(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::RestartNeeded(_) => StatusCode::CONFLICT,
            Self::Draining => StatusCode::SERVICE_UNAVAILABLE,
            Self::System(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        refusal(status, self.code(), &self.to_string())
    }
}

fn refusal(status: StatusCode, code: &str, error: &str) -> Response {
    (status, Json(ErrorBody { code: code.to_owned(), error: error.to_owned() })).into_response()
}

#[cfg(test)]
mod tests;
