//! What a request needs of its token, in the words of Consul's policy language: Consul itself often says no more than
//! "Permission denied". Also which of a host's needs its token does not meet.

use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::client::{ApiError, Client};
use crate::identity::ServiceName;

/// Returns what `method path` with `body` is for and which rule grants it; `None` for what no rule is about.
pub(super) fn needed(method: &Method, path: &str, body: &[u8]) -> Option<String> {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let words: Vec<String> = path.trim_start_matches("/v1/").split('/').map(unescape).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let writes = *method != Method::GET;
    let level = if writes { "write" } else { "read" };
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    Some(match words.as_slice() {
        ["agent", "service", "register"] => registration(&body),
        ["agent", "service", "deregister" | "maintenance", id] => {
            format!("changing the service with the id {id:?} needs policy = \"write\" on its name")
        }
        ["agent", "check", .., id] if writes => {
            let of = id.strip_prefix("service:").unwrap_or(id);
            format!("reporting the health of {of:?} needs policy = \"write\" on its service")
        }
        ["agent", "connect", "ca", "leaf", name] | ["connect", "ca", "sign", name] => {
            format!("a certificate for {name:?} needs {}", service(name, "write"))
        }
        ["agent", "services"] => format!("it needs {}", anything("service", "read")),
        ["agent", "self" | "metrics"] => "it needs agent_prefix \"\" { policy = \"read\" }".to_owned(),
        ["connect", "intentions", rest @ ..] => intentions(writes, rest, query, &body),
        ["connect", "ca", "configuration"] => format!("the CA's configuration needs operator = \"{level}\""),
        ["acl", "bootstrap"] => return None,
        ["acl", ..] => format!("ACLs need acl = \"{level}\""),
        ["health", "service" | "connect" | "checks", name] | ["catalog", "service" | "connect", name] => {
            let node = anything("node", "read");
            format!("the instances of {name:?} need {} and {node}", service(name, "read"))
        }
        ["catalog", "register" | "deregister"] => {
            "the catalog needs policy = \"write\" on the node and on the service".to_owned()
        }
        ["catalog" | "health", ..] => {
            format!("the catalog needs {} and {}", anything("service", "read"), anything("node", "read"))
        }
        _ => return None,
    })
}

fn service(name: &str, policy: &str) -> String {
    format!("service {name:?} {{ policy = {policy:?} }}")
}

fn anything(resource: &str, policy: &str) -> String {
    format!("{resource}_prefix \"\" {{ policy = {policy:?} }}")
}

fn registration(body: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let name = text(&body["Name"]);
    let mut rules = service(&name, "write");
    let destination = text(&body["Proxy"]["DestinationServiceName"]);
    if !destination.is_empty() {
        rules = format!("{rules} and {}", service(&destination, "write"));
    }
    format!("registering {name:?} needs {rules}")
}

fn intentions(writes: bool, rest: &[&str], query: &str, body: &Value) -> String {
    let value = |name: &str| {
        let pair = query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name);
        pair.map(|(_, value)| unescape(value))
    };
    if writes {
        let destination =
            value("destination").or_else(|| body["DestinationName"].as_str().map(str::to_owned));
        let destination = destination.unwrap_or_else(|| "DESTINATION".to_owned());
        return format!(
            "an intention for {destination:?} needs service {destination:?} {{ policy = \"read\" intentions = \"write\" }}"
        );
    }
    let name = if rest == ["check"] { value("destination") } else { value("name") };
    match name {
        Some(name) if name != "*" => format!(
            "the intentions of {name:?} need {} (which grants intentions = \"read\")",
            service(&name, "read")
        ),
        _ => "intentions need service_prefix \"\" { policy = \"read\" intentions = \"read\" }".to_owned(),
    }
}

fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        match hex.filter(|_| first == b'%').and_then(|two| u8::from_str_radix(two, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A question of `/v1/internal/acl/authorize`, and its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Question {
    resource: String,
    access: String,
    #[serde(default)]
    segment: String,
    #[serde(default, skip_serializing)]
    allow: bool,
}

/// Returns the rules that a host with these services (and whether each listens) needs and its token does not have;
/// `None` where the server does not say: ACLs are off, or it has no such endpoint.
///
/// # Errors
/// Every [`ApiError`] but that the endpoint is not there.
pub async fn missing<'s>(
    client: &Client,
    services: impl IntoIterator<Item = (&'s ServiceName, bool)>,
) -> Result<Option<Vec<String>>, ApiError> {
    /// As many as Consul takes at once.
    const AT_ONCE: usize = 64;
    let needs = needs(services);
    let mut lacks = Vec::new();
    for some in needs.chunks(AT_ONCE) {
        let answer = client.post::<Vec<Question>>("/v1/internal/acl/authorize", &some).await;
        let answers = match answer {
            Ok(answers) => answers,
            Err(ApiError::Status { .. } | ApiError::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        lacks.extend(answers.iter().filter(|answer| !answer.allow).map(rule));
    }
    Ok(Some(lacks))
}

fn needs<'s>(services: impl IntoIterator<Item = (&'s ServiceName, bool)>) -> Vec<Question> {
    let question = |resource: &str, access: &str, segment: &str| Question {
        resource: resource.to_owned(),
        access: access.to_owned(),
        segment: segment.to_owned(),
        allow: false,
    };
    let mut needs = vec![question("service", "read", ""), question("node", "read", "")];
    for (name, listens) in services {
        needs.push(question("service", "write", name.as_str()));
        needs.push(question("intention", "read", name.as_str()));
        if listens {
            needs.push(question("service", "write", &format!("{name}-sidecar-proxy")));
        }
    }
    needs
}

fn rule(question: &Question) -> String {
    let Question { resource, access, segment, .. } = question;
    match (resource.as_str(), segment.as_str()) {
        ("intention", name) => format!("service {name:?} {{ intentions = {access:?} }}"),
        (resource, "") => anything(resource, access),
        (resource, name) => format!("{resource} {name:?} {{ policy = {access:?} }}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_names_the_rule_that_it_needs() {
        let proxy = r#"{"Name":"db-sidecar-proxy","Proxy":{"DestinationServiceName":"db"}}"#;
        for (method, path, body, wanted) in [
            (
                "PUT",
                "/v1/agent/service/register",
                r#"{"Name":"db"}"#,
                r#"registering "db" needs service "db" { policy = "write" }"#,
            ),
            (
                "PUT",
                "/v1/agent/service/register",
                proxy,
                r#"service "db-sidecar-proxy" { policy = "write" } and service "db" { policy = "write" }"#,
            ),
            ("PUT", "/v1/agent/check/update/service%3Adb", "", r#"reporting the health of "db" needs"#),
            (
                "GET",
                "/v1/agent/connect/ca/leaf/web",
                "",
                r#"a certificate for "web" needs service "web" { policy = "write" }"#,
            ),
            ("PUT", "/v1/connect/ca/sign/web?mesh-node=x", "", r#"service "web" { policy = "write" }"#),
            (
                "GET",
                "/v1/connect/intentions/match?by=source&name=web",
                "",
                r#"the intentions of "web" need service "web" { policy = "read" }"#,
            ),
            ("GET", "/v1/connect/intentions/check?source=a&destination=b", "", r#"of "b" need"#),
            (
                "POST",
                "/v1/connect/intentions",
                r#"{"DestinationName":"db"}"#,
                r#"service "db" { policy = "read" intentions = "write" }"#,
            ),
            (
                "DELETE",
                "/v1/connect/intentions/exact?source=a&destination=%2A",
                "",
                r#"an intention for "*""#,
            ),
            (
                "GET",
                "/v1/health/service/db?passing",
                "",
                r#"service "db" { policy = "read" } and node_prefix "" { policy = "read" }"#,
            ),
            ("GET", "/v1/catalog/services", "", r#"service_prefix "" { policy = "read" }"#),
            ("PUT", "/v1/connect/ca/configuration", "", r#"operator = "write""#),
            ("GET", "/v1/acl/tokens", "", r#"acl = "read""#),
        ] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let found = needed(&method, path, body.as_bytes()).unwrap();
            assert!(found.contains(wanted), "{path}: {found}");
        }
        assert_eq!(needed(&Method::GET, "/v1/status/leader", b""), None);
        assert_eq!(needed(&Method::GET, "/v1/agent/%", b"\xff"), None);
    }

    #[test]
    fn a_host_needs_write_on_what_it_runs_and_read_on_the_rest() {
        let (db, web) = ("db".parse().unwrap(), "web".parse().unwrap());
        let rules: Vec<_> = needs([(&db, true), (&web, false)]).iter().map(rule).collect();
        assert_eq!(
            rules,
            [
                r#"service_prefix "" { policy = "read" }"#,
                r#"node_prefix "" { policy = "read" }"#,
                r#"service "db" { policy = "write" }"#,
                r#"service "db" { intentions = "read" }"#,
                r#"service "db-sidecar-proxy" { policy = "write" }"#,
                r#"service "web" { policy = "write" }"#,
                r#"service "web" { intentions = "read" }"#,
            ]
        );
    }
}
