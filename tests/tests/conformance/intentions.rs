//! `/v1/connect/intentions*`.

use mesh_tests::conformance::{
    Run,
    servers::{SIDES, Side},
};
use serde_json::{Value, json};

const INTENTIONS: &str = "/v1/connect/intentions";

fn intention(source: &str, destination: &str, action: &str) -> Value {
    json!({"SourceName": source, "DestinationName": destination, "SourceType": "consul", "Action": action})
}

fn create(run: &mut Run<'_>, name: &str, body: &Value) {
    let answers = run.post(INTENTIONS, body);
    run.name(name, &answers, "/ID");
}

pub fn all(run: &mut Run<'_>) {
    run.get(INTENTIONS);
    run.get(&format!("{INTENTIONS}/match?by=destination&name=db"));
    create(run, "any-any", &intention("*", "*", "deny"));
    create(run, "web-any", &intention("web", "*", "allow"));
    create(run, "any-db", &intention("*", "db", "deny"));
    let full = json!({
        "SourceNS": "default", "SourceName": "web", "DestinationNS": "default", "DestinationName": "db",
        "SourceType": "consul", "Action": "allow", "Description": "why not", "Meta": {"by": "me"},
    });
    create(run, "web-db", &full);
    create(run, "app-db", &json!({"SourceName": "app", "DestinationName": "db", "Action": "deny"}));
    run.get(INTENTIONS);
    for name in ["any-any", "web-any", "any-db", "web-db", "app-db"] {
        run.get(&format!("{INTENTIONS}/{{{name}}}"));
    }
    for query in [
        "by=source&name=web",
        "by=source&name=default/web",
        "by=destination&name=db",
        "by=destination&name=db&name=nobody",
        "by=source&name=*",
        "by=destination&name=nobody",
    ] {
        run.get(&format!("{INTENTIONS}/match?{query}"));
    }
    for (source, destination) in
        [("web", "db"), ("app", "db"), ("x", "db"), ("web", "y"), ("x", "y"), ("default/web", "default/db")]
    {
        run.get(&format!("{INTENTIONS}/check?source={source}&destination={destination}"));
    }
    // Changes.
    run.post(INTENTIONS, &full);
    run.put(&format!("{INTENTIONS}/{{web-db}}"), &intention("web", "db", "deny"));
    run.get(&format!("{INTENTIONS}/{{web-db}}"));
    run.get(&format!("{INTENTIONS}/check?source=web&destination=db"));
    run.put(&format!("{INTENTIONS}/{{web-db}}"), &intention("app", "db", "deny"));
    run.put(&format!("{INTENTIONS}/{{web-db}}"), &intention("web2", "db", "allow"));
    run.get(INTENTIONS);
    refusals(run);
    for name in ["any-any", "web-any", "any-db", "web-db", "app-db"] {
        run.delete(&format!("{INTENTIONS}/{{{name}}}"));
    }
    run.delete(&format!("{INTENTIONS}/{{any-any}}"));
    run.get(&format!("{INTENTIONS}/{{any-any}}"));
    run.get(INTENTIONS);
    run.get(&format!("{INTENTIONS}/check?source=web&destination=db"));
}

fn refusals(run: &mut Run<'_>) {
    for body in [
        json!({}),
        json!({"SourceName": "a", "DestinationName": "b"}),
        json!({"SourceName": "a", "DestinationName": "b", "Action": "perhaps"}),
        json!({"SourceName": "", "DestinationName": "b", "Action": "allow"}),
        json!({"SourceName": "a", "Action": "allow"}),
        json!({"SourceName": "a*", "DestinationName": "b", "Action": "allow"}),
        json!({"SourceName": "a", "DestinationName": "b", "Action": "allow", "SourceType": "other"}),
        json!({"SourceName": "a", "DestinationName": "b", "Action": "allow", "SourceNS": "elsewhere"}),
        json!({"SourceName": "a", "DestinationName": "b", "Action": "allow", "ID": "11111111-2222-3333-4444-555555555555"}),
        json!({"SourceName": "a", "DestinationName": "b", "Action": "allow", "Meta": {"k": 1}}),
    ] {
        for (answer, side) in run.post(INTENTIONS, &body).iter().zip(SIDES) {
            // Where it is taken all the same, what follows is to find both alike.
            let made: Value = serde_json::from_str(&answer.body).unwrap_or_default();
            if let Some(id) = made["ID"].as_str() {
                run.one(side, "DELETE", &format!("{INTENTIONS}/{id}"), &[], "");
            }
        }
    }
    let unknown = "11111111-2222-3333-4444-555555555555";
    run.get(&format!("{INTENTIONS}/{unknown}"));
    run.put(&format!("{INTENTIONS}/{unknown}"), &intention("a", "b", "allow"));
    run.delete(&format!("{INTENTIONS}/{unknown}"));
    run.get(&format!("{INTENTIONS}/not-a-uuid"));
    run.put(&format!("{INTENTIONS}/not-a-uuid"), &intention("a", "b", "allow"));
    run.delete(&format!("{INTENTIONS}/not-a-uuid"));
    for query in [
        "match",
        "match?by=destination",
        "match?name=db",
        "match?by=colour&name=db",
        "match?by=source&name=",
        "check",
        "check?source=web",
        "check?destination=db",
        "check?source=*&destination=db",
        "check?source=web&destination=*",
        "check?source=web&destination=db&source-type=other",
    ] {
        run.get(&format!("{INTENTIONS}/{query}"));
    }
}

/// `exact` is newer than the Consul that is compared with: these answers are from the documentation of Consul 1.9.
pub fn by_names(run: &mut Run<'_>) {
    let exact = format!("{INTENTIONS}/exact?source=web&destination=db");
    let web_db = json!({
        "Description": "",
        "SourceNS": "default",
        "SourceName": "web",
        "DestinationNS": "default",
        "DestinationName": "db",
        "SourceType": "consul",
        "Action": "allow",
        "Meta": {},
        "Precedence": 9,
        "CreateIndex": 11,
        "ModifyIndex": 11,
    });
    let body = json!({"SourceType": "consul", "Action": "allow"}).to_string();
    run.documented("PUT", &exact, &body, &json!(true));
    run.documented("GET", &exact, "", &web_db);
    run.documented("PUT", &exact, &json!({"Action": "deny", "Description": "d"}).to_string(), &json!(true));
    let mut denied = web_db;
    denied["Action"] = json!("deny");
    denied["Description"] = json!("d");
    run.documented("GET", &exact, "", &denied);
    let gone = run.one(Side::Embedded, "DELETE", &exact, &[], "");
    assert_eq!(gone.status, 200, "{}", gone.body);
    assert_eq!(run.one(Side::Embedded, "GET", &exact, &[], "").status, 404);
}
