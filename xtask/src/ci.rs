//! `ci`: all that a change must pass, as .ci/run calls it. Tests run also when lint is not clean; the sums come last.

use std::time::Instant;

use anyhow::Result;

use crate::{
    lint,
    setup::{self, Purpose},
    test,
};

/// Returns whether all is well.
pub fn run() -> Result<bool> {
    let begin = Instant::now();
    setup::run(Purpose::All)?;
    println!("ci: setup took {} s", begin.elapsed().as_secs());
    let begin = Instant::now();
    let lint = lint::run();
    println!("ci: lint took {} s", begin.elapsed().as_secs());
    if let Err(error) = &lint {
        eprintln!("ci: {error:#}");
    }
    let tests = test::run(&test::Args { suite: None, full: false, arguments: Vec::new() })?;
    Ok(lint.is_ok() && tests)
}
