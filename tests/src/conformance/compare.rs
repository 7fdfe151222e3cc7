//! Where two answers differ.

use std::{collections::BTreeMap, fmt};

use serde_json::Value;

use super::{normal, wire::Answer};
use crate::process::Output;

/// Headers that clients of Consul look at. Of the first two only that they are there.
const HEADERS: [&str; 5] = [
    "x-consul-index",
    "x-consul-contenthash",
    "x-consul-knownleader",
    "x-consul-lastcontact",
    "content-type",
];

/// What identifies an element of a list, the first of these that it has.
const KEYS: [&str; 7] = ["CheckID", "ServiceID", "Service", "Node", "ID", "Name", "DestinationName"];

/// One place where Consul and the embedded server do not say the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// `status`, `header/NAME`, `error` (the text of a refusal), `text`, or `body/PATH`.
    pub place: String,
    pub consul: String,
    pub embedded: String,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, consul, embedded } = self;
        write!(f, "{place}\n      consul:   {consul}\n      embedded: {embedded}")
    }
}

/// Returns where the answers differ.
pub fn answers(consul: &Answer, embedded: &Answer) -> Vec<Found> {
    let mut all = Vec::new();
    let mut note = |place: &str, consul: String, embedded: String| {
        if consul != embedded {
            all.push(Found { place: place.to_owned(), consul, embedded });
        }
    };
    let refused =
        |answer: &Answer| answer.status >= 400 && answer.header("content-type") != Some("application/json");
    if refused(consul) != refused(embedded) {
        // All else differs then.
        let shown = |answer: &Answer| format!("{}: {}", answer.status, normal::text(answer.body.trim_end()));
        note("status", shown(consul), shown(embedded));
        return all;
    }
    note("status", consul.status.to_string(), embedded.status.to_string());
    for name in HEADERS {
        let shown = |answer: &Answer| match (answer.header(name), name) {
            (Some(_), "x-consul-index" | "x-consul-contenthash") => "there".to_owned(),
            (value, _) => value.unwrap_or("missing").to_owned(),
        };
        note(&format!("header/{name}"), shown(consul), shown(embedded));
    }
    let json = |answer: &Answer| serde_json::from_str::<Value>(&answer.body).ok();
    match (json(consul), json(embedded)) {
        (Some(ours), Some(theirs)) => {
            values("body", &normal::value(&ours), &normal::value(&theirs), &mut all)
        }
        _ if consul.status >= 400 && embedded.status >= 400 => {
            note("error", normal::text(consul.body.trim_end()), normal::text(embedded.body.trim_end()));
        }
        _ => note("text", normal::text(&consul.body), normal::text(&embedded.body)),
    }
    all
}

/// Returns where what a command printed differs, in its lines without regard to their number of spaces.
pub fn outputs(consul: &Output, embedded: &Output) -> Vec<Found> {
    let mut all = Vec::new();
    let mut note = |place: &str, consul: String, embedded: String| {
        if consul != embedded {
            all.push(Found { place: place.to_owned(), consul, embedded });
        }
    };
    let code =
        |output: &Output| output.status.code().map_or_else(|| "killed".to_owned(), |code| code.to_string());
    note("exit code", code(consul), code(embedded));
    for (place, ours, theirs) in
        [("stdout", &consul.stdout, &embedded.stdout), ("stderr", &consul.stderr, &embedded.stderr)]
    {
        let json = |text: &str| {
            serde_json::from_str::<Value>(text).ok().filter(|value| value.is_object() || value.is_array())
        };
        if let (Some(ours), Some(theirs)) = (json(ours), json(theirs)) {
            let mut found = Vec::new();
            values(place, &normal::value(&ours), &normal::value(&theirs), &mut found);
            found.into_iter().for_each(|found| note(&found.place, found.consul, found.embedded));
            continue;
        }
        let (ours, theirs) = (lines(ours), lines(theirs));
        let without = |lines: &[String], others: &[String]| {
            lines.iter().filter(|line| !others.contains(line)).cloned().collect::<Vec<_>>().join(" ⏎ ")
        };
        note(place, without(&ours, &theirs), without(&theirs, &ours));
    }
    all
}

fn lines(text: &str) -> Vec<String> {
    // Nodes' ids are shown by their first eight digits.
    let words = |line: &str| {
        let shown = line.split_whitespace().map(|word| if is_short_id(word) { "<id>" } else { word });
        shown.collect::<Vec<_>>().join(" ")
    };
    normal::text(text).lines().map(words).filter(|line| !line.is_empty()).collect()
}

