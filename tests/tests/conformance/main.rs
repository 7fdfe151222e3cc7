//! The embedded server passes as Consul: the same cases against both, compared field by field. What is meant to differ
//! is in `differences`, and in docs/api.md with the same words.

mod agent;
mod blocking;
mod ca;
mod catalog;
mod cli;
mod differences;
mod health;
mod input;
mod intentions;
mod proxy;

use mesh_tests::{
    conformance::{Difference, Run, Servers},
    require_consul, require_root,
};

#[test]
fn the_api_answers_as_consuls_does() {
    require_root!();
    require_consul!();
    let servers = Servers::start();
    let mut run = Run::new(&servers, differences::API);
    for cases in [
        agent::of_itself,
        agent::services,
        agent::sidecars,
        agent::checks,
        agent::aliases,
        agent::maintenance,
        catalog::reads,
        catalog::writes,
        health::reads,
        intentions::all,
        intentions::by_names,
        ca::roots_and_configuration,
        ca::leafs,
        ca::authorize,
        blocking::all,
        input::bad_bodies,
        input::unknown_things,
        input::parameters,
    ] {
        cases(&mut run);
    }
    run.finish();
}

#[test]
fn the_consul_command_works_as_with_consul() {
    require_root!();
    require_consul!();
    let servers = Servers::start();
    let mut run = Run::new(&servers, differences::CLI);
    for cases in [cli::intentions, cli::services, cli::certificates, cli::the_rest] {
        cases(&mut run);
    }
    run.finish();
}

#[test]
fn consuls_own_proxy_works_as_with_consul() {
    require_root!();
    require_consul!();
    proxy::carries_what_is_allowed(&Servers::start());
}

#[test]
fn the_documentation_lists_the_same_differences() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/api.md");
    let text = std::fs::read_to_string(path).expect("docs/api.md");
    let (_, section) = text.split_once("\n## Differences from Consul\n").unwrap_or_default();
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    let documented: Vec<_> = section.lines().filter(|line| line.starts_with("| `")).collect();
    let declared: Vec<_> = differences::all().map(Difference::row).collect();
    assert!(documented == declared, "docs/api.md should list exactly these:\n\n{}\n", declared.join("\n"));
}
