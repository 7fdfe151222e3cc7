//! A client of the control plane's HTTP API that leaves all choices to the benchmark: one connection, one request at a
//! time.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request,
    body::Bytes,
    client::conn::http1::{SendRequest, handshake},
};
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

/// Where the API is, and how it is spoken to.
#[derive(Clone)]
pub struct Endpoint {
    pub address: SocketAddr,
    pub token: String,
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

impl Endpoint {
    /// Of an embedded server's door for other hosts; `ca` is its certificate authority as PEM.
    pub fn embedded(address: SocketAddr, token: &str, ca: &str) -> Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
            roots.add(certificate?)?;
        }
        let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        Ok(Self { address, token: token.to_owned(), tls: Some(Arc::new(tls)) })
    }

    /// Of a Consul agent without ACLs.
    pub fn consul(address: SocketAddr) -> Self {
        Self { address, token: String::new(), tls: None }
    }

    pub async fn connect(&self) -> Result<Connection> {
        let stream = TcpStream::connect(self.address).await.context("connect to the API")?;
        stream.set_nodelay(true)?;
        let sender = match &self.tls {
            None => speak(stream).await?,
            Some(tls) => {
                let name = ServerName::IpAddress(self.address.ip().into());
                speak(TlsConnector::from(tls.clone()).connect(name, stream).await?).await?
            }
        };
        Ok(Connection { sender, endpoint: self.clone() })
    }
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<SendRequest<Full<Bytes>>> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // Its errors are those of the request under way.
    tokio::spawn(connection);
    Ok(sender)
}

pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    endpoint: Endpoint,
}

/// An answer with status 200.
pub struct Answer {
    /// `X-Consul-Index`; 0 where there is none.
    pub index: u64,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&self.body)?)
    }
}

impl Connection {
    pub async fn get(&mut self, path: &str) -> Result<Answer> {
        self.call("GET", path, Bytes::new()).await
    }

    pub async fn put(&mut self, path: &str, body: &Value) -> Result<Answer> {
        self.call("PUT", path, body.to_string().into()).await
    }

    /// # Errors
    /// Also for an answer other than 200.
    pub async fn call(&mut self, method: &str, path: &str, body: Bytes) -> Result<Answer> {
        let mut request = Request::builder().method(method).uri(path).header("host", "bench");
        if !self.endpoint.token.is_empty() {
            request = request.header("x-consul-token", &self.endpoint.token);
        }
        self.sender.ready().await?;
        let response = self.sender.send_request(request.body(Full::new(body))?).await?;
        let (head, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        ensure!(head.status == 200, "{method} {path}: {} {}", head.status, String::from_utf8_lossy(&body));
        let index = head.headers.get("x-consul-index").and_then(|index| index.to_str().ok()?.parse().ok());
        Ok(Answer { index: index.unwrap_or(0), body })
    }
}
