//! The program that does on purpose what ordinary programs do rarely: reports `errno` and both ends' addresses, closes
//! one direction, resets, holds connections until they are cut, opens many at once, takes a given source port.
//!
//! ```text
//! probe serve echo|count|reset ADDRESS          until killed; prints `listening ADDRESS`
//! probe serve banner ADDRESS TEXT               writes TEXT first, then echoes
//! probe serve greet ADDRESS TEXT                writes TEXT, then closes
//! probe connect ADDRESS [OPTION…]               one connection; prints one line of JSON, exit code 1 if refused
//!     --send TEXT    --half-close    --reset    --from ADDRESS    --read BYTES    --wait MILLISECONDS
//! probe hold ADDRESS COUNT                      a line of JSON for each connection that is cut; until stdin ends
//! probe flood ADDRESS COUNT                     COUNT connections at once, each echoing; prints one line of JSON
//! probe short ADDRESS COUNT THREADS             COUNT connections, THREADS of them at once, each echoing; one line of JSON
//! probe steady ADDRESS                          connections one after the other until stdin ends; the same
//! probe storm ADDRESS COUNT                     connections all the time by COUNT threads, each echoing, until stdin ends
//!                                               or one fails; prints `storming`, then one line of JSON
//! probe transfer ADDRESS MEBIBYTES              both ways at once through an echo server, compared; one line of JSON
//! probe serve stalls ADDRESS                    a line of JSON for each connection of `stalls`
//! probe stalls ADDRESS BYTES SEED ENDING        at most BYTES each way at once, both ends stalling, each byte compared; one
//!                                               line of JSON; ENDING: in-order, caller-resets, server-resets
//! probe ping ADDRESS                            numbered messages on one connection until stdin ends; the same
//! ```

mod client;
mod many;
mod server;
mod stalls;
mod transfer;

use std::{net::SocketAddr, process::ExitCode};

use nix::{
    errno::Errno,
    sys::resource::{Resource, getrlimit, setrlimit},
};
use serde_json::Value;

fn main() -> ExitCode {
    // A thousand connections are more than the usual soft limit.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match act(&words) {
        Ok(code) => code,
        Err(why) => {
            eprintln!("probe: {why}");
            ExitCode::from(2)
        }
    }
}

fn act(words: &[&str]) -> Result<ExitCode, String> {
    match words {
        ["serve", "echo", at] => server::serve(address(at)?, server::Service::Echo),
        ["serve", "count", at] => server::serve(address(at)?, server::Service::Count),
        ["serve", "reset", at] => server::serve(address(at)?, server::Service::Reset),
        ["serve", "banner", at, text] => {
            server::serve(address(at)?, server::Service::Banner((*text).to_owned()))
        }
        ["serve", "greet", at, text] => {
            server::serve(address(at)?, server::Service::Greet((*text).to_owned()))
        }
        ["serve", "stalls", at] => server::serve(address(at)?, server::Service::Stalls),
        ["connect", at, options @ ..] => {
            Ok(report(&client::connect(address(at)?, &client::Options::parse(options)?)))
        }
        ["hold", at, count] => many::hold(address(at)?, number(count)?),
        ["flood", at, count] => Ok(report(&many::flood(address(at)?, number(count)?))),
        ["short", at, count, threads] => {
            Ok(report(&many::short(address(at)?, number(count)?, number(threads)?)))
        }
        ["steady", at] => Ok(report(&many::steady(address(at)?))),
        ["storm", at, count] => Ok(report(&many::storm(address(at)?, number(count)?))),
        ["transfer", at, size] => Ok(report(&transfer::transfer(address(at)?, number(size)?))),
        ["stalls", at, bytes, seed, ending] => {
            let plan = stalls::Plan::new(number(seed)?, number(bytes)?, ending)?;
            Ok(report(&stalls::call(address(at)?, plan)))
        }
        ["ping", at] => Ok(report(&many::ping(address(at)?))),
        _ => Err("unknown command line, see the top of tests/src/bin/probe/main.rs".to_owned()),
    }
}

/// Prints one line; the exit code says whether its `ok` is true.
fn report(value: &Value) -> ExitCode {
    println!("{value}");
    if value["ok"] == true { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|e| format!("`{text}`: {e}"))
}

fn number<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|e| format!("`{text}`: {e}"))
}

/// Returns the error's name as errno(3) has it: `EPERM`; `TIMEOUT` when a socket's own time limit ran out.
fn name_of(error: &std::io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EAGAIN) => "TIMEOUT".to_owned(),
        Some(errno) => format!("{errno:?}"),
        None => format!("{:?}", error.kind()),
    }
}
