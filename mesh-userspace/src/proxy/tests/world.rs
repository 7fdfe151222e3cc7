//! Two hosts: `a`, where `web` runs, and `b`, where `db` is protected.

use std::{
    collections::HashMap,
    future::Future,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use rustls::{ClientConfig, ServerConfig};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
};

use crate::{
    catalog::{Catalog, Instance},
    identity::Leaf,
    intention::{Action, Intention, Intentions},
    proxy::{self, CapturedFlow, CapturedFlows, InboundService, ProxyHandle, ProxySettings, Threads},
    state::{Mesh, MeshState},
    tls::{self, test_pki::Ca},
};

pub(super) const DOMAIN: &str = "td.consul";
/// What `web` dials; only the catalog knows it.
pub(super) const DB: &str = "10.9.9.9:5432";

/// The kernel's flow records.
#[derive(Default)]
pub(super) struct Records(pub(super) Mutex<HashMap<SocketAddr, CapturedFlow>>);

impl CapturedFlows for Records {
    fn take(&self, _netns: u64, peer: SocketAddr, _listener: u16) -> io::Result<Option<CapturedFlow>> {
        let record = self.0.lock().unwrap().remove(&peer);
        match &record {
            Some(record) if record.program == "panics" => panic!("a test of panics"),
            Some(record) if record.program == "unreadable" => Err(io::ErrorKind::PermissionDenied.into()),
            _ => Ok(record),
        }
    }
}

pub(super) struct World {
    pub(super) ca: Ca,
    pub(super) a: ProxyHandle,
    pub(super) b: ProxyHandle,
    pub(super) state_a: MeshState,
    pub(super) state_b: MeshState,
    pub(super) records: Arc<Records>,
    pub(super) outbound: SocketAddr,
    pub(super) guard: SocketAddr,
    pub(super) mesh_port: SocketAddr,
    /// Where the program `db` listens.
    pub(super) program: TcpListener,
}

pub(super) fn allow(source: &str, destination: &str) -> Intention {
    intention(source, destination, Action::Allow)
}

pub(super) fn intention(source: &str, destination: &str, action: Action) -> Intention {
    Intention {
        id: String::new(),
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        action,
        http: false,
    }
}

