//! `relay LISTEN TO`: copies bytes of each connection, without TLS: what two hops through user space cost by themselves.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use tokio::{
    io::copy_bidirectional_with_sizes,
    net::{TcpListener, TcpStream},
};

/// What is copied at once, in each direction.
const BUFFER: usize = 64 * 1024;

#[tokio::main]
async fn main() -> Result<()> {
    mesh_bench::usage::raise_file_limit()?;
    let addresses: Vec<SocketAddr> =
        std::env::args().skip(1).map(|word| word.parse()).collect::<Result<_, _>>()?;
    let [listen, to] = addresses[..] else { anyhow::bail!("relay LISTEN TO") };
    let listener = TcpListener::bind(listen).await.with_context(|| format!("listen at {listen}"))?;
    loop {
        let (from, _) = listener.accept().await?;
        // One connection's failure is seen by its ends.
        tokio::spawn(async move { relay(from, to).await.ok() });
    }
}

async fn relay(mut from: TcpStream, to: SocketAddr) -> std::io::Result<()> {
    let mut to = TcpStream::connect(to).await?;
    from.set_nodelay(true)?;
    to.set_nodelay(true)?;
    copy_bidirectional_with_sizes(&mut from, &mut to, BUFFER, BUFFER).await.map(drop)
}
