//! What differs between any two Consuls is made equal: ids, times, indexes, keys and certificates.

use serde_json::{Value, json};

/// Fields of which only the type is compared.
const BY_TYPE: [&str; 6] = ["CreateIndex", "ModifyIndex", "LastIndex", "SerialNumber", "ContentHash", "Hash"];

/// Returns the value with placeholders for what must differ.
pub fn value(value: &Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .map(|(name, field)| {
                    let field =
                        if BY_TYPE.contains(&name.as_str()) { of_type(field) } else { self::value(field) };
                    (text(name), field)
                })
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.iter().map(self::value).collect()),
        Value::String(string) => Value::String(text(string)),
        other => other.clone(),
    }
}

fn of_type(field: &Value) -> Value {
    match field {
        Value::Number(number) if number.as_u64() == Some(0) => json!(0),
        Value::Number(_) => json!("<number>"),
        Value::String(string) if !string.is_empty() => json!("<string>"),
        other => value(other),
    }
}

/// Returns the text with placeholders for UUIDs, times, PEM blocks and fingerprints, wherever they are in it.
pub fn text(text: &str) -> String {
    let mut made = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let previous_is_word = made.chars().next_back().is_some_and(|c| c.is_ascii_alphanumeric());
        let found = if previous_is_word { None } else { KINDS.iter().find_map(|kind| kind(rest)) };
        if let Some((length, placeholder)) = found {
            made.push_str(placeholder);
            rest = &rest[length..];
        } else {
            made.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    made
}

/// Returns the length of what `text` begins with, and its placeholder, if it is of the kind.
type Find = fn(&str) -> Option<(usize, &'static str)>;

const KINDS: [Find; 5] = [pem, uuid, time, clock, fingerprint];

fn pem(text: &str) -> Option<(usize, &'static str)> {
    text.strip_prefix("-----BEGIN ")?;
    let end = text.find("-----END ")?;
    let after = text[end + 9..].find("-----")?;
    let length = end + 9 + after + 5;
    let line_feed = usize::from(text[length..].starts_with('\n'));
    let kind = if text.contains("PRIVATE KEY") { "<key>" } else { "<pem>" };
    Some((length + line_feed, kind))
}

fn uuid(text: &str) -> Option<(usize, &'static str)> {
    let bytes = text.as_bytes().get(..36)?;
    let fits = bytes.iter().enumerate().all(|(n, byte)| match n {
        8 | 13 | 18 | 23 => *byte == b'-',
        _ => byte.is_ascii_hexdigit(),
    });
    fits.then_some((36, "<uuid>"))
}

/// As the command line shows times: `Wednesday, 25-Nov-26 23:06:04 UTC` (Go's RFC 850).
fn clock(text: &str) -> Option<(usize, &'static str)> {
    // `Wednesday` is the longest.
    let comma = text.bytes().take(10).position(|byte| byte == b',')?;
    let (day, rest) = (&text[..comma], text[comma..].strip_prefix(", ")?);
    let shape = b"00-Aaa-00 00:00:00 UTC";
    let bytes = rest.as_bytes().get(..shape.len())?;
    let fits = bytes.iter().zip(shape).all(|(byte, shape)| match shape {
        b'0' => byte.is_ascii_digit(),
        b'A' => byte.is_ascii_uppercase(),
        b'a' => byte.is_ascii_lowercase(),
        sign => byte == sign,
    });
    (day.ends_with("day") && day.bytes().all(|b| b.is_ascii_alphabetic()) && fits)
        .then_some((day.len() + 2 + shape.len(), "<time>"))
}

fn time(text: &str) -> Option<(usize, &'static str)> {
    let shape = b"0000-00-00T00:00:00";
    let bytes = text.as_bytes().get(..shape.len())?;
    let fits = bytes.iter().zip(shape).all(|(byte, shape)| match shape {
        b'0' => byte.is_ascii_digit(),
        sign => byte == sign,
    });
    if !fits || text.starts_with("0001-01-01") {
        return None;
    }
    let rest = &text[shape.len()..];
    let fraction = rest.find(|c: char| c != '.' && !c.is_ascii_digit()).unwrap_or(rest.len());
    let zone = usize::from(rest[fraction..].starts_with('Z'));
    Some((shape.len() + fraction + zone, "<time>"))
}

/// Eight or more hexadecimal pairs with colons between them.
fn fingerprint(text: &str) -> Option<(usize, &'static str)> {
    let end = text.find(|c: char| c != ':' && !c.is_ascii_hexdigit()).unwrap_or(text.len());
    let pairs: Vec<_> = text[..end].split(':').collect();
    (pairs.len() >= 8 && pairs.iter().all(|pair| pair.len() == 2)).then_some((end, "<fingerprint>"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_times_and_certificates_are_made_equal_and_nothing_else() {
        for (given, wanted) in [
            ("spiffe://11111111-2222-3333-4444-555555555555.consul/ns/a", "spiffe://<uuid>.consul/ns/a"),
            ("at 2026-11-22T01:02:03.456789Z, and", "at <time>, and"),
            ("Created At: Wednesday, 25-Nov-26 23:06:04 UTC", "Created At: <time>"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
            ("-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n", "<pem>"),
            ("aa:bb:cc:dd:ee:ff:00:11", "<fingerprint>"),
            ("10.77.1.1:8300", "10.77.1.1:8300"),
            ("service:web:1", "service:web:1"),
        ] {
            assert_eq!(text(given), wanted);
        }
    }

    #[test]
    fn of_indexes_only_the_type_counts() {
        let one = value(&json!({"CreateIndex": 7, "Port": 7}));
        assert_eq!(one, json!({"CreateIndex": "<number>", "Port": 7}));
        assert_ne!(value(&json!({"CreateIndex": "7"})), one);
        assert_eq!(value(&json!({"CreateIndex": 0})), json!({"CreateIndex": 0}));
    }
}
