//! Queries over TCP: messages with their length before them, as many on a connection as the program likes.
//!
//! What is not the mesh's goes on over one connection to the server that was asked, and comes back as it is and in its
//! order; answers of our own go in between.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Mutex,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{Namespace, Outcome, Refusal, Route, Shared, Transport, count, is_query};

/// A connection that asks nothing is closed after this; a server that was asked has its own mind about it.
const IDLE: Duration = Duration::from_secs(30);
/// How long an answer may take to be taken.
const STALLED: Duration = Duration::from_secs(30);

/// Serves one connection to the listener at `port`; returning resets what is still open of it.
pub(super) async fn serve(
    namespace: Arc<Namespace>,
    program: std::net::TcpStream,
    peer: SocketAddr,
    port: u16,
) {
    let shared = &namespace.shared;
    let Ok(program) = TcpStream::from_std(program) else {
        return count(&shared.counters.failed);
    };
    let route = match shared.routes.take(namespace.netns, peer, port) {
        Ok(Some(route)) => route,
        // Dialled by somebody, and not by the kernel for a program.
        Ok(None) => return count(&shared.counters.dropped),
        Err(error) => {
            tracing::warn!(%error, "cannot read which server was asked");
            return count(&shared.counters.failed);
        }
    };
    let Some(_admitted) = shared.admit(namespace.netns, &route.service) else {
        return count(&shared.counters.dropped);
    };
    let outcome = carry(&namespace, program, &route).await;
    if let Err(error) = outcome {
        count(&namespace.shared.counters.failed);
        tracing::debug!(server = %route.server, service = %route.service, %error, "a connection for names ended early");
    }
}

async fn carry(namespace: &Namespace, program: TcpStream, route: &Route) -> io::Result<()> {
    let (mut queries, answers) = program.into_split();
    let answers = Arc::new(Mutex::new(answers));
    let mut server: Option<Server> = None;
    loop {
        let next = match &server {
            None => timeout(IDLE, read(&mut queries)).await.unwrap_or(Ok(None))?,
            Some(server) => tokio::select! {
                () = server.broken.cancelled() => return Err(io::ErrorKind::ConnectionReset.into()),
                next = read(&mut queries) => next?,
            },
        };
        let Some(query) = next else { break };
        if !is_query(&query) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if let Outcome::Answer(answer) = namespace.shared.answer(&query, Transport::Tcp) {
            write(&mut *answers.lock().await, &answer).await?;
            continue;
        }
        if let Some(Refusal(answer)) = namespace.shared.refusal(route, &query) {
            let answer = answer.ok_or(io::ErrorKind::InvalidData)?;
            write(&mut *answers.lock().await, &answer).await?;
            continue;
        }
        count(&namespace.shared.counters.forwarded);
        let asked = match &mut server {
            Some(asked) => asked,
            None => server.insert(Server::dial(namespace, route, &answers).await?),
        };
        write(&mut asked.queries, &query).await?;
    }
    if let Some(mut server) = server {
        // The program asks no more; what was asked is still to be answered.
        server.queries.shutdown().await?;
        server.answers.await.unwrap_or_else(|ended| Err(io::Error::other(ended)))?;
    }
    // All was sent: the end is in order.
    SockRef::from(queries.as_ref()).set_linger(None)
}

/// The server that was asked, once it was.
struct Server {
    queries: OwnedWriteHalf,
    /// Brings back what it says; ends with it.
    answers: AbortOnDropHandle<io::Result<()>>,
    /// It reset the connection.
    broken: CancellationToken,
}

impl Server {
    async fn dial(
        namespace: &Namespace,
        route: &Route,
        program: &Arc<Mutex<OwnedWriteHalf>>,
    ) -> io::Result<Self> {
        let (from, queries) = namespace.opener.connect(route.server).await?.into_split();
        let broken = CancellationToken::new();
        let (shared, route) = (namespace.shared.clone(), route.clone());
        let (program, ending) = (program.clone(), broken.clone());
        let answers = tokio::spawn(async move {
            let outcome = bring_back(&shared, from, &program, &route).await;
            if outcome.is_err() {
                ending.cancel();
            }
            outcome
        });
        Ok(Self { queries, answers: AbortOnDropHandle::new(answers), broken })
    }
}

/// Hands the server's messages to the program until the server ends, and tells it that.
async fn bring_back(
    shared: &Shared,
    mut from: OwnedReadHalf,
    program: &Mutex<OwnedWriteHalf>,
    route: &Route,
) -> io::Result<()> {
    while let Some(answer) = read(&mut from).await? {
        shared.observers.tell(route, &answer);
        write(&mut *program.lock().await, &answer).await?;
    }
    program.lock().await.shutdown().await
}

/// Returns the next message; `None`: there is none any more.
async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    if from.read(&mut length[..1]).await? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut length[1..]).await?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    from.read_exact(&mut message).await?;
    Ok(Some(message))
}

/// Writes a message with its length before it, in one piece.
async fn write(to: &mut OwnedWriteHalf, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    timeout(STALLED, to.write_all(&framed)).await.map_err(|_| io::ErrorKind::TimedOut)?
}
