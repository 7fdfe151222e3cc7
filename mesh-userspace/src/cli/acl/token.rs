//! `meshnode acl token`.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Link, complete, show, word};
use crate::{
    cli::{
        Failure, exit,
        output::{Style, Table, print, print_json, printable},
    },
    control_plane::{Client, escape},
};

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Create a token; its secret is what requests show
    Create(CreateArgs),
    /// List all tokens, without their secrets
    List {
        #[arg(long)]
        json: bool,
    },
    /// Show a token
    Read {
        /// Its accessor id, or the beginning of it
        #[arg(long, required_unless_present = "own")]
        id: Option<String>,
        /// The token that this command uses
        #[arg(long = "self", conflicts_with = "id")]
        own: bool,
        #[arg(long)]
        json: bool,
    },
    /// Delete a token; whoever uses it is refused at once
    Delete {
        /// Its accessor id, or the beginning of it
        #[arg(long)]
        id: String,
    },
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    #[arg(long, default_value = "")]
    description: String,
    /// A policy that the token has, by name; may be repeated
    #[arg(long, value_name = "NAME")]
    policy_name: Vec<String>,
    /// A policy that the token has, by id; may be repeated
    #[arg(long, value_name = "ID")]
    policy_id: Vec<String>,
    /// A service that the token may register and take certificates for, beside reading the catalog; may be repeated
    #[arg(long, value_name = "SERVICE")]
    service_identity: Vec<String>,
    /// A node that the token may register: NODE or NODE:DATACENTER; may be repeated
    #[arg(long, value_name = "NODE")]
    node_identity: Vec<String>,
    /// How long the token counts, 1m to 24h [default: for ever]
    #[arg(long, value_name = "DURATION")]
    expires_ttl: Option<String>,
    #[arg(long)]
    json: bool,
}

pub async fn run(api: &Client, command: TokenCommand) -> Result<u8, Failure> {
    match command {
        TokenCommand::Create(args) => create(api, &args).await,
        TokenCommand::List { json } => list(api, json).await,
        TokenCommand::Read { id, json, .. } => {
            let token: Value = match id {
                Some(start) => api.get(&path(api, &start).await?).await?,
                None => api.get("/v1/acl/token/self").await?,
            };
            show(json, &token, || text(&token))
        }
        TokenCommand::Delete { id } => {
            let path = path(api, &id).await?;
            api.delete(&path).await?;
            let id = path.rsplit('/').next().unwrap_or_default();
            print(&format!("Token {id:?} deleted successfully\n"))?;
            Ok(exit::OK)
        }
    }
}

async fn create(api: &Client, args: &CreateArgs) -> Result<u8, Failure> {
    let by_name = args.policy_name.iter().map(|name| Link { id: String::new(), name: name.clone() });
    let by_id = args.policy_id.iter().map(|id| Link { id: id.clone(), name: String::new() });
    let services: Vec<_> = args.service_identity.iter().map(|name| json!({ "ServiceName": name })).collect();
    let mut nodes = Vec::new();
    for identity in &args.node_identity {
        let (node, datacenter) = match identity.split_once(':') {
            Some((node, datacenter)) => (node, datacenter.to_owned()),
            None => (identity.as_str(), datacenter(api).await?),
        };
        nodes.push(json!({ "NodeName": node, "Datacenter": datacenter }));
    }
    let body = json!({
        "Description": args.description,
        "Policies": by_name.chain(by_id).collect::<Vec<_>>(),
        "ServiceIdentities": services,
        "NodeIdentities": nodes,
        "ExpirationTTL": args.expires_ttl.as_deref().unwrap_or("0s"),
    });
    let made: Value = api.put("/v1/acl/token", &body).await?;
    show(args.json, &made, || text(&made))
}

/// The first is the agent's own.
async fn datacenter(api: &Client) -> Result<String, Failure> {
    let all: Vec<String> = api.get("/v1/catalog/datacenters").await?;
    Ok(all.into_iter().next().unwrap_or_default())
}

async fn all(api: &Client) -> Result<Vec<Value>, Failure> {
    Ok(api.get::<Option<Vec<Value>>>("/v1/acl/tokens").await?.unwrap_or_default())
}

async fn path(api: &Client, start: &str) -> Result<String, Failure> {
    let all = all(api).await?;
    let id = complete(start, all.iter().map(|token| word(token, "AccessorID")).collect(), "token")?;
    Ok(format!("/v1/acl/token/{}", escape(&id)))
}

async fn list(api: &Client, json: bool) -> Result<u8, Failure> {
    let all = all(api).await?;
    if json {
        print_json(&all)?;
        return Ok(exit::OK);
    }
    let mut table = Table::new(&["ACCESSOR ID", "DESCRIPTION", "GRANTS"], &[]);
    for token in &all {
        let cells = [
            word(token, "AccessorID").to_owned(),
            word(token, "Description").to_owned(),
            grants(token).join(", "),
        ];
        table.row(cells.map(|cell| cell.as_str().into()));
    }
    print(&table.render(Style::of_stdout()))?;
    Ok(exit::OK)
}

/// Returns what a token has its rights from.
fn grants(token: &Value) -> Vec<String> {
    let each = |list: &str, field: &str, what: &str| -> Vec<String> {
        let entries = token[list].as_array().into_iter().flatten();
        entries.map(|entry| format!("{what} {}", word(entry, field))).collect()
    };
    [
        each("Policies", "Name", "policy"),
        each("ServiceIdentities", "ServiceName", "service"),
        each("NodeIdentities", "NodeName", "node"),
    ]
    .concat()
}

/// Returns a token as `consul acl token read` shows it.
pub fn text(token: &Value) -> String {
    let fields = [
        ("AccessorID:", "AccessorID"),
        ("SecretID:", "SecretID"),
        ("Description:", "Description"),
        ("Create Time:", "CreateTime"),
        ("Expiration Time:", "ExpirationTime"),
    ];
    let shown = fields.iter().filter(|(_, field)| token.get(field).is_some());
    let head: String =
        shown.map(|(title, field)| format!("{title:<18}{}\n", printable(word(token, field)))).collect();
    let grants = grants(token);
    let grants = if grants.is_empty() { "nothing".to_owned() } else { grants.join(", ") };
    format!("{head}{:<18}{}\n", "Grants:", printable(&grants))
}
