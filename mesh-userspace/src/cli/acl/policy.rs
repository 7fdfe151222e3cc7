//! `meshnode acl policy`.

use std::io::Read;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Which, complete, show, word};
use crate::{
    cli::{
        Failure, exit,
        output::{Style, Table, print, print_json, printable},
    },
    control_plane::{Client, escape},
};

#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Create a policy
    Create(CreateArgs),
    /// List all policies
    List {
        #[arg(long)]
        json: bool,
    },
    /// Show a policy with its rules
    Read {
        #[command(flatten)]
        which: Which,
        #[arg(long)]
        json: bool,
    },
    /// Replace a policy's rules; tokens with it may do at once what they say now
    Update {
        #[command(flatten)]
        which: Which,
        /// The rules: HCL or JSON, `@FILE`, or `-` for standard input
        #[arg(long)]
        rules: String,
        #[arg(long)]
        json: bool,
    },
    /// Delete a policy; tokens with it lose what it granted
    Delete {
        #[command(flatten)]
        which: Which,
    },
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Letters, digits, `-` and `_`
    #[arg(long)]
    name: String,
    #[arg(long, default_value = "")]
    description: String,
    /// The rules: HCL or JSON, `@FILE`, or `-` for standard input
    #[arg(long, default_value = "")]
    rules: String,
    #[arg(long)]
    json: bool,
}

pub async fn run(api: &Client, command: PolicyCommand) -> Result<u8, Failure> {
    match command {
        PolicyCommand::Create(args) => {
            let rules = rules(&args.rules)?;
            let body = json!({ "Name": args.name, "Description": args.description, "Rules": rules });
            let made: Value = api.put("/v1/acl/policy", &body).await?;
            show(args.json, &made, || text(&made))
        }
        PolicyCommand::List { json } => list(api, json).await,
        PolicyCommand::Read { which, json } => {
            let policy: Value = api.get(&path(api, &which).await?).await?;
            show(json, &policy, || text(&policy))
        }
        PolicyCommand::Update { which, rules: text_of, json } => {
            let rules = rules(&text_of)?;
            let path = path(api, &which).await?;
            let old: Value = api.get(&path).await?;
            let body = json!({ "Name": old["Name"], "Description": old["Description"], "Rules": rules });
            let made: Value = api.put(&path, &body).await?;
            show(json, &made, || text(&made))
        }
        PolicyCommand::Delete { which } => {
            let path = path(api, &which).await?;
            api.delete(&path).await?;
            let id = path.rsplit('/').next().unwrap_or_default();
            print(&format!("Policy {id:?} deleted successfully\n"))?;
            Ok(exit::OK)
        }
    }
}

fn rules(given: &str) -> Result<String, Failure> {
    let failed = |error: std::io::Error| Failure::Refused(format!("--rules {given}: {error}"));
    if given == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(failed)?;
        return Ok(text);
    }
    match given.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path).map_err(failed),
        None => Ok(given.to_owned()),
    }
}

async fn all(api: &Client) -> Result<Vec<Value>, Failure> {
    Ok(api.get::<Option<Vec<Value>>>("/v1/acl/policies").await?.unwrap_or_default())
}

async fn path(api: &Client, which: &Which) -> Result<String, Failure> {
    let all = all(api).await?;
    let id = match (&which.id, &which.name) {
        (Some(start), _) => complete(start, all.iter().map(|policy| word(policy, "ID")).collect(), "policy")?,
        (None, name) => {
            let name = name.as_deref().unwrap_or_default();
            let found = all.iter().find(|policy| word(policy, "Name") == name);
            let found = found.ok_or_else(|| Failure::Refused(format!("there is no policy {name:?}")))?;
            word(found, "ID").to_owned()
        }
    };
    Ok(format!("/v1/acl/policy/{}", escape(&id)))
}

async fn list(api: &Client, json: bool) -> Result<u8, Failure> {
    let all = all(api).await?;
    if json {
        print_json(&all)?;
        return Ok(exit::OK);
    }
    let mut table = Table::new(&["NAME", "ID", "DESCRIPTION"], &[]);
    for policy in &all {
        table.row(["Name", "ID", "Description"].map(|field| word(policy, field).into()));
    }
    print(&table.render(Style::of_stdout()))?;
    Ok(exit::OK)
}

fn text(policy: &Value) -> String {
    let line = |title: &str, field| format!("{title:<14}{}\n", printable(word(policy, field)));
    let head = [("ID:", "ID"), ("Name:", "Name"), ("Description:", "Description")];
    let head: String = head.iter().map(|(title, field)| line(title, field)).collect();
    let rules: Vec<_> =
        word(policy, "Rules").lines().map(|line| printable(&line.replace('\t', "    "))).collect();
    format!("{head}Rules:\n{}\n", rules.join("\n"))
}
