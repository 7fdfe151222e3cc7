//! Whom a command asks: the daemon's admin socket, or the control plane's API, from options, environment and
//! configuration, in that order.

use std::{io, path::PathBuf};

use super::{
    Failure, Global,
    api::{Api, ApiError},
};
use crate::config::{ApiAddress, Config, ConfigError, ControlPlane, Secret};

/// Returns the configuration; where the default file cannot be read or is wrong, the defaults: a command that only asks
/// must work for a user who may not read the daemon's token.
fn config(global: &Global) -> Result<Config, ConfigError> {
    match Config::load(global.config.as_deref()) {
        Err(_) if global.config.is_none() => Ok(Config::default()),
        result => result,
    }
}

pub fn admin(global: &Global) -> Result<Api, Failure> {
    let socket = match &global.admin_socket {
        Some(path) => path.clone(),
        None => config(global)?.admin_socket(),
    };
    Ok(Api::unix(socket))
}

/// Says what a failed request to the admin socket means.
pub fn admin_failure(admin: &Api, error: ApiError) -> Failure {
    let ApiAddress::Unix(socket) = &admin.address else { return error.into() };
    match error.connect_error() {
        Some(io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            Failure::NoDaemon { socket: socket.clone() }
        }
        Some(io::ErrorKind::PermissionDenied) => {
            Failure::NoPermission { what: format!("{} is for root", socket.display()) }
        }
        _ => match error {
            ApiError::Refused(refusal) => Failure::Refused(refusal.text),
            other => other.into(),
        },
    }
}

/// Returns the control plane's API.
pub fn control_plane(global: &Global) -> Result<Api, Failure> {
    let config = config(global)?;
    let mut api = configured(&config)?;
    if let Some(text) = &global.http_addr {
        let address = http_addr(text).map_err(|why| Failure::Usage(format!("--http-addr {text}: {why}")))?;
        if address != api.address {
            // What is configured is another server's.
            api = Api { address, ca_file: None, token: None };
        }
    }
    if let Some(path) = &global.ca_file {
        api.ca_file = Some(path.clone());
    }
    if let Some(token) = &global.token {
        let bad = || Failure::Usage("--token: a token is printable ASCII without spaces".to_owned());
        api.token = Some(Secret::new(token).ok_or_else(bad)?);
    }
    Ok(api)
}

/// Returns the API that the configuration names.
pub fn configured(config: &Config) -> Result<Api, Failure> {
    Ok(match &config.control_plane {
        ControlPlane::Embedded(embedded) => {
            let socket = config.api_socket();
            if socket.exists() {
                return Ok(Api::unix(socket));
            }
            let address = format!("http://{}", embedded.listen).parse();
            let address = address.expect("invariant: a socket address follows http://");
            Api { address, ca_file: None, token: None }
        }
        ControlPlane::Remote(remote) | ControlPlane::Consul(remote) => {
            let token = remote.token.as_ref().map(|token| token.read()).transpose();
            let token =
                token.map_err(|error| Failure::Refused(format!("control_plane.token_file: {error}")))?;
            Api { address: remote.address.clone(), ca_file: remote.ca_file.clone(), token }
        }
    })
}

/// Consul's forms: `HOST:PORT` is http, unless `CONSUL_HTTP_SSL` says https.
fn http_addr(text: &str) -> Result<ApiAddress, String> {
    let full = if text.contains("://") {
        text.to_owned()
    } else {
        let ssl = std::env::var("CONSUL_HTTP_SSL").is_ok_and(|value| matches!(value.as_str(), "1" | "true"));
        format!("{}://{text}", if ssl { "https" } else { "http" })
    };
    full.parse().map_err(|error| {
        format!("{error}; accepted: HOST:PORT, http://HOST:PORT, https://HOST:PORT, unix:///PATH")
    })
}

/// Returns the path of the configuration that commands read.
pub fn config_path(global: &Global) -> PathBuf {
    global.config.clone().unwrap_or_else(|| crate::config::DEFAULT_PATH.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consuls_forms_of_an_address_are_understood() {
        for (text, shown) in [
            ("127.0.0.1:8500", "http://127.0.0.1:8500"),
            ("localhost", "http://localhost:8500"),
            ("unix:///run/x", "unix:///run/x"),
            ("https://c:1", "https://c:1"),
        ] {
            assert_eq!(http_addr(text).unwrap().to_string(), shown);
        }
        assert!(http_addr("ftp://x").is_err());
    }

    #[test]
    fn a_configured_token_is_not_sent_to_another_address() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("m.toml");
        let text =
            "[control_plane]\nkind = \"consul\"\naddress = \"http://127.0.0.1:1\"\ntoken = \"secret\"\n";
        std::fs::write(&config, text).unwrap();
        let global = Global { config: Some(config), ..Global::default() };
        let same =
            control_plane(&Global { http_addr: Some("127.0.0.1:1".into()), ..global.clone() }).unwrap();
        assert_eq!(same.token, Secret::new("secret"));
        let other = control_plane(&Global { http_addr: Some("127.0.0.1:2".into()), ..global }).unwrap();
        assert_eq!(other.token, None);
    }
}
