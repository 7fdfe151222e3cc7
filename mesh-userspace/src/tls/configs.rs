//! rustls configurations, built once per leaf, trust bundle and destination, and found again without a lock.
//!
//! A changed leaf or bundle is a new `Arc`; what was built from the old one is replaced at the next connection, while
//! live connections keep what they were opened with.
//!
//! **Resumption is off**, on both sides: every connection does a full handshake, so each one presents and verifies
//! certificates that are valid now. If it is switched on, then with a store per client configuration made here (they
//! are per source identity and destination already) and never shared between server configurations, since a resumed
//! session skips the verifiers. Authorization does not depend on it: it is decided for each connection.

use std::{collections::HashMap, hash::Hash, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, ServerConfig,
    client::Resumption,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::NoServerSessionStorage,
    sign::SingleCertAndKey,
    version::{TLS12, TLS13},
};

use super::{
    Peer, PeerError, has_aes, provider,
    secrets::Ear,
    verify::{ClientOfMesh, ServerIs, TrustBundle},
};
use crate::{
    catalog::Instance,
    identity::{Leaf, Roots, ServiceName, SpiffeId},
};

/// Why no configuration could be built.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    #[error("the trust bundle holds no usable root")]
    NoUsableRoot,
    #[error("the TLS provider cannot serve TLS 1.3 and 1.2: {0}")]
    Provider(rustls::Error),
}

/// The cache of configurations. Reading takes no lock; building one copies the small map that it goes into.
pub struct TlsConfigs {
    /// What is spoken besides the wire as Consul has it: [`MESHNODE`], or nothing.
    protocols: Vec<Vec<u8>>,
    sources: ArcSwap<HashMap<ServiceName, Arc<Source>>>,
    servers: ArcSwap<HashMap<ServiceName, Arc<Server>>>,
}

/// What connections to one destination use.
pub struct Client {
    pub config: Arc<ClientConfig>,
    /// The same for a peer that is a meshnode: [`MESHNODE`].
    pub meshnode: Arc<ClientConfig>,
    /// What is sent as SNI; an address, which is not sent, where [`SpiffeId::sni`] is no DNS name.
    pub name: ServerName<'static>,
    leaf: Arc<Leaf>,
    roots: Arc<Roots>,
}

impl Client {
    /// Whether it proves and believes what the mesh says now.
    pub fn is_for(&self, leaf: &Arc<Leaf>, roots: &Arc<Roots>) -> bool {
        Arc::ptr_eq(&self.leaf, leaf) && Arc::ptr_eq(&self.roots, roots)
    }

    /// Whose connections it makes.
    pub fn source(&self) -> &ServiceName {
        &self.leaf.id.service
    }
}

/// By service; then one entry for each namespace and datacenter that it is in.
type Destinations = HashMap<ServiceName, Vec<(SpiffeId, Arc<Client>)>>;

/// What one local service dials with.
struct Source {
    leaf: Arc<Leaf>,
    bundle: Arc<TrustBundle>,
    destinations: ArcSwap<Destinations>,
}

/// The application protocol (ALPN) between two meshnodes: one flow after another, as `docs/wire.md` says.
pub const MESHNODE: &[u8] = b"meshnode/1";

/// What connections to one local service are accepted with.
pub struct Accepting {
    pub config: Arc<ServerConfig>,
    /// The same for a client that offers [`MESHNODE`].
    pub meshnode: Arc<ServerConfig>,
    bundle: Arc<TrustBundle>,
}

impl Accepting {
    /// The roots that clients are verified against.
    pub fn roots(&self) -> &Arc<Roots> {
        self.bundle.roots()
    }

    /// Returns the client that has proved to be the owner of `chain`, as it is verified now.
    pub fn verify(&self, chain: &[CertificateDer<'_>]) -> Result<Arc<Peer>, PeerError> {
        let (leaf, intermediates) = chain.split_first().ok_or(PeerError::NoClientCertificate)?;
        self.bundle.client(leaf, intermediates, UnixTime::now())
    }
}

/// What one local service is served with.
struct Server {
    leaf: Arc<Leaf>,
    roots: Arc<Roots>,
    accepting: Arc<Accepting>,
}

impl Default for TlsConfigs {
    fn default() -> Self {
        Self::new(true)
    }
}

impl TlsConfigs {
    /// Without `meshnode`, [`MESHNODE`] is neither offered nor chosen: everybody is a foreign peer.
    pub fn new(meshnode: bool) -> Self {
        let protocols = if meshnode { vec![MESHNODE.to_vec()] } else { Vec::new() };
        Self { protocols, sources: ArcSwap::default(), servers: ArcSwap::default() }
    }

