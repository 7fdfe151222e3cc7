//! Bounded waiting: every loop of the tests that polls for something is here.

use std::time::{Duration, Instant};

/// How long something may take that normally takes milliseconds. A test that passes never waits for it.
pub fn patience() -> Duration {
    Duration::from_secs(60) * slowness()
}

/// How much slower this machine is than one that tests are written on: an emulated guest (`vm-test` says so) is.
pub fn slowness() -> u32 {
    if std::env::var_os("MESHNODE_VM").is_some() { 6 } else { 1 }
}

/// Polls `probe` until it returns something.
///
/// # Panics
/// With `what`, and the last words of `probe`, after [`patience`].
#[track_caller]
pub fn until<T>(what: &str, probe: impl FnMut() -> Result<T, String>) -> T {
    until_within(patience(), what, probe)
}

/// The same with another limit, for what takes its time by design.
#[track_caller]
pub fn until_within<T>(limit: Duration, what: &str, mut probe: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        match probe() {
            Ok(value) => return value,
            Err(why) if start.elapsed() > limit => {
                panic!("gave up after {:?} waiting for {what}: {why}", start.elapsed())
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10) * slowness()),
        }
    }
}

/// Polls `condition` until it holds.
#[track_caller]
pub fn until_true(what: &str, mut condition: impl FnMut() -> bool) {
    until(what, || if condition() { Ok(()) } else { Err("it is not so".to_owned()) });
}
