//! Fills a control plane with a mesh, by its API alone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::{
    api::Endpoint,
    shape::{self, Shape},
};

/// Connections that write at once: enough that a server which takes several writes in one step can.
const WRITERS: usize = 96;

/// How long the parts took.
#[derive(Clone, Copy, Debug)]
pub struct Filled {
    pub catalog: Duration,
    pub intentions: Duration,
}

/// Registers everything.
pub async fn fill(endpoint: &Endpoint, shape: Shape) -> Result<Filled> {
    let start = Instant::now();
    each(endpoint, shape.all_instances(), move |number| {
        let bodies = shape.registrations(number / shape.instances, number % shape.instances);
        bodies.into_iter().map(|body| ("PUT", "/v1/catalog/register", body)).collect()
    })
    .await?;
    let catalog = start.elapsed();
    let start = Instant::now();
    intentions(endpoint, shape.all_intentions(), move |number| shape.intention(number)).await?;
    Ok(Filled { catalog, intentions: start.elapsed() })
}

/// Allows what `pair` says of each number below `count`: (source, destination).
pub async fn intentions(
    endpoint: &Endpoint,
    count: usize,
    pair: impl Fn(usize) -> (String, String) + Copy + Send + 'static,
) -> Result<()> {
    each(endpoint, count, move |number| {
        let (source, destination) = pair(number);
        vec![("POST", "/v1/connect/intentions", shape::intention(&source, &destination, "allow"))]
    })
    .await
}

type Request = (&'static str, &'static str, Value);

/// Sends the requests of each number below `count`, on several connections.
async fn each(
    endpoint: &Endpoint,
    count: usize,
    requests: impl Fn(usize) -> Vec<Request> + Copy + Send + 'static,
) -> Result<()> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS.min(count) {
        let (next, mut connection) = (next.clone(), endpoint.connect().await?);
        writers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(());
                }
                for (method, path, body) in requests(number) {
                    connection.call(method, path, body.to_string().into()).await?;
                }
            }
        });
    }
    writers.join_all().await.into_iter().collect()
}
