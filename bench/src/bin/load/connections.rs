//! New connections: plain, by TLS, and held.

use std::{
    io::{ErrorKind, Read, Write},
    iter,
    net::{SocketAddr, TcpStream},
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _};

use crate::{
    echo::{MESSAGE, request},
    window::{Measured, Window, tell},
};

/// Does `connection` again and again, by `threads` threads; it returns how long it took until its first byte came.
pub fn run(
    threads: usize,
    window: &Window,
    connection: impl Fn() -> Result<Duration> + Sync,
) -> Result<Measured> {
    let connection = &connection;
    let thread = |_| -> Box<dyn FnOnce() -> Result<()> + Send + '_> {
        Box::new(move || {
            let mut recorder = window.recorder();
            while !window.is_over() {
                recorder.took(connection()?);
            }
            Ok(())
        })
    };
    window.measure((0..threads).map(thread).collect())
}

/// Connects, has a request answered, and closes.
pub fn plain(to: SocketAddr) -> Result<Duration> {
    let (stream, start) = connect(to)?;
    exchange(stream, start)
}

/// Returns a connection and when it was begun.
fn connect(to: SocketAddr) -> Result<(TcpStream, Instant)> {
    let (stream, start) = loop {
        let start = Instant::now();
        match TcpStream::connect(to) {
            // All ports were used within the last second: a fast machine, an old kernel, and nothing between.
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
                std::thread::sleep(Duration::from_millis(1));
            }
            stream => break (stream.context("connect")?, start),
        }
    };
    stream.set_nodelay(true)?;
    // Whoever loses a request must not hang the measurement.
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok((stream, start))
}

fn exchange(mut stream: impl Read + Write, start: Instant) -> Result<Duration> {
    stream.write_all(&request()).context("send the request")?;
    let mut answer = [0; MESSAGE];
    let first = stream.read(&mut answer).context("wait for the answer")?;
    let took = start.elapsed();
    anyhow::ensure!(first > 0, "closed without an answer");
    stream.read_exact(&mut answer[first..]).context("wait for the rest of the answer")?;
    Ok(took)
}

/// Opens `count` connections, uses each once, and holds them for `time`.
pub fn hold(to: SocketAddr, count: usize, time: Duration) -> Result<Measured> {
    tell("begin")?;
    let start = Instant::now();
    let held = open(to, count)?;
    let opened = start.elapsed();
    std::thread::sleep(time);
    tell("end")?;
    // They were held: each is there still.
    for stream in &held {
        exchange(stream, Instant::now())?;
    }
    Ok(Measured { time: opened, samples: vec![opened; count], bytes: 0 })
}

/// Opens `count` connections and uses each once.
pub fn open(to: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    /// Threads that open them.
    const OPENERS: usize = 8;
    let open = |n: usize| -> Result<Vec<TcpStream>> {
        let part = (n..count).step_by(OPENERS);
        part.map(|_| {
            let (stream, start) = connect(to)?;
            exchange(&stream, start)?;
            Ok(stream)
        })
        .collect()
    };
    let parts: Vec<Vec<TcpStream>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..OPENERS.min(count)).map(|n| scope.spawn(move || open(n))).collect();
        threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect::<Result<_>>()
    })?;
    Ok(parts.into_iter().flatten().collect())
}

/// A TLS client that resumes nothing.
pub struct Tls {
    config: Arc<ClientConfig>,
}

impl Tls {
    /// With the certificate in `folder`, or without one.
    pub fn new(folder: &Path, anonymous: bool) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_file_iter(folder.join("roots.pem"))? {
            roots.add(root?)?;
        }
        let provider = Arc::new(CryptoProvider {
            cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
            kx_groups: vec![aws_lc_rs::kx_group::X25519],
            ..aws_lc_rs::default_provider()
        });
        let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(ChainOnly { chain, verified: OnceLock::new() }));
        let mut config = if anonymous {
            builder.with_no_client_auth()
        } else {
            let chain = CertificateDer::pem_file_iter(folder.join("cert.pem"))?.collect::<Result<_, _>>()?;
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(folder.join("key.pem"))?)?
        };
        config.resumption = Resumption::disabled();
        Ok(Self { config: Arc::new(config) })
    }

    /// Connects, shakes hands, has a request answered, and closes.
    pub fn once(&self, to: SocketAddr) -> Result<Duration> {
        let (mut socket, start) = connect(to)?;
        let mut session = ClientConnection::new(self.config.clone(), ServerName::from(to.ip()))?;
        let took = exchange(rustls::Stream::new(&mut session, &mut socket), start)?;
        session.send_close_notify();
        session.write_tls(&mut socket)?;
        Ok(took)
    }
}

/// Verifies everything but the name: leafs of a mesh have none. The chain that it verified first it does not verify again: the
/// proxy is what is measured, on the same cores. That the proxy has the key is proved each time.
#[derive(Debug)]
struct ChainOnly {
    chain: Arc<WebPkiServerVerifier>,
    verified: OnceLock<Vec<CertificateDer<'static>>>,
}

impl ServerCertVerifier for ChainOnly {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        use rustls::CertificateError::{NotValidForName, NotValidForNameContext};
        let chain = || iter::once(leaf).chain(intermediates);
        if self.verified.get().is_some_and(|verified| chain().eq(verified)) {
            return Ok(ServerCertVerified::assertion());
        }
        match self.chain.verify_server_cert(leaf, intermediates, name, ocsp, now) {
            // rustls looks at the name last, after chain, validity and usage.
            Ok(_)
            | Err(rustls::Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. })) => {}
            Err(error) => return Err(error),
        }
        self.verified.get_or_init(|| chain().map(|one| one.clone().into_owned()).collect());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
