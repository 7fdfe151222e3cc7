//! Handshakes over a socket, by rustls; what comes after them is a [`Session`]'s.

use std::{collections::VecDeque, io, sync::Arc};

use rustls::{
    ClientConfig, Error, ExtractedSecrets,
    client::{ClientConnectionData, UnbufferedClientConnection},
    pki_types::ServerName,
    server::{Acceptor, ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError, UnbufferedStatus},
};
use tokio::net::TcpStream;

use super::{
    Accepting, Chain, MESHNODE,
    record::{ALERT, DATA, HANDSHAKE},
    secrets::Heard,
    session::Session,
};

/// What one read of the socket may bring.
const READ: usize = 4096;
/// The most data that may come together with the handshake.
const MOST_EARLY: usize = 32 * 1024;
/// The most that a peer may send without getting on.
const MOST: usize = 128 * 1024;

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
    receive(mesh, &mut received).await?;
    let meshnode = !is_strangers(&received) && offers_meshnode(mesh, &mut received).await?;
    let config = if meshnode { accepting.meshnode.clone() } else { accepting.config.clone() };
    let connection = UnbufferedServerConnection::new(config).map_err(invalid)?;
    Handshake::of(connection, mesh, received).run().await
}

/// Whether it is the whole hello of a client, in one record, and [`MESHNODE`] is nowhere in it: then rustls has to read it
/// only once.
fn is_strangers(received: &[u8]) -> bool {
    const CLIENT_HELLO: u8 = 1;
    let [HANDSHAKE, _, _, r1, r0, CLIENT_HELLO, h2, h1, h0, rest @ ..] = received else { return false };
    let record = usize::from(u16::from_be_bytes([*r1, *r0]));
    let length = u32::from_be_bytes([0, *h2, *h1, *h0]) as usize;
    let Some(hello) = rest.get(..length) else { return false };
    4 + length <= record && !hello.windows(MESHNODE.len()).any(|bytes| bytes == MESHNODE)
}

/// Receives the rest of the client's hello.
async fn offers_meshnode(mesh: &TcpStream, received: &mut Vec<u8>) -> io::Result<bool> {
    let mut acceptor = Acceptor::default();
    let mut read = 0;
    loop {
        let mut fresh = &received[read..];
        while !fresh.is_empty() && acceptor.read_tls(&mut fresh)? > 0 {}
        read = received.len();
        match acceptor.accept() {
            Ok(Some(hello)) => {
                return Ok(hello.client_hello().alpn().is_some_and(|mut all| all.any(|one| one == MESHNODE)));
            }
            Ok(None) => receive(mesh, received).await?,
            // What is wrong with it is said by who shakes hands.
            Err(_) => return Ok(false),
        }
    }
}

/// A side of a connection.
trait Side {
    const IS_CLIENT: bool;
    type Data;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    /// Ends rustls' part in it. What it would keep to make later keys is dropped: [`secrets`](super::secrets) does that.
    fn finish(self) -> Result<ExtractedSecrets, Error>;
    fn common(&self) -> &rustls::CommonState;
}

impl Side for UnbufferedClientConnection {
    const IS_CLIENT: bool = true;
    type Data = ClientConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn finish(self) -> Result<ExtractedSecrets, Error> {
        self.dangerous_into_kernel_connection().map(|(keys, _)| keys)
    }

    fn common(&self) -> &rustls::CommonState {
        self
    }
}

impl Side for UnbufferedServerConnection {
    const IS_CLIENT: bool = false;
    type Data = ServerConnectionData;

    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn finish(self) -> Result<ExtractedSecrets, Error> {
        self.dangerous_into_kernel_connection().map(|(keys, _)| keys)
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
    heard: Heard,
}

/// What a handshake waits for.
enum Next {
    Process,
    Peer,
    Nothing,
}

impl<'s, S: Side> Handshake<'s, S> {
    fn of(connection: S, mesh: &'s TcpStream, incoming: Vec<u8>) -> Self {
        let (outgoing, early, heard) = (Vec::new(), VecDeque::new(), Heard::default());
        Self { connection, mesh, incoming, outgoing, early, closed: false, heard }
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
        let UnbufferedStatus { discard, state } =
            self.heard.during(|| self.connection.process(&mut self.incoming));
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
            let state = self.heard.during(|| self.connection.process(&mut self.incoming)).state;
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
        let suite = common.negotiated_cipher_suite().ok_or_else(|| invalid(Error::HandshakeNotComplete))?;
        let keys = self.connection.finish().map_err(invalid)?;
        let mut session = Session::new(S::IS_CLIENT, suite, keys, self.heard).map_err(invalid)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A client's hello of these extensions, in records of at most so many bytes.
    fn hello(extensions: &[u8], most: usize) -> Vec<u8> {
        let length = u8::try_from(extensions.len()).unwrap();
        let message = [&[1, 0, 0, length], extensions].concat();
        let record = |part: &[u8]| [&[HANDSHAKE, 3, 1, 0, u8::try_from(part.len()).unwrap()], part].concat();
        message.chunks(most).flat_map(record).collect()
    }

    #[test]
    fn a_strangers_hello_is_known_when_all_of_it_is_there_and_has_no_word_of_meshnodes() {
        let (stranger, meshnode) = (hello(b"h2 http/1.1", 200), hello(b"h2 meshnode/1", 200));
        assert!(is_strangers(&stranger));
        assert!(is_strangers(&[&stranger[..], b"and more"].concat()));
        assert!(!is_strangers(&meshnode));
        for end in 0..stranger.len() {
            assert!(!is_strangers(&stranger[..end]), "the first {end} bytes");
        }
        for most in 1..stranger.len() - 5 {
            assert!(!is_strangers(&hello(b"h2 http/1.1", most)), "records of {most} bytes");
        }
        assert!(!is_strangers(b"GET / HTTP/1.1\r\n\r\n"));
    }
}
