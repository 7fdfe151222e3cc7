//! What programming languages make of a connection.

use mesh_tests::{
    host::Family,
    process::Output,
    program::{
        compiled::{Make, compiled, source},
        is_installed,
    },
    require_root,
};

use super::{ECHO, Ways, skip, text};

struct Tried {
    allowed: Output,
    denied: Output,
}

/// Runs `words ADDRESS PORT` in `web` and in `other`.
#[track_caller]
fn tried(ways: &Ways, words: &[&str]) -> Tried {
    let to = ways.to(ECHO);
    let (ip, port) = (text(to.ip()), to.port().to_string());
    let words = [words, &[&ip, &port]].concat();
    let run = |cgroup| ways.mesh.a.host.run(cgroup, &words);
    Tried { allowed: run("web"), denied: run("other") }
}

#[test]
fn static_go_program_is_captured_or_denied() {
    require_root!();
    for family in [Family::V4, Family::V6] {
        let ways = Ways::new(family);
        let program = compiled("dial.go", Make::Go);
        let Tried { allowed, denied } = tried(&ways, &[program.to_str().expect("UTF-8")]);
        let said: serde_json::Value = serde_json::from_str(&allowed.ok()).unwrap();
        assert_eq!(
            (&said["received"], &said["peer"]),
            (&"sent by go".into(), &ways.to(ECHO).to_string().into())
        );
        assert!(denied.fails().contains("connect: operation not permitted"));
        ways.end(1);
    }
}

#[test]
fn java_which_dials_ipv4_by_ipv6_sockets_is_captured_or_denied() {
    require_root!();
    if std::env::var_os("MESHNODE_VM").is_some() {
        skip("a Java machine takes minutes to start in an emulated guest");
        return;
    }
    for family in [Family::V4, Family::V6] {
        let ways = Ways::new(family);
        let classes = compiled("Dial.java", Make::Java);
        let words = ["java", "-cp", classes.to_str().expect("UTF-8"), "Dial"];
        let Tried { allowed, denied } = tried(&ways, &words);
        let said = allowed.ok();
        let seen: Vec<&str> = said.lines().filter(|l| l.ends_with("received=sent by java")).collect();
        assert_eq!(seen.len(), 2, "{said}");
        let denied = denied.fails();
        assert_eq!(denied.matches("error=Operation not permitted").count(), 2, "{denied}");
        ways.end(2);
    }
}

#[test]
fn python_and_perl_and_bash_are_captured_or_denied() {
    require_root!();
    let ways = Ways::new(Family::V4);
    let peer = format!("peer={} received=sent by", ways.mesh.b.host.v4);
    let script = source("dial.py");
    let Tried { allowed, denied } = tried(&ways, &["python3", script.to_str().expect("UTF-8")]);
    let said = allowed.ok();
    assert_eq!(said.matches(&peer).count(), 2, "{said}");
    let denied = denied.fails();
    // asyncio words it otherwise: "[Errno 1] Connect call failed".
    assert_eq!(denied.matches("error=[Errno 1] ").count(), 2, "{denied}");

    let script = source("dial.pl");
    let Tried { allowed, denied } = tried(&ways, &["perl", script.to_str().expect("UTF-8")]);
    let said = allowed.ok();
    assert!(said.contains(&peer), "{said}");
    assert!(denied.fails().contains("error=Operation not permitted"));

    let mut captured = 3;
    if is_installed("bash") {
        let dial = "exec 3<>/dev/tcp/$0/$1 && echo 'sent by bash' >&3 && head -n 1 <&3";
        let Tried { allowed, denied } = tried(&ways, &["bash", "-c", dial]);
        assert_eq!(allowed.ok(), "sent by bash\n");
        assert!(denied.fails().contains("Operation not permitted"));
        captured += 1;
    }
    ways.end(captured);
}