pub(super) fn local() -> std::net::TcpListener {
    std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

/// The test's own thread carries the flows: what it has not waited for has not happened.
pub(super) fn settings() -> ProxySettings {
    ProxySettings { threads: Threads::Callers, ..ProxySettings::default() }
}

impl World {
    pub(super) async fn start() -> Self {
        Self::with(settings()).await
    }

    pub(super) async fn with(settings: ProxySettings) -> Self {
        Self::of(settings, settings).await
    }

    /// With the settings of `a` and of `b`.
    pub(super) async fn of(on_a: ProxySettings, on_b: ProxySettings) -> Self {
        let ca = Ca::new(DOMAIN);
        let (state_a, state_b) = (MeshState::default(), MeshState::default());
        let records = Arc::new(Records::default());
        let (outbound, guard, mesh) = (local(), local(), local());
        let addresses = [&outbound, &guard, &mesh].map(|listener| listener.local_addr().unwrap());
        let a = proxy::start(on_a, state_a.clone(), records.clone(), vec![]).unwrap();
        a.add_outbound(0, vec![outbound]).unwrap();
        let b = proxy::start(on_b, state_b.clone(), Arc::<Records>::default(), vec![guard]).unwrap();
        let program = TcpListener::from_std({
            let listener = local();
            listener.set_nonblocking(true).unwrap();
            socket2::SockRef::from(&listener).listen(4096).unwrap();
            listener
        })
        .unwrap();
        let db = InboundService {
            id: "db-1".to_owned(),
            name: "db".parse().unwrap(),
            program: program.local_addr().unwrap().into(),
            listener: Some(mesh),
        };
        b.set_inbound(vec![db]).unwrap();
        let [outbound, guard, mesh_port] = addresses;
        let world = Self { ca, a, b, state_a, state_b, records, outbound, guard, mesh_port, program };
        world.sync("web", &world.state_a);
        world.sync("db", &world.state_b);
        world.set_instance(world.mesh_port);
        world
    }

    /// The service `db`, with the mesh port that it is to have.
    pub(super) fn db(&self, mesh: Option<std::net::TcpListener>) -> InboundService {
        InboundService {
            id: "db-1".to_owned(),
            name: "db".parse().unwrap(),
            program: self.program.local_addr().unwrap().into(),
            listener: mesh,
        }
    }

    /// Gives a host everything: roots, the leaf of its service, the catalog, and `web -> db: allow`.
    fn sync(&self, service: &str, state: &MeshState) {
        let (roots, leaf) = (self.ca.roots(), self.ca.leaf(service));
        state.update(|mesh| {
            mesh.roots = Some(roots.clone());
            mesh.leafs = [(leaf.id.service.clone(), leaf.clone())].into();
            mesh.catalog = Some(Arc::default());
            mesh.intentions = Some(Arc::new(Intentions::new([allow("web", "db")], Action::Deny)));
        });
    }

    /// Makes `mesh` the mesh port of the instance of `db` that `web` dials.
    pub(super) fn set_instance(&self, mesh: SocketAddr) {
        let meshnode = mesh == self.mesh_port;
        let instance = Instance { id: "db-1".to_owned(), mesh, meshnode, ..Instance::testing("db", "b", DB) };
        self.edit_a(|mesh| mesh.catalog = Some(Arc::new(Catalog::new([instance.clone()], ""))));
    }

    pub(super) fn edit_a(&self, edit: impl Fn(&mut Mesh)) {
        self.state_a.update(edit);
    }

    pub(super) fn edit_b(&self, edit: impl Fn(&mut Mesh)) {
        self.state_b.update(edit);
    }

    pub(super) fn captured(source: &str) -> CapturedFlow {
        CapturedFlow {
            original_dst: DB.parse().unwrap(),
            source: source.parse().unwrap(),
            destination: "db".parse().unwrap(),
            pid: 42,
            program: "psql".to_owned(),
            cookie: 7,
        }
    }

    /// A program of `a` dials the database; the kernel redirects it to the outbound listener.
    pub(super) async fn connect(&self) -> TcpStream {
        self.connect_as(Some(Self::captured("web"))).await
    }

    pub(super) async fn connect_as(&self, record: Option<CapturedFlow>) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        if let Some(record) = record {
            self.records.0.lock().unwrap().insert(socket.local_addr().unwrap(), record);
        }
        socket.connect(self.outbound).await.unwrap()
    }

    /// The program `db` accepts.
    pub(super) async fn accept(&self) -> TcpStream {
        within(self.program.accept()).await.unwrap().0
    }

    /// A flow from end to end: (program of `a`, program of `b`).
    pub(super) async fn flow(&self) -> (TcpStream, TcpStream) {
        let client = self.connect().await;
        (client, self.accept().await)
    }

    /// Whether the program `db` was left in peace.
    pub(super) async fn program_saw_nobody(&self) -> bool {
        tokio::time::timeout(Duration::from_millis(20), self.program.accept()).await.is_err()
    }

    /// Waits until no flow, and no task that serves one, is left on either host.
    pub(super) async fn idle(&self) {
        within(self.a.flows().idle()).await;
        within(self.b.flows().idle()).await;
        // Links that wait for a flow are served by a task too.
        self.a.shared.pool.clear();
        eventually("connections' tasks end", || {
            self.a.shared.connections.is_empty() && self.b.shared.connections.is_empty()
        })
        .await;
    }
}

/// Runs one ignored test of this module alone, in a process of its own, and passes its verdict on.
pub(super) fn alone(test: &str) {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("proxy::tests::{test}"), "--ignored", "--nocapture", "--test-threads=1"])
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// A bound on everything that a test waits for.
pub(super) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("a test waited for what never came")
}

