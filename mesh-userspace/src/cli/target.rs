//! Whom a command asks: the daemon's admin socket, or the control plane's API, from options, environment and
//! configuration, in that order.

use std::{io, path::PathBuf};

use super::{
    Failure, Global,
    api::{Api, ApiError},
};
use crate::{
    config::{ApiAddress, Config, ConfigError, ControlPlane, HostPort, Secret, read_token},
    control_plane::embedded::TOKEN_FILE,
};

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
        api = match listening(&config) {
            _ if address == api.address => api,
            Some(own) if address == own.address => own,
            // What is configured is another server's.
            _ => Api { address, ca_file: None, token: None },
        };
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

/// Returns the embedded server's loopback port, with its token for those who may read the server's state.
fn listening(config: &Config) -> Option<Api> {
    let ControlPlane::Embedded(embedded) = &config.control_plane else { return None };
    let at = HostPort { host: embedded.listen.ip().to_string(), port: embedded.listen.port() };
    let token = read_token(&config.state_dir.join(TOKEN_FILE)).ok();
    Some(Api { address: ApiAddress::Http(at), ca_file: None, token })
}

/// Returns the API that the configuration names.
fn configured(config: &Config) -> Result<Api, Failure> {
    let socket = config.api_socket();
    Ok(match &config.control_plane {
        ControlPlane::Embedded(_) => match listening(config) {
            Some(api) if !socket.exists() => api,
            _ => Api::unix(socket),
        },
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

    #[test]
    fn the_embedded_servers_own_token_is_used_at_its_own_port_only() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(TOKEN_FILE), "0123456789abcdef\n").unwrap();
        let config = dir.path().join("m.toml");
        let shown = dir.path().display();
        let text = format!(
            "state_dir = \"{shown}\"\nrun_dir = \"{shown}\"\n[control_plane]\naddress = \"http://127.0.0.1:7\"\n"
        );
        std::fs::write(&config, text).unwrap();
        let global = Global { config: Some(config), ..Global::default() };
        let token = |http_addr: Option<&str>| {
            let http_addr = http_addr.map(str::to_owned);
            control_plane(&Global { http_addr, ..global.clone() }).unwrap().token
        };
        assert_eq!(token(None), Secret::new("0123456789abcdef"));
        assert_eq!(token(Some("127.0.0.1:7")), Secret::new("0123456789abcdef"));
        assert_eq!(token(Some("127.0.0.1:8")), None);
        std::fs::write(dir.path().join("api.sock"), "").unwrap();
        assert_eq!(token(None), None, "the unix socket needs none");
        assert_eq!(token(Some("127.0.0.1:7")), Secret::new("0123456789abcdef"));
    }
}
