//! `meshnode intention`: who may connect to whom, in the words of `consul intention`.

use std::ffi::OsString;

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    Failure, Global, exit,
    output::{Cell, Colour, Style, Table, print, print_json},
    target,
};
use crate::{
    control_plane::{
        ApiError, Client,
        api::{CheckAnswer, MatchAnswer, nullable},
        escape, intention,
    },
    identity::ServiceName,
    intention::{Action, Intentions, Pattern},
};

#[derive(Debug, Subcommand)]
pub enum IntentionCommand {
    /// Create an intention; it allows unless --deny is given
    #[command(override_usage = "meshnode intention create [--allow|--deny] [--replace] SRC DST\n       \
                                meshnode intention create [--allow|--deny] [--replace] 'SRC -> DST'")]
    Create(CreateArgs),
    /// List all intentions, the one that counts first on top
    List {
        #[arg(long)]
        json: bool,
    },
    /// Delete an intention; its live flows are cut
    #[command(override_usage = "meshnode intention delete SRC DST\n       meshnode intention delete ID")]
    Delete(PairArgs),
    /// Say whether SRC may connect to DST: exit code 0 if allowed, 2 if denied
    #[command(override_usage = "meshnode intention check SRC DST")]
    Check(PairArgs),
}

#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Allow the connection (the default)
    #[arg(long, conflicts_with = "deny")]
    allow: bool,
    /// Deny the connection
    #[arg(long)]
    deny: bool,
    /// Replace an intention that is there for the same pair
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    pair: PairArgs,
}

#[derive(Debug, Args)]
pub struct PairArgs {
    /// Source and destination: service names or `*`; or one argument 'SRC -> DST'
    #[arg(required = true, num_args = 1..=3, value_name = "SRC DST")]
    words: Vec<String>,
    /// JSON instead of words
    #[arg(long)]
    json: bool,
}

impl PairArgs {
    fn parse(&self) -> Result<(Pattern, Pattern), Failure> {
        let usage = || {
            let given = self.words.join(" ");
            Failure::Usage(format!("`{given}`: accepted: SRC DST, or 'SRC -> DST' in one argument"))
        };
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        let (source, destination) = match words.as_slice() {
            [source, "->" | "→", destination] => (*source, *destination),
            [source, destination] => (*source, *destination),
            [both] => both.split_once("->").or_else(|| both.split_once('→')).ok_or_else(usage)?,
            _ => return Err(usage()),
        };
        let pattern = |text: &str| {
            text.trim().parse::<Pattern>().map_err(|error| Failure::Usage(format!("{error}; or `*` for any")))
        };
        Ok((pattern(source)?, pattern(destination)?))
    }

    /// One word without an arrow is an id.
    fn id(&self) -> Option<&str> {
        match self.words.as_slice() {
            [word] if !word.contains("->") && !word.contains('→') => Some(word),
            _ => None,
        }
    }
}

/// An intention as the API writes it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    #[serde(rename = "ID", default)]
    id: String,
    source_name: String,
    destination_name: String,
    /// Empty for an intention that decides by more than the connection (Consul 1.9 and later).
    #[serde(default)]
    action: String,
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    permissions: Vec<serde_json::Value>,
    #[serde(default)]
    precedence: i64,
    #[serde(default)]
    description: String,
}

impl Entry {
    fn action(&self) -> &str {
        if self.permissions.is_empty() { &self.action } else { "HTTP permissions" }
    }
}

pub async fn run(global: &Global, command: IntentionCommand) -> Result<u8, Failure> {
    let api = target::control_plane(global)?;
    match command {
        IntentionCommand::Create(args) => create(&api, &args).await,
        IntentionCommand::List { json } => list(&api, json).await,
        IntentionCommand::Delete(args) => delete(&api, &args).await,
        IntentionCommand::Check(args) => check(&api, &args).await,
    }
}

async fn entries(api: &Client) -> Result<Vec<Entry>, ApiError> {
    // Consul answers `null` where there is none.
    Ok(api.get::<Option<Vec<Entry>>>("/v1/connect/intentions").await?.unwrap_or_default())
}

