//! Whatever the text is: it is a configuration, or each mistake has a place.

use std::os::unix::ffi::OsStrExt;

use proptest::prelude::*;

use super::*;

/// Text near the format: keys and values that exist, put together wrongly.
fn almost_configuration() -> impl Strategy<Value = String> {
    let keys: Vec<String> = Config::keys()
        .iter()
        .map(|key| key.rsplit('.').next().unwrap().to_owned())
        .chain(["nope".into()])
        .collect();
    let values = [
        "1",
        "\"a\"",
        "\"/a\"",
        "\"10s\"",
        "\"embedded\"",
        "[]",
        "[1, \"b\"]",
        "{}",
        "true",
        "1.5",
        "\"\"",
        "-3",
        "1979-05-27",
    ];
    let headers = [
        "[[service]]",
        "[[exempt]]",
        "[[gateway]]",
        "[gateway.tls]",
        "[address]",
        "[listen]",
        "[control_plane]",
        "[control_plane.embedded]",
        "[control_plane.embedded.expose]",
        "[service.check]",
        "[[service.egress_allow]]",
        "[",
    ];
    let line = prop_oneof![
        4 => (prop::sample::select(keys), prop::sample::select(values.to_vec())).prop_map(|(k, v)| format!("{k} = {v}")),
        1 => prop::sample::select(headers.to_vec()).prop_map(str::to_owned),
    ];
    prop::collection::vec(line, 0..12).prop_map(|lines| lines.join("\n"))
}

fn check_any(text: &str) -> Result<(), TestCaseError> {
    match parse(text) {
        Ok(config) => prop_assert!(config.state_dir.as_os_str().as_bytes().starts_with(b"/")),
        Err(error) => {
            prop_assert!(!error.issues().is_empty());
            for issue in error.issues() {
                let lines = text.split('\n').count();
                prop_assert!((1..=lines).contains(&issue.line) && issue.column >= 1, "{issue}");
                prop_assert!(!issue.message.is_empty());
            }
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_text_parses_or_has_positions(text in "(?s).{0,200}") {
        check_any(&text)?;
    }

    #[test]
    fn almost_right_text_parses_or_has_positions(text in almost_configuration()) {
        check_any(&text)?;
    }

    #[test]
    fn a_broken_example_parses_or_has_positions(at in 0..EXAMPLE.len(), with in "(?s).{0,3}", cut in 0usize..20) {
        let start = EXAMPLE.floor_char_boundary(at);
        let end = EXAMPLE.floor_char_boundary((at + cut).min(EXAMPLE.len()));
        check_any(&format!("{}{with}{}", &EXAMPLE[..start], &EXAMPLE[end..]))?;
    }
}
