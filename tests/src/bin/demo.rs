//! `demo [--keep]`: the story of the README, told with real programs on two hosts that are made for it.

use std::process::ExitCode;

use mesh_tests::{
    can_run,
    config::{Config, ControlPlane, Service},
    fixture::share_ca,
    host::Host,
    janitor,
    meshnode::{Meshnode, binary},
    net::Network,
    process::{Output, Process},
    program::postgres::Postgres,
    space::Options,
    wait,
};

const SECRET: &str = "4 million in unmarked bills";

fn main() -> ExitCode {
    let keep = std::env::args().any(|word| word == "--keep");
    if !can_run("demo") {
        say("Two hosts out of namespaces, and BPF programs in the kernel, need root: run it with sudo.");
        return ExitCode::FAILURE;
    }
    // What an earlier `--keep` left would otherwise stay for ever.
    janitor::sweep_kept();
    let story = std::panic::catch_unwind(|| tell(keep));
    if story.is_err() {
        say("The demo failed; what went wrong is above. Everything it made is being removed.");
        janitor::sweep_kept();
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// The network and the two hosts of the story.
struct Stage {
    net: Network,
    a: Meshnode,
    b: Meshnode,
    // PostgreSQL, on B. Before the hosts in time, after them in the order of ending.
    _db: Postgres,
}

fn tell(keep: bool) {
    let stage = set_up(keep);
    let Stage { net, a, b, .. } = &stage;

    title("1. Nothing is allowed until an intention says so");
    say("`web` on host A dials the database on host B. The kernel refuses connect() itself:");
    let query = format!("select '{SECRET}' as cash");
    wait::until_true("the kernel to know the database", || {
        let said = a.cli(&exec("web", &psql(&query)));
        said.stderr.contains("Operation not permitted")
    });
    meshnode(a, &exec("web", &psql(&query)));

    title("2. One intention later");
    meshnode(a, &["intention", "create", "web", "db"]);
    wait::until_true("the intention to reach the kernel", || {
        a.host.run("web", &psql("select 1")).status.success()
    });
    say("The same psql, unmodified, while every packet between the hosts is recorded:");
    let capture = net.capture(&b.host);
    meshnode(a, &exec("web", &psql(&query)));
    say("And a program that is not `web`, on the same host, at the same moment:");
    meshnode(a, &exec("intruder", &psql(&query)));

    title("3. What an eavesdropper saw");
    let trace = capture.stop();
    let port = mesh_port(b);
    say(&format!(
        "{} packets, {} bytes to and from port {port} (db's mesh port), {} bytes to PostgreSQL's own port 5432.",
        trace.packet_count(),
        trace.bytes_at(port),
        trace.bytes_at(5432)
    ));
    for needle in [SECRET, "select", "postgres"] {
        say(&format!("  occurrences of \"{needle}\" in them: {}", trace.count(needle)));
    }
    trace.assert_secret(port, &[SECRET, "select", "postgres"]);
    trace.assert_tls13(port);
    say("  every conversation with that port is TLS 1.3 from the first byte to the last: checked.");

    title("4. What meshnode says of it, on both hosts");
    say("While a query that takes its time is running:");
    let mut patient = start_patient_query(a);
    a.wait_status("the live flow", |s| !s.flows("web", "db").is_empty());
    meshnode(a, &["status"]);
    meshnode(b, &["status"]);

    title("5. Changing one's mind");
    say("The intention is deleted, and the query that is still running loses its connection at once:");
    meshnode(a, &["intention", "delete", "web", "db"]);
    patient.wait();
    for line in patient.log().lines() {
        say(&format!("  {line}"));
    }
    meshnode(a, &["intention", "create", "web", "db"]);

    if keep {
        tell_how_to_go_on(&stage);
        // Dropping would end what is to stay.
        std::mem::forget(stage);
    } else {
        say("\nTaking everything down.");
        drop(stage);
        let left = janitor::left_by(std::process::id());
        assert!(left.is_empty(), "something was left behind: {left:?}");
        say(
            "Nothing is left: no namespace, cgroup, mount, BPF program or process. (`demo --keep` leaves it up.)",
        );
    }
}

fn set_up(keep: bool) -> Stage {
    title("Two hosts");
    say(
        "Each is a network, mount, cgroup and UTS namespace of its own; a router joins them. On each runs the real",
    );
    say("`meshnode`; host A also serves the control plane (catalog, intentions, CA) to host B over TLS.");
    let net = Network::with(Options { stay: keep, ..Options::default() });
    let (a, b) = (net.host("host-a"), net.host("host-b"));
    for host in [&a, &b] {
        host.name_address("db", b.v4.into());
    }
    let config = |host: &Host, control_plane, services| Config {
        node: host.name.clone(),
        advertise: host.v4.into(),
        control_plane,
        services,
        top: String::new(),
        sections: String::new(),
    };
    let server = a.v4.into();
    let on_a = vec![Service::client("web"), Service::client("intruder")];
    let a_config = config(&a, ControlPlane::Embedded { lines: String::new() }, on_a);
    let b_config = config(&b, ControlPlane::Remote { server }, vec![Service::server("db", 5432)]);
    let db = Postgres::start(&b, "db", 5432);
    let a = Meshnode::start(a, a_config);
    share_ca(&a, &b);
    let b = Meshnode::start(b, b_config);
    say("The part of host B's configuration that matters, and PostgreSQL is not told of any of it:\n");
    let text = b.config.to_string();
    let section = text.find("[[service]]").unwrap_or(0);
    say(&text[section..].lines().filter(|l| !l.is_empty()).map(|l| format!("    {l}\n")).collect::<String>());
    Stage { net, a, b, _db: db }
}

fn psql(sql: &str) -> Vec<&str> {
    vec!["psql", "-X", "-h", "db", "-U", "postgres", "-c", sql]
}

fn mesh_port(node: &Meshnode) -> u16 {
    let status = node.status();
    let port = status.entry("services", "name", "db").and_then(|s| s["mesh_port"].as_u64());
    port.and_then(|p| u16::try_from(p).ok()).expect("db has a mesh port")
}

/// Starts a query on host A that runs for a minute.
fn start_patient_query(a: &Meshnode) -> Process {
    let command = exec("web", &psql("select pg_sleep(60)"));
    say(&format!("\n  {}:# meshnode {} &", a.host.name, quoted(&command)));
    let binary = binary();
    let words: Vec<&str> = std::iter::once(binary.to_str().expect("UTF-8")).chain(command).collect();
    a.host.spawn("", &words)
}

/// A command line under a service's identity.
fn exec<'a>(service: &'a str, command: &[&'a str]) -> Vec<&'a str> {
    [&["exec", "--service", service, "--"], command].concat()
}

/// Runs a command as root on the host, and shows the line and what it printed.
fn meshnode(node: &Meshnode, words: &[&str]) {
    say(&format!("\n  {}:# meshnode {}", node.host.name, quoted(words)));
    show(&node.cli(words));
}

fn show(said: &Output) {
    for line in said.stdout.lines().chain(said.stderr.lines()) {
        say(&format!("  {line}"));
    }
    if !said.status.success() {
        say(&format!("  ({})", said.status));
    }
}

fn quoted(words: &[&str]) -> String {
    let quote = |word: &&str| {
        let plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:=".contains(c));
        if plain { (*word).to_owned() } else { format!("\"{word}\"") }
    };
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

fn title(text: &str) {
    say(&format!("\n\x1b[1m{text}\x1b[0m"));
}

#[expect(clippy::print_stdout, reason = "telling the story is what this program is for")]
fn say(text: &str) {
    println!("{text}");
}

/// Leaves the stage as it is, with the commands to walk on it.
fn tell_how_to_go_on(stage: &Stage) {
    title("Everything stays up");
    for node in [&stage.a, &stage.b] {
        let pid = node.host.space().pid();
        say(&format!("  a shell on {}:   sudo nsenter -t {pid} -m -n -u -i -C", node.host.name));
    }
    say(&format!("\nThere, after `alias meshnode={}`:", binary().display()));
    say("  on host-a:  meshnode exec --service web -- psql -h db -U postgres -c 'select 1'");
    say("              meshnode intention delete web db      (cuts live connections, too)");
    say("              meshnode status --watch");
    let pids = [stage.a.host.space().pid(), stage.b.host.space().pid(), stage.net.space().pid()];
    say(&format!("\nTo take it down:  sudo kill {} {} {}", pids[0], pids[1], pids[2]));
}