/// What the server has at a pair, and how it wants to be told.
enum Found {
    /// Consul 1.9 and later, and meshnode: a pair is a place that is written and removed by name.
    ByName(Option<Entry>),
    /// Consul 1.8: an intention is known by its id.
    ById(Option<Entry>),
}

impl Found {
    fn entry(&self) -> Option<&Entry> {
        match self {
            Self::ByName(entry) | Self::ById(entry) => entry.as_ref(),
        }
    }
}

async fn find(api: &Client, source: &Pattern, destination: &Pattern) -> Result<Found, ApiError> {
    match api.get::<Entry>(&exact(source, destination)).await {
        Ok(entry) => Ok(Found::ByName(Some(entry))),
        Err(ApiError::NotFound { .. }) => Ok(Found::ByName(None)),
        // Consul 1.8 takes `exact` for an id: "UUID must be 36 characters".
        Err(ApiError::Status { status, reason, .. })
            if status.is_client_error() && reason.contains("UUID") =>
        {
            let (source, destination) = (source.to_string(), destination.to_string());
            let all = entries(api).await?;
            let fits = |entry: &Entry| entry.source_name == source && entry.destination_name == destination;
            Ok(Found::ById(all.into_iter().find(fits)))
        }
        Err(error) => Err(error),
    }
}

fn exact(source: &Pattern, destination: &Pattern) -> String {
    let (source, destination) = (escape(&source.to_string()), escape(&destination.to_string()));
    format!("/v1/connect/intentions/exact?source={source}&destination={destination}")
}

fn by_id(id: &str) -> String {
    format!("/v1/connect/intentions/{}", escape(id))
}

async fn create(api: &Client, args: &CreateArgs) -> Result<u8, Failure> {
    let (source, destination) = args.pair.parse()?;
    let action = if args.deny { Action::Deny } else { Action::Allow };
    let word = if args.deny { "deny" } else { "allow" };
    let found = find(api, &source, &destination).await?;
    if let Some(entry) = found.entry().filter(|_| !args.replace) {
        return Err(Failure::Refused(format!(
            "there is an intention {source} -> {destination}: {} already; --replace changes it",
            entry.action()
        )));
    }
    let body = json!({
        "SourceName": source,
        "DestinationName": destination,
        "SourceType": "consul",
        "Action": action,
    });
    match &found {
        Found::ByName(_) => {
            let body = json!({ "SourceType": "consul", "Action": action });
            api.put::<()>(&exact(&source, &destination), &body).await?;
        }
        Found::ById(Some(entry)) => {
            api.put::<()>(&by_id(&entry.id), &body).await?;
        }
        Found::ById(None) => {
            api.post::<()>("/v1/connect/intentions", &body).await?;
        }
    }
    if args.pair.json {
        print_json(&json!({ "Source": source, "Destination": destination, "Action": action }))?;
    } else {
        let done = if found.entry().is_some() { "Replaced" } else { "Created" };
        print(&format!("{done}: {source} => {destination} ({word})\n"))?;
    }
    Ok(exit::OK)
}

async fn list(api: &Client, json: bool) -> Result<u8, Failure> {
    let mut all = entries(api).await?;
    all.sort_by(|a, b| {
        (-a.precedence, &a.destination_name, &a.source_name).cmp(&(
            -b.precedence,
            &b.destination_name,
            &b.source_name,
        ))
    });
    if json {
        print_json(&all)?;
        return Ok(exit::OK);
    }
    if all.is_empty() {
        print("There is no intention; the default policy decides.\n")?;
        return Ok(exit::OK);
    }
    let mut table = Table::new(&["SOURCE", "ACTION", "DESTINATION", "PRECEDENCE", "ID"], &[]);
    for entry in &all {
        let colour = if entry.action == "allow" { Colour::Good } else { Colour::Bad };
        table.row([
            entry.source_name.as_str().into(),
            Cell::coloured(entry.action(), colour),
            entry.destination_name.as_str().into(),
            Cell::right(entry.precedence.to_string()),
            entry.id.as_str().into(),
        ]);
    }
    print(&table.render(Style::of_stdout()))?;
    Ok(exit::OK)
}

