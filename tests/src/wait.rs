//! Bounded waiting: every loop of the tests that polls for something is here.

use std::time::{Duration, Instant};

/// How long something may take that normally takes milliseconds. Generous: a guest without hardware acceleration is
/// ten times slower, and a test that passes never waits for it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Polls `probe` until it returns something.
///
/// # Panics
/// With `what`, and the last words of `probe`, after [`PATIENCE`].
#[track_caller]
pub fn until<T>(what: &str, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match probe() {
            Ok(value) => return value,
            Err(why) if start.elapsed() > PATIENCE => {
                panic!("gave up after {PATIENCE:?} waiting for {what}: {why}")
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Polls `condition` until it holds.
#[track_caller]
pub fn until_true(what: &str, mut condition: impl FnMut() -> bool) {
    until(what, || if condition() { Ok(()) } else { Err("it is not so".to_owned()) });
}
