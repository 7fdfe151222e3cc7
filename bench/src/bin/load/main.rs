//! The load of the data path's benchmark: one server for all of it, and the clients that measure.
//!
//! ```text
//! load serve ADDRESS…                       until killed
//! load bulk up|down|both --streams N        bytes as fast as they go
//! load ping --connections N                 128 bytes there and back, again and again
//! load connect --connections N [--held M]   connect, 128 bytes there and back, close; N of them at once, beside M others
//! load handshake --connections N --identity FOLDER    the same by TLS 1.3 with certificates, nothing resumed
//! load idle --connections N                 opened, used once, and held
//! load once [--identity FOLDER [--anonymous]]         one connection, one request: is somebody there? (the certificate
//!                                                     of the folder is not shown)
//! ```
//!
//! Clients take `--to ADDRESS --warm MS --time MS`. When the measured time begins and when it ends they print `begin` and
//! `end`, and wait for a line each, so that the caller can look at the proxies then; after that, one line of JSON.

mod bulk;
mod connections;
mod echo;
mod server;
mod window;

use std::{io::Write as _, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use window::{Measured, Window};

#[derive(Parser)]
enum Cli {
    Serve {
        addresses: Vec<SocketAddr>,
    },
    #[command(flatten)]
    Client(Client),
}

#[derive(Subcommand)]
enum Client {
    Bulk {
        way: bulk::Way,
        #[arg(long)]
        streams: usize,
        #[command(flatten)]
        common: Common,
    },
    Ping {
        #[arg(long)]
        connections: usize,
        #[command(flatten)]
        common: Common,
    },
    Connect {
        #[arg(long)]
        connections: usize,
        /// Others that are open meanwhile, each used once
        #[arg(long, default_value_t = 0)]
        held: usize,
        #[command(flatten)]
        common: Common,
    },
    Handshake {
        #[arg(long)]
        connections: usize,
        /// A folder with cert.pem, key.pem and roots.pem
        #[arg(long)]
        identity: PathBuf,
        #[command(flatten)]
        common: Common,
    },
    Idle {
        #[arg(long)]
        connections: usize,
        #[command(flatten)]
        common: Common,
    },
    Once {
        #[arg(long)]
        identity: Option<PathBuf>,
        #[arg(long, requires = "identity")]
        anonymous: bool,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Args)]
struct Common {
    #[arg(long)]
    to: SocketAddr,
    /// Milliseconds before the measured time
    #[arg(long, default_value_t = 300)]
    warm: u64,
    /// Milliseconds that are measured
    #[arg(long, default_value_t = 2000)]
    time: u64,
}

impl Common {
    fn window(&self) -> Window {
        Window::new(Duration::from_millis(self.warm), Duration::from_millis(self.time))
    }
}

#[expect(clippy::print_stdout, reason = "figures are what it is for")]
fn main() -> Result<()> {
    mesh_bench::usage::raise_file_limit()?;
    let measured = match Cli::parse() {
        Cli::Serve { addresses } => return server::serve(&addresses),
        Cli::Client(client) => measure(client)?,
    };
    println!("{}", measured.json());
    std::io::stdout().flush()?;
    // Connections that still move bytes end with the process.
    std::process::exit(0);
}

fn measure(client: Client) -> Result<Measured> {
    match client {
        Client::Bulk { way, streams, common } => bulk::run(common.to, way, streams, &common.window()),
        Client::Ping { connections, common } => echo::run(common.to, connections, &common.window()),
        Client::Connect { connections, held, common } => {
            let _held = connections::open(common.to, held)?;
            connections::run(connections, &common.window(), || connections::plain(common.to))
        }
        Client::Handshake { connections, identity, common } => {
            let tls = connections::Tls::new(&identity, false)?;
            connections::run(connections, &common.window(), || tls.once(common.to))
        }
        Client::Idle { connections, common } => {
            connections::hold(common.to, connections, Duration::from_millis(common.time))
        }
        Client::Once { identity, anonymous, common } => {
            let took = match identity {
                Some(folder) => connections::Tls::new(&folder, anonymous)?.once(common.to)?,
                None => connections::plain(common.to)?,
            };
            Ok(Measured { samples: vec![took], ..Measured::default() })
        }
    }
}
