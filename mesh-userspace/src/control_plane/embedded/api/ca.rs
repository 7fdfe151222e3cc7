//! `/v1/connect/ca/*`: roots, configuration, and signing.

use axum::{
    extract::{Path, Query, State},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::json;
use time::OffsetDateTime;

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
    issuer::{CSR_RATE, LEAF_TTL, LEAF_TTLS},
    model::Opaque,
    rotation::{self, Next},
    store::StoreError,
    topics::Topic,
};

/// What Consul's built-in CA knows of and this one has no use for yet: kept when it is a duration.
const OTHER_DURATIONS: [&str; 2] = ["RotationPeriod", "IntermediateCertTTL"];
/// Limits of signing; the second is kept and has no effect, since a signature here takes microseconds.
const RATES: [&str; 2] = [CSR_RATE, "CSRMaxConcurrent"];
/// The kind of key that is made here.
const KEY_KIND: [(&str, &str); 2] = [("PrivateKeyType", "ec"), ("PrivateKeyBits", "256")];
const PRIVATE_KEY: &str = "PrivateKey";
const ROOT_CERT: &str = "RootCert";

/// The parameters of a rotation.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotateQuery {
    /// Without cross-signing.
    #[serde(default)]
    force: bool,
}

pub async fn roots(read: Read) -> Response {
    let pem = match read.flag("pem") {
        Ok(pem) => pem,
        Err(error) => return error.into_response(),
    };
    if pem {
        let tables = read.app.store.tables();
        let chain: String = tables.roots().iter().map(|root| root.root_cert.as_str()).collect();
        return ([("content-type", "application/pem-certificate-chain")], chain).into_response();
    }
    read.answer(Topic::Roots, |tables| {
        Ok(json!({
            "ActiveRootID": tables.active_root().map(|root| &root.id),
            "TrustDomain": read.app.issuer.trust_domain(),
            "Roots": tables.roots().iter().map(|root| &***root).collect::<Vec<_>>(),
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

/// Changes the leafs' lifetime and other parameters, and, where a key is given, the CA itself.
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
    let mut given = Given::default();
    let mut config = Opaque::new();
    for (name, value) in &body.config {
        match (name.as_str(), value.as_str()) {
            (PRIVATE_KEY, Some(pem)) => given.key = Some(pem.to_owned()).filter(|pem| !pem.is_empty()),
            (ROOT_CERT, Some(pem)) => given.cert = Some(pem.to_owned()).filter(|pem| !pem.is_empty()),
            (PRIVATE_KEY | ROOT_CERT, None) => {
                return Err(bad(format!("Config.{name}: PEM in a string is wanted")));
            }
            _ => drop(config.insert(name.clone(), parameter(name, value)?)),
        }
    }
    let next = given.next(&app)?;
    let mut all = app.store.tables().ca_config().config.clone();
    all.extend(config);
    match next {
        Some(next) => {
            refuse_where_given(&app)?;
            // As Consul, which shows the certificate that it was given. The key is in a file of its own.
            match given.cert {
                Some(cert) => drop(all.insert(ROOT_CERT.to_owned(), cert.into())),
                None => drop(all.remove(ROOT_CERT)),
            }
            app.issuer.rotate(next, Some(all), body.force_without_cross_signing).await?;
        }
        None => {
            let write = app.store.write(move |txn| {
                rotation::remember_lifetime(txn);
                txn.put_ca_config(all);
                Ok::<_, StoreError>(())
            });
            write.await?;
        }
    }
    Ok(())
}

/// Returns the parameter as it is kept.
fn parameter(name: &str, value: &serde_json::Value) -> Result<serde_json::Value, ApiError> {
    let bad = |text: &str| Err(ApiError::BadRequest(format!("Config.{name}: {text}")));
    if RATES.contains(&name) {
        return match value.as_f64() {
            Some(rate) if (0.0..=1e6).contains(&rate) => Ok(value.clone()),
            _ => bad(&format!("a number from 0 to 1000000 is wanted, not {value}")),
        };
    }
    if let Some((_, only)) = KEY_KIND.iter().find(|(kind, _)| *kind == name) {
        let same =
            value.as_str() == Some(only) || value.as_u64().map(|n| n.to_string()).as_deref() == Some(only);
        return if same { Ok(value.clone()) } else { bad(&format!("{only} is what is made here")) };
    }
    if name != LEAF_TTL && !OTHER_DURATIONS.contains(&name) {
        return bad(&format!("not supported by the embedded control plane ({LEAF_TTL} can be changed)"));
    }
    let period = value.as_str().and_then(duration::parse);
    let Some(period) = period else {
        return bad(&format!("a duration like \"72h\" is wanted, not {value}"));
    };
    if name == LEAF_TTL && !LEAF_TTLS.contains(&period) {
        return bad("1m to 72h are accepted");
    }
    Ok(duration::text(period).into())
}

/// A CA in a configuration.
#[derive(Default)]
struct Given {
    key: Option<String>,
    cert: Option<String>,
}

impl Given {
    /// Returns what is to sign; `None` where nothing is given, or what signs already.
    fn next(&self, app: &App) -> Result<Option<Next>, ApiError> {
        let tables = app.store.tables();
        let Some(key) = &self.key else {
            // What was read can be sent back, and what was read has no key.
            let known = tables.ca_config().config.get(ROOT_CERT).and_then(serde_json::Value::as_str);
            if self.cert.is_some() && self.cert.as_deref() != known {
                return Err(ApiError::BadRequest("Config.RootCert: needs its PrivateKey besides".to_owned()));
            }
            return Ok(None);
        };
        let now = OffsetDateTime::now_utc();
        let next = Next::of_key(app.issuer.trust_domain(), key, self.cert.as_deref(), now)?;
        let signs = tables.active_root().is_some_and(|active| match self.cert {
            Some(_) => active.id == next.root.id,
            None => active.signing_key_id == next.root.signing_key_id,
        });
        Ok((!signs).then_some(next))
    }
}

/// A CA that the configuration gives is changed there: at the next start it would be the one again.
fn refuse_where_given(app: &App) -> Result<(), ApiError> {
    const WHERE: &str =
        "the CA is given by [control_plane.embedded.ca]: change its files, then `meshnode reload`";
    if app.issuer.is_given() { Err(ApiError::BadRequest(WHERE.to_owned())) } else { Ok(()) }
}

/// Extension: rotates to a new root with a new key, which is made here.
pub async fn rotate(
    State(app): State<App>,
    caller: Caller,
    read: Query<RotateQuery>,
) -> Result<Response, ApiError> {
    caller.demand(Right::OPERATOR_WRITE)?;
    refuse_where_given(&app)?;
    let next = Next::generated(app.issuer.trust_domain(), OffsetDateTime::now_utc())?;
    let authority = app.issuer.rotate(next, None, read.force).await?;
    Ok(read::json(&json!({ "ActiveRootID": authority.root_id() }), false))
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
    Ok(read::json(&app.issuer.sign(&service, &csr).await?, false))
}
