//! Whom a command asks: the daemon's admin socket, or the control plane's API, from options, environment and
//! configuration, in that order.

use std::path::PathBuf;

use super::{Failure, Global, admin::Admin};
use crate::{
    config::{Config, ConfigError, ControlPlane},
    control_plane::{ApiAccess, ApiAddress, Client, HostPort, TokenSource, embedded::TOKEN_FILE},
};

/// Returns the configuration; where the default file cannot be read or is wrong, the defaults: a command that only asks
/// must work for a user who may not read the daemon's token.
fn config(global: &Global) -> Result<Config, ConfigError> {
    match Config::load(global.config.as_deref()) {
        Err(_) if global.config.is_none() => Ok(Config::default()),
        result => result,
    }
}

pub fn admin(global: &Global) -> Result<Admin, Failure> {
    Ok(Admin::new(admin_socket(global)?))
}

pub fn admin_socket(global: &Global) -> Result<PathBuf, Failure> {
    Ok(match &global.admin_socket {
        Some(path) => path.clone(),
        None => config(global)?.admin_socket(),
    })
}

/// Whether options or configuration name a control plane that this host's own daemon is not.
pub fn names_another_host(global: &Global) -> bool {
    let embedded = |config: &Config| matches!(config.control_plane, ControlPlane::Embedded(_));
    global.http_addr.is_some() || config(global).is_ok_and(|config| !embedded(&config))
}

/// Returns a client of the control plane's API.
pub fn control_plane(global: &Global) -> Result<Client, Failure> {
    let access = access(global)?;
    let address = &access.address;
    if !address.is_confidential() {
        return Err(Failure::Refused(format!(
            "{address} is not asked: the token and the answers would travel in clear. Use https:// with --ca-file, a unix \
             socket, or loopback."
        )));
    }
    if matches!(address, ApiAddress::Https(_)) && access.ca_file.is_none() {
        return Err(Failure::Refused(format!(
            "{address} needs --ca-file (or CONSUL_CACERT): the CA that signed its certificate"
        )));
    }
    Ok(Client::open(access)?)
}

fn access(global: &Global) -> Result<ApiAccess, Failure> {
    let config = config(global)?;
    let mut access = configured(&config);
    if let Some(text) = &global.http_addr {
        let address = http_addr(text).map_err(|why| Failure::Usage(format!("--http-addr {text}: {why}")))?;
        access = match listening(&config) {
            _ if address == access.address => access,
            Some(own) if address == own.address => own,
            // What is configured is another server's.
            _ => ApiAccess::anonymous(address),
        };
    }
    if let Some(path) = &global.ca_file {
        access.ca_file = Some(path.clone());
    }
    if let Some(token) = &global.token {
        let bad = |_| Failure::Usage("--token: a token is printable ASCII without spaces".to_owned());
        access.token = Some(TokenSource::value(token).map_err(bad)?);
    }
    Ok(access)
}

/// Returns the embedded server's loopback port, with its token for those who may read the server's state.
fn listening(config: &Config) -> Option<ApiAccess> {
    let ControlPlane::Embedded(embedded) = &config.control_plane else { return None };
    let at = HostPort { host: embedded.listen.ip().to_string(), port: embedded.listen.port() };
    let token = TokenSource::file(config.state_dir.join(TOKEN_FILE));
    let token = token.current().is_ok().then_some(token);
    Some(ApiAccess { token, ..ApiAccess::anonymous(ApiAddress::Http(at)) })
}

/// Returns the API that the configuration names.
fn configured(config: &Config) -> ApiAccess {
    let socket = config.api_socket();
    match &config.control_plane {
        ControlPlane::Embedded(_) => match listening(config) {
            Some(access) if !socket.exists() => access,
            _ => ApiAccess::anonymous(ApiAddress::Unix(socket)),
        },
        ControlPlane::Remote(access) | ControlPlane::Consul(access) => access.clone(),
    }
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
        let token = |address: &str| {
            access(&Global { http_addr: Some(address.into()), ..global.clone() }).unwrap().token
        };
        assert_eq!(token("127.0.0.1:1"), TokenSource::value("secret").ok());
        assert_eq!(token("127.0.0.1:2"), None);
    }

    #[test]
    fn what_could_be_read_or_answered_by_others_is_not_even_asked() {
        let dir = tempfile::tempdir().unwrap();
        let global = |address: &str, ca_file: Option<PathBuf>| Global {
            http_addr: Some(address.to_owned()),
            ca_file,
            ..Global::default()
        };
        let refusal = |global: &Global| control_plane(global).err().map(|failure| failure.to_string());
        let found = refusal(&global("http://192.0.2.1:8500", None)).unwrap();
        assert!(found.contains("would travel in clear"), "{found}");
        let found = refusal(&global("https://127.0.0.1:1", None)).unwrap();
        assert!(found.contains("needs --ca-file"), "{found}");

        assert_eq!(refusal(&global("http://127.0.0.1:1", None)), None);
        let ca = dir.path().join("ca.pem");
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        std::fs::write(&ca, cert.pem()).unwrap();
        assert_eq!(refusal(&global("https://192.0.2.1:1", Some(ca))), None);
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
            access(&Global { http_addr, ..global.clone() }).unwrap().token
        };
        let own = Some(TokenSource::file(dir.path().join(TOKEN_FILE)));
        assert_eq!(token(None), own);
        assert_eq!(token(Some("127.0.0.1:7")), own);
        assert_eq!(token(Some("127.0.0.1:8")), None);
        std::fs::write(dir.path().join("api.sock"), "").unwrap();
        assert_eq!(token(None), None, "the unix socket needs none");
        assert_eq!(token(Some("127.0.0.1:7")), own);
    }
}
