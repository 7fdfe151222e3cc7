//! `[control_plane]`: where the API is, what it takes to be let in, and the embedded server.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use super::{
    super::{
        CaFiles, CertificateFiles, ControlPlane, Embedded, Expose,
        document::Section,
        error::{Located, Location},
        rules,
        value::absolute,
    },
    NAME, PATH, duration,
};
use crate::{
    control_plane::{ApiAccess, ApiAddress, ClientCert, HostPort, Kind, Tenancy, TokenSource},
    identity::{ServiceName, TrustDomain},
    intention::Action,
};

/// Services up to which the whole catalog is watched.
const CATALOG_LIMIT: u32 = 500;
pub(in crate::config) const SHORTEST_LEAF: Duration = Duration::from_secs(60);
pub(in crate::config) const LONGEST_LEAF: Duration = Duration::from_secs(72 * 3600);

/// Returns the control plane and the limit of the catalog.
pub(super) fn control_plane(
    root: &Section<'_>,
    claims: &mut rules::Claims<'_>,
) -> (Option<ControlPlane>, usize) {
    let section = root.section("control_plane");
    let kinds = [("embedded", Kind::Embedded), ("remote", Kind::Remote), ("consul", Kind::Consul)];
    let kind = section.choice("kind", &kinds).map_or(Kind::Embedded, |kind| kind.value);
    let limit = section.number("catalog_limit", 0..=1_000_000).map_or(CATALOG_LIMIT, |number| number.value);
    let access = AccessKeys::read(&section);
    let embedded = section.section("embedded");
    let config = if kind == Kind::Embedded {
        for at in access.places() {
            let hint = "only with kind = \"remote\" or \"consul\"; the embedded server's own token is \
                        control_plane.embedded.expose.token_file";
            section.document.note(at, hint);
        }
        Some(ControlPlane::Embedded(embedded_server(embedded, access.address, claims)))
    } else {
        if embedded.is_present() {
            section.document.note(embedded.at(), "only with kind = \"embedded\"");
        }
        remote_api(&section, kind, access)
    };
    section.finish();
    (config, limit as usize)
}

/// The keys of where the API is and what it takes to be let in.
struct AccessKeys {
    address: Option<Located<ApiAddress>>,
    ca_file: Option<Located<PathBuf>>,
    cert_file: Option<Located<PathBuf>>,
    key_file: Option<Located<PathBuf>>,
    token: Option<Located<TokenSource>>,
    token_file: Option<Located<PathBuf>>,
    namespace: Option<Located<String>>,
    partition: Option<Located<String>>,
}

impl AccessKeys {
    fn read(section: &Section<'_>) -> Self {
        let name = |key| section.text(key, NAME, |text| text.parse::<ServiceName>().map(|_| text.to_owned()));
        Self {
            address: section.text("address", ApiAddress::FORMS, str::parse::<ApiAddress>),
            ca_file: section.text("ca_file", PATH, absolute),
            cert_file: section.text("cert_file", PATH, absolute),
            key_file: section.text("key_file", PATH, absolute),
            token: section.secret("token", |text| TokenSource::value(text).ok()),
            token_file: section.text("token_file", PATH, absolute),
            namespace: name("namespace"),
            partition: name("partition"),
        }
    }

    /// Where what only another server needs is.
    fn places(&self) -> impl Iterator<Item = &Location> {
        let files = [&self.ca_file, &self.cert_file, &self.key_file, &self.token_file].into_iter().flatten();
        let names = [&self.namespace, &self.partition].into_iter().flatten();
        files
            .map(|file| &file.at)
            .chain(self.token.iter().map(|token| &token.at))
            .chain(names.map(|name| &name.at))
    }
}

fn remote_api(section: &Section<'_>, kind: Kind, access: AccessKeys) -> Option<ControlPlane> {
    let AccessKeys { address, ca_file, cert_file, key_file, token, token_file, namespace, partition } =
        access;
    let token = rules::one_token(section.document, token, token_file);
    let address = match address {
        Some(address) => address,
        None if kind == Kind::Remote => {
            section.missing(
                "address",
                &format!("with kind = \"remote\", where the other host's server is: {}", ApiAddress::FORMS),
            );
            return None;
        }
        None => Located {
            value: ApiAddress::Http(HostPort { host: "127.0.0.1".to_owned(), port: 8500 }),
            at: section.at().clone(),
        },
    };
    rules::confidential(section.document, &address, ca_file.as_ref());
    rules::https_only(section.document, &address.value, [&cert_file, &key_file]);
    if kind == Kind::Remote {
        for name in [&namespace, &partition].into_iter().flatten() {
            section.document.note(&name.at, "only with kind = \"consul\"");
        }
    }
    let access = ApiAccess {
        ca_file: ca_file.map(|file| file.value),
        client_cert: certificate(section, cert_file, key_file)
            .map(|CertificateFiles { cert_file, key_file }| ClientCert { cert_file, key_file }),
        token,
        tenancy: Tenancy { namespace: namespace.map(|n| n.value), partition: partition.map(|p| p.value) },
        ..ApiAccess::anonymous(address.value)
    };
    Some(if kind == Kind::Remote { ControlPlane::Remote(access) } else { ControlPlane::Consul(access) })
}

