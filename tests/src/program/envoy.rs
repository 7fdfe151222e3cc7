//! Envoy as a service's sidecar: the leaf and the roots are the control plane's, callers are authorized by SPIFFE ID.
//!
//! What Consul tells its Envoys over xDS is written here as a static configuration (Consul 1.8 speaks an xDS that Envoy
//! 1.40 has forgotten), but for leaf and roots, which Envoy watches as files.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};

use super::listens;
use crate::{foreign::Pair, meshnode::UNMANAGED, process::Process};

const API: &str = "type.googleapis.com/envoy";

/// Returns the envoy binary: `$ENVOY_BIN`, or what `cargo xtask setup` put below `target/`; without one says loudly
/// that the test is skipped.
///
/// # Panics
/// Under CI, where no test is skipped for want of Envoy.
pub fn binary() -> Option<PathBuf> {
    let places = [
        std::env::var_os("ENVOY_BIN").map(PathBuf::from),
        Some(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/bin/envoy").into()),
    ];
    let found = places.into_iter().flatten().find(|p| p.is_file());
    if found.is_none() {
        assert!(
            std::env::var_os("CI").is_none(),
            "CI runs no test without Envoy: `cargo xtask setup` installs it"
        );
        eprintln!("SKIP: no envoy binary; `cargo xtask setup` installs it, or set ENVOY_BIN");
    }
    found
}

/// Returns from a test, after saying so, where Envoy is not installed.
#[macro_export]
macro_rules! require_envoy {
    () => {
        if $crate::program::envoy::binary().is_none() {
            return;
        }
    };
}

/// What a sidecar is to do, until it is started.
#[derive(Debug)]
pub struct Sidecar<'a> {
    pair: &'a Pair,
    /// Whose leaf it has.
    service: String,
    /// What the names of its files begin with.
    base: PathBuf,
    versions: (&'static str, &'static str),
    /// Who a server must be, if not the destination.
    believed: Option<String>,
    listeners: Vec<Value>,
    clusters: Vec<Value>,
    ports: Vec<u16>,
}

impl<'a> Sidecar<'a> {
    /// With the leaf of `service`, and TLS 1.3 only.
    pub fn of(pair: &'a Pair, service: &str) -> Self {
        Self {
            pair,
            service: service.to_owned(),
            base: pair.b.log_file("envoy"),
            versions: ("TLSv1_3", "TLSv1_3"),
            believed: None,
            listeners: Vec::new(),
            clusters: Vec::new(),
            ports: Vec::new(),
        }
    }

    /// With TLS from the one to the other version, as Envoy spells them, for what is added after this.
    pub fn versions(mut self, versions: (&'static str, &'static str)) -> Self {
        self.versions = versions;
        self
    }

    /// Believes no server but `service`, wherever it dials after this.
    pub fn believing_only(mut self, service: &str) -> Self {
        self.believed = Some(service.to_owned());
        self
    }

    /// Takes mTLS at `mesh_port` of B for the program at `port`, from `callers` and nobody else.
    pub fn protects(self, port: u16, mesh_port: u16, callers: &[&str]) -> Self {
        self.protects_if(port, mesh_port, callers, &json!({}))
    }

    /// The same for connections that ask for `name` by SNI; the others match no filter chain, as at a gateway.
    pub fn protects_for_sni(self, port: u16, mesh_port: u16, callers: &[&str], name: &str) -> Self {
        self.protects_if(port, mesh_port, callers, &json!({"server_names": [name]}))
    }

