//! `meshnode acl`: tokens and what they may do, in the words of `consul acl`.

mod policy;
mod token;

use std::collections::BTreeSet;

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Failure, Global, exit,
    output::{print, print_json},
    target,
};
use crate::control_plane::{ApiError, Client};

#[derive(Debug, Subcommand)]
pub enum AclCommand {
    /// Make the first management token, once
    Bootstrap {
        #[arg(long)]
        json: bool,
    },
    /// Create, read, list or delete policies: what a token may do
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Create, read, list or delete tokens
    #[command(subcommand)]
    Token(token::TokenCommand),
}

/// Which policy or token is meant.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Which {
    /// Its id, or the beginning of it
    #[arg(long)]
    id: Option<String>,
    /// Its name
    #[arg(long)]
    name: Option<String>,
}

/// A link from a token to a policy.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Link {
    #[serde(rename = "ID", default, skip_serializing_if = "String::is_empty")]
    id: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    name: String,
}

pub async fn run(global: &Global, command: AclCommand) -> Result<u8, Failure> {
    let api = target::control_plane(global)?;
    let done = match command {
        AclCommand::Bootstrap { json } => bootstrap(&api, json).await,
        AclCommand::Policy(command) => policy::run(&api, command).await,
        AclCommand::Token(command) => token::run(&api, command).await,
    };
    done.map_err(|failure| match failure {
        Failure::Api(ApiError::Status { reason, .. }) if reason == "ACL support disabled" => Failure::Refused(
            "ACLs are off: set `acl = true` in [control_plane.embedded] of the server's meshnode.toml (or \
             acl.enabled in Consul's configuration), and restart it"
                .to_owned(),
        ),
        other => other,
    })
}

async fn bootstrap(api: &Client, json: bool) -> Result<u8, Failure> {
    let made: Value = api.put("/v1/acl/bootstrap", &()).await?;
    show(json, &made, || token::text(&made))
}

/// Prints an answer of the API as it came, or as text.
fn show(json: bool, answer: &Value, text: impl FnOnce() -> String) -> Result<u8, Failure> {
    if json {
        print_json(answer)?;
    } else {
        print(&text())?;
    }
    Ok(exit::OK)
}

fn word<'v>(value: &'v Value, field: &str) -> &'v str {
    value[field].as_str().unwrap_or_default()
}

/// Returns the one id of `all` that begins with `start`.
fn complete(start: &str, all: BTreeSet<&str>, what: &str) -> Result<String, Failure> {
    let mut fitting = all.into_iter().filter(|id| id.starts_with(start));
    match (fitting.next(), fitting.next()) {
        (Some(one), None) => Ok(one.to_owned()),
        (None, _) => Err(Failure::Refused(format!("there is no {what} whose id begins with {start}"))),
        (Some(_), Some(_)) => {
            Err(Failure::Refused(format!("more than one {what} has an id that begins with {start}")))
        }
    }
}
