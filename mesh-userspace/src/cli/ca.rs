//! `meshnode ca`: the certificate authority, its roots, and from one to the next.

use clap::Subcommand;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Failure, Global, exit,
    output::{Cell, Colour, Style, Table, print, print_json},
    target,
};
use crate::control_plane::{ApiError, Client};

const CONFIGURATION: &str = "/v1/connect/ca/configuration";

#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Make a new root, cross-signed by the present one: no connection is refused, leafs are renewed within seconds
    Rotate {
        /// Also where the present root cannot cross-sign: hosts that have not seen the new root refuse the others meanwhile
        #[arg(long)]
        force_without_cross_signing: bool,
        #[arg(long)]
        json: bool,
    },
    /// List the roots that peers are verified against, the one that signs first
    Roots {
        #[arg(long)]
        json: bool,
        /// The certificates in PEM
        #[arg(long, conflicts_with = "json")]
        pem: bool,
    },
    /// Show the CA's provider and parameters, and its roots
    Show {
        #[arg(long)]
        json: bool,
    },
}

/// `/v1/connect/ca/roots`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Roots {
    #[serde(rename = "ActiveRootID")]
    active_root_id: String,
    trust_domain: String,
    roots: Vec<Root>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Root {
    #[serde(rename = "ID")]
    id: String,
    name: String,
    not_before: String,
    not_after: String,
    active: bool,
    root_cert: String,
    intermediate_certs: Option<Vec<String>>,
    /// Said by the embedded server.
    #[serde(skip_serializing_if = "Option::is_none")]
    retires_at: Option<String>,
}

pub async fn run(global: &Global, command: CaCommand) -> Result<u8, Failure> {
    let api = target::control_plane(global)?;
    match command {
        CaCommand::Rotate { force_without_cross_signing, json } => {
            rotate(&api, force_without_cross_signing, json).await?;
        }
        CaCommand::Roots { pem: true, .. } => {
            let all: String = roots(&api).await?.roots.into_iter().map(|root| root.root_cert).collect();
            print(&all)?;
        }
        CaCommand::Roots { json: true, .. } => print_json(&roots(&api).await?)?,
        CaCommand::Roots { .. } => print(&table(&roots(&api).await?))?,
        CaCommand::Show { json } => show(&api, json).await?,
    }
    Ok(exit::OK)
}

async fn roots(api: &Client) -> Result<Roots, ApiError> {
    api.get("/v1/connect/ca/roots").await
}

/// The embedded server makes the key itself. Consul's built-in CA makes a root of the key that it is given.
async fn rotate(api: &Client, force: bool, json: bool) -> Result<(), Failure> {
    let before = roots(api).await?.active_root_id;
    let path = if force { "/v1/connect/ca/rotate?force=true" } else { "/v1/connect/ca/rotate" };
    match api.put::<Value>(path, &json!({})).await {
        Ok(_) => {}
        Err(ApiError::NotFound { .. }) => rotate_consul(api, force).await?,
        Err(error) => return Err(error.into()),
    }
    let after = roots(api).await?;
    if after.active_root_id == before {
        return Err(Failure::Refused("the control plane answered well, and the root is the same".to_owned()));
    }
    if json {
        print_json(&json!({ "ActiveRootID": after.active_root_id, "Before": before }))
    } else {
        print(&format!("Rotated: {} signs from now on.\n\n{}", short(&after.active_root_id), table(&after)))
    }
}

async fn rotate_consul(api: &Client, force: bool) -> Result<(), Failure> {
    let mut configuration: Value = api.get(CONFIGURATION).await?;
    let provider = configuration["Provider"].as_str().unwrap_or_default();
    if provider != "consul" {
        return Err(Failure::Refused(format!(
            "the CA is {provider}, which is rotated there, and with `consul connect ca set-config`"
        )));
    }
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256);
    let key = key.map_err(|error| Failure::Refused(format!("no key could be made: {error}")))?;
    let mut config = configuration["Config"].take();
    config["PrivateKey"] = key.serialize_pem().into();
    // Consul makes the certificate.
    config["RootCert"] = "".into();
    let body = json!({ "Provider": "consul", "Config": config, "ForceWithoutCrossSigning": force });
    Ok(api.put::<()>(CONFIGURATION, &body).await?)
}

async fn show(api: &Client, json: bool) -> Result<(), Failure> {
    let (configuration, roots): (Value, Roots) = (api.get(CONFIGURATION).await?, roots(api).await?);
    if json {
        return print_json(&json!({ "Configuration": configuration, "Roots": roots }));
    }
    let provider = configuration["Provider"].as_str().unwrap_or_default();
    let mut text = format!("provider             {provider}\ntrust domain         {}\n", roots.trust_domain);
    for (name, value) in configuration["Config"].as_object().into_iter().flatten() {
        let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        if !shown.is_empty() && !matches!(name.as_str(), "PrivateKey" | "RootCert") {
            text.push_str(&format!("{name:<20} {shown}\n"));
        }
    }
    print(&format!("{text}\n{}", table(&roots)))
}

fn table(roots: &Roots) -> String {
    let mut table = Table::new(&["ROOT", "STATE", "NOT AFTER", "CHAIN", "NAME"], &[4]);
    for root in &roots.roots {
        let state = match &root.retires_at {
            _ if root.active => Cell::coloured("signs", Colour::Good),
            Some(at) => format!("retires {at}").as_str().into(),
            None => "trusted".into(),
        };
        let chain = root.intermediate_certs.as_ref().map_or(0, Vec::len);
        table.row([
            short(&root.id).into(),
            state,
            root.not_after.as_str().into(),
            Cell::right(chain.to_string()),
            root.name.as_str().into(),
        ]);
    }
    table.render(Style::of_stdout())
}

/// The first bytes tell roots apart.
fn short(id: &str) -> &str {
    id.get(..23).unwrap_or(id)
}
