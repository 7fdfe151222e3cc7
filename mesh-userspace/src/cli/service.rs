//! `meshnode service`: registering with, and listing from, the control plane's catalog.

use std::{collections::HashMap, fs, io::Read, net::IpAddr, path::PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    Failure, Global, exit, intention,
    output::{Cell, Colour, Style, Table, print, print_json},
    target,
};
use crate::{
    control_plane::{
        ApiError, Client,
        api::{HealthEntry, ServicesAnswer},
        escape,
    },
    identity::ServiceName,
};

#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Register a service, from options or from a JSON file as `consul services register` takes it
    #[command(
        override_usage = "meshnode service register --name NAME --port PORT [--address IP] [--id ID] [--tag TAG]...\n       \
                                meshnode service register FILE"
    )]
    Register(RegisterArgs),
    /// List every instance in the catalog
    List {
        /// Only instances of this service
        #[arg(long, value_name = "NAME", value_parser = intention::service_name)]
        service: Option<ServiceName>,
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub struct RegisterArgs {
    /// A JSON file, {"service": {…}} or {"services": […]}; `-` is standard input
    #[arg(value_name = "FILE", required_unless_present = "name", conflicts_with_all = ["name", "id", "port", "address", "tag"])]
    file: Option<PathBuf>,
    /// The service's name
    #[arg(long, value_parser = intention::service_name)]
    name: Option<ServiceName>,
    /// Its id on this node [default: the name]
    #[arg(long)]
    id: Option<String>,
    /// The port that programs dial
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// The address that programs dial [default: the node's]
    #[arg(long)]
    address: Option<std::net::IpAddr>,
    /// A tag; may be repeated
    #[arg(long)]
    tag: Vec<String>,
}

pub async fn run(global: &Global, command: ServiceCommand) -> Result<u8, Failure> {
    let api = target::control_plane(global)?;
    match command {
        ServiceCommand::Register(args) => register(&api, &args).await,
        ServiceCommand::List { service, json } => list(&api, service, json, &virtual_ips(global).await).await,
    }
}

async fn register(api: &Client, args: &RegisterArgs) -> Result<u8, Failure> {
    for body in definitions(args)? {
        let name = body.get("Name").and_then(Value::as_str).unwrap_or_default().to_owned();
        api.put::<()>("/v1/agent/service/register", &body).await?;
        print(&format!("Registered service: {name}\n"))?;
    }
    Ok(exit::OK)
}

fn definitions(args: &RegisterArgs) -> Result<Vec<Value>, Failure> {
    if let Some(path) = &args.file {
        let mut text = String::new();
        let read = if path.as_os_str() == "-" {
            std::io::stdin().read_to_string(&mut text).map(|_| ())
        } else {
            fs::read_to_string(path).map(|found| text = found)
        };
        read.map_err(|error| Failure::Refused(format!("{}: {error}", path.display())))?;
        return from_json(&text).map_err(|why| Failure::Refused(format!("{}: {why}", path.display())));
    }
    let mut body = Map::new();
    let mut set = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            body.insert(key.to_owned(), value);
        }
    };
    set("Name", args.name.as_ref().map(|name| json!(name)));
    set("ID", args.id.as_ref().map(|id| json!(id)));
    set("Port", args.port.map(|port| json!(port)));
    set("Address", args.address.map(|address| json!(address)));
    set("Tags", (!args.tag.is_empty()).then(|| json!(args.tag)));
    Ok(vec![Value::Object(body)])
}

/// Reads `{"service": {…}}`, `{"services": […]}` or a bare `{"Name": …}`, with keys as the configuration of Consul
/// writes them (`name`) or as its API does (`Name`); the server checks the rest.
fn from_json(text: &str) -> Result<Vec<Value>, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let Value::Object(mut top) = value else { return Err("found no JSON object".to_owned()) };
    let found = match (top.remove("service"), top.remove("services")) {
        (Some(one), None) => vec![one],
        (None, Some(Value::Array(many))) => many,
        (None, None) => vec![Value::Object(top)],
        _ => {
            return Err("accepted: {\"service\": {…}}, {\"services\": […]}, or the service itself".to_owned());
        }
    };
    if found.is_empty() {
        return Err("`services` is empty".to_owned());
    }
    found.into_iter().map(api_form).collect()
}

fn api_form(value: Value) -> Result<Value, String> {
    let Value::Object(fields) = value else { return Err("a service is a JSON object".to_owned()) };
    let mut service = Map::new();
    for (key, value) in fields {
        let key = match key.as_str() {
            "name" => "Name".to_owned(),
            "id" => "ID".to_owned(),
            "port" => "Port".to_owned(),
            "address" => "Address".to_owned(),
            "tags" => "Tags".to_owned(),
            "meta" => "Meta".to_owned(),
            "kind" => "Kind".to_owned(),
            "check" => "Check".to_owned(),
            "checks" => "Checks".to_owned(),
            "proxy" => "Proxy".to_owned(),
            "connect" => "Connect".to_owned(),
            _ => key,
        };
        service.insert(key, value);
    }
    let name = service.get("Name").and_then(Value::as_str).ok_or("`name` is missing, or no string")?;
    name.parse::<ServiceName>().map_err(|error| format!("name: {error}"))?;
    Ok(Value::Object(service))
}

/// One instance, for people and for `--json`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    service: String,
    #[serde(rename = "ID")]
    id: String,
    node: String,
    address: String,
    port: u16,
    /// Where it takes mTLS; `None` for one that is not in the mesh.
    mesh: Option<String>,
    health: String,
    /// Those of the service, where this host's daemon knows them.
    #[serde(rename = "VirtualIPs")]
    virtual_ips: Vec<IpAddr>,
}