    fn protects_if(mut self, port: u16, mesh_port: u16, callers: &[&str], matches: &Value) -> Self {
        let domain = self.pair.trust_domain();
        let principals: Vec<Value> = callers
            .iter()
            .map(|caller| json!({"authenticated": {"principal_name": {"exact": crate::pki::spiffe_id(&domain, caller)}}}))
            .collect();
        let policies = match &principals[..] {
            [] => json!({}),
            _ => json!({"intentions": {"permissions": [{"any": true}], "principals": principals}}),
        };
        let rbac = json!({
            "name": "rbac",
            "typed_config": {
                "@type": format!("{API}.extensions.filters.network.rbac.v3.RBAC"),
                "stat_prefix": "intentions",
                "rules": {"action": "ALLOW", "policies": policies},
            },
        });
        let cluster = format!("program-{port}");
        self.clusters.push(cluster_of(&cluster, "127.0.0.1", port));
        self.listeners.push(json!({
            "name": format!("mesh-{mesh_port}"),
            "address": socket("0.0.0.0", mesh_port),
            "listener_filters": [{
                "name": "tls_inspector",
                "typed_config": {"@type": format!("{API}.extensions.filters.listener.tls_inspector.v3.TlsInspector")},
            }],
            "filter_chains": [{
                "filter_chain_match": matches,
                "filters": [rbac, tcp_proxy(&cluster)],
                "transport_socket": {
                    "name": "tls",
                    "typed_config": {
                        "@type": format!("{API}.extensions.transport_sockets.tls.v3.DownstreamTlsContext"),
                        "require_client_certificate": true,
                        "common_tls_context": self.tls(None),
                    },
                },
            }],
        }));
        self.ports.push(mesh_port);
        self
    }

    /// Lets B's programs reach `destination`, at its first instance in the catalog, by dialling loopback at `port`; only
    /// a server that is `destination` by its certificate is believed. SNI is sent as Consul has its sidecars do it.
    pub fn reaches(self, destination: &str, port: u16) -> Self {
        self.reaches_with(destination, port, &[])
    }

    /// The same, offering `alpn`.
    pub fn reaches_with(mut self, destination: &str, port: u16, alpn: &[&str]) -> Self {
        let domain = self.pair.trust_domain();
        let (address, mesh_port) = mesh_end(self.pair, destination);
        let name = format!("mesh-of-{destination}-{port}");
        let mut cluster = cluster_of(&name, &address, mesh_port);
        let believed = self.believed.as_deref().unwrap_or(destination);
        let mut tls = self.tls(Some(&crate::pki::spiffe_id(&domain, believed)));
        tls["alpn_protocols"] = json!(alpn);
        cluster["transport_socket"] = json!({
            "name": "tls",
            "typed_config": {
                "@type": format!("{API}.extensions.transport_sockets.tls.v3.UpstreamTlsContext"),
                "sni": format!("{destination}.default.dc1.internal.{domain}"),
                "common_tls_context": tls,
            },
        });
        self.clusters.push(cluster);
        self.listeners.push(json!({
            "name": format!("upstream-{destination}-{port}"),
            "address": socket("127.0.0.1", port),
            "filter_chains": [{"filters": [tcp_proxy(&name)]}],
        }));
        self.ports.push(port);
        self
    }

    /// `CommonTlsContext`: the leaf and roots of the files, the peer being `peer` if it must be a certain one.
    fn tls(&self, peer: Option<&str>) -> Value {
        let secret = |name: &str| {
            json!({"name": name, "sds_config": {
                "path_config_source": {"path": self.file(name)}, "resource_api_version": "V3",
            }})
        };
        let exactly = peer.map(|uri| json!({"san_type": "URI", "matcher": {"exact": uri}}));
        json!({
            "tls_params": {
                "tls_minimum_protocol_version": self.versions.0, "tls_maximum_protocol_version": self.versions.1,
            },
            "tls_certificate_sds_secret_configs": [secret("leaf")],
            "combined_validation_context": {
                "default_validation_context": {"match_typed_subject_alt_names": Vec::from_iter(exactly)},
                "validation_context_sds_secret_config": secret("roots"),
            },
        })
    }

    fn file(&self, what: &str) -> PathBuf {
        self.base.with_extension(format!("{what}.json"))
    }

