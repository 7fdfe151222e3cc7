//! Durations as Go writes them: `10s`, `1h30m`, `1.5s`, `250ms`.

use std::time::Duration;

const UNITS: [(&str, u64); 7] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
];

/// Returns the duration, or `None` for what is none: negative ones, numbers without a unit, more than 292 years.
pub fn parse(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let (unit, factor) = UNITS.iter().find(|(unit, _)| {
            after.strip_prefix(unit).is_some_and(|then| then.is_empty() || then.starts_with(is_number))
        })?;
        total = total.checked_add(scaled(number, *factor)?)?;
        rest = &after[unit.len()..];
    }
    (!text.is_empty() && total <= i64::MAX as u64).then_some(Duration::from_nanos(total))
}

fn is_number(c: char) -> bool {
    c.is_ascii_digit() || c == '.'
}

fn scaled(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut part = 0;
    let mut scale = factor;
    for digit in fraction.bytes() {
        scale /= 10;
        part += u64::from(digit - b'0') * scale;
    }
    whole.checked_mul(factor)?.checked_add(part)
}

/// Returns the shortest of the forms that Go would print: `72h0m0s` is written `72h`.
pub fn text(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds, duration.subsec_millis()) {
        (0, ms) => format!("{ms}ms"),
        (s, 0) if s % 3600 == 0 => format!("{}h", s / 3600),
        (s, 0) if s % 60 == 0 => format!("{}m", s / 60),
        (s, 0) => format!("{s}s"),
        (s, ms) => format!("{s}.{ms:03}s"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn go_durations_are_read() {
        for (text, ms) in
            [("10s", 10_000), ("1h30m", 5_400_000), ("1.5s", 1_500), ("250ms", 250), ("0", 0), (".5s", 500)]
        {
            assert_eq!(parse(text), Some(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for text in
            ["", "10", "s", "-1s", "10x", "1..5s", "1.5.5s", ".s", "10 s", "9999999999999h", "10sm", "1e3s"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn parse_never_panics(input in "\\PC{0,20}|[0-9.]{0,25}[hmsnuµ]{0,3}") {
            let _ = parse(&input);
        }

        #[test]
        fn what_is_written_is_read_back(ms in 0u64..400_000_000_000) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse(&text(duration)), Some(duration));
        }
    }
}