/// The worst of its checks, as Consul aggregates them.
fn health(entry: &HealthEntry) -> &'static str {
    let has = |status| entry.checks.iter().any(|check| check.status == status);
    ["maintenance", "critical", "warning"].into_iter().find(|status| has(*status)).unwrap_or("passing")
}

/// Returns the virtual IPs of services, as the daemon of this host knows them; nothing where there is none to ask.
async fn virtual_ips(global: &Global) -> HashMap<String, Vec<IpAddr>> {
    let Ok(admin) = target::admin(global) else { return HashMap::new() };
    let Ok(report) = admin.status().await else { return HashMap::new() };
    let all = report.virtual_services.into_iter().map(|service| {
        let v4 = service.virtual_ipv4.map(IpAddr::V4).into_iter();
        (service.service, v4.chain(service.virtual_ipv6.map(IpAddr::V6)).collect())
    });
    all.collect()
}

async fn list(
    api: &Client,
    service: Option<ServiceName>,
    json: bool,
    virtual_ips: &HashMap<String, Vec<IpAddr>>,
) -> Result<u8, Failure> {
    let mut rows = Vec::new();
    let names = match service {
        Some(name) => vec![name.to_string()],
        None => api.get::<ServicesAnswer>("/v1/catalog/services").await?.into_keys().collect(),
    };
    for name in names {
        rows.extend(instances(api, &name).await?);
    }
    for row in &mut rows {
        row.virtual_ips = virtual_ips.get(&row.service).cloned().unwrap_or_default();
    }
    if json {
        print_json(&rows)?;
        return Ok(exit::OK);
    }
    let mut table = Table::new(&["SERVICE", "ID", "NODE", "ADDRESS", "MESH", "HEALTH", "VIRTUAL IPS"], &[1]);
    for row in &rows {
        let colour = match row.health.as_str() {
            "passing" => Colour::Good,
            "warning" => Colour::Warning,
            _ => Colour::Bad,
        };
        table.row([
            row.service.as_str().into(),
            row.id.as_str().into(),
            row.node.as_str().into(),
            at(&row.address, row.port).into(),
            row.mesh.as_deref().unwrap_or("-").into(),
            Cell::coloured(&row.health, colour),
            row.virtual_ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ").into(),
        ]);
    }
    print(&if rows.is_empty() {
        "No service is registered.\n".to_owned()
    } else {
        table.render(Style::of_stdout())
    })?;
    Ok(exit::OK)
}

/// Returns the instances of `name`, without the proxies in front of others: those are the `mesh` column.
async fn instances(api: &Client, name: &str) -> Result<Vec<Row>, ApiError> {
    let all: Vec<HealthEntry> = api.get(&format!("/v1/health/service/{}", escape(name))).await?;
    let own: Vec<HealthEntry> = all.into_iter().filter(|entry| entry.service.kind.is_empty()).collect();
    if own.is_empty() {
        return Ok(Vec::new());
    }
    let proxies: Vec<HealthEntry> = api.get(&format!("/v1/health/connect/{}", escape(name))).await?;
    let mesh = |entry: &HealthEntry| {
        let fronts = |proxy: &&HealthEntry| {
            proxy.node.node == entry.node.node
                && proxy.service.proxy.destination_service_id == entry.service.id
        };
        proxies.iter().find(fronts).map(|proxy| at(proxy.service.address_on(&proxy.node), proxy.service.port))
    };
    let row = |entry: &HealthEntry| Row {
        service: entry.service.service.clone(),
        id: entry.service.id.clone(),
        node: entry.node.node.clone(),
        address: entry.service.address_on(&entry.node).to_owned(),
        port: entry.service.port,
        mesh: mesh(entry),
        health: health(entry).to_owned(),
        virtual_ips: Vec::new(),
    };
    Ok(own.iter().map(row).collect())
}

fn at(address: &str, port: u16) -> String {
    match address.parse::<std::net::IpAddr>() {
        Ok(ip) => std::net::SocketAddr::new(ip, port).to_string(),
        Err(_) => format!("{address}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consuls_files_are_read_in_their_forms() {
        for text in [
            r#"{"service": {"name": "db", "port": 5432}}"#,
            r#"{"services": [{"Name": "db", "port": 5432}]}"#,
            r#"{"Name": "db", "Port": 5432}"#,
        ] {
            assert_eq!(from_json(text).unwrap(), [json!({"Name": "db", "Port": 5432})], "{text}");
        }
    }

    #[test]
    fn a_file_without_a_usable_service_is_refused() {
        for text in
            ["", "[]", "{}", r#"{"services": []}"#, r#"{"service": 1}"#, r#"{"name": "-"}"#, r#"{"name": 1}"#]
        {
            assert!(from_json(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_worst_check_is_the_health() {
        let entry = |statuses: &[&str]| {
            let checks: Vec<Value> = statuses.iter().map(|status| json!({ "Status": status })).collect();
            let value = json!({"Node": {"Node": "a"}, "Service": {"Service": "db"}, "Checks": checks});
            serde_json::from_value::<HealthEntry>(value).map(|entry| health(&entry)).unwrap()
        };
        assert_eq!(entry(&[]), "passing");
        assert_eq!(entry(&["passing", "warning"]), "warning");
        assert_eq!(entry(&["critical", "warning"]), "critical");
    }
}
