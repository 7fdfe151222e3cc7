//! `/v1/connect/ca/*`: roots, configuration, and signing.

use axum::{
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use serde_json::json;

use super::{
    ApiError, App,
    body::{Json, Raw},
    input::CaBody,
    names,
    read::{self, Read},
};
use crate::control_plane::embedded::{
    acl::{Caller, Right},
    duration,
    issuer::{LEAF_TTL, LEAF_TTLS},
    model::Strings,
    store::StoreError,
    topics::Topic,
};

/// What Consul's built-in CA knows of and this one has no use for yet: kept when it is a duration.
const OTHER_DURATIONS: [&str; 2] = ["RotationPeriod", "IntermediateCertTTL"];

pub async fn roots(read: Read) -> Response {
    let pem = match read.flag("pem") {
        Ok(pem) => pem,
        Err(error) => return error.into_response(),
    };
    if pem {
        let tables = read.app.store.tables();
        let chain: String = tables.roots().map(|root| root.root_cert.as_str()).collect();
        return ([("content-type", "application/pem-certificate-chain")], chain).into_response();
    }
    read.answer(Topic::Roots, |tables| {
        Ok(json!({
            "ActiveRootID": tables.active_root().map(|root| &root.id),
            "TrustDomain": read.app.issuer.trust_domain(),
            "Roots": tables.roots().map(|root| &**root).collect::<Vec<_>>(),
        }))
    })
    .await
}

pub async fn configuration(read: Read) -> Response {
    read.answer(Topic::CaConfig, |tables| {
        read.demand(Right::OPERATOR_READ)?;
        let row = tables.ca_config();
        Ok(json!({
            "Provider": "consul",
            "Config": row.config,
            "State": null,
            "ForceWithoutCrossSigning": false,
            "CreateIndex": row.create_index,
            "ModifyIndex": row.modify_index,
        }))
    })
    .await
}

/// Changes the leafs' lifetime, for leafs made from now on.
pub async fn configure(
    State(app): State<App>,
    caller: Caller,
    Json(body): Json<CaBody>,
) -> Result<(), ApiError> {
    caller.demand(Right::OPERATOR_WRITE)?;
    let bad = |text: String| ApiError::BadRequest(text);
    if body.provider != "consul" {
        return Err(bad("Provider: the embedded control plane has its own CA, named \"consul\"".to_owned()));
    }
    let mut config = Strings::new();
    for (name, value) in &body.config {
        let known = name == LEAF_TTL || OTHER_DURATIONS.contains(&name.as_str());
        if !known {
            return Err(bad(format!(
                "Config.{name}: not supported by the embedded control plane ({LEAF_TTL} can be changed)"
            )));
        }
        let period = value.as_str().and_then(duration::parse);
        let period = period
            .ok_or_else(|| bad(format!("Config.{name}: a duration like \"72h\" is wanted, not {value}")))?;
        if name == LEAF_TTL && !LEAF_TTLS.contains(&period) {
            return Err(bad(format!("Config.{LEAF_TTL}: 1m to 72h are accepted")));
        }
        config.insert(name.clone(), duration::text(period));
    }
    let write = app.store.write(move |txn| {
        let mut all = txn.tables.ca_config().config.clone();
        all.extend(config);
        txn.put_ca_config(all);
        Ok::<_, StoreError>(())
    });
    Ok(write.await?)
}

/// Extension: signs the key of a certificate request for a service, so that the key stays where it was made.
pub async fn sign(
    Path(service): Path<String>,
    State(app): State<App>,
    caller: Caller,
    Raw(csr): Raw,
) -> Result<Response, ApiError> {
    let service = names::service("service", &service)?;
    caller.demand(Right::service_write(service.as_str()))?;
    Ok(read::json(&app.issuer.sign(&service, &csr)?, false))
}
