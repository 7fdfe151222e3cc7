//! Handshakes over a socket, by rustls; what comes after them is a [`Session`]'s.

use std::{collections::VecDeque, io, sync::Arc};

use rustls::{
    ClientConfig, Error, ExtractedSecrets,
    client::{ClientConnectionData, UnbufferedClientConnection},
    pki_types::{CertificateDer, ServerName},
    server::{Acceptor, ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError, UnbufferedStatus},
};
use tokio::net::TcpStream;

use super::{
    Accepting, MESHNODE,
    record::{ALERT, DATA},
    session::{Core, Session},
};

/// What one read of the socket may bring.
const READ: usize = 4096;
/// The most data that may come together with the handshake.
const MOST_EARLY: usize = 32 * 1024;
/// The most that a peer may send without getting on.
const MOST: usize = 128 * 1024;

/// What the peer presented, its leaf first; it was verified.
pub type Chain = Vec<CertificateDer<'static>>;

/// Connects as a client; `name` is sent as SNI.
///
/// # Errors
/// The socket's, or rustls': see [`PeerError::from_io`](super::PeerError::from_io).
pub async fn connect(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    mesh: &TcpStream,
) -> io::Result<Session> {
    let connection = UnbufferedClientConnection::new(config, name).map_err(invalid)?;
    Ok(Handshake::of(connection, mesh, Vec::new()).run().await?.0)
}

/// Accepts a client. Only one that offers [`MESHNODE`] is held to the protocols that it offers.
///
/// # Errors
/// The socket's, or rustls': see [`PeerError::from_io`](super::PeerError::from_io).
pub async fn accept(accepting: &Accepting, mesh: &TcpStream) -> io::Result<(Session, Chain)> {
    let mut received = Vec::new();
    let mut acceptor = Acceptor::default();
    let meshnode = loop {
        let from = received.len();
        receive(mesh, &mut received).await?;
        let mut fresh = &received[from..];
        while !fresh.is_empty() && acceptor.read_tls(&mut fresh)? > 0 {}
        match acceptor.accept() {
            Ok(Some(hello)) => {
                break hello.client_hello().alpn().is_some_and(|mut all| all.any(|one| one == MESHNODE));
            }
            Ok(None) => {}
            // What is wrong with it is said below.
            Err(_) => break false,
        }
    };
    let config = if meshnode { accepting.meshnode.clone() } else { accepting.config.clone() };
    let connection = UnbufferedServerConnection::new(config).map_err(invalid)?;
    Handshake::of(connection, mesh, received).run().await
}

/// A side of a connection.
trait Side {
    type Data;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn finish(self) -> Result<(ExtractedSecrets, Core), Error>;
    fn common(&self) -> &rustls::CommonState;
}

impl Side for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn finish(self) -> Result<(ExtractedSecrets, Core), Error> {
        self.dangerous_into_kernel_connection().map(|(secrets, core)| (secrets, Core::Client(core)))
    }

    fn common(&self) -> &rustls::CommonState {
        self
    }
}

impl Side for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn finish(self) -> Result<(ExtractedSecrets, Core), Error> {
        self.dangerous_into_kernel_connection().map(|(secrets, core)| (secrets, Core::Server(core)))
    }

    fn common(&self) -> &rustls::CommonState {
        self
    }
}

struct Handshake<'s, S> {
    connection: S,
    mesh: &'s TcpStream,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    early: VecDeque<Vec<u8>>,
    /// The peer has sent all already.
    closed: bool,
}

/// What a handshake waits for.
enum Next {
    Process,
    Peer,
    Nothing,
}

impl<'s, S: Side> Handshake<'s, S> {
    fn of(connection: S, mesh: &'s TcpStream, incoming: Vec<u8>) -> Self {
        Self { connection, mesh, incoming, outgoing: Vec::new(), early: VecDeque::new(), closed: false }
    }

