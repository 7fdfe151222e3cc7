//! One socket that connects more than once.

use mesh_tests::{host::Family, require_root};

use super::{BARE, ECHO, HIDDEN, SECOND, Ways, address, is_echoed, text};

#[test]
fn socket_connects_after_a_failure() {
    require_root!();
    for family in [Family::V4, Family::V6] {
        let ways = Ways::new(family);
        let b = text(ways.mesh.b.host.ip(family));
        for (first, error) in [(HIDDEN, "EPERM"), (1, "ECONNREFUSED")] {
            let said = ways.arrives("again", &[&b, &first.to_string()]);
            assert_eq!(said["first"], error, "{said}");
            // The failure of before is no way in.
            let said = ways.is_denied("again", &[&b, &first.to_string()]);
            assert_eq!(said["at"], "connect", "{said}");
        }
        ways.end(2);
    }
}

#[test]
fn dissolved_socket_is_captured_or_not_by_what_it_dials_next() {
    require_root!();
    for family in [Family::V4, Family::V6] {
        let ways = Ways::new(family);
        let b = text(ways.mesh.b.host.ip(family));
        for (first, second) in [(ECHO, BARE), (BARE, ECHO), (ECHO, SECOND), (ECHO, ECHO)] {
            let said = ways.say("web", "dissolve", ways.to(first), &[&b, &second.to_string()]);
            assert_eq!(address(&said["first_peer"]), ways.to(first), "{said}");
            assert_eq!(said["between"], "ENOTCONN", "{said}");
            is_echoed(&said, "dissolve", ways.to(second));
        }
        // What was allowed before says nothing of what comes next.
        let said = ways.say("web", "dissolve", ways.to(ECHO), &[&b, &HIDDEN.to_string()]);
        assert_eq!((&said["at"], &said["error"]), (&"connect".into(), &"EPERM".into()), "{said}");
        ways.mesh.a.wait_status("no flow", |s| s.all_flows().is_empty());
        ways.end(7);
    }
}
