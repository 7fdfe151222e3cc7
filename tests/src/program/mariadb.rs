//! MariaDB: a server with a data directory of its own; the server speaks first.

use std::{fs, process::Command, time::Duration};

use super::{give_to, script};
use crate::{host::Host, process::Process, program::listens};

const USER: &str = "mysql";
/// Whom programs log in as.
pub const LOGIN: [&str; 2] = ["-umesh", "-psecret-of-the-tests"];

/// Starts a server with the user of [`LOGIN`].
#[track_caller]
pub fn start(host: &Host, cgroup: &str, port: u16) -> Process {
    let scratch = host.space().scratch();
    let data = scratch.join(format!("mariadb-{port}"));
    fs::create_dir_all(&data).expect("an own directory");
    give_to(USER, &data);
    let (data, port_option) = (data.to_str().expect("UTF-8").to_owned(), format!("--port={port}"));
    let datadir = format!("--datadir={data}");
    let mut install = Command::new("mariadb-install-db");
    install.args(["--no-defaults", "--skip-test-db", "--auth-root-authentication-method=normal"]);
    install.args(["--user=mysql", &datadir]).current_dir("/");
    crate::process::run(install, None, Duration::from_secs(300)).ok();
    let init = format!("{data}/init.sql");
    fs::write(
        &init,
        "CREATE USER 'mesh'@'%' IDENTIFIED BY 'secret-of-the-tests';\nGRANT ALL ON *.* TO 'mesh'@'%';\n\
         CREATE DATABASE IF NOT EXISTS shop;\n",
    )
    .expect("an own directory");
    give_to(USER, init.as_ref());
    let (init, socket) = (format!("--init-file={init}"), format!("--socket={data}/socket"));
    let words = [
        "mariadbd",
        "--no-defaults",
        "--user=mysql",
        &datadir,
        &port_option,
        &socket,
        &init,
        "--bind-address=*",
        "--skip-name-resolve",
        "--innodb-flush-log-at-trx-commit=0",
        "--innodb-buffer-pool-size=16M",
        "--max-connect-errors=4294967295",
    ];
    let mut server = script::serve(host, cgroup, port, &words);
    server.wait_for_log("ready for connections");
    server.wait_ready(|| listens(host, port));
    server
}

/// Returns the words of a command line of one of MariaDB's clients, up to what it is to do.
pub fn client<'w>(program: &'w str, address: &'w str, port: &'w str) -> Vec<&'w str> {
    [&[program, "--no-defaults", "--protocol=tcp", "-h", address, "-P", port][..], &LOGIN].concat()
}
