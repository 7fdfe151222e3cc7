//! Simulated nodes: each holds the blocking queries that a meshnode with one local service holds, each on a connection
//! of its own, as HTTP/1.1 has it.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
};

use crate::{
    api::Endpoint,
    shape::{Shape, name},
};

/// How many of its upstreams a node watches; a few, for a process here may have 20,000 files.
const UPSTREAMS: usize = 5;
/// Connections that are opened at once.
const RAMP: usize = 32;

/// Running watchers; dropped, they end.
pub struct Watchers {
    tasks: JoinSet<()>,
    shared: Arc<Shared>,
}

struct Shared {
    answers: Mutex<Answers>,
    failed: Mutex<Option<String>>,
    stopped: AtomicBool,
}

#[derive(Clone, Copy, Default)]
struct Answers {
    count: usize,
    bytes: usize,
    last: Option<Instant>,
}

/// A question that waits for a change, and what is asked when it was answered.
#[derive(Clone, Debug)]
struct Question {
    waits: String,
    then: Vec<String>,
}

impl From<String> for Question {
    fn from(waits: String) -> Self {
        Self { waits, then: Vec::new() }
    }
}

/// Returns the questions of node number `node`, which has service number `node`.
fn questions(shape: Shape, node: usize, consul: bool) -> Vec<Question> {
    let own = name(node % shape.services);
    let matches =
        ["source", "destination"].map(|by| format!("/v1/connect/intentions/match?by={by}&name={own}"));
    let mut all: Vec<Question> = vec!["/v1/connect/ca/roots".to_owned().into()];
    // Of a larger catalog a node asks for the list once a minute (`control_plane.catalog_limit`).
    if shape.services <= 500 {
        all.push("/v1/catalog/services".to_owned().into());
    }
    if consul {
        // Consul tells no index of a match: a list that is filtered to nothing waits instead.
        let waits = "/v1/connect/intentions?filter=SourceName%3D%3D%22%22".to_owned();
        all.push(Question { waits, then: matches.into() });
    } else {
        all.extend(matches.map(Question::from));
    }
    for upstream in shape.upstreams(node % shape.services).take(UPSTREAMS) {
        all.push(format!("/v1/health/connect/{upstream}").into());
        all.push(format!("/v1/health/service/{upstream}").into());
    }
    all
}

impl Watchers {
    /// Starts `nodes` nodes, and returns when each of their questions was answered once and waits.
    pub async fn start(endpoint: &Endpoint, shape: Shape, nodes: usize, consul: bool) -> Result<Self> {
        let answers = Mutex::new(Answers::default());
        let shared = Arc::new(Shared { answers, failed: Mutex::new(None), stopped: AtomicBool::new(false) });
        let (ready, mut started) = mpsc::unbounded_channel();
        let ramp = Arc::new(Semaphore::new(RAMP));
        let mut tasks = JoinSet::new();
        for question in (0..nodes).flat_map(|node| questions(shape, node, consul)) {
            let place = ramp.clone().acquire_owned().await.expect("never closed");
            let (endpoint, shared, ready) = (endpoint.clone(), shared.clone(), ready.clone());
            tasks.spawn(async move {
                if let Err(error) =
                    watch(&endpoint, &question, &shared, || drop((place, ready.send(())))).await
                {
                    let mut failed = shared.failed.lock().unwrap_or_else(PoisonError::into_inner);
                    failed.get_or_insert_with(|| format!("{}: {error:#}", question.waits));
                }
            });
        }
        drop(ready);
        let watchers = Self { tasks, shared };
        for _ in 0..watchers.len() {
            if started.recv().await.is_none() {
                watchers.check()?;
                bail!("a watcher ended");
            }
        }
        watchers.check()?;
        Ok(watchers)
    }

    /// How many questions wait.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// How many answers came so far, and how many bytes they had.
    pub fn answers(&self) -> (usize, usize) {
        let answers = self.shared.now();
        (answers.count, answers.bytes)
    }

    /// Waits until `more` answers than `before` have come; returns when the last one did.
    pub async fn woken(&self, before: usize, more: usize) -> Result<Instant> {
        let limit = Instant::now() + Duration::from_secs(120);
        loop {
            let answers = self.shared.now();
            if answers.count >= before + more {
                return answers.last.context("counted, so there was one");
            }
            self.check()?;
            if Instant::now() > limit {
                bail!("{} of {more} watchers were woken", answers.count - before);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// # Errors
    /// Of the first watcher that failed.
    pub fn check(&self) -> Result<()> {
        match &*self.shared.failed.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => bail!("a watcher failed: {error}"),
            None => Ok(()),
        }
    }
}

impl Drop for Watchers {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn now(&self) -> Answers {
        *self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn watch(
    endpoint: &Endpoint,
    question: &Question,
    shared: &Shared,
    started: impl FnOnce(),
) -> Result<()> {
    let mut connection = endpoint.connect().await?;
    let path = &question.waits;
    let sign = if path.contains('?') { '&' } else { '?' };
    let mut index = connection.get(path).await?.index;
    started();
    while !shared.stopped.load(Ordering::Relaxed) {
        let answer = connection.get(&format!("{path}{sign}index={index}&wait=600s")).await?;
        let mut bytes = answer.body.len();
        if answer.index != index {
            for path in &question.then {
                bytes += connection.get(path).await?.body.len();
            }
            let mut answers = shared.answers.lock().unwrap_or_else(PoisonError::into_inner);
            answers.count += 1;
            answers.bytes += bytes;
            answers.last = Some(Instant::now());
        }
        index = answer.index;
    }
    Ok(())
}