    async fn run(mut self) -> io::Result<(Session, Chain)> {
        loop {
            match self.step() {
                Ok(Next::Process) => {}
                Ok(Next::Peer) => {
                    self.send().await?;
                    if self.incoming.len() > MOST {
                        return Err(invalid(Error::PeerSentOversizedRecord));
                    }
                    receive(self.mesh, &mut self.incoming).await?;
                }
                Ok(Next::Nothing) => {
                    self.send().await?;
                    return self.finish();
                }
                Err(error) => {
                    // The connection ends anyway.
                    let _ = self.encode_alert();
                    let _ = self.send().await;
                    return Err(error);
                }
            }
        }
    }

    fn step(&mut self) -> io::Result<Next> {
        let UnbufferedStatus { discard, state } = self.connection.process(&mut self.incoming);
        let next = match state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                encode(&mut data, &mut self.outgoing)?;
                Next::Process
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Next::Process
            }
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    self.early.push_back(record.map_err(invalid)?.payload.to_vec());
                }
                // Before this side has said that it is done, a peer has little to say.
                if self.early.iter().map(Vec::len).sum::<usize>() > MOST_EARLY {
                    return Err(invalid(Error::PeerSentOversizedRecord));
                }
                Next::Process
            }
            Ok(ConnectionState::BlockedHandshake) => Next::Peer,
            Ok(ConnectionState::WriteTraffic(_)) => Next::Nothing,
            Ok(ConnectionState::PeerClosed) => {
                self.closed = true;
                Next::Process
            }
            Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => {
                self.incoming.drain(..discard);
                return Err(invalid(error));
            }
        };
        self.incoming.drain(..discard);
        match next {
            Next::Nothing if self.connection.common().is_handshaking() && self.closed => {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
            Next::Nothing if self.connection.common().is_handshaking() => Ok(Next::Peer),
            next => Ok(next),
        }
    }

    /// After an error: the alert that says why. rustls must not be asked for more than that.
    fn encode_alert(&mut self) -> io::Result<()> {
        loop {
            let from = self.outgoing.len();
            let state = self.connection.process(&mut self.incoming).state;
            let Ok(ConnectionState::EncodeTlsData(mut data)) = state else { return Ok(()) };
            encode(&mut data, &mut self.outgoing)?;
            // In clear, or sealed.
            if matches!(self.outgoing.get(from), Some(&(ALERT | DATA))) {
                return Ok(());
            }
        }
    }

    async fn send(&mut self) -> io::Result<()> {
        let mut left = &self.outgoing[..];
        while !left.is_empty() {
            self.mesh.writable().await?;
            match self.mesh.try_write(left) {
                Ok(count) => left = &left[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        self.outgoing.clear();
        Ok(())
    }

    fn finish(self) -> io::Result<(Session, Chain)> {
        let common = self.connection.common();
        let chain = common.peer_certificates().map(<[_]>::to_vec).unwrap_or_default();
        let is_meshnode = common.alpn_protocol() == Some(MESHNODE);
        let (secrets, core) = self.connection.finish().map_err(invalid)?;
        let mut session = Session::new(secrets, core).map_err(invalid)?;
        session.is_meshnode = is_meshnode;
        (session.early, session.closed_early, session.ahead) = (self.early, self.closed, self.incoming);
        Ok((session, chain))
    }
}

fn encode<D>(data: &mut EncodeTlsData<'_, D>, outgoing: &mut Vec<u8>) -> io::Result<()> {
    let from = outgoing.len();
    let written = match data.encode(&mut []) {
        Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => {
            outgoing.resize(from + required_size, 0);
            data.encode(&mut outgoing[from..])
        }
        other => other,
    };
    written.map(drop).map_err(io::Error::other)
}

/// Reads once, to the end of `received`.
async fn receive(mesh: &TcpStream, received: &mut Vec<u8>) -> io::Result<()> {
    received.reserve(READ);
    loop {
        mesh.readable().await?;
        match mesh.try_read_buf(received) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

fn invalid(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
