//! The real `consul connect proxy` with each of the two for its agent: as a service's inbound proxy, and as the way out
//! of a client. What is allowed passes, what is denied does not.

use mesh_tests::{
    conformance::{
        Servers,
        servers::{SIDES, Side},
    },
    fixture::{connect, serve},
    process::Process,
    program::{consul, listens},
    wait,
};

const SIDECAR: &str = r#"{"service": {"name": "web", "port": 7001, "connect": {"sidecar_service": {}}}}"#;

fn proxy(servers: &Servers, side: Side, words: &[&str]) -> Process {
    let host = servers.host(side);
    let binary = consul::binary().expect("the test asked for it");
    let start = [binary.to_str().expect("UTF-8"), "connect", "proxy"];
    let mut command = host.command("", &[&start, words].concat());
    command.env("CONSUL_HTTP_ADDR", consul::API).env("CONSUL_HTTP_TOKEN", servers.token(side));
    Process::spawn(command, &host.log_file("connect-proxy"))
}

pub fn carries_what_is_allowed(servers: &Servers) {
    for side in SIDES {
        let host = servers.host(side);
        host.write("/run/web.json", SIDECAR);
        servers.cli(side, &["services", "register", "/run/web.json"]).ok();
        let _programs =
            [serve(host, "", 7001, &["banner", "of web"]), serve(host, "", 7002, &["banner", "of db"])];
        let register =
            ["-service=db", "-service-addr=127.0.0.1:7002", "-listen=:7022", "-register", "-register-id=db"];
        let proxies = [
            // The inbound one of a registered service, one that registers itself, and a client's.
            proxy(servers, side, &["-sidecar-for=web"]),
            proxy(servers, side, &register),
            proxy(servers, side, &["-service=app", "-upstream=web:9191", "-upstream=db:9192"]),
        ];
        wait::until("the client's ports", || listens(host, 9191).and_then(|()| listens(host, 9192)));
        let logs = || proxies.iter().map(Process::log).collect::<Vec<_>>().join("\n---\n");
        let says = |port: u16| connect(host, "", &format!("127.0.0.1:{port}"), &["--wait", "500"]);
        let reaches = |port: u16, banner: &str| {
            wait::until(&format!("port {port} on {side:?}"), || {
                let said = says(port);
                if said["received"].as_str().is_some_and(|text| text.contains(banner)) {
                    return Ok(());
                }
                Err(format!("{said}\n{}", logs()))
            });
        };
        let is_denied = |port: u16| {
            wait::until(&format!("port {port} to be denied on {side:?}"), || {
                let said = says(port);
                let nothing = said["received"].as_str().is_none_or(str::is_empty);
                if nothing && said["end"] != "TIMEOUT" { Ok(()) } else { Err(format!("{said}\n{}", logs())) }
            });
        };
        servers.cli(side, &["intention", "create", "-allow", "app", "web"]).ok();
        servers.cli(side, &["intention", "create", "-deny", "app", "db"]).ok();
        reaches(9191, "of web");
        is_denied(9192);
        servers.cli(side, &["intention", "create", "-deny", "-replace", "app", "web"]).ok();
        servers.cli(side, &["intention", "create", "-allow", "-replace", "app", "db"]).ok();
        is_denied(9191);
        reaches(9192, "of db");
    }
}
