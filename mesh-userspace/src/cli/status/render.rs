//! The status report as text. Pure: a report and a style in, text out.

use std::time::Duration;

use super::problems;
use crate::{
    admin::{FlowDirection, FlowState, FlowStatus, StatusReport},
    cli::output::{Cell, Colour, Style, Table, age, bytes, printable},
};

/// Recent flows beyond this number are counted, not shown.
const MOST_RECENT: usize = 10;

/// Returns the report for people. Sections without content are left out, but for workloads and flows.
pub fn report(report: &StatusReport, style: Style) -> String {
    let mut text = header(report, style);
    let sections = [
        section("WORKLOADS", report.workloads.len(), workloads(report, style), style),
        section("EGRESS", egress_rules(report).count(), egress(report, style), style),
        section("SERVICES", report.services.len(), services(report, style), style),
        section("GATEWAYS", report.gateways.len(), gateways(report, style), style),
        section("VIRTUAL IPS", report.virtual_services.len(), virtual_services(report, style), style),
        section("FLOWS", report.flows.len(), flows(&report.flows, "no flow is live", style), style),
        section("UNCAPTURED", report.uncaptured.len(), uncaptured(report, style), style),
        recent(report, style),
        section("CERTIFICATES", report.certificates.len(), certificates(report, style), style),
        section("EXEMPT", report.exempt.len(), exempt(report, style), style),
        counters(report, style),
    ];
    for section in sections.into_iter().filter(|section| !section.is_empty()) {
        text.push('\n');
        text.push_str(&section);
    }
    text
}

fn header(report: &StatusReport, style: Style) -> String {
    let bold = |text: &str| style.paint(Colour::Bold, &printable(text));
    let draining = if report.draining { style.paint(Colour::Warning, "  draining") } else { String::new() };
    let mut text = format!(
        "meshnode {}  {} ({})  pid {}  up {}{draining}\n",
        printable(&report.version),
        bold(&report.node),
        printable(&report.datacenter),
        report.pid,
        age(Duration::from_secs(report.uptime_s)),
    );
    text.push_str(&kernel_line(report, style));
    text.push_str(&control_plane_line(report, style));
    if !report.listeners.is_empty() {
        let all: Vec<String> =
            report.listeners.iter().map(|l| printable(&format!("{} {}", l.role, l.address))).collect();
        text.push_str(&format!("listeners      {}\n", all.join(", ")));
    }
    text.push_str(&fast_paths(report, style));
    for problem in problems(report) {
        text.push_str(&format!("{} {}\n", style.paint(Colour::Bad, "problem:"), printable(&problem)));
    }
    for missing in &report.degraded {
        text.push_str(&format!("{} {}\n", style.paint(Colour::Warning, "degraded:"), printable(missing)));
    }
    text
}

/// Those in use in one line; why one is not, in a line for each.
fn fast_paths(report: &StatusReport, style: Style) -> String {
    let (on, off): (Vec<_>, Vec<_>) = report.fast_paths.iter().partition(|path| path.on);
    if report.fast_paths.is_empty() {
        return String::new();
    }
    let names: Vec<String> = on.iter().map(|path| printable(&path.name)).collect();
    let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let mut text = format!("fast paths     {names}\n");
    for path in off {
        let why = printable(&format!("{}: {}", path.name, path.detail));
        text.push_str(&format!("               {}\n", style.paint(Colour::Dim, &format!("off: {why}"))));
    }
    text
}

fn kernel_line(report: &StatusReport, style: Style) -> String {
    use crate::admin::AttachmentState::Attached;
    let all = report.attachments.len();
    let attached = report.attachments.iter().filter(|a| a.state == Attached).count();
    let colour = if all > 0 && attached == all { Colour::Good } else { Colour::Bad };
    let shown = style.paint(colour, &format!("{attached} of {all} programs attached"));
    format!("kernel         {shown}, asked just now\n")
}

