//! Mail, gRPC streams, websockets: protocols where either side speaks at any time.

use mesh_tests::{
    program::script,
    require_root,
    transparency::{Outcome, Report, Stage, stage::Proof},
};

use crate::differences;

#[test]
fn mail_is_delivered_as_on_plain_tcp() {
    require_root!();
    let stage = Stage::start(&[("mail", 25)]);
    let servers = stage.both(|ends| {
        let words = [
            script::PYTHON,
            "-m",
            "aiosmtpd",
            "-n",
            "-l",
            "0.0.0.0:25",
            "-c",
            "aiosmtpd.handlers.Debugging",
            "stdout",
        ];
        let mut command = ends.b.command("mail", &words);
        command.env("PYTHONUNBUFFERED", "1");
        let mut server = mesh_tests::process::Process::spawn(command, &ends.b.log_file("aiosmtpd"));
        server.wait_ready(|| mesh_tests::program::listens(ends.b, 25));
        server
    });
    stage.allow("mail");
    let mail: String = (0..2000).map(|n| format!("line {n} of the body\r\n")).collect();
    let mail = format!("From: a@mesh.test\r\nTo: b@mesh.test\r\nSubject: a mail\r\n\r\n{mail}");
    let mut report = Report::new(differences::MESSAGES);
    let said = stage.compare(&mut report, "SMTP", "mail", Proof::Wire, |ends| {
        let url = format!("smtp://{}", ends.at(25));
        let words =
            ["curl", "-sS", "--max-time", "60", "--mail-from", "a@mesh.test", "--mail-rcpt", "b@mesh.test"];
        let words = [&words[..], &["--mail-rcpt", "c@mesh.test", "-T", "-", &url]].concat();
        let sent = ends.a.run_with_input("web", &words, &mail);
        let verify = ends.run(&["curl", "-sS", "-X", "NOSUCH", &url]);
        let server = &servers[usize::from(std::ptr::eq(ends.b, stage.captured().b))];
        let delivered = mesh_tests::wait::until("the mail", || {
            let log = server.log();
            let mail = log.split_once("MESSAGE FOLLOWS").map(|(_, rest)| rest.to_owned());
            mail.filter(|rest| rest.contains("END MESSAGE")).ok_or(log)
        });
        let peer = delivered.lines().find_map(|line| line.strip_prefix("X-Peer: ")).unwrap_or("nobody");
        let peer =
            peer.trim_start_matches(['(', '\'']).split(['\'', ':']).next().unwrap_or_default().to_owned();
        let body: String = delivered.lines().filter(|line| !line.starts_with("X-Peer")).collect();
        Outcome::of(&sent)
            .with("no such command", verify.stderr)
            .with("delivered", body)
            .with("the peer that the server saw", peer)
    });
    assert_eq!(said.count("exit status: 0"), 1, "{said:#?}");
    report.finish();
}

/// Compares a Python program whose server is `serve PORT` and whose client `call ADDRESS COUNT`.
#[track_caller]
fn both_sides_of(program: &str, case: &str, service: &'static str, port: u16, count: &str) {
    let stage = Stage::start(&[(service, port)]);
    let program = script::path(program);
    let words = [script::PYTHON, &program, "serve", &port.to_string()];
    let _servers = stage.both(|ends| script::serve(ends.b, service, port, &words));
    stage.allow(service);
    let mut report = Report::new(&[]);
    let said = stage.compare(&mut report, case, service, Proof::Wire, |ends| {
        Outcome::of(&ends.run(&[script::PYTHON, &program, "call", &ends.at(port), count]))
    });
    assert_eq!(said.count("exit status: 0"), 1, "{said:#?}");
    report.finish();
}

#[test]
fn grpc_streams_work_as_on_plain_tcp() {
    require_root!();
    both_sides_of("grpc_stream.py", "gRPC streams", "calls", 50051, "500");
}

#[test]
fn websockets_work_as_on_plain_tcp() {
    require_root!();
    both_sides_of("websocket.py", "websockets", "chat", 8765, "300");
}