/// Returns certificate and key, which come together.
pub(super) fn certificate(
    section: &Section<'_>,
    cert_file: Option<Located<PathBuf>>,
    key_file: Option<Located<PathBuf>>,
) -> Option<CertificateFiles> {
    match (cert_file, key_file) {
        (Some(cert), Some(key)) => Some(CertificateFiles { cert_file: cert.value, key_file: key.value }),
        (Some(_), None) => {
            section.missing("key_file", "with cert_file, the path of its private key");
            None
        }
        (None, Some(_)) => {
            section.missing("cert_file", "with key_file, the path of its certificate chain");
            None
        }
        (None, None) => None,
    }
}

fn embedded_server(
    section: Section<'_>,
    address: Option<Located<ApiAddress>>,
    claims: &mut rules::Claims<'_>,
) -> Embedded {
    let default = Embedded::default();
    let listen = address.and_then(|address| rules::loopback_listen(section.document, address));
    let listen = match listen {
        Some(listen) => {
            claims.claim(Located { value: listen.value.port(), at: listen.at });
            listen.value
        }
        None => {
            claims.claim_default(default.listen.port(), "control_plane.address");
            default.listen
        }
    };
    let default_policy =
        section.choice("default_policy", &[("deny", Action::Deny), ("allow", Action::Allow)]);
    let leaf_ttl = duration(&section, "leaf_ttl", SHORTEST_LEAF, LONGEST_LEAF);
    let trust_domain =
        section.text("trust_domain", "lower-case letters, digits, `-`, `_`, `.`, at most 255", |text| {
            text.parse::<TrustDomain>().map_err(|_| "")
        });
    let acl = section.boolean("acl").is_some_and(|acl| acl.value);
    let expose = expose(section.section("expose"), acl, claims);
    let ca = ca_files(section.section("ca"));
    section.finish();
    Embedded {
        listen,
        default_policy: default_policy.map_or(default.default_policy, |policy| policy.value),
        leaf_ttl: leaf_ttl.unwrap_or(default.leaf_ttl),
        acl,
        trust_domain: trust_domain.map(|domain| domain.value),
        expose,
        ca,
    }
}

fn ca_files(section: Section<'_>) -> Option<CaFiles> {
    let cert_file = section.text("cert_file", PATH, absolute);
    let chain_file = section.text("chain_file", PATH, absolute);
    let key_file = section.text("key_file", PATH, absolute);
    let force = section.boolean("force_without_cross_signing").is_some_and(|force| force.value);
    if section.is_present() {
        if cert_file.is_none() && !section.has("cert_file") {
            section.missing("cert_file", "the path of the CA certificate that signs, in PEM");
        }
        if key_file.is_none() && !section.has("key_file") {
            section.missing("key_file", "the path of its private key, in PEM");
        }
    }
    section.finish();
    let chain_file = chain_file.map(|file| file.value);
    Some(CaFiles { cert_file: cert_file?.value, chain_file, key_file: key_file?.value, force })
}

fn expose(section: Section<'_>, acl: bool, claims: &mut rules::Claims<'_>) -> Option<Expose> {
    const ACCEPTED: &str = "ADDRESS:PORT such as \"10.0.0.1:8501\" or \"[::]:8501\"";
    let listen = section.text("listen", ACCEPTED, |text| match text.parse::<SocketAddr>() {
        Ok(listen) if listen.port() == 0 => Err("other hosts need a fixed port"),
        Ok(listen) => Ok(listen),
        Err(_) => Err("an IP address and a port"),
    });
    let cert_file = section.text("cert_file", PATH, absolute);
    let key_file = section.text("key_file", PATH, absolute);
    let token_file = section.text("token_file", PATH, absolute);
    if section.is_present() && listen.is_none() {
        section.missing("listen", ACCEPTED);
    }
    let certificate = certificate(&section, cert_file, key_file);
    if let Some(file) = token_file.as_ref().filter(|_| acl) {
        let hint = "only with acl = false: with ACLs on, other hosts present ACL tokens (`meshnode acl token create`)";
        section.document.note(&file.at, hint);
    }
    let beyond_loopback = listen.as_ref().is_some_and(|listen| !listen.value.ip().is_loopback());
    if beyond_loopback && token_file.is_none() && !acl {
        section.missing(
            "token_file",
            "with listen beyond loopback, the path of the token that other hosts must present",
        );
    }
    section.finish();
    let listen = listen?;
    claims.claim(Located { value: listen.value.port(), at: listen.at });
    Some(Expose { listen: listen.value, certificate, token_file: token_file.map(|file| file.value) })
}
