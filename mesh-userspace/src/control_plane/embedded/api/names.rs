//! Checks of names, ids, addresses and metadata in requests. Each error names the field and what is accepted.

use std::net::IpAddr;

use super::ApiError;
use crate::{control_plane::embedded::model::Strings, identity::ServiceName};

const MAX_ID: usize = 255;
const MAX_NODE: usize = 128;
const MAX_TAGS: usize = 64;
/// Consul's limits for metadata.
const MAX_META: usize = 64;
const MAX_META_KEY: usize = 128;
const MAX_META_VALUE: usize = 512;
/// Consul keeps so much of a check's output, too.
const MAX_OUTPUT: usize = 4096;

fn bad(field: &str, why: impl std::fmt::Display) -> ApiError {
    ApiError::BadRequest(format!("{field}: {why}"))
}

/// Returns the name of a service that can have an identity.
pub fn service(field: &str, text: &str) -> Result<ServiceName, ApiError> {
    text.parse().map_err(|error| bad(field, error))
}

/// A name that is in the catalog only: proxies' are longer than their service's by `-sidecar-proxy`.
pub fn catalog_name(field: &str, text: &str) -> Result<(), ApiError> {
    words(field, text, MAX_NODE, "-_.")
}

pub fn node(field: &str, text: &str) -> Result<(), ApiError> {
    words(field, text, MAX_NODE, "-_.")
}

/// The id of a service or check.
pub fn id(field: &str, text: &str) -> Result<(), ApiError> {
    words(field, text, MAX_ID, "-_.:@/+~")
}

/// The id of a check: its name, where it was given none.
pub fn check_id(field: &str, text: &str) -> Result<(), ApiError> {
    if text.is_empty() || text.len() > MAX_ID || text.chars().any(char::is_control) {
        return Err(bad(field, format!("accepted are 1 to {MAX_ID} bytes without control characters")));
    }
    Ok(())
}

fn words(field: &str, text: &str, longest: usize, signs: &str) -> Result<(), ApiError> {
    let accepted = format!(
        "accepted are 1 to {longest} of the letters a-z and A-Z, digits, and {}",
        signs.chars().map(|c| format!("`{c}`")).collect::<Vec<_>>().join(" ")
    );
    if text.is_empty() || text.len() > longest {
        return Err(bad(field, format!("a length of {}; {accepted}", text.len())));
    }
    match text.chars().find(|c| !c.is_ascii_alphanumeric() && !signs.contains(*c)) {
        Some(found) => Err(bad(field, format!("`{}` in the name; {accepted}", found.escape_debug()))),
        None => Ok(()),
    }
}

/// An IP address or a host name; empty means the node's.
pub fn address(field: &str, text: &str) -> Result<(), ApiError> {
    match text.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() => {
            Err(bad(field, format!("Invalid service address: nobody can dial {ip}; give one of the node's")))
        }
        Ok(_) => Ok(()),
        Err(_) if text.is_empty() => Ok(()),
        Err(_) => words(field, text, 253, "-_.").map_err(|_| {
            bad(field, "neither an IP address nor a host name (letters, digits, `-` `_` `.`, at most 253)")
        }),
    }
}

/// `host:port`.
pub fn socket_address(field: &str, text: &str) -> Result<(), ApiError> {
    let split = text.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok());
    let Some((host, _)) = split else {
        return Err(bad(field, "an address and a port are wanted, as in 10.0.0.1:80"));
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() {
        return Err(bad(field, "an address and a port are wanted, as in 10.0.0.1:80"));
    }
    address(field, host)
}

pub fn tags(field: &str, tags: &[String]) -> Result<(), ApiError> {
    if tags.len() > MAX_TAGS {
        return Err(bad(field, format!("{} tags; {MAX_TAGS} are accepted", tags.len())));
    }
    for (n, tag) in tags.iter().enumerate() {
        if tag.is_empty() || tag.len() > MAX_ID || tag.chars().any(char::is_control) {
            return Err(bad(&format!("{field}[{n}]"), "a tag is 1 to 255 bytes without control characters"));
        }
    }
    Ok(())
}

pub fn meta(field: &str, meta: &Strings) -> Result<(), ApiError> {
    if meta.len() > MAX_META {
        return Err(bad(field, format!("{} pairs; {MAX_META} are accepted", meta.len())));
    }
    for (key, value) in meta {
        words(&format!("{field} key"), key, MAX_META_KEY, "-_")?;
        if value.len() > MAX_META_VALUE || value.chars().any(char::is_control) {
            return Err(bad(
                &format!("{field}.{key}"),
                format!("a value is at most {MAX_META_VALUE} bytes without control characters"),
            ));
        }
    }
    Ok(())
}

/// Text for people: limited, otherwise free.
pub fn text(field: &str, text: &str) -> Result<(), ApiError> {
    if text.len() > MAX_OUTPUT {
        return Err(bad(field, format!("{} bytes; {MAX_OUTPUT} are accepted", text.len())));
    }
    Ok(())
}

/// Cuts a check's output to what is kept.
pub fn cut(mut output: String) -> String {
    if output.len() > MAX_OUTPUT {
        output.truncate(output.floor_char_boundary(MAX_OUTPUT));
    }
    output
}

/// There is one namespace.
pub fn namespace(field: &str, text: &str) -> Result<(), ApiError> {
    match text {
        "" | "default" => Ok(()),
        _ => Err(bad(field, "the embedded control plane has one namespace, `default`")),
    }
}