fn control_plane_line(report: &StatusReport, style: Style) -> String {
    let plane = &report.control_plane;
    let state = match (plane.connected, plane.since, plane.stale_since) {
        (true, Some(since), _) => style.paint(Colour::Good, &format!("connected since {since}")),
        (true, None, _) => style.paint(Colour::Good, "connected"),
        (false, _, Some(since)) => style.paint(Colour::Bad, &format!("no answer since {since}")),
        (false, _, None) => style.paint(Colour::Bad, "no answer yet"),
    };
    let cache = if plane.from_cache {
        style.paint(Colour::Warning, ", serving the disk cache")
    } else {
        String::new()
    };
    let (kind, address) = (printable(&plane.kind), printable(&plane.address));
    let partial = plane.partial().map(|text| format!("catalog        {text}\n")).unwrap_or_default();
    format!("control plane  {kind} {address}  {state}, index {}{cache}\n{partial}", plane.index)
}

/// Returns title, count and body; nothing where there is nothing to say.
fn section(title: &str, count: usize, body: String, style: Style) -> String {
    if body.is_empty() {
        return body;
    }
    format!("{} ({count})\n{body}", style.paint(Colour::Bold, title))
}

fn note(text: &str, style: Style) -> String {
    format!("  {}\n", style.paint(Colour::Dim, text))
}

fn workloads(report: &StatusReport, style: Style) -> String {
    if report.workloads.is_empty() {
        return note(
            "no process of this host is in the mesh: add a [[service]], or use `meshnode exec`",
            style,
        );
    }
    let mut table = Table::new(&["SERVICE", "CGROUP", "PROCESSES", "EGRESS"], &[1]);
    for workload in &report.workloads {
        let mut cgroups = workload.cgroups.iter();
        let egress = if workload.exempt { "exempt" } else { &workload.egress };
        let first = cgroups.next().map_or("(none now)", String::as_str);
        table.row([
            workload.service.as_str().into(),
            first.into(),
            Cell::right(workload.processes.to_string()),
            egress.into(),
        ]);
        for cgroup in cgroups {
            table.row(["".into(), cgroup.as_str().into(), "".into(), "".into()]);
        }
    }
    table.render(style)
}

fn egress_rules(report: &StatusReport) -> impl Iterator<Item = (&str, &str)> {
    report.workloads.iter().flat_map(|workload| {
        workload.egress_allow.iter().map(|rule| (workload.service.as_str(), rule.as_str()))
    })
}

/// What `mesh-only` workloads may reach all the same.
fn egress(report: &StatusReport, style: Style) -> String {
    let mut table = Table::new(&["SERVICE", "MAY ALSO REACH"], &[1]);
    let mut rows = egress_rules(report).peekable();
    if rows.peek().is_none() {
        return String::new();
    }
    rows.for_each(|(service, rule)| table.row([service.into(), rule.into()]));
    table.render(style)
}

fn services(report: &StatusReport, style: Style) -> String {
    if report.services.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["SERVICE", "PROTECTED", "GUARD", "MESH PORT", "HEALTH"], &[0]);
    for service in &report.services {
        let address = std::net::SocketAddr::new(service.address, service.port).to_string();
        let guard = if service.guard == "strict" { Colour::Plain } else { Colour::Warning };
        table.row([
            service.name.as_str().into(),
            address.into(),
            Cell::coloured(&service.guard, guard),
            service.mesh_port.map_or("-".to_owned(), |port| port.to_string()).into(),
            Cell::coloured(&service.health, of_health(&service.health)),
        ]);
    }
    table.render(style)
}

fn of_health(health: &str) -> Colour {
    match health {
        "passing" => Colour::Good,
        "critical" => Colour::Bad,
        _ => Colour::Warning,
    }
}

