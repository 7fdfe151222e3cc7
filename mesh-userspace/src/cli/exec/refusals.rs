//! What the mesh refused a service while a command ran, in lines that name the next step.

use std::collections::HashSet;

use crate::{
    admin::{FlowDirection, FlowState, FlowStatus, StatusReport},
    cli::output::printable,
    daemon::{UNLISTED_NAME, UNTRUSTED_SERVER},
};

/// Returns a line for each kind of connection of `service` that was refused between the two reports.
pub fn lines(before: &StatusReport, after: &StatusReport, service: &str) -> Vec<String> {
    let known: HashSet<(u64, FlowDirection)> = before.recent.iter().map(identity).collect();
    let ours = |flow: &&FlowStatus| {
        flow.source == service
            && flow.direction != FlowDirection::Inbound
            && flow.state.is_refusal()
            && !known.contains(&identity(flow))
    };
    let mut kinds: Vec<(&FlowStatus, usize)> = Vec::new();
    // The newest is first in the report; people read in the order of events.
    for flow in after.recent.iter().filter(ours).collect::<Vec<_>>().into_iter().rev() {
        match kinds.iter_mut().find(|(one, _)| is_same(one, flow)) {
            Some((_, count)) => *count += 1,
            None => kinds.push((flow, 1)),
        }
    }
    kinds.into_iter().map(|(flow, count)| line(flow, count)).collect()
}

fn identity(flow: &FlowStatus) -> (u64, FlowDirection) {
    (flow.id, flow.direction)
}

fn is_same(one: &FlowStatus, other: &FlowStatus) -> bool {
    (&one.destination, one.original_dst, one.state, &one.reason)
        == (&other.destination, other.original_dst, other.state, &other.reason)
}

fn line(flow: &FlowStatus, count: usize) -> String {
    let FlowStatus { source, destination, program, .. } = flow;
    let whom = match (destination.as_str(), flow.original_dst) {
        ("", Some(at)) => at.to_string(),
        (name, Some(at)) => format!("{name} ({at})"),
        (name, None) => name.to_owned(),
    };
    let times = if count > 1 { format!(", {count} times") } else { String::new() };
    let reason = match flow.reason.as_deref() {
        Some("intention") => "no intention allows it",
        Some(reason) => reason,
        None => flow.state.as_str(),
    };
    let by = if program.is_empty() { String::new() } else { format!(", by {program}") };
    let text = format!("{}: {source} → {whom}{by}{times}: {reason}", flow.state.as_str());
    match next(flow) {
        Some(next) => printable(&text) + ".\nmeshnode:   " + &next,
        None => printable(&text),
    }
}

/// Returns what somebody could do about it, where that is known.
fn next(flow: &FlowStatus) -> Option<String> {
    let FlowStatus { source, destination, .. } = flow;
    let word = flow.reason.as_deref()?.split(':').next()?;
    Some(match word {
        "intention" | "not-allowed" | "refused-by-peer" | "revoked" => {
            format!(
                "To see which intention decides: meshnode intention check {source} {destination}. To allow it: meshnode intention create {source} {destination}"
            )
        }
        "unreachable" | "connect-timeout" | "peer-reset" => format!(
            "Does meshnode run on the host of {destination}, and its program too? There: meshnode status --service {destination}"
        ),
        "mesh-only" => return Some(list_entry(flow)),
        "protocol" => format!(
            "{source} is configured as egress = \"mesh-only\": sockets that are neither TCP nor UDP are refused to it, and no list entry allows them"
        ),
        "no-listener" | "not-synced" => "`meshnode status` says what the daemon lacks".to_owned(),
        _ if flow.state == FlowState::Guarded => format!("{destination} is reached through the mesh only"),
        _ => return None,
    })
}

