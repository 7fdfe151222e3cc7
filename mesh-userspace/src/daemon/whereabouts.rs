//! Where the programs of protected services are, and dialling them there: in the host's network namespace, or in
//! namespaces of their own, where a socket takes [`Visitor`] to open.

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::{Notify, futures::Notified},
};
use tokio_util::sync::CancellationToken;

use super::visitor::Visitor;
use crate::{
    identity::ServiceName,
    proxy::{Dial, Reached},
};

/// What is known of all services.
#[derive(Clone, Default)]
pub struct Whereabouts(Arc<Known>);

#[derive(Default)]
struct Known {
    /// `None`: everybody is taken to be in the host's namespace.
    visitor: Option<Visitor>,
    places: ArcSwap<BTreeMap<ServiceName, Arc<Places>>>,
    moved: Notify,
}

/// Where one service's programs are.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// In the host's network namespace.
    pub at_home: bool,
    pub elsewhere: Vec<Place>,
}

/// A network namespace of a service's own.
#[derive(Clone, Debug)]
pub struct Place {
    pub inode: u64,
    /// Its own addresses, loopback not included.
    pub addresses: Vec<IpAddr>,
    /// Cancelled when no process of a workload is in it any more.
    pub gone: CancellationToken,
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        (self.inode, &self.addresses) == (other.inode, &other.addresses)
    }
}

impl PartialEq for Places {
    fn eq(&self, other: &Self) -> bool {
        (self.at_home, &self.elsewhere) == (other.at_home, &other.elsewhere)
    }
}

impl Whereabouts {
    pub fn new(visitor: Option<Visitor>) -> Self {
        Self(Arc::new(Known { visitor, ..Known::default() }))
    }

    /// Replaces all that is known.
    pub fn set(&self, places: BTreeMap<ServiceName, Places>) {
        let places = places.into_iter().map(|(service, places)| (service, Arc::new(places))).collect();
        if **self.0.places.load() != places {
            self.0.places.store(Arc::new(places));
            self.0.moved.notify_waiters();
        }
    }

    fn of(&self, service: &ServiceName) -> Arc<Places> {
        self.0.places.load().get(service).cloned().unwrap_or_default()
    }
}

/// The programs of one service.
pub struct Programs {
    service: ServiceName,
    address: SocketAddr,
    /// They are in namespaces of their own, or there are none.
    only_elsewhere: bool,
    turn: AtomicUsize,
    whereabouts: Whereabouts,
}

impl fmt::Debug for Programs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.service, self.address)
    }
}

impl Programs {
    /// `address` is where each of them listens, in its namespace.
    pub fn new(
        service: ServiceName,
        address: SocketAddr,
        only_elsewhere: bool,
        whereabouts: Whereabouts,
    ) -> Self {
        Self { service, address, only_elsewhere, turn: AtomicUsize::new(0), whereabouts }
    }

    /// Resolves when programs of services have come or gone since it was enabled.
    pub fn moved(&self) -> Notified<'_> {
        self.whereabouts.0.moved.notified()
    }

    /// Dials the one in the host's namespace, if one was seen there, then the others until one answers, beginning with the
    /// one whose turn it is; at last the host's, where one may be by now.
    async fn dial_any(&self) -> io::Result<Reached> {
        let places = self.whereabouts.of(&self.service);
        let count = places.elsewhere.len();
        let first = self.turn.fetch_add(1, Relaxed);
        let mut failed = None;
        let home = (!self.only_elsewhere).then_some(None);
        let (before, after) = if places.at_home { (home, None) } else { (None, home) };
        let elsewhere = (0..count).map(|nth| Some(&places.elsewhere[(first + nth) % count]));
        for place in before.into_iter().chain(elsewhere).chain(after) {
            let reached = match place {
                Some(place) => self.dial_in(place).await,
                None => self.dial_at_home().await,
            };
            match reached {
                Ok(reached) => return Ok(reached),
                Err(error) => failed = Some(error),
            }
        }
        let nowhere = "no program of the service is in a network namespace of its own";
        Err(failed.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotConnected, nowhere)))
    }

    /// Where a program may listen in each namespace: at the configured address. One that listens at `localhost` is at
    /// either address of loopback, or at both.
    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let other = match self.address.ip() {
            IpAddr::V4(Ipv4Addr::LOCALHOST) => Some(Ipv6Addr::LOCALHOST.into()),
            IpAddr::V6(Ipv6Addr::LOCALHOST) => Some(Ipv4Addr::LOCALHOST.into()),
            _ => None,
        };
        std::iter::once(self.address.ip()).chain(other)
    }

    async fn dial_at_home(&self) -> io::Result<Reached> {
        let mut failed = None;
        for ip in self.addresses() {
            let at = SocketAddr::new(ip, self.address.port());
            match TcpStream::connect(at).await {
                Ok(stream) => return Ok(Reached { stream, at, gone: CancellationToken::new() }),
                // What the configured address says is what counts.
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        Err(failed.expect("invariant: there is the configured address"))
    }

    /// Dials as at home, then the namespace's own addresses: a program may listen on these only.
    async fn dial_in(&self, place: &Place) -> io::Result<Reached> {
        let Some(visitor) = &self.whereabouts.0.visitor else {
            return Err(io::Error::other("network namespaces cannot be entered"));
        };
        let own = place.addresses.iter().copied().filter(|ip| *ip != self.address.ip());
        let mut failed = None;
        for ip in self.addresses().chain(own) {
            let at = SocketAddr::new(ip, self.address.port());
            let socket = visitor.inside(place.inode, move || unconnected(at)).await?;
            match TcpSocket::from_std_stream(socket.into()).connect(at).await {
                Ok(stream) => return Ok(Reached { stream, at, gone: place.gone.clone() }),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        Err(failed.expect("invariant: there is the configured address"))
    }
}

impl Dial for Programs {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn dial(&self) -> BoxFuture<'_, io::Result<Reached>> {
        Box::pin(self.dial_any())
    }
}

/// Returns a non-blocking socket of the calling thread's network namespace.
fn unconnected(to: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn programs(address: SocketAddr) -> Programs {
        Programs::new("db".parse().unwrap(), address, false, Whereabouts::default())
    }

    #[tokio::test]
    async fn a_program_on_one_address_of_loopback_is_found_from_the_other() {
        for (at, configured) in
            [("[::1]:0", Ipv4Addr::LOCALHOST.into()), ("127.0.0.1:0", Ipv6Addr::LOCALHOST.into())]
        {
            let listener = std::net::TcpListener::bind(at).unwrap();
            let at = listener.local_addr().unwrap();
            let reached = programs(SocketAddr::new(configured, at.port())).dial().await.unwrap();
            assert_eq!(reached.at, at);
        }
    }

    #[tokio::test]
    async fn a_program_elsewhere_than_configured_is_not_looked_for() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let refused = programs(SocketAddr::new("127.0.0.2".parse().unwrap(), port)).dial().await;
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        drop(listener);
        let refused = programs(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)).dial().await;
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