    /// Returns what a connection of the owner of `leaf` to `instance` uses: it fails unless the server is exactly the
    /// SPIFFE ID of `instance`, before the client sends its certificate or any byte of the program.
    pub fn client(
        &self,
        leaf: &Arc<Leaf>,
        roots: &Arc<Roots>,
        instance: &Instance,
    ) -> Result<Arc<Client>, ConfigError> {
        let sources = self.sources.load();
        let source = match sources.get(&leaf.id.service) {
            Some(source) if source.is_for(leaf, roots) => source.clone(),
            _ => self.add_source(leaf, roots)?,
        };
        match source.find(instance) {
            Some(config) => Ok(config),
            None => source.add(instance, &self.protocols),
        }
    }

    /// Returns what connections to the owner of `leaf` are accepted with.
    pub fn server(&self, leaf: &Arc<Leaf>, roots: &Arc<Roots>) -> Result<Arc<Accepting>, ConfigError> {
        let name = &leaf.id.service;
        if let Some(server) = self.servers.load().get(name)
            && Arc::ptr_eq(&server.leaf, leaf)
            && Arc::ptr_eq(&server.roots, roots)
        {
            return Ok(server.accepting.clone());
        }
        let bundle = Arc::new(TrustBundle::new(roots.clone()).ok_or(ConfigError::NoUsableRoot)?);
        let config = server_config(leaf, &bundle)?;
        let mut meshnode = config.clone();
        meshnode.alpn_protocols.clone_from(&self.protocols);
        let (config, meshnode) = (Arc::new(config), Arc::new(meshnode));
        let accepting = Arc::new(Accepting { config, meshnode, bundle });
        let server = Server { leaf: leaf.clone(), roots: roots.clone(), accepting: accepting.clone() };
        insert(&self.servers, name, &Arc::new(server));
        Ok(accepting)
    }

    /// Forgets the configurations, and with them the keys, of services for which `keep` is false.
    pub fn retain(&self, keep: impl Fn(&ServiceName) -> bool) {
        retain(&self.sources, &keep);
        retain(&self.servers, &keep);
    }

    fn add_source(&self, leaf: &Arc<Leaf>, roots: &Arc<Roots>) -> Result<Arc<Source>, ConfigError> {
        let bundle = Arc::new(TrustBundle::new(roots.clone()).ok_or(ConfigError::NoUsableRoot)?);
        let source = Arc::new(Source { leaf: leaf.clone(), bundle, destinations: ArcSwap::default() });
        insert(&self.sources, &leaf.id.service, &source);
        Ok(source)
    }
}

impl Source {
    fn is_for(&self, leaf: &Arc<Leaf>, roots: &Arc<Roots>) -> bool {
        Arc::ptr_eq(&self.leaf, leaf) && Arc::ptr_eq(self.bundle.roots(), roots)
    }

    fn find(&self, instance: &Instance) -> Option<Arc<Client>> {
        let destinations = self.destinations.load();
        let (_, client) = destinations
            .get(&instance.service)?
            .iter()
            .find(|(id, _)| id.namespace == instance.namespace && id.datacenter == instance.datacenter)?;
        Some(client.clone())
    }

    fn add(&self, instance: &Instance, protocols: &[Vec<u8>]) -> Result<Arc<Client>, ConfigError> {
        let expected = SpiffeId {
            trust_domain: self.bundle.roots().trust_domain.clone(),
            namespace: instance.namespace.clone(),
            datacenter: instance.datacenter.clone(),
            service: instance.service.clone(),
        };
        let verifier = ServerIs { bundle: self.bundle.clone(), expected: expected.clone() };
        let name =
            ServerName::try_from(expected.sni()).unwrap_or_else(|_| ServerName::from(instance.mesh.ip()));
        let config = client_config(&self.leaf, verifier)?;
        let mut meshnode = config.clone();
        meshnode.alpn_protocols = protocols.to_vec();
        let (config, meshnode) = (Arc::new(config), Arc::new(meshnode));
        let (leaf, roots) = (self.leaf.clone(), self.bundle.roots().clone());
        let client = Arc::new(Client { config, meshnode, name, leaf, roots });
        self.destinations.rcu(|known| {
            let mut next = HashMap::clone(known);
            next.entry(instance.service.clone()).or_default().push((expected.clone(), client.clone()));
            next
        });
        Ok(client)
    }
}

fn client_config(leaf: &Arc<Leaf>, verifier: ServerIs) -> Result<ClientConfig, ConfigError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(ConfigError::Provider)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(leaf.key.clone())));
    config.resumption = Resumption::disabled();
    // The records are not rustls' business: see `record`.
    config.enable_secret_extraction = true;
    config.key_log = Arc::new(Ear);
    Ok(config)
}