pub(super) async fn eventually(what: &str, done: impl Fn() -> bool) {
    for _ in 0..2000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

/// Reads until the connection ends; returns what came, and whether the end was a reset.
pub(super) async fn read_to_end(stream: &mut TcpStream) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    match within(stream.read_to_end(&mut bytes)).await {
        Ok(_) => (bytes, false),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => (bytes, true),
        Err(error) => panic!("neither end nor reset: {error}"),
    }
}

pub(super) async fn assert_reset(stream: &mut TcpStream) {
    assert_eq!(read_to_end(stream).await, (Vec::new(), true), "a reset before any byte");
}

/// Sends `bytes` one way and reads them at the other end.
pub(super) async fn passes(from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8]) {
    within(from.write_all(bytes)).await.unwrap();
    let mut got = vec![0; bytes.len()];
    within(to.read_exact(&mut got)).await.unwrap();
    assert_eq!(got, bytes);
}

pub(super) fn reset(stream: TcpStream) {
    super::super::socket::reset_on_drop(&stream).unwrap();
    drop(stream);
}

/// Foreign ends of the wire, that do as they please.
pub(super) mod foreign {
    use rustls::{
        SupportedProtocolVersion,
        client::{
            Resumption,
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        },
        pki_types::{CertificateDer, ServerName, UnixTime},
        server::danger::{ClientCertVerified, ClientCertVerifier},
        sign::SingleCertAndKey,
    };

    use super::*;

    /// Believes everybody.
    #[derive(Debug)]
    struct Anybody;

    macro_rules! any_signature {
        () => {
            fn verify_tls12_signature(
                &self,
                _: &[u8],
                _: &CertificateDer<'_>,
                _: &rustls::DigitallySignedStruct,
            ) -> Result<HandshakeSignatureValid, rustls::Error> {
                Ok(HandshakeSignatureValid::assertion())
            }
            fn verify_tls13_signature(
                &self,
                _: &[u8],
                _: &CertificateDer<'_>,
                _: &rustls::DigitallySignedStruct,
            ) -> Result<HandshakeSignatureValid, rustls::Error> {
                Ok(HandshakeSignatureValid::assertion())
            }
            fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
                tls::provider().signature_verification_algorithms.supported_schemes()
            }
        };
    }

    impl ServerCertVerifier for Anybody {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            Ok(ServerCertVerified::assertion())
        }
        any_signature!();
    }

    impl ClientCertVerifier for Anybody {
        fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
            &[]
        }
        fn verify_client_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: UnixTime,
        ) -> Result<ClientCertVerified, rustls::Error> {
            Ok(ClientCertVerified::assertion())
        }
        any_signature!();
    }

    pub(in super::super) fn client_config(
        leaf: Option<&Leaf>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody));
        let mut config = match leaf {
            Some(leaf) => {
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(leaf.key.clone())))
            }
            None => builder.with_no_client_auth(),
        };
        config.resumption = Resumption::disabled();
        Arc::new(config)
    }

    pub(in super::super) fn server_config(
        leaf: &Leaf,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Arc<ServerConfig> {
        Arc::new(
            ServerConfig::builder_with_provider(tls::provider())
                .with_protocol_versions(versions)
                .unwrap()
                .with_client_cert_verifier(Arc::new(Anybody))
                .with_cert_resolver(Arc::new(SingleCertAndKey::from(leaf.key.clone()))),
        )
    }

    /// Connects to a mesh port with a leaf of one's own choice.
    pub(in super::super) async fn connect(
        to: SocketAddr,
        config: Arc<ClientConfig>,
    ) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(to).await.unwrap();
        let name = ServerName::from(to.ip());
        within(tokio_rustls::TlsConnector::from(config).connect(name, tcp)).await
    }

    /// Accepts one connection as if it were an instance's mesh port.
    pub(in super::super) async fn accept(
        listener: &TcpListener,
        config: Arc<ServerConfig>,
    ) -> io::Result<tokio_rustls::server::TlsStream<TcpStream>> {
        let tcp = within(listener.accept()).await?.0;
        within(tokio_rustls::TlsAcceptor::from(config).accept(tcp)).await
    }
}
