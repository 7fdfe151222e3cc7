//! Answers that no healthy server gives, from a scripted one: each must be an error, never an empty result.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::super::{ApiError, Client, Settings, Sync, testing};
use crate::state::MeshState;

/// Serves `answer(path)` on each connection, any number of requests; returns its address and a count of requests.
async fn serve(
    answer: impl Fn(&str) -> String + Send + std::marker::Sync + 'static,
) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (count, answer) = (Arc::new(AtomicUsize::new(0)), Arc::new(answer));
    let counter = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (count, answer) = (Arc::clone(&counter), Arc::clone(&answer));
            tokio::spawn(async move { connection(stream, &count, &*answer).await });
        }
    });
    (address, count)
}

async fn connection(
    mut stream: TcpStream,
    count: &AtomicUsize,
    answer: &(dyn Fn(&str) -> String + Send + std::marker::Sync),
) {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        while !request.windows(4).any(|w| w == b"\r\n\r\n") {
            match stream.read(&mut buffer).await {
                Ok(n) if n > 0 => request.extend_from_slice(&buffer[..n]),
                _ => return,
            }
        }
        count.fetch_add(1, Ordering::Relaxed);
        let text = String::from_utf8_lossy(&request).into_owned();
        let answer = answer(text.split(' ').nth(1).unwrap_or_default());
        if stream.write_all(answer.as_bytes()).await.is_err() || !complete(&answer) {
            return;
        }
        request.clear();
    }
}

/// An answer that is shorter than it says ends the connection.
fn complete(answer: &str) -> bool {
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|l| l.strip_prefix("Content-Length: ")).and_then(|n| n.parse().ok());
    length == Some(body.len())
}

fn ok(headers: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn truncated_oversized_and_malformed_answers_are_errors() {
    let (address, _) = serve(|path| match path {
        "/v1/truncated" => "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[".to_owned(),
        "/v1/chunked" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n".to_owned(),
        "/v1/oversized" => {
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n[", (64u64 << 20) + 1)
        }
        "/v1/no-json" => ok("", "<html>"),
        "/v1/login" => ok("Content-Type: text/html; charset=utf-8\r\n", ""),
        "/v1/garbage-index" => ok("X-Consul-Index: -1\r\n", "[]"),
        "/v1/no-http" => "SSH-2.0-OpenSSH\r\n".to_owned(),
        "/v1/500" => "HTTP/1.1 500 Oops\r\nContent-Length: 17\r\n\r\nNo cluster leader".to_owned(),
        "/v1/429" => "HTTP/1.1 429 Slow\r\nContent-Length: 0\r\n\r\n".to_owned(),
        "/v1/withheld" => ok("X-Consul-Index: 3\r\nX-Consul-Results-Filtered-By-ACLs: true\r\n", "[]"),
        _ => ok("X-Consul-Index: 1\r\n", "[]"),
    })
    .await;
    let client = Client::new(&testing::settings(&address)).unwrap();
    assert!(client.get::<Vec<Value>>("/v1/good").await.unwrap().is_empty());
    let error = async |path: &str| client.get::<Vec<Value>>(path).await.unwrap_err();
    for path in ["/v1/truncated", "/v1/chunked"] {
        let error = error(path).await;
        assert!(matches!(error, ApiError::Broken { .. }) && error.is_outage(), "{path}: {error}");
    }
    assert!(matches!(error("/v1/oversized").await, ApiError::TooLarge { .. }));
    for path in ["/v1/no-json", "/v1/garbage-index", "/v1/login"] {
        assert!(matches!(error(path).await, ApiError::Malformed { .. }), "{path}");
    }
    let registered = client.put::<()>("/v1/login", &()).await;
    assert!(registered.is_err(), "a login page is no success, though its status says so");
    assert!(matches!(error("/v1/no-http").await, ApiError::Broken { .. }));
    assert!(
        matches!(error("/v1/500").await, ApiError::Status { reason, .. } if reason == "No cluster leader")
    );
    assert!(matches!(error("/v1/429").await, ApiError::TooMany { .. }));
    assert!(matches!(error("/v1/withheld").await, ApiError::Forbidden { .. }));
}

/// Starts a sync against `answer` and returns the state and the number of requests after `time`.
async fn sync_for(
    time: Duration,
    answer: impl Fn(&str) -> String + Send + std::marker::Sync + 'static,
) -> (MeshState, usize) {
    let (address, count) = serve(answer).await;
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { state_dir: dir.path().to_owned(), ..testing::settings(&address) };
    let state = MeshState::default();
    let _sync = Sync::start(settings, state.clone(), testing::local(&[]).subscribe()).unwrap();
    tokio::time::sleep(time).await;
    (state, count.load(Ordering::Relaxed))
}

#[tokio::test]
async fn server_that_fails_everything_is_asked_seldom_and_fills_nothing() {
    let (state, requests) =
        sync_for(Duration::from_secs(2), |_| "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n".to_owned())
            .await;
    let mesh = state.load();
    assert!(mesh.catalog.is_none() && mesh.intentions.is_none() && mesh.roots.is_none());
    assert!(mesh.stale_since.is_some());
    // Three watches, with doubling pauses.
    assert!(requests < 80, "{requests} requests in 2 s");
}

#[tokio::test]
async fn index_that_never_blocks_does_not_spin() {
    // Index 0, one that jumps about, and none at all: each would make a naive loop ask for ever.
    for index in ["X-Consul-Index: 0\r\n", "jump", ""] {
        let turn = AtomicUsize::new(1);
        let (_, requests) = sync_for(Duration::from_secs(2), move |path| {
            let turn = turn.fetch_add(1, Ordering::Relaxed);
            let header = match index {
                "jump" => format!("X-Consul-Index: {}\r\n", turn * 7919 % 1000 + 1),
                other => other.to_owned(),
            };
            ok(&header, if path.contains("services") || path.contains("check") { "{}" } else { "[]" })
        })
        .await;
        // Burst of 10, then 5 a second, for three watches and what the answers make them ask besides.
        assert!(requests < 400, "{index:?}: {requests} requests in 2 s");
    }
}