fn server_config(leaf: &Arc<Leaf>, bundle: &Arc<TrustBundle>) -> Result<ServerConfig, ConfigError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(ConfigError::Provider)?
        .with_client_cert_verifier(Arc::new(ClientOfMesh { bundle: bundle.clone() }))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(leaf.key.clone())));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    // Of two hosts, the one for which AES is dear decides.
    config.ignore_client_order = !has_aes();
    config.enable_secret_extraction = true;
    config.key_log = Arc::new(Ear);
    Ok(config)
}

fn insert<K: Clone + Eq + Hash, V>(map: &ArcSwap<HashMap<K, Arc<V>>>, key: &K, value: &Arc<V>) {
    map.rcu(|known| {
        let mut next = HashMap::clone(known);
        next.insert(key.clone(), value.clone());
        next
    });
}

fn retain<K: Clone + Eq + Hash, V>(map: &ArcSwap<HashMap<K, Arc<V>>>, keep: &impl Fn(&K) -> bool) {
    if map.load().keys().all(keep) {
        return;
    }
    map.rcu(|known| {
        let mut next = HashMap::clone(known);
        next.retain(|key, _| keep(key));
        next
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::test_pki::{Ca, LeafSpec};

    fn instance(service: &str, datacenter: &str) -> Instance {
        let datacenter = datacenter.to_owned();
        Instance { datacenter, ..Instance::testing(service, "host", "10.0.0.2:1") }
    }

    #[test]
    fn a_configuration_is_built_once_for_each_leaf_bundle_and_destination() {
        let ca = Ca::new("td.consul");
        let (leaf, roots, configs) = (ca.leaf("web"), ca.roots(), TlsConfigs::default());
        let first = configs.client(&leaf, &roots, &instance("db", "dc1")).unwrap();
        let same = configs.client(&leaf, &roots, &instance("db", "dc1")).unwrap();
        assert!(Arc::ptr_eq(&first, &same));
        for other in [instance("db", "dc2"), instance("cache", "dc1")] {
            assert!(!Arc::ptr_eq(&first, &configs.client(&leaf, &roots, &other).unwrap()));
        }
        let (one, two) = (configs.server(&leaf, &roots).unwrap(), configs.server(&leaf, &roots).unwrap());
        assert!(Arc::ptr_eq(&one, &two));
    }

    #[test]
    fn a_new_leaf_or_bundle_replaces_the_configuration() {
        let ca = Ca::new("td.consul");
        let (leaf, roots, configs) = (ca.leaf("web"), ca.roots(), TlsConfigs::default());
        let db = instance("db", "dc1");
        let (client, server) =
            (configs.client(&leaf, &roots, &db).unwrap(), configs.server(&leaf, &roots).unwrap());
        for (leaf, roots) in [(ca.leaf("web"), roots.clone()), (leaf, ca.roots())] {
            assert!(!Arc::ptr_eq(&client, &configs.client(&leaf, &roots, &db).unwrap()));
            assert!(!Arc::ptr_eq(&server, &configs.server(&leaf, &roots).unwrap()));
        }
    }

    #[test]
    fn a_service_that_left_takes_its_key_along() {
        let ca = Ca::new("td.consul");
        let (leaf, roots, configs) = (ca.leaf("web"), ca.roots(), TlsConfigs::default());
        configs.client(&leaf, &roots, &instance("db", "dc1")).unwrap();
        configs.server(&leaf, &roots).unwrap();
        configs.retain(|_| true);
        assert!(Arc::strong_count(&leaf) > 1);
        configs.retain(|name| name.as_str() != "web");
        assert_eq!(Arc::strong_count(&leaf), 1);
    }

    #[test]
    fn a_bundle_without_a_usable_root_is_refused() {
        let ca = Ca::new("td.consul");
        let leaf = ca.issue(&LeafSpec::service("web", "td.consul"));
        let roots = Arc::new(Roots {
            trust_domain: "td.consul".parse().unwrap(),
            certs: vec![rustls::pki_types::CertificateDer::from(vec![0x30, 0])],
        });
        let configs = TlsConfigs::default();
        assert_eq!(configs.server(&leaf, &roots).err(), Some(ConfigError::NoUsableRoot));
        let client = configs.client(&leaf, &roots, &instance("db", "dc1"));
        assert_eq!(client.err(), Some(ConfigError::NoUsableRoot));
    }
}