/// Returns what would have to be in a `mesh-only` service's list.
fn list_entry(flow: &FlowStatus) -> String {
    let FlowStatus { source, .. } = flow;
    let detail =
        flow.reason.as_deref().and_then(|reason| reason.split_once(": ")).map_or("", |(_, rest)| rest);
    let after = |words: &str| detail.strip_prefix(words).map(str::trim_start);
    let keys: Vec<String> = if let Some(name) = after(UNLISTED_NAME) {
        vec![format!("name = {name:?}")]
    } else if let (Some(_), Some(server)) = (after(UNTRUSTED_SERVER), flow.original_dst) {
        // That the name is listed does not make everybody an authority on it.
        vec![
            format!("cidr = \"{}\"", server.ip()),
            format!("ports = \"{}\"", server.port()),
            "protocol = \"udp\"".to_owned(),
        ]
    } else if let ("tcp" | "udp", Some(to)) = (detail, flow.original_dst) {
        vec![
            format!("cidr = \"{}\"", to.ip()),
            format!("ports = \"{}\"", to.port()),
            format!("protocol = \"{detail}\""),
        ]
    } else {
        return format!("{source} is configured as egress = \"mesh-only\"");
    };
    let why = if after(UNTRUSTED_SERVER).is_some() {
        ", and this host's resolv.conf does not have the server, nor does its list"
    } else {
        ""
    };
    let mut lines = vec![
        format!(
            "{source} is configured as egress = \"mesh-only\"{why}. To allow it, below its [[service]], and then `meshnode reload`:"
        ),
        "  [[service.egress_allow]]".to_owned(),
    ];
    lines.extend(keys.into_iter().map(|key| format!("  {}", printable(&key))));
    lines.join("\nmeshnode:   ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied(id: u64, source: &str) -> FlowStatus {
        FlowStatus {
            id,
            direction: FlowDirection::Outbound,
            program: "psql".into(),
            pid: 7,
            source: source.into(),
            destination: "db".into(),
            original_dst: Some("10.0.0.2:5432".parse().unwrap()),
            instance: None,
            state: FlowState::Denied,
            tls: None,
            bytes_sent: 0,
            bytes_received: 0,
            age_s: 0,
            reason: Some("intention: no intention allows it".into()),
        }
    }

    fn report(recent: Vec<FlowStatus>) -> StatusReport {
        StatusReport { recent, ..StatusReport::default() }
    }

    #[test]
    fn what_was_refused_meanwhile_is_told_once_with_the_next_step() {
        let before = report(vec![denied(1, "web")]);
        let after = report(vec![denied(3, "web"), denied(2, "web"), denied(4, "cron"), denied(1, "web")]);
        let lines = lines(&before, &after, "web");
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(
            lines[0].starts_with("denied: web → db (10.0.0.2:5432), by psql, 2 times: intention"),
            "{lines:?}"
        );
        assert!(lines[0].contains("meshnode intention create web db"), "{lines:?}");
    }

    #[test]
    fn what_a_mesh_only_service_lacks_in_its_list_is_written_as_it_would_stand_there() {
        let told = |program: &str, to: &str, reason: &str| {
            let flow = FlowStatus {
                destination: String::new(),
                program: program.into(),
                original_dst: Some(to.parse().unwrap()),
                reason: Some(reason.into()),
                ..denied(1, "web")
            };
            lines(&report(Vec::new()), &report(vec![flow]), "web").remove(0)
        };
        let entry = |keys: &str| {
            let keys = keys.lines().map(|key| format!("\nmeshnode:     {key}")).collect::<String>();
            format!("and then `meshnode reload`:\nmeshnode:     [[service.egress_allow]]{keys}")
        };
        let tcp = told("curl", "192.0.2.1:443", "mesh-only: tcp");
        assert!(tcp.starts_with("denied: web → 192.0.2.1:443, by curl: mesh-only: tcp"), "{tcp}");
        assert!(tcp.ends_with(&entry("cidr = \"192.0.2.1\"\nports = \"443\"\nprotocol = \"tcp\"")), "{tcp}");
        let udp = told("ntpd", "[2001:db8::1]:123", "mesh-only: udp");
        assert!(
            udp.ends_with(&entry("cidr = \"2001:db8::1\"\nports = \"123\"\nprotocol = \"udp\"")),
            "{udp}"
        );
        let name = told("", "10.0.0.53:53", "mesh-only: query for api.example.com");
        assert!(
            name.starts_with("denied: web → 10.0.0.53:53: mesh-only: query for api.example.com"),
            "{name}"
        );
        assert!(name.ends_with(&entry("name = \"api.example.com\"")), "{name}");
        let server = told("", "8.8.8.8:53", "mesh-only: untrusted server for api.example.com");
        assert!(server.contains("resolv.conf does not have the server"), "{server}");
        assert!(
            server.ends_with(&entry("cidr = \"8.8.8.8\"\nports = \"53\"\nprotocol = \"udp\"")),
            "{server}"
        );
        let icmp = told("ping", "0.0.0.0:0", "protocol: icmp");
        assert!(icmp.contains("no list entry allows them"), "{icmp}");
    }

    #[test]
    fn what_went_well_is_not_told() {
        let closed = FlowStatus { state: FlowState::Closed, reason: None, ..denied(2, "web") };
        assert_eq!(lines(&report(Vec::new()), &report(vec![closed]), "web"), Vec::<String>::new());
    }
}