    /// Writes leaf, roots and configuration, starts it without an admin interface, and waits for its listeners.
    #[track_caller]
    pub fn start(self) -> Envoy {
        let (leaf, roots, config) = (self.file("leaf"), self.file("roots"), self.file("config"));
        let Self { pair, service, listeners, clusters, ports, .. } = self;
        let text = json!({
            "node": {"id": "b", "cluster": service},
            "static_resources": {"listeners": listeners, "clusters": clusters},
        });
        fs::write(&config, text.to_string()).expect("scratch is ours");
        let identity = Files { service, leaf, roots };
        identity.refresh(pair);
        let binary = binary().expect("the test asked for it");
        let words = [
            binary.to_str().expect("UTF-8"),
            "--config-path",
            config.to_str().expect("UTF-8"),
            "--disable-hot-restart",
            "--concurrency",
            "1",
            "--log-level",
            "warning",
            "--component-log-level",
            "rbac:debug,connection:debug",
        ];
        let mut process = pair.b.spawn(UNMANAGED, &words);
        process.wait_ready(|| ports.iter().try_for_each(|port| listens(&pair.b, *port)));
        Envoy { process, identity }
    }
}

/// A running Envoy.
#[derive(Debug)]
pub struct Envoy {
    pub process: Process,
    pub identity: Files,
}

/// What a running Envoy watches: whose leaf, and where leaf and roots are.
#[derive(Debug)]
pub struct Files {
    service: String,
    leaf: PathBuf,
    roots: PathBuf,
}

impl Files {
    /// Takes leaf and roots from the control plane as they are now; a running Envoy sees the new files.
    #[track_caller]
    pub fn refresh(&self, pair: &Pair) {
        let leaf = pair.get(&format!("/v1/agent/connect/ca/leaf/{}", self.service));
        let certificate = json!({"tls_certificate": {
            "certificate_chain": {"inline_string": leaf["CertPEM"]},
            "private_key": {"inline_string": leaf["PrivateKeyPEM"]},
        }});
        let roots = pair.get("/v1/agent/connect/ca/roots");
        let roots = roots["Roots"].as_array().expect("roots");
        let pems: Vec<_> = roots.iter().filter_map(|root| root["RootCert"].as_str()).collect();
        let validation = json!({"validation_context": {"trusted_ca": {"inline_string": pems.join("\n")}}});
        write_secret(&self.roots, "roots", validation);
        write_secret(&self.leaf, "leaf", certificate);
    }
}

/// Envoy reads a file again when another is moved over it.
#[track_caller]
fn write_secret(file: &std::path::Path, name: &str, mut secret: Value) {
    secret["@type"] = format!("{API}.extensions.transport_sockets.tls.v3.Secret").into();
    secret["name"] = name.into();
    let new = file.with_extension("new");
    fs::write(&new, json!({"resources": [secret]}).to_string()).expect("scratch is ours");
    fs::rename(&new, file).expect("scratch is ours");
}

/// Where the catalog says that `service` takes mTLS.
#[track_caller]
fn mesh_end(pair: &Pair, service: &str) -> (String, u16) {
    crate::wait::until("an instance in the catalog", || {
        let answer = pair.get(&format!("/v1/health/connect/{service}?passing"));
        let end = &answer[0]["Service"];
        match (end["Address"].as_str(), end["Port"].as_u64().map(u16::try_from)) {
            (Some(address), Some(Ok(port))) => Ok((address.to_owned(), port)),
            _ => Err(answer.to_string()),
        }
    })
}

fn socket(address: &str, port: u16) -> Value {
    json!({"socket_address": {"address": address, "port_value": port}})
}

fn cluster_of(name: &str, address: &str, port: u16) -> Value {
    let endpoint = json!({"endpoint": {"address": socket(address, port)}});
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    })
}

fn tcp_proxy(cluster: &str) -> Value {
    json!({
        "name": "tcp_proxy",
        "typed_config": {
            "@type": format!("{API}.extensions.filters.network.tcp_proxy.v3.TcpProxy"),
            "stat_prefix": cluster,
            "cluster": cluster,
        },
    })
}