async fn delete(api: &Client, args: &PairArgs) -> Result<u8, Failure> {
    let path = if let Some(id) = args.id() {
        by_id(id)
    } else {
        let (source, destination) = args.parse()?;
        let found = find(api, &source, &destination).await?;
        let entry = found.entry().ok_or_else(|| {
            Failure::Refused(format!(
                "there is no intention {source} -> {destination}; `meshnode intention list` shows all"
            ))
        })?;
        match &found {
            Found::ByName(_) => exact(&source, &destination),
            Found::ById(_) => by_id(&entry.id),
        }
    };
    api.delete(&path).await?;
    if args.json {
        print_json(&json!({ "Deleted": true }))?
    } else {
        print("Intention deleted.\n")?
    }
    Ok(exit::OK)
}

async fn check(api: &Client, args: &PairArgs) -> Result<u8, Failure> {
    let (source, destination) = args.parse()?;
    for side in [&source, &destination] {
        if !matches!(side, Pattern::Exact(_)) {
            return Err(Failure::Usage("`*` cannot be checked: name the two services".to_owned()));
        }
    }
    let (from, to) = (escape(&source.to_string()), escape(&destination.to_string()));
    let answer: CheckAnswer =
        api.get(&format!("/v1/connect/intentions/check?source={from}&destination={to}")).await?;
    let explanation = if answer.allowed { None } else { explanation(api, &source, &destination).await? };
    if args.json {
        print_json(&json!({ "Allowed": answer.allowed, "Reason": explanation }))?;
    } else {
        print(if answer.allowed { "Allowed\n" } else { "Denied\n" })?;
        if let Some(why) = explanation {
            print(&format!("{why}\n"))?;
        }
    }
    Ok(if answer.allowed { exit::OK } else { exit::DENIED })
}

/// Returns why a pair is denied where an intention might look as if it allowed.
async fn explanation(
    api: &Client,
    source: &Pattern,
    destination: &Pattern,
) -> Result<Option<String>, ApiError> {
    let (Pattern::Exact(from), Pattern::Exact(to)) = (source, destination) else { return Ok(None) };
    let path = format!("/v1/connect/intentions/match?by=source&name={}", escape(from.as_str()));
    let mut answer: MatchAnswer = match api.get(&path).await {
        // Who may check may still not be allowed to read.
        Err(ApiError::Forbidden { .. }) => return Ok(None),
        answer => answer?,
    };
    let mut entries = answer.remove(from.as_str()).flatten().unwrap_or_default();
    entries.sort_by_key(|entry| entry.precedence);
    let ours = &api.access().tenancy;
    let set = Intentions::new(entries.iter().filter_map(|entry| intention(entry, ours)), Action::Deny);
    Ok(set.decide(from, to).explanation())
}

/// Returns the arguments with Consul's one-hyphen options (`-allow`, `-http-addr=…`) of `intention` and `service` written
/// with two, and a lone `->` as a word.
pub fn consul_dashes(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    const OPTIONS: [&str; 18] = [
        "allow",
        "deny",
        "replace",
        "json",
        "http-addr",
        "token",
        "ca-file",
        "name",
        "port",
        "id",
        "rules",
        "description",
        "policy-name",
        "policy-id",
        "service-identity",
        "node-identity",
        "expires-ttl",
        "self",
    ];
    let mut consul = false;
    let mut plain = false;
    let translate = |arg: OsString| {
        let Some(text) = arg.to_str() else { return arg };
        consul |= matches!(text, "intention" | "service" | "acl");
        plain |= text == "--" || text == "exec";
        let Some(option) = text.strip_prefix('-').filter(|_| consul && !plain) else { return arg };
        let name = option.split('=').next().unwrap_or(option);
        match name {
            ">" => "→".into(),
            _ if OPTIONS.contains(&name) => format!("--{option}").into(),
            _ => arg,
        }
    };
    args.into_iter().map(translate).collect()
}

/// Returns `text` as a service name, for options.
pub fn service_name(text: &str) -> Result<ServiceName, String> {
    text.parse().map_err(|error: crate::identity::NameError| error.to_string())
}