fn gateways(report: &StatusReport, style: Style) -> String {
    if report.gateways.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["SERVICE", "EXTERNAL", "NOW AT", "TLS", "MESH PORT", "HEALTH"], &[0, 2, 5]);
    for gateway in &report.gateways {
        let now: Vec<String> = gateway.resolved.iter().map(|address| address.ip().to_string()).collect();
        let health = match &gateway.reason {
            Some(why) => format!("{}: {why}", gateway.health),
            None => gateway.health.clone(),
        };
        table.row([
            gateway.service.as_str().into(),
            gateway.address.as_str().into(),
            if now.is_empty() { "-".into() } else { now.join(" ").into() },
            gateway.tls.as_deref().unwrap_or("no").into(),
            gateway.mesh_port.to_string().into(),
            Cell::coloured(health, of_health(&gateway.health)),
        ]);
    }
    table.render(style)
}

fn virtual_services(report: &StatusReport, style: Style) -> String {
    if report.virtual_services.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["SERVICE", "IPV4", "IPV6", "HEALTHY"], &[0]);
    for service in &report.virtual_services {
        let colour = match (service.healthy, service.instances) {
            (0, _) => Colour::Bad,
            (healthy, all) if healthy < all => Colour::Warning,
            _ => Colour::Good,
        };
        let own = service.virtual_ipv4.map_or("-".to_owned(), |ip| ip.to_string());
        let v4 = service.consul_ipv4.map_or(own.clone(), |consul| format!("{own}, {consul} (Consul's)"));
        table.row([
            service.service.as_str().into(),
            v4.into(),
            service.virtual_ipv6.map_or("-".to_owned(), |ip| ip.to_string()).into(),
            Cell::coloured(format!("{} of {}", service.healthy, service.instances), colour),
        ]);
    }
    table.render(style)
}

fn flows(flows: &[FlowStatus], none: &str, style: Style) -> String {
    if flows.is_empty() {
        return note(none, style);
    }
    let mut table = Table::new(&["PROGRAM", "FLOW", "DIALLED", "PATH", "STATE", "BYTES", "AGE"], &[1, 0, 3]);
    for flow in flows {
        table.row(flow_cells(flow));
    }
    table.render(style)
}

fn uncaptured(report: &StatusReport, style: Style) -> String {
    if report.uncaptured.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["FLOW", "FROM", "TO", "CGROUP"], &[0, 3]);
    for one in &report.uncaptured {
        let (source, destination) = ends(&one.source, &one.destination);
        table.row([
            Cell::coloured(format!("{source} → {destination}"), Colour::Bad),
            one.local.to_string().into(),
            one.remote.to_string().into(),
            match one.namespace {
                Some(inode) => format!("{} in net:[{inode}]", one.cgroup).into(),
                None => one.cgroup.as_str().into(),
            },
        ]);
    }
    table.render(style)
}

/// Source and destination as people read them; who is nobody has a word too.
pub fn ends<'t>(source: &'t str, destination: &'t str) -> (&'t str, &'t str) {
    let or = |name: &'t str, other| if name.is_empty() { other } else { name };
    (or(source, "(unmanaged)"), or(destination, "(outside)"))
}

fn recent(report: &StatusReport, style: Style) -> String {
    if report.recent.is_empty() {
        return String::new();
    }
    let columns = &["PROGRAM", "FLOW", "DIALLED", "STATE", "BYTES", "ENDED", "REASON"];
    let mut table = Table::new(columns, &[6, 1, 0]);
    for flow in report.recent.iter().take(MOST_RECENT) {
        let [program, services, dialled, _, state, moved, ended] = flow_cells(flow);
        let reason = flow.reason.as_deref().unwrap_or("");
        table.row([program, services, dialled, state, moved, ended, reason.into()]);
    }
    let mut body = table.render(style);
    if let Some(more) = report.recent.len().checked_sub(MOST_RECENT).filter(|more| *more > 0) {
        body.push_str(&note(&format!("and {more} more: --json shows them"), style));
    }
    section("RECENT", report.recent.len(), body, style)
}

