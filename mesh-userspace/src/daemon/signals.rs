//! SIGTERM and SIGINT stop, SIGHUP reloads; systemd is told of it.

use std::{
    io,
    os::linux::net::SocketAddrExt,
    os::unix::net::{SocketAddr, UnixDatagram},
};

use tokio::signal::unix::{SignalKind, signal};

use super::Daemon;

/// Returns when the daemon is to stop.
pub async fn until_stop(daemon: &Daemon) -> io::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let mut hup = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = term.recv() => return Ok(()),
            _ = int.recv() => return Ok(()),
            () = daemon.stop.notified() => return Ok(()),
            _ = hup.recv() => {
                notify("RELOADING=1");
                if let Err(error) = daemon.reload_config().await {
                    tracing::error!(%error, "the configuration was not read again");
                }
                notify("READY=1");
            }
        }
    }
}

/// Tells the service manager (sd_notify(3)); without one it does nothing.
pub fn notify(state: &str) {
    let Some(path) = std::env::var("NOTIFY_SOCKET").ok() else { return };
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!(%error, "cannot tell the service manager");
    }
}
