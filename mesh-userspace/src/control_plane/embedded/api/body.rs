//! Bodies: limited in length, and decoded so that an error names the field and the position.

use axum::{
    body::Bytes,
    extract::{FromRequest, Request, rejection::BytesRejection},
    http::StatusCode,
    response::IntoResponse,
};
use serde::de::DeserializeOwned;

use super::ApiError;

/// As Consul's own limit for values and transactions.
pub const MAX_BODY: usize = 512 * 1024;

/// A JSON body.
pub struct Json<T>(pub T);

/// A body that is no JSON.
pub struct Raw(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for Raw {
    type Rejection = ApiError;

    async fn from_request(mut request: Request, state: &S) -> Result<Self, ApiError> {
        axum::extract::DefaultBodyLimit::max(MAX_BODY).apply(&mut request);
        match Bytes::from_request(request, state).await {
            Ok(bytes) => Ok(Self(bytes)),
            Err(rejection) => Err(refused(rejection)),
        }
    }
}

fn refused(rejection: BytesRejection) -> ApiError {
    let text = rejection.body_text();
    match rejection.into_response().status() {
        StatusCode::PAYLOAD_TOO_LARGE => ApiError::TooLarge { limit: MAX_BODY },
        _ => ApiError::BadRequest(text),
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let Raw(bytes) = Raw::from_request(request, state).await?;
        decode(&bytes).map(Self)
    }
}

/// Decodes JSON; an error says which field, what was expected, and where.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut input = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut input).map_err(|error| {
        let path = error.path().to_string();
        let text = readable(&error.into_inner().to_string());
        // Where the JSON itself is broken there is no field.
        let field = if matches!(path.as_str(), "." | "?") { String::new() } else { format!("{path}: ") };
        ApiError::BadRequest(format!("Request decode failed: {field}{text}"))
    })?;
    let trailing = |error| ApiError::BadRequest(format!("Request decode failed: {error}"));
    input.end().map_err(trailing)?;
    Ok(value)
}

/// Leaves the second spellings of fields (`service_id` for `ServiceID`) and Rust's words for numbers out of an error.
fn readable(error: &str) -> String {
    let text = error.replace("expected u16", "expected a number from 0 to 65535");
    let Some((unknown, rest)) = text.split_once(", expected one of ") else { return text };
    let (names, position) = rest.split_once(" at line").unwrap_or((rest, ""));
    let names: Vec<_> = names
        .split(", ")
        .filter(|name| !name.trim_start_matches('`').starts_with(char::is_lowercase))
        .collect();
    format!("{unknown}, expected one of {} at line{position}", names.join(", "))
}