/// `curl[1234]`, `web → db`, `10.0.0.2:5432`, `via 10.0.0.2:21000`, `mTLS`, `1.2 KiB↑ 3.4 MiB↓`, `12s`.
fn flow_cells(flow: &FlowStatus) -> [Cell; 7] {
    let program = match (flow.program.as_str(), flow.direction) {
        ("", FlowDirection::Inbound) => "(inbound)".to_owned(),
        ("", _) => "?".to_owned(),
        (name, _) if flow.pid == 0 => name.to_owned(),
        (name, _) => format!("{name}[{}]", flow.pid),
    };
    let (source, destination) = ends(&flow.source, &flow.destination);
    let services = format!("{source} → {destination}");
    let path = match (flow.instance, flow.direction) {
        (Some(peer), FlowDirection::Inbound) => format!("from {peer}"),
        (Some(instance), _) => format!("via {instance}"),
        (None, _) => "-".to_owned(),
    };
    let is_tls12 = flow.state == FlowState::Mtls && flow.tls.as_deref() == Some("TLS 1.2");
    let colour = match flow.state {
        FlowState::Mtls if is_tls12 => Colour::Warning,
        FlowState::Direct | FlowState::Mtls => Colour::Good,
        FlowState::Connecting | FlowState::Passed => Colour::Warning,
        state if state.is_refusal() => Colour::Bad,
        _ => Colour::Plain,
    };
    [
        program.into(),
        services.into(),
        flow.original_dst.map_or("-".to_owned(), |dst| dst.to_string()).into(),
        path.into(),
        Cell::coloured(if is_tls12 { "mTLS 1.2" } else { flow.state.as_str() }, colour),
        format!("{}↑ {}↓", bytes(flow.bytes_sent), bytes(flow.bytes_received)).into(),
        Cell::right(age(Duration::from_secs(flow.age_s))),
    ]
}

fn certificates(report: &StatusReport, style: Style) -> String {
    if report.certificates.is_empty() {
        return String::new();
    }
    let mut table =
        Table::new(&["SERVICE", "LEFT", "NOT AFTER", "RENEWAL", "SERIAL", "SPIFFE ID"], &[5, 4, 3]);
    for certificate in &report.certificates {
        let left = match certificate.seconds_left {
            ..=0 => Cell::coloured("expired", Colour::Bad),
            left => {
                let colour = if certificate.late { Colour::Warning } else { Colour::Good };
                Cell::coloured(age(Duration::from_secs(left.unsigned_abs())), colour)
            }
        };
        table.row([
            certificate.service.as_str().into(),
            left,
            certificate.not_after.to_string().into(),
            match &certificate.renewal_error {
                Some(error) => Cell::coloured(error, Colour::Warning),
                None if certificate.late => Cell::coloured("overdue", Colour::Warning),
                None => "in time".into(),
            },
            certificate.serial.as_str().into(),
            certificate.spiffe_id.as_str().into(),
        ]);
    }
    table.render(style)
}

fn exempt(report: &StatusReport, style: Style) -> String {
    if report.exempt.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["SELECTOR", "PROCESSES", "REASON"], &[0, 2]);
    for exempt in &report.exempt {
        table.row([
            exempt.selector.as_str().into(),
            Cell::right(exempt.processes.to_string()),
            exempt.reason.as_str().into(),
        ]);
    }
    table.render(style)
}

/// Counters that are not zero, as many in a line as fit.
fn counters(report: &StatusReport, style: Style) -> String {
    let width = style.width.unwrap_or(100);
    let mut text = String::new();
    let mut column = 0;
    for (name, value) in report.counters.iter().filter(|(_, value)| **value > 0) {
        let item = printable(&format!("{name} {value}"));
        let length = item.chars().count();
        if column > 0 && column + 3 + length > width {
            text.push('\n');
            column = 0;
        }
        text.push_str(if column == 0 { "  " } else { "   " });
        text.push_str(&item);
        column += length + if column == 0 { 2 } else { 3 };
    }
    if text.is_empty() {
        return text;
    }
    format!("{}\n{text}\n", style.paint(Colour::Bold, "COUNTERS"))
}

#[cfg(test)]
mod tests;
