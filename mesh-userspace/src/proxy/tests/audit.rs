//! The audit log: one line for each decision, with who and why.

use std::{
    io,
    sync::{Arc, Mutex},
};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

use super::world::{World, alone, assert_reset, passes};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;
    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl Lines {
    fn with(&self, words: &[&str]) -> usize {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
    }
}

/// What tracing remembers of a callsite is the process's: other tests, whose threads have no subscriber, would change it.
#[test]
fn each_decision_leaves_one_line_with_who_and_why() {
    alone("audit::each_decision");
}

#[tokio::test]
#[ignore = "run by its twin in a process of its own"]
async fn each_decision() {
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(lines.clone())
        .with_ansi(false)
        .with_env_filter(EnvFilter::new("audit=info"))
        .finish();
    // The test's runtime has one thread, so that this covers the proxies' tasks too.
    let _guard = tracing::subscriber::set_default(subscriber);

    let world = World::start().await;
    let (mut client, mut server) = world.flow().await;
    passes(&mut client, &mut server, b"once").await;
    let who = ["source=web", "destination=db"];
    for direction in ["direction=\"outbound\"", "direction=\"inbound\""] {
        let allowed = lines.with(&["decision=\"allow\"", direction, who[0], who[1]]);
        assert_eq!(allowed, 1, "{direction}");
    }
    world.edit_a(|mesh| mesh.intentions = Some(Arc::default()));
    assert_reset(&mut client).await;
    world.idle().await;
    assert_eq!(lines.with(&["decision=\"cut\"", "reason=\"revoked\"", who[0], who[1], "pid=42"]), 1);

    let mut denied = world.connect().await;
    assert_reset(&mut denied).await;
    world.idle().await;
    assert_eq!(lines.with(&["decision=\"deny\"", "reason=\"not-allowed\"", who[0], who[1], "psql"]), 1);
}
