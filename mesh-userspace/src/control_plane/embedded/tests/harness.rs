//! A server in a temporary directory, and a client that opens a connection per request.

use std::{path::Path, time::Duration};

use http_body_util::{BodyExt, Full};
use hyper::{Request, body::Bytes};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

use crate::{
    control_plane::embedded::{Embedded, EmbeddedError, Expose, Settings, TOKEN_FILE},
    intention::Action,
};

/// How long a test waits for something that should happen in milliseconds.
pub const SOON: Duration = Duration::from_secs(10);

pub struct Server {
    pub dir: TempDir,
    embedded: Option<Embedded>,
}

pub fn settings(dir: &Path) -> Settings {
    Settings {
        node: "host-a".to_owned(),
        node_address: "10.77.0.1".parse().unwrap(),
        datacenter: "dc1".to_owned(),
        state_dir: dir.join("state"),
        default_policy: Action::Deny,
        leaf_ttl: Duration::from_secs(72 * 3600),
        acl: false,
        trust_domain: None,
        listen_tcp: Some("127.0.0.1:0".parse().unwrap()),
        unix_socket: Some(dir.join("api.sock")),
        expose: None,
        ca: None,
    }
}

pub const EXPOSE_TOKEN: &str = "a-token-for-other-hosts";

pub fn exposed(dir: &Path) -> Settings {
    let expose = Expose {
        listen: "127.0.0.1:0".parse().unwrap(),
        cert_file: None,
        key_file: None,
        token: EXPOSE_TOKEN.to_owned(),
    };
    Settings { expose: Some(expose), ..settings(dir) }
}

impl Server {
    pub async fn start() -> Self {
        Self::start_with(settings).await
    }

    pub async fn start_with(settings: impl FnOnce(&Path) -> Settings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let embedded = Embedded::start_with(settings(dir.path()), Duration::ZERO).await.unwrap();
        Self { dir, embedded: Some(embedded) }
    }

    pub async fn try_restart(&mut self, settings: Settings) -> Result<(), EmbeddedError> {
        self.stop().await;
        self.embedded = Some(Embedded::start_with(settings, Duration::ZERO).await?);
        Ok(())
    }

    pub async fn restart(&mut self) {
        let settings = settings(self.dir.path());
        self.try_restart(settings).await.unwrap();
    }

    pub async fn stop(&mut self) {
        if let Some(embedded) = self.embedded.take() {
            embedded.shutdown().await;
        }
    }

    pub fn embedded(&self) -> &Embedded {
        self.embedded.as_ref().unwrap()
    }

    pub fn token(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("state").join(TOKEN_FILE)).unwrap().trim().to_owned()
    }

    /// A request through the unix socket.
    pub async fn send(&self, method: &str, path: &str, body: &str) -> Answer {
        let stream = UnixStream::connect(self.dir.path().join("api.sock")).await.unwrap();
        send(stream, method, path, body, None).await
    }

    /// A request through the loopback port.
    pub async fn send_tcp(&self, method: &str, path: &str, body: &str, token: Option<&str>) -> Answer {
        let stream = TcpStream::connect(self.embedded().local_addr().unwrap()).await.unwrap();
        send(stream, method, path, body, token).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "").await
    }

    /// A PUT that must succeed.
    pub async fn put(&self, path: &str, body: &str) -> Answer {
        let answer = self.send("PUT", path, body).await;
        assert_eq!(answer.status, 200, "PUT {path}: {}", answer.text);
        answer
    }

    /// Makes an intention, and returns its id.
    pub async fn intention(&self, source: &str, destination: &str, action: &str) -> String {
        let body =
            format!(r#"{{"SourceName":"{source}","DestinationName":"{destination}","Action":"{action}"}}"#);
        let answer = self.send("POST", "/v1/connect/intentions", &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()["ID"].as_str().unwrap().to_owned()
    }

    /// Asks until the answer is as wanted; fails after [`SOON`].
    pub async fn until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        for _ in 0..SOON.as_millis() / 10 {
            last = self.get(path).await.json();
            if wanted(&last) {
                return last;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("GET {path} did not become what was wanted: {last}");
    }
}

pub struct Answer {
    pub status: u16,
    /// X-Consul-Index.
    pub index: Option<u64>,
    /// X-Consul-ContentHash.
    pub hash: Option<String>,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    pub fn index(&self) -> u64 {
        self.index.expect("the answer has an index")
    }
}

pub async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    method: &str,
    path: &str,
    body: &str,
    token: Option<&str>,
) -> Answer {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
    if let Some(token) = token {
        request = request.header("X-Consul-Token", token);
    }
    let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
    let response = sender.send_request(request).await.unwrap();
    let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let (status, hash) = (response.status().as_u16(), header("x-consul-contenthash"));
    let index = header("x-consul-index").map(|index| index.parse().unwrap());
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    connection.abort();
    Answer { status, index, hash, text: String::from_utf8(bytes.to_vec()).unwrap() }
}

impl Answer {
    /// The hash that the body itself tells.
    pub fn json_hash(&self) -> String {
        self.json()["ContentHash"].as_str().unwrap().to_owned()
    }
}
