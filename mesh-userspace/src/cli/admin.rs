//! What commands ask of the running daemon, over its admin socket.

use std::{io, path::PathBuf, time::Duration};

use bytes::Bytes;
use http::{Method, StatusCode};
use serde::de::DeserializeOwned;

use super::Failure;
use crate::{
    admin::{CutReport, CutRequest, ErrorBody, ExecRequest, ExecTicket, ReloadReport, StatusReport},
    control_plane::{Exchange, ExchangeError, Reply},
};

/// A reload may ask the kernel much.
const ANSWER: Duration = Duration::from_secs(30);

/// The daemon behind an admin socket.
pub struct Admin {
    socket: PathBuf,
    exchange: Exchange,
}

impl Admin {
    /// Opens no connection yet.
    pub fn new(socket: PathBuf) -> Self {
        Self { exchange: Exchange::unix(&socket), socket }
    }

    pub async fn status(&self) -> Result<StatusReport, Failure> {
        self.read(&self.ask(Method::GET, "/status", Bytes::new()).await?)
    }

    pub async fn exec(&self, request: &ExecRequest) -> Result<ExecTicket, Failure> {
        let body = serde_json::to_vec(request).expect("invariant: a request has string keys");
        self.read(&self.ask(Method::POST, "/exec", body.into()).await?)
    }

    pub async fn reload(&self) -> Result<ReloadReport, Failure> {
        self.read(&self.ask(Method::POST, "/reload", Bytes::new()).await?)
    }

    pub async fn cut(&self, request: &CutRequest) -> Result<CutReport, Failure> {
        let body = serde_json::to_vec(request).expect("invariant: a request has string keys");
        self.read(&self.ask(Method::POST, "/cut", body.into()).await?)
    }

    pub async fn drain(&self) -> Result<(), Failure> {
        self.ask(Method::POST, "/drain", Bytes::new()).await.map(drop)
    }

    async fn ask(&self, method: Method, path: &'static str, body: Bytes) -> Result<Bytes, Failure> {
        let request = self.exchange.request(method, path).body(body);
        let request = request.expect("invariant: the paths above are paths of a URI");
        let Reply { status, body, .. } =
            self.exchange.send(request, ANSWER).await.map_err(|error| self.failed(error))?;
        if status.is_success() { Ok(body) } else { Err(Failure::Refused(refusal(status, &body))) }
    }

    fn read<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, Failure> {
        let unexpected = |error| {
            Failure::Refused(format!(
                "the daemon at {} answered something unexpected: {error}",
                self.socket.display()
            ))
        };
        serde_json::from_slice(body).map_err(unexpected)
    }

    fn failed(&self, error: ExchangeError) -> Failure {
        let socket = self.socket.clone();
        match error {
            ExchangeError::Connect {
                kind: io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused,
                ..
            } => Failure::NoDaemon { socket },
            ExchangeError::Connect { kind: io::ErrorKind::PermissionDenied, .. } => {
                Failure::NoPermission { what: format!("{} is for root", socket.display()) }
            }
            other => Failure::Daemon { socket, reason: other.to_string() },
        }
    }
}

/// Returns the daemon's own words.
fn refusal(status: StatusCode, body: &[u8]) -> String {
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => body.error,
        Err(_) => format!("the daemon answered {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_nobody_listens_at_is_no_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let failure = Admin::new(dir.path().join("none")).status().await.unwrap_err();
        assert!(matches!(failure, Failure::NoDaemon { .. }), "{failure}");
    }
}