fn is_short_id(word: &str) -> bool {
    word.len() == 8 && word.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Adds where two values differ, below `place`.
pub fn values(place: &str, consul: &Value, embedded: &Value, all: &mut Vec<Found>) {
    match (consul, embedded) {
        (Value::Object(ours), Value::Object(theirs)) => {
            let names: std::collections::BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
            for name in names {
                either(&format!("{place}/{name}"), ours.get(name), theirs.get(name), all);
            }
        }
        (Value::Array(ours), Value::Array(theirs)) => lists(place, ours, theirs, all),
        _ => either(place, Some(consul), Some(embedded), all),
    }
}

fn either(place: &str, consul: Option<&Value>, embedded: Option<&Value>, all: &mut Vec<Found>) {
    match (consul, embedded) {
        (Some(Value::Object(_)), Some(Value::Object(_))) | (Some(Value::Array(_)), Some(Value::Array(_))) => {
            values(place, consul.expect("just seen"), embedded.expect("just seen"), all);
        }
        _ if consul == embedded => {}
        _ => {
            let shown = |value: Option<&Value>| value.map_or_else(|| "missing".to_owned(), Value::to_string);
            all.push(Found { place: place.to_owned(), consul: shown(consul), embedded: shown(embedded) });
        }
    }
}

/// Compares elements that are the same thing, wherever they are; of intentions, whose order has a meaning, that is one
/// more place.
fn lists(place: &str, consul: &[Value], embedded: &[Value], all: &mut Vec<Found>) {
    let (ours, theirs) = (keyed(consul), keyed(embedded));
    let by_key = |list: &[(String, Value)]| list.iter().cloned().collect::<BTreeMap<_, _>>();
    let (our_map, their_map) = (by_key(&ours), by_key(&theirs));
    let keys: std::collections::BTreeSet<&String> = our_map.keys().chain(their_map.keys()).collect();
    for key in keys {
        either(&format!("{place}/{key}"), our_map.get(key), their_map.get(key), all);
    }
    let common = |list: &[(String, Value)], other: &BTreeMap<String, Value>| {
        list.iter().filter(|(key, _)| other.contains_key(key)).map(|(key, _)| key.clone()).collect::<Vec<_>>()
    };
    let (our_order, their_order) = (common(&ours, &their_map), common(&theirs, &our_map));
    if our_order != their_order && our_order.iter().any(|key| key.contains("=>")) {
        let shown = |order: Vec<String>| order.join(" ");
        all.push(Found {
            place: format!("{place}/(order)"),
            consul: shown(our_order),
            embedded: shown(their_order),
        });
    }
}

fn keyed(list: &[Value]) -> Vec<(String, Value)> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let name = |value: &Value| -> String {
        if let (Some(source), Some(destination)) =
            (value["SourceName"].as_str(), value["DestinationName"].as_str())
        {
            return format!("{source}=>{destination}");
        }
        match value {
            Value::String(text) => text.clone(),
            Value::Object(fields) => KEYS
                .iter()
                .find_map(|key| match fields.get(*key)? {
                    Value::String(text) if !text.is_empty() && text != "<uuid>" => Some(text.clone()),
                    Value::Object(inner) => ["ID", "Service", "Node"]
                        .iter()
                        .find_map(|key| inner.get(*key)?.as_str())
                        .map(str::to_owned),
                    _ => None,
                })
                .unwrap_or_default(),
            other => other.to_string(),
        }
    };
    let mut number = |name: String| {
        let count = seen.entry(name.clone()).and_modify(|n| *n += 1).or_insert(1);
        if *count == 1 { name } else { format!("{name}#{count}") }
    };
    list.iter().map(|value| (number(name(value)), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn places(consul: &Value, embedded: &Value) -> Vec<String> {
        let mut all = Vec::new();
        values("body", consul, embedded, &mut all);
        all.into_iter().map(|found| found.place).collect()
    }

    #[test]
    fn every_field_that_differs_is_named_by_its_path() {
        let consul = json!({"A": 1, "B": {"C": "x", "D": null}, "E": []});
        assert_eq!(places(&consul, &consul), [""; 0]);
        let embedded = json!({"A": "1", "B": {"C": "y"}, "E": null, "F": 0});
        assert_eq!(places(&consul, &embedded), ["body/A", "body/B/C", "body/B/D", "body/E", "body/F"]);
    }

    #[test]
    fn elements_of_lists_are_compared_by_what_they_are() {
        let consul =
            json!([{"CheckID": "serfHealth"}, {"CheckID": "a", "Status": "passing"}, {"CheckID": "b"}]);
        let embedded = json!([{"CheckID": "b"}, {"CheckID": "a", "Status": "critical"}]);
        assert_eq!(places(&consul, &embedded), ["body/a/Status", "body/serfHealth"]);
    }

    #[test]
    fn the_order_of_intentions_counts() {
        let rule = |source: &str| json!({"SourceName": source, "DestinationName": "db"});
        let (consul, embedded) = (json!([rule("web"), rule("*")]), json!([rule("*"), rule("web")]));
        assert_eq!(places(&consul, &consul), [""; 0]);
        assert_eq!(places(&consul, &embedded), ["body/(order)"]);
    }
}
